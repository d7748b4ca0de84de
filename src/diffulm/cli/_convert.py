"""What `import` and `export` say when they are done."""

from __future__ import annotations

from typing import Any, TextIO

from diffulm.cli import _common


def show(report: dict[str, Any], as_json: bool, out: TextIO) -> None:
    """The report as one JSON document, or as lines for people: empty lists left out, a note a line."""
    if as_json:
        _common.write_json(report, out)
        return
    lists = {key: ", ".join(value) for key, value in report.items() if isinstance(value, list) and key != "notes"}
    facts = {key: lists.get(key, value) for key, value in report.items() if key != "notes" and value != []}
    _common.write_facts(facts, out)
    for note in report["notes"]:
        print(f"note: {note}", file=out)
