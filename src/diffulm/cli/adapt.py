"""`diffulm adapt tiny model=gpt2 data=corpus.txt out=runs/mine`: a preset or a YAML file, and settings over it."""

from __future__ import annotations

import os

import typer

from diffulm.cli import _common, _process
from diffulm.errors import BadInput


def adapt(
    preset: str = typer.Argument(..., help="A preset (tiny, diffugpt-s, ...) or a YAML file.", show_default=False),
    settings: list[str] = typer.Argument(None, metavar="key=value...", help="Over the preset; the last of a key wins."),
    plan: bool = typer.Option(False, "--plan", help="Say what would be done, do nothing."),
    as_json: bool = _common.JSON,
) -> None:
    """Make a diffusion model of a parent.

    Continual pre-training, autoregressive to diffusion. The same command, given again, goes on where it was stopped.
    """
    overrides = key_values(settings or [])
    _process.when_stopped("the same command goes on from the last checkpoint")
    with _common.only_result() as out:
        from diffulm.recipes.adapt import run

        report = run(preset, overrides, plan=plan)
        if os.environ.get("RANK", "0") != "0":
            return  # one result, however many processes
        (_common.write_json if as_json else _common.write_facts)(report, out)


def key_values(settings: list[str]) -> dict[str, str]:
    """["a=1", "a=2"] -> {"a": "2"}: of a repeated key the last wins. BadInput for anything else than key=value."""
    for setting in settings:
        if not setting.partition("=")[0].isidentifier() or "=" not in setting:
            raise BadInput(f"{setting!r} is not a setting; write key=value, for example tokens=4M")
    return {key: value for key, _, value in (setting.partition("=") for setting in settings)}
