"""`diffulm merge ADAPTER OUT`"""

from __future__ import annotations

import typer

from diffulm.cli import _common


def merge(
    source: str = typer.Argument(..., metavar="ADAPTER", help="A folder or hub id.", show_default=False),
    out: str = typer.Argument(..., help="The folder to make.", show_default=False),
    as_json: bool = _common.JSON,
) -> None:
    """Fold an adapter into its parent: a plain checkpoint that needs neither.

    For runs with keep_adapter=true; the others do it themselves at their end.
    """
    with _common.only_result() as out_stream:
        from diffulm.recipes.merge import merge as run

        report = run(source, out)
        if as_json:
            _common.write_json(report, out_stream)
        else:
            _common.write_facts(report, out_stream)
