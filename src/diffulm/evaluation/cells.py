"""A cell: one figure of a table, with its error and everything that is needed to make it again. No torch in here."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

NORMAL_95 = statistics.NormalDist().inv_cdf(0.975)

Length = Literal["oracle", "free", "none"]
"""Whether the canvas tells the model how long the answer is: it does (oracle), it does not (free), or nothing is filled and
nothing hidden tells a length (none: a parent read from left to right, a document scored with its end)."""


@dataclass(frozen=True)
class Cell:
    """One figure. `value` None: there is none, and `note` says why (no data, beyond the context, ...)."""

    task: str
    metric: str
    """What the value is, unit included: "accuracy", "bits a byte", "ROUGE-1"."""
    value: float | None
    stderr: float | None = None
    """Standard error over questions (or documents, or samples) and draws together."""
    count: int = 0
    """Questions, documents or samples it is the mean of."""
    length: Length = "none"
    normalisation: Literal["token", "byte", "character", "none"] = "none"
    monte_carlo: float | None = None
    """The part of the error that more draws would lessen; 0 where nothing was drawn."""
    better: Literal["higher", "lower", "neither"] = "higher"
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What repeats it: method, order, steps, draws, temperature, shots, ..."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What happened on the way, by name: contexts cut on the left, empty answers, programs that ran out of time, ..."""
    items: tuple[float, ...] = ()
    """The figure of each question in the order of the file, for paired tests between models."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Cell":
        fields: dict[str, Any] = {**values, "items": tuple(values.get("items", ()))}
        return cls(**fields)


def absent(task: str, metric: str, note: str, **more: Any) -> Cell:
    """A cell without a figure: `note` says why, "no data" where the file is not there."""
    return Cell(task, metric, None, note=note, **more)


def mean_cell(task: str, metric: str, items: Sequence[float], **more: Any) -> Cell:
    """The mean of `items` and its standard error over them; absent where there are none."""
    if not items:
        return absent(task, metric, more.pop("note", "") or "no questions", **more)
    return Cell(task, metric, statistics.fmean(items), error(items), len(items), items=tuple(items), **more)


def share_cell(task: str, metric: str, hits: Sequence[float], noise: float | None = 0.0, **more: Any) -> Cell:
    """The share of `hits` (0 or 1). noise: the error that is the draws', 0 where nothing is drawn, None where it is not told
    apart from that of the questions."""
    if not hits:
        return absent(task, metric, more.pop("note", "") or "no question could be asked", **more)
    stderr = math.hypot(share_error(sum(hits), len(hits)), noise or 0.0)
    return Cell(task, metric, statistics.fmean(hits), stderr, len(hits), monte_carlo=noise, items=tuple(hits), **more)


def share_error(hits: float, count: int) -> float:
    """Standard error of a share, by adding two hits and two misses (Agresti and Coull): never 0."""
    share = (hits + 2) / (count + 4)
    return math.sqrt(share * (1 - share) / (count + 4))


def error(items: Sequence[float]) -> float | None:
    """Standard error of the mean; None for one item, which says nothing of its error."""
    return statistics.stdev(items) / math.sqrt(len(items)) if len(items) > 1 else None


def paired(child: Cell, parent: Cell) -> tuple[float, float] | None:
    """(child - parent, the standard error of that difference), question by question; None if they were not asked the same."""
    if not child.items or len(child.items) != len(parent.items):
        return None
    differences = [a - b for a, b in zip(child.items, parent.items, strict=True)]
    found = error(differences)
    return None if found is None else (statistics.fmean(differences), found)
