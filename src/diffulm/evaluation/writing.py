"""Questions answered in writing: prompts out of documents and shots, completions through the journal, the share of hits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffulm.evaluation.cells import Cell, Length, share_cell
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.trial import Trial

GROUP = 64  # questions a line of the journal


@dataclass(frozen=True)
class Prompt:
    """key: names it for its random numbers, by task and row. length: tokens of the answer, at most. ids: asked in place of
    the text, where a template lays it out."""

    key: str
    text: str
    length: int
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Written:
    """texts: one for each draw. cut: tokens of the prompt left out on the left."""

    texts: tuple[str, ...]
    cut: int


def room(subject: Subject, length: int) -> int:
    """`length`, or what a small model can give an answer: half its context, so that some of the question stays."""
    return max(1, min(length, (subject.context - len(subject.bos)) // 2))


def settings(trial: Trial, **more: Any) -> dict[str, Any]:
    """What repeats the texts: `more`, and for a diffusion model the order and the forwards."""
    steps = trial.steps or more.pop("steps", None)
    canvas = {} if trial.subject.autoregressive else {"sampler": "confidence", "steps": steps or "one a token"}
    return {**more, **canvas, "seed": trial.seed}


def written(
    trial: Trial, name: str, prompts: Sequence[Prompt], *, steps: int | None = None, temperature: float = 0.0,
    draws: int = 1, stop: tuple[str, ...] = (), closing: tuple[int, int] | None = None,
) -> list[Written]:  # fmt: skip
    """What the subject answers to each prompt. steps: forwards of a diffusion model, unless the trial says another number.
    closing: as in `Subject.complete`.

    The trial stays as it is: no part may change what the next one is run with.
    """
    subject = trial.subject
    how = {"temperature": temperature, "draws": draws, "stop": stop, "seed": trial.seed}
    order = {} if subject.autoregressive else {"steps": trial.steps or steps, "sampler": "confidence"}
    closed = {} if closing is None else {"closing": closing}

    def run(group: list[Prompt]) -> list[Any]:
        found = subject.complete(
            [one.text if one.ids is None else list(one.ids) for one in group],
            [one.length for one in group],
            keys=[one.key for one in group],
            batch_size=trial.batch_size,
            **how,
            **order,
            closing=closing,
        )
        return [[[one.text for one in of], of[0].cut] for of in found]

    reads = "left to right" if subject.autoregressive else "diffusion"
    kept = trial.journal.map(f"{name}: {subject.name}, {reads}, {how | order | closed}", prompts, run, GROUP)
    return [Written(tuple(texts), cut) for texts, cut in kept]


def share(task: str, hits: Sequence[bool], texts: Sequence[Written], metric: str = "accuracy", **more: Any) -> Cell:
    """The share of questions answered right; of `more`, `counts` and `note` are added to what became of the contexts."""
    cut = sum(one.cut > 0 for one in texts)
    counts = {"contexts cut": cut, **more.pop("counts", {})}
    more["counts"] = {name: count for name, count in counts.items() if count}
    said = [more.pop("note", ""), f"{cut} of {len(texts)} contexts cut on the left" if cut else ""]
    more["note"] = "; ".join(filter(None, said)) if hits else ""
    return share_cell(task, metric, [float(one) for one in hits], more.pop("monte_carlo", None), **more)


def told(subject: Subject, oracle: bool = False) -> Length:
    """The length rule of what this subject writes."""
    if subject.autoregressive:
        return "none"
    return "oracle" if oracle else "free"
