"""The document of an evaluation: every cell with what repeats it, and the child beside its parent. Plain values that strict
JSON can hold. No torch in here.

Clock readings stand only under keys with `seconds` or `per_second` in them, memory readings are left out, and nothing
depends on how many texts were computed at once.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from diffulm.evaluation.cells import NORMAL_95, Cell, paired

Role = Literal["child", "parent"]
LEFT_OUT = ("memory", "batch_size")  # settings and counts with such a word in their name
SETTINGS = ("method", "order", "steps", "draws", "temperature", "shots")  # in every cell, None where it has none
ORDERS = {"left_to_right": "left to right", "autoregressive": "left to right", "bound": "any", "published": "any"}
ANSWERS = ("accuracy", "acc", "exact match", "pass@", "hit@", "share")  # metrics of what is right or wrong
CLOCK = {"seconds": "seconds", "per second": "per_second", "a second": "per_second"}


@dataclass(frozen=True)
class Measured:
    """A cell, whose it is, and the part of the suite it comes from ("tasks": from lm-eval)."""

    role: Role
    model: str
    part: str
    cell: Cell


def document(measured: Sequence[Measured], config: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """config: the settings of the evaluation. run: `seed`, `versions`, `precision` by role and `command` by part."""
    kept = [one for one in measured if "memory" not in one.cell.metric]
    variants = _variants(kept)
    rows = [_row(one, variant, run) for one, variant in zip(kept, variants, strict=True)]
    differences = [_difference(*pair) for pair in pairs(kept, variants)]
    head = {"model": config["model"], "parent": config["parent"], "config": dict(config), "versions": run["versions"]}
    return plain(head | {"cells": rows, "differences": [one for one in differences if one]})


def _row(one: Measured, variant: str, run: Mapping[str, Any]) -> dict[str, Any]:
    cell = one.cell
    settings = dict.fromkeys(SETTINGS) | {"seed": run["seed"], "precision": run["precision"][one.role]}
    settings |= {"length": cell.length, "normalisation": cell.normalisation} | _told(cell.settings)
    method = settings["method"] or ("autoregressive" if one.role == "parent" else "")
    settings["order"] = settings["order"] or settings.get("sampler") or ORDERS.get(method)
    settings |= {"versions": run["versions"], "command": run["command"][one.part]}
    figures = {"stderr": cell.stderr, "interval": interval(cell), "monte_carlo": cell.monte_carlo, "items": cell.items}
    clock = next((key for word, key in CLOCK.items() if word in cell.metric), None)
    if clock:
        figures = dict.fromkeys(figures) | {f"{clock}_{name}": value for name, value in figures.items()}
        figures |= {"value": None, clock: cell.value}
    names = {"role": one.role, "model": one.model, "part": one.part, "task": cell.task, "metric": cell.metric}
    about = {"count": cell.count, "length": cell.length, "normalisation": cell.normalisation, "better": cell.better}
    told = {"note": cell.note, "counts": _told(cell.counts), "settings": settings}
    return names | {"variant": variant, "value": cell.value} | figures | about | told


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not any(word in key for word in LEFT_OUT)}


def _variants(measured: Sequence[Measured]) -> list[str]:
    """What tells a cell from the others of the same model, task and metric, in words: "steps 16"; "" for one alone."""

    def key(i: int) -> tuple[str, ...]:
        one = measured[i]
        return one.part, one.cell.task, one.cell.metric, one.role

    found = [""] * len(measured)
    differing: dict[tuple[str, ...], list[str]] = {}
    groups = [list(of) for _, of in groupby(sorted(range(len(measured)), key=key), key)]
    for group in groups:
        differing.setdefault(key(group[0])[:3], []).extend(_telling([_marks(measured[i].cell) for i in group]))
    for group in groups:
        for i in group:
            mark, names = _marks(measured[i].cell), dict.fromkeys(differing[key(i)[:3]])
            found[i] = ", ".join(f"{name} {mark[name]}" for name in names if mark.get(name) is not None)
    return found


def _telling(marks: Sequence[Mapping[str, Any]]) -> list[str]:
    """As few names as tell all of them apart."""
    names: list[str] = []
    for name in {name: 0 for mark in marks for name in mark}:
        if len({repr([mark.get(name) for name in names]) for mark in marks}) == len(marks):
            break
        if len({repr(mark.get(name)) for mark in marks}) > 1:
            names.append(name)
    return names


def pairs(measured: Sequence[Measured], variants: Sequence[str]) -> list[tuple[str, Measured, Measured]]:
    """(variant, child's cell, parent's cell) of what both were asked; a parent with one cell stands beside all of a child."""
    found: dict[tuple[str, ...], dict[str, Measured]] = {}
    for one, variant in zip(measured, variants, strict=True):
        if one.role == "parent":
            found.setdefault((one.part, one.cell.task, one.cell.metric), {})[variant] = one
    both = []
    for one, variant in zip(measured, variants, strict=True):
        own = found.get((one.part, one.cell.task, one.cell.metric), {})
        parent = own.get(variant) or (next(iter(own.values())) if len(own) == 1 else None)
        if one.role == "child" and parent is not None:
            both.append((variant, one, parent))
    return both


def _marks(cell: Cell) -> dict[str, Any]:
    marks = {"length": cell.length, "per": cell.normalisation} | _told(cell.settings)
    return {name: value for name, value in marks.items() if value != "none"}


def interval(cell: Cell) -> tuple[float, float] | None:
    """Of 95%: Wilson's for shares of yes and no, which holds near 0 and 1 and for few questions; else the normal one.

    A share that draws make less certain counts as one of fewer questions.
    """
    if cell.value is None:
        return None
    if cell.metric.startswith(ANSWERS) and cell.items and set(cell.items) <= {0.0, 1.0}:
        p, n, z = cell.value, float(len(cell.items)), NORMAL_95
        if cell.monte_carlo and 0 < p < 1:
            n = p * (1 - p) / (p * (1 - p) / n + cell.monte_carlo**2)
        middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - width) / (1 + z * z / n)), min(1.0, (middle + width) / (1 + z * z / n))
    return None if cell.stderr is None else (cell.value - NORMAL_95 * cell.stderr, cell.value + NORMAL_95 * cell.stderr)


def _difference(variant: str, one: Measured, other: Measured) -> dict[str, Any] | None:
    """Child minus parent, question by question, where both were asked the same; not of clock readings.

    For right and wrong answers the interval is that of Agresti and Min (2005), half a question added to each of the four
    kinds: no difference in three questions is not a difference of 0 for certain.
    """
    child, parent = one.cell, other.cell
    found = paired(child, parent)
    if found is None or child.value is None or child.better == "neither" or any(word in child.metric for word in CLOCK):
        return None
    if not math.isclose(statistics.fmean(child.items), child.value, rel_tol=1e-9, abs_tol=1e-12):
        return None  # a figure that is no mean over questions (a perplexity) has another difference than they have
    (mean, stderr), p = found, None
    middle, most = mean, math.inf
    if child.metric.startswith(ANSWERS) and set(child.items) | set(parent.items) <= {0.0, 1.0}:
        both = list(zip(child.items, parent.items, strict=True))
        won, lost = sum(a > b for a, b in both), sum(a < b for a, b in both)
        p, n, most = mcnemar(won, lost), len(child.items) + 2, 1.0  # a difference of shares
        middle, stderr = (won - lost) / n, math.sqrt(won + lost + 1 - (won - lost) ** 2 / n) / n
    names = {"part": one.part, "task": child.task, "metric": child.metric, "variant": variant}
    ends = [max(-most, middle - NORMAL_95 * stderr), min(most, middle + NORMAL_95 * stderr)]
    figures = {"difference": mean, "stderr": stderr, "interval": ends, "count": len(child.items)}
    return names | figures | {"p": p, "better": child.better}


def mcnemar(won: int, lost: int) -> float:
    """The exact two-sided p of McNemar's test: how probable it is that, of the questions which one of two models alone
    answers rightly, so many or more are one model's, if both are equally good."""
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2 ** (won + lost))


def plain(value: Any) -> Any:
    """As strict JSON gives it back: no tuples, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
