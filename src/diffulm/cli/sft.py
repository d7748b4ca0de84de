"""`diffulm sft tiny model=pocket data=mine.jsonl out=runs/mine`: a preset or a YAML file, and settings over it."""

from __future__ import annotations

import os

import typer

from diffulm.cli import _common, _process
from diffulm.cli._common import key_values


def sft(
    preset: str = typer.Argument(..., help="A preset (tiny, instruct, ...) or a YAML file.", show_default=False),
    settings: list[str] = typer.Argument(None, metavar="key=value...", help="Over the preset; the last of a key wins."),
    as_json: bool = _common.JSON,
) -> None:
    """Fine-tune a model on conversations.

    An adapted model, or an AR parent that is adapted in the same run. The same command, given again, goes on where it was
    stopped.
    """
    overrides = key_values(settings or [])
    _process.when_stopped("the same command goes on from the last checkpoint")
    with _common.only_result() as out:
        from diffulm.recipes.sft import run

        report = run(preset, overrides)
        if os.environ.get("RANK", "0") == "0":  # one result, however many processes
            (_common.write_json if as_json else _common.write_facts)(report, out)
