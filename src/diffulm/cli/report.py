"""`diffulm report runs/mine`: what a run has come to, as a page, and whether it looks healthy."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from diffulm.cli import _common


def report(
    folder: str = typer.Argument(..., help="A run's folder, finished or not.", show_default=False),
    as_json: bool = _common.JSON,
) -> None:
    """Make a run's report.html again and give the verdict.

    Also while it runs. The same verdict stands at the end of `diffulm adapt`.
    """
    with _common.only_result() as out:
        from diffulm.training.report import remade

        found = remade(Path(os.path.expanduser(folder)))
        (_common.write_json if as_json else _common.write_facts)(found, out)
