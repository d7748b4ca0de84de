"""`diffulm inspect MODEL`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

import typer

from diffulm.cli import _common, _costs

if TYPE_CHECKING:
    from rich.console import Console

# What the probe's flags mean, for people; others go by their names.
SAID = {
    "full": "looks right where it may",
    "causal": "never where it may not",
    "mirrored": "nor left where it may not",
    "block": "block by block",
    "where": "logits at some positions only",
    "window": "beyond its window",
}


def inspect(
    model: str = _common.MODEL,
    mask_token: str = typer.Option(
        "auto", "--mask-token", help="auto, new, or a token (id or text) to use as the mask."
    ),
    tokens: str = typer.Option("1B", "--tokens", help="Of training, for the estimate: 600K, 4M, 1B, ..."),
    length: int = typer.Option(
        None, "--length", help="Positions of a canvas.  [default: the context, at most 2048]", show_default=False
    ),
    utilisation: float = typer.Option(0.4, "--utilisation", help="The share of a card's peak that training gets."),
    probe: bool = typer.Option(
        None,
        "--probe/--no-probe",
        help="Measure on the weights, or not at all.  [default: on weights up to 1 GB, else on a tiny twin]",
        show_default=False,
    ),
    as_json: bool = _common.JSON,
) -> None:
    """What a model is, if it can be adapted, and what that costs.

    Attention probe, identity check, what it can serve, memory, FLOPs, hours. Exit code 2 when it cannot be adapted.
    """
    from diffulm.errors import BadInput
    from diffulm.recipes.inspect import inspect as look

    with _common.only_result() as out:
        found = look(model, mask_token=mask_token, tokens=tokens, length=length, utilisation=utilisation, probe=probe)
        facts = found.as_dict()
        if as_json:
            _common.write_json(facts, out)
        elif facts.get("architecture"):
            show(facts, out)
    if found.adoptable is False:
        reason = found.reason or "the probe failed"
        raise BadInput(reason if model in reason else f"{model} cannot be adapted: {reason}")


def show(facts: dict[str, Any], out: TextIO) -> None:
    """The document of `Inspection.as_dict` in sections, for terminals of any width."""
    from rich.console import Console

    console = Console(file=out, highlight=False)
    _costs.section(console, facts["model"], _model(facts))
    _costs.section(console, f"verdict: {_verdict(facts)}", _evidence(facts))
    if facts["serves"]:
        _costs.section(console, f"serves, {facts['serves']['when']}", _serves(facts["serves"]))
    if facts["cost"]:
        _costs.section(console, f"memory, {facts['memory']['length']:,} positions", _memory(facts["memory"]))
        _cost(console, facts["cost"])
        assumed = facts["memory"]["assumptions"] | facts["cost"]["assumptions"]
        _costs.section(console, "assumptions", iter(assumed.items()))


def _model(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    used, counts, windows = facts["parameters_by_use"], facts["layer_counts"], facts["layers"]
    yield "architecture", f"{facts['architecture']} ({facts['model_type']})"
    yield "parameters", f"{facts['parameters']:,}, without embeddings {used['without_embedding']:,}"
    if used["active"] != facts["parameters"]:
        yield "active", f"{used['active']:,} for a token: experts take turns"
    kinds = (
        f"{n} {kind.replace('_', ' ')}{f' of {windows[kind]:,}' if windows[kind] else ''}" for kind, n in counts.items()
    )
    yield "layers", ", ".join(kinds)
    yield "vocabulary", f"{facts['vocabulary']:,}"
    yield "context", f"{facts['context']:,}" if facts["context"] else "no limit known"
    yield "stored", facts["dtype"] + (f", {_costs.size(facts['bytes_on_disk'])}" if facts["bytes_on_disk"] else "")
    fits = {True: ": fits", False: ": more than the vocabulary", None: ""}[facts["tokenizer_fits"]]
    yield "tokenizer", f"{facts['tokenizer'] or 'none'}{fits}"
    if facts["mask_token"]:
        yield "mask token", facts["mask_token"]
        yield "BOS", f"{facts['bos_token_id']}, {facts['bos_from']}"


def _verdict(facts: dict[str, Any]) -> str:
    if facts["kind"] == "diffusion" and facts["adoptable"]:
        return "it is a diffusion model"
    what = "its architecture" if facts["probed"] == "twin" else "it"
    return {True: f"{what} can be adapted", False: "it cannot be adapted", None: "nothing speaks against it"}[
        facts["adoptable"]
    ]


def _evidence(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    probe: dict[str, Any] = facts["probe"] or {}
    if facts["reason"]:
        yield "reason", facts["reason"]
    for what, names in (facts["tensors"] or {}).items():
        if names:
            yield what, ", ".join(names)
    if facts["evidence"]:
        yield "evidence", facts["evidence"]
    for said, answer in (("holds", True), ("does not", False)):
        if names := [name for name, value in probe.items() if value is answer]:
            yield said, ", ".join(SAID.get(name, name) for name in names)
    for name, value in probe.items():
        if name == "identity":
            yield name, f"{value:.1e} standard deviations from its own logits, at most {probe['limit']} is allowed"
        elif name == "layers":
            yield from _layers(value, "twin's layers" if facts["probed"] == "twin" else "layers")
        elif isinstance(value, str):
            yield name, value


def _layers(looks: list[tuple[str, str]] | None, title: str) -> Iterator[tuple[str, str]]:
    """Layers that look alike together: "0-3, 5: linear attention, left always"."""
    runs: dict[tuple[str, str], list[list[int]]] = {}
    for i, (kind, look) in enumerate(looks or ()):
        found = runs.setdefault((kind.replace("_", " "), look), [])
        if found and found[-1][1] == i - 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    for (kind, look), spans in runs.items():
        numbers = ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in spans)
        yield title, f"{numbers}: {kind}, {look}"


def _serves(serves: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "samplers", ", ".join(serves["samplers"]) or "none"
    yield "infilling", f"{'yes' if serves['infilling'] else 'no'}: {serves['infilling_reason']}"
    yield "scores", ", ".join(serves["scores"]) or "none"
    yield "caches", f"{', '.join(serves['caches']) or 'none'}: {serves['caches_reason']}"


def _memory(memory: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for what in ("inference", "training"):
        for kind, parts in memory[what].items():
            yield f"{what}, {kind}", _costs.memory(parts)


def _cost(console: Console, cost: dict[str, Any]) -> None:
    def rows() -> Iterator[tuple[str, str]]:
        yield "FLOPs", _costs.flops(cost)
        yield (
            "time",
            f"at {cost['utilisation']:.0%} of the peak; the state of training must fit on each card, or be sharded",
        )

    _costs.section(console, f"cost of {cost['tokens']:,} tokens in canvases of {cost['length']:,}", rows())
    fits = {row["card"]: "yes" if row["training_fits"] else "no" for row in cost["cards"]}
    _costs.cards(console, cost["cards"], lambda row, n: _costs.time(row["hours"][n]), ("state fits", fits))
