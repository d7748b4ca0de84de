"""Learning in context: MAWPS, SATMath and TriviaQA without shots and with some, by vote of three draws, and hit@3.

Shots are whole rows of the task's train file, else the last rows of the file asked from, which are then not asked. As many are
shown as leave room for the question. The same three draws vote (self-consistency: Wang et al., 2022) and are looked through for
a hit. (On SATMath hit@3 of who guesses is 58%.)
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffulm.errors import BadInput
from diffulm.evaluation import answers, data, tasks, writing
from diffulm.evaluation.cells import Cell, absent
from diffulm.evaluation.data import NoData
from diffulm.evaluation.shots import asked_and_shown, before
from diffulm.evaluation.tasks import Document
from diffulm.evaluation.trial import Trial
from diffulm.evaluation.writing import Prompt

TITLE = "learning in context"
SHOTS, DRAWS, TEMPERATURE = 4, 3, 0.7
STOP = ("\n",)


@dataclass(frozen=True)
class Kind:
    """How a task is read. length: tokens of an answer. said: the answer in a text, None where there is none."""

    length: int
    said: Callable[[str], str | None]
    right: Callable[[str | None, Document], bool]


KINDS = {
    "mawps": Kind(16, answers.number, lambda said, one: answers.same_number(said, one["answer"])),
    "satmath": Kind(8, answers.letter, lambda said, one: said == one["answer"]),
    "triviaqa": Kind(
        16, lambda text: answers.normalised(text) or None, lambda said, one: answers.contains(said, one["aliases"])
    ),
}


def run(trial: Trial) -> list[Cell]:
    return [cell for name in KINDS for cell in _cells(trial, name)]


def _cells(trial: Trial, name: str) -> list[Cell]:
    kind, shots = KINDS[name], SHOTS if trial.shots is None else trial.shots
    try:
        rows, shown = asked_and_shown(tasks.load(name), trial, shots)
    except (NoData, BadInput) as error:
        return [absent(f"{name}, {way}", "accuracy", data.why(error)) for way in ("zero-shot", "few-shot", *_drawn())]
    askable = [(n, one) for n, one in enumerate(rows) if name != "triviaqa" or answers.known(one["aliases"])]
    documents = [one for _, one in askable]
    length = writing.room(trial.subject, kind.length)
    plain = [Prompt(f"{name} {n}", one["context"], length) for n, one in askable]
    taught = [before(trial.subject, shown, [one.text], length) for one in plain]
    prompts = [Prompt(one.key, text + one.text, length) for one, (text, _) in zip(plain, taught, strict=True)]
    used = {
        "shots": len(shown),
        "shots_used": round(statistics.fmean(count for _, count in taught), 2) if taught else 0,
    }
    cell = partial(_cell, trial, name, documents, len(rows) - len(askable))

    greedy = writing.written(trial, name, plain, stop=STOP)
    cells = [cell("zero-shot", greedy, {"shots": 0, "shots_used": 0}, _voted)]
    greedy = writing.written(trial, name, prompts, stop=STOP)
    cells.append(cell("few-shot", greedy, used, _voted))
    drawn = writing.written(trial, name, prompts, stop=STOP, temperature=TEMPERATURE, draws=DRAWS)
    used = {**used, "temperature": TEMPERATURE, "draws": DRAWS}
    return [*cells, *(cell(way, drawn, used, how) for way, how in _drawn().items())]


def _drawn() -> dict[str, Callable[[Kind, tuple[str, ...], Document], bool]]:
    return {f"self-consistency of {DRAWS}": _voted, f"hit@{DRAWS}": _hit}


def _voted(kind: Kind, texts: tuple[str, ...], document: Document) -> bool:
    return kind.right(answers.majority([kind.said(one) for one in texts]), document)


def _hit(kind: Kind, texts: tuple[str, ...], document: Document) -> bool:
    return answers.hit([kind.right(kind.said(one), document) for one in texts], DRAWS)


def _cell(
    trial: Trial, name: str, documents: list[Document], left_out: int, way: str, found: list[writing.Written],
    used: dict[str, Any], how: Callable[[Kind, tuple[str, ...], Document], bool],
) -> Cell:  # fmt: skip
    kind = KINDS[name]
    hits = [how(kind, one.texts, document) for one, document in zip(found, documents, strict=True)]
    if documents and "choices" in documents[0]:
        guess = statistics.fmean(1 / len(one["choices"]) for one in documents)
        used = {**used, "chance": 1 - (1 - guess) ** DRAWS if how is _hit else guess}
    silent = sum(not any(kind.said(text) for text in one.texts) for one in found)
    return writing.share(
        f"{name}, {way}",
        hits,
        found,
        counts={"no answer found": silent, "answers empty": left_out},
        length=writing.told(trial.subject),
        settings=writing.settings(trial, **used, tokens=writing.room(trial.subject, kind.length), stop="newline"),
        monte_carlo=None if "draws" in used else 0.0,
    )
