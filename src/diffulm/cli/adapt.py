"""`diffulm adapt tiny model=gpt2 data=corpus.txt out=runs/mine`: a preset or a YAML file, and settings over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TextIO

import typer

from diffulm.cli import _common, _costs, _process
from diffulm.cli._common import key_values
from diffulm.errors import BadInput

NO_SHARE = "the global batch does not divide by so many"


def adapt(
    preset: str = typer.Argument(..., help="A preset (tiny, diffugpt-s, ...) or a YAML file.", show_default=False),
    settings: list[str] = typer.Argument(None, metavar="key=value...", help="Over the preset; the last of a key wins."),
    plan: bool = typer.Option(False, "--plan", help="Say what would be done and what it would cost, do nothing."),
    devices: int = typer.Option(
        None, "--devices", help="Of a plan: on so many.  [default: 1, 8 and 64]", show_default=False
    ),
    utilisation: float = typer.Option(
        None,
        "--utilisation",
        help="Of a plan: the share of a card's peak that training gets.  [default: 0.4]",
        show_default=False,
    ),
    as_json: bool = _common.JSON,
) -> None:
    """Make a diffusion model of a parent.

    Continual pre-training, autoregressive to diffusion. The same command, given again, goes on where it was stopped.
    """
    overrides = key_values(settings or [])
    _process.when_stopped("the same command goes on from the last checkpoint")
    with _common.only_result() as out:
        from diffulm.recipes.adapt import run

        asked = {key: value for key, value in (("devices", devices), ("utilisation", utilisation)) if value is not None}
        if asked and not plan:
            raise BadInput(f"--{next(iter(asked))}: is for a plan; add --plan")
        report = run(preset, overrides, plan=plan, **asked)
        if os.environ.get("RANK", "0") != "0":
            return  # one result, however many processes
        (_common.write_json if as_json else show if plan else _common.write_facts)(report, out)


def show(report: dict[str, Any], out: TextIO) -> None:
    """The document of recipes/plan.py in sections, for terminals of any width."""
    from rich.console import Console

    console = Console(file=out, highlight=False)
    _costs.section(console, "settings", _settings(report["config"]))
    _costs.section(console, "the run", _run(report))
    if report["parameters"] is None:
        return
    _costs.section(console, "memory on each device", _memory(report))
    _costs.section(console, "cost", _cost(report))
    _costs.cards(console, report["cards"], _cell)
    _costs.section(console, "assumptions", iter(report["assumptions"].items()))


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is not as it is by default."""
    from diffulm.recipes.adapt import AdaptConfig

    usual = AdaptConfig.model_construct().model_dump(mode="json")
    for key, value in config.items():
        if key not in usual or value != usual[key]:
            yield key, "to be given" if value is None else str(value)


def _run(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "steps", f"{report['steps']:,}"
    yield "tokens", f"{report['tokens']:,}"
    if report["parameters"] is None:
        yield "costs", report["reason"]
        return
    few = report["trained_parameters"] != report["parameters"]
    trained = f", {report['trained_parameters']:,} of them or beside them train" if few else ""
    yield "parameters", f"{report['parameters']:,}{trained} ({report['sizes_from']})"
    for n, batch in report["batch"].items():
        taken = f"{batch['micro_batch']} canvases at once, {batch['accumulation']} times a step" if batch else NO_SHARE
        yield f"batch on {n}", taken


def _memory(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for n, parts in report["memory_per_device"].items():
        yield f"on {n}", _costs.memory(parts) if parts else NO_SHARE


def _cost(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "FLOPs", _costs.flops(report)
    yield "time", f"at {report['utilisation']:.0%} of the peak, and what of the memory fits"


def _cell(row: dict[str, Any], n: str) -> str:
    if row["fits"][n]:
        return _costs.time(row["hours"][n])
    micro = row["largest_micro_batch"][n]
    return f"{_costs.time(row['hours'][n])}, micro_batch={micro}" if micro else "too small"
