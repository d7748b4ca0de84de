"""What lm-eval found, as cells: each figure with its error, over the questions that could be asked."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffulm import bounds
from diffulm.evaluation import rolling
from diffulm.evaluation.cells import Cell, mean_cell, share_cell
from diffulm.evaluation.choices import probability

Asked = Mapping[tuple[Any, Any], Sequence[Mapping[str, Any]]]
"""By (task, document): what is known of each request, see `harness.DiffuLM.scored`."""

NAMES = {"acc": "accuracy", "acc_norm": "accuracy", "acc_bytes": "accuracy", "bits_per_byte": "bits a byte"}
PER = {"acc_norm": "character", "acc_bytes": "byte", "bits_per_byte": "byte", "byte_perplexity": "byte"}


def cells(results: Mapping[str, Any], tasks: Mapping[str, Any], asked: Asked, about: Mapping[str, Any]) -> list[Cell]:
    """A cell for each metric and filter of each task. about: `length` and `settings` of all cells of a task, by task."""
    made = []
    for name, task in tasks.items():
        for key, value in results["results"][name].items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            samples = [one for one in results["samples"][name] if one["filter"] == filtered and metric in one]
            stderr = results["results"][name].get(f"{metric}_stderr,{filtered}")
            lower = results["higher_is_better"][name].get(metric) is False
            more = {"better": "lower" if lower else "higher", "normalisation": PER.get(metric, "none")} | about[name]
            title: str = NAMES.get(metric) or metric.replace("_", " ")
            title = title if filtered in ("none", "whole") else f"{title}, {filtered.replace('-', ' ')}"
            made.append(_cell(name, metric, title, (value, stderr), samples, asked, task, more))
    return made


def _cell(
    name: str,
    metric: str,
    title: str,
    found: tuple[Any, Any],
    samples: Sequence[Mapping[str, Any]],
    asked: Asked,
    task: Any,
    more: dict[str, Any],
) -> Cell:
    kept = [one for one in samples if not any(each["why"] for each in asked[name, one["doc_id"]])]
    more = more | {"counts": _counts(name, samples, asked)}
    values = [one[metric] for one in kept]
    requests = [asked[name, one["doc_id"]] for one in kept]
    if values and all(isinstance(one, tuple | list) and len(one) == 2 for one in values):
        return _weighted(name, metric, title, values, requests, more)
    if metric == "perplexity":
        nats = mean_cell(name, title, [-one for one in values], **more)
        return _exponential(nats)
    numbers = [float(one) for one in values if isinstance(one, int | float)]
    every = [float(one[metric]) for one in samples if isinstance(one[metric], int | float)]
    if len(every) < len(samples) or not every or not math.isclose(statistics.fmean(every), found[0], abs_tol=1e-9):
        stderr = found[1] if isinstance(found[1], float) else None
        return Cell(name, title, found[0], stderr, len(samples), **more)  # no mean over questions: F1 and the like
    cell = mean_cell(name, title, numbers, **more)
    if cell.value is None or not set(numbers) <= {0.0, 1.0}:
        return cell
    noise = _noise([_shares(task, one["doc"], more["normalisation"]) for one in kept], requests)
    return share_cell(name, title, numbers, noise, **more)


def _counts(name: str, samples: Sequence[Mapping[str, Any]], asked: Asked) -> dict[str, int]:
    found: Counter[str] = Counter()
    for one in samples:
        requests = asked[name, one["doc_id"]]
        why = next((each["why"] for each in requests if each["why"]), "")
        found.update([why] if why else ["contexts cut"] if any(each.get("cut") for each in requests) else [])
    return dict(found)


def _weighted(
    name: str,
    metric: str,
    title: str,
    values: Sequence[Sequence[float]],
    requests: Sequence[Sequence[Mapping[str, Any]]],
    more: dict[str, Any],
) -> Cell:
    """Of (log p, bytes or words) a document: bits a byte, or the exponential of nats a byte or word."""
    documents = [
        rolling.Document(-nats, each[0].get("stderr", 0.0), 0, int(size), 1)
        for (nats, size), each in zip(values, requests, strict=True)
        if size
    ]
    more = {key: value for key, value in more.items() if key not in ("better", "normalisation")}
    cell = rolling.bits_per_byte(name, documents, **more)
    if metric == "bits_per_byte" or cell.value is None:
        return Cell(**{**vars(cell), "metric": title})
    return _exponential(Cell(**{**vars(cell), "metric": title, "normalisation": PER.get(metric, "none")}), math.log(2))


def _exponential(cell: Cell, unit: float = 1.0) -> Cell:
    """exp of a cell in nats (or `unit` nats): its error to first order, its items none, since they are not averaged."""
    if cell.value is None:
        return cell
    value = math.exp(cell.value * unit)
    scaled = {
        key: None if old is None else old * unit * value
        for key, old in (("stderr", cell.stderr), ("monte_carlo", cell.monte_carlo))
    }
    return Cell(**{**vars(cell), "value": value, "items": (), **scaled})


def _shares(task: Any, document: Any, normalisation: str) -> list[float] | None:
    """What the nats of each choice are multiplied by before they are compared; None where they are as they are."""
    if normalisation not in ("character", "byte"):
        return None
    return [1 / len(one if normalisation == "character" else one.encode()) for one in task.doc_to_choice(document)]


def _noise(shares: Sequence[list[float] | None], requests: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """What drawing anew would move an accuracy by: from the paired draws of the best choice and its closest rival."""
    variance = 0.0
    for weights, found in zip(shares, requests, strict=True):
        drawn = [torch.tensor(one["values"], dtype=torch.float64) for one in found if one.get("values")]
        if len(drawn) < 2:
            continue
        drawn = [one * weight for one, weight in zip(drawn, weights or [1.0] * len(drawn), strict=False)]
        best = min(range(len(drawn)), key=lambda i, drawn=drawn: float(drawn[i].mean()))
        ahead = [one - drawn[best] for i, one in enumerate(drawn) if i != best]
        sure = min(probability(float(one.mean()), bounds.spread(one)[0]) for one in ahead)
        variance += sure * (1 - sure)
    return math.sqrt(variance) / len(requests)
