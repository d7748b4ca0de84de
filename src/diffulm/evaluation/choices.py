"""Questions with choices: which of several texts a model finds likeliest where it stands.

The choices of a question share their random numbers, so most of the noise of a bound cancels in their differences; and
draws come in rounds, of which a question takes no more than its winner needs (a sequential test).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch

from diffulm import bounds, randomness, scoring
from diffulm.canvas import encode
from diffulm.evaluation.cells import Cell, share_cell
from diffulm.evaluation.journal import Journal
from diffulm.evaluation.subject import Subject
from diffulm.scoring import Method, Request

ROUND = 8  # draws between two looks: even, so that rounds are as one (`bounds.spread`)
RISK = 0.01
"""Of a question, to get another answer for having stopped early: shared by all looks and rivals (Bonferroni)."""


@dataclass(frozen=True)
class Question:
    """key: names it for its random numbers. texts: (context, choice, suffix) for each choice. label: which is right."""

    key: str
    texts: tuple[tuple[str, str, str], ...]
    label: int


@dataclass(frozen=True)
class Answer:
    """picked: the likeliest choice; None where a choice could not be asked for (`why`: "empty" or "too long")."""

    picked: int | None
    correct: bool = False
    sure: float = 1.0
    """Probability, by the error of the paired draws, that the right choice wins if it won, or that it does not if not."""
    draws: int = 0
    """Of each choice; 0 where it was exact."""
    forwards: int = 0
    cut: int = 0
    """Tokens of the context left out on the left."""
    why: str = ""


def method_for(subject: Subject, texts: Sequence[str], draws: int, asked: Method | None = None) -> Method:
    """What is `asked`; else left to right where that is cheaper than `draws` draws of the bound, as it is for short answers.
    A parent reads as it does."""
    if subject.autoregressive:
        return "autoregressive"
    if asked is not None:
        return asked
    lengths = [len(encode(subject.tokenizer, one)) for one in texts]
    return "left_to_right" if sum(lengths) <= draws * len(lengths) else "bound"


def answers(
    subject: Subject,
    questions: Sequence[Question],
    method: Method,
    draws: int = 32,
    seed: int = 0,
    normalisation: str = "none",
    risk: float = RISK,
) -> list[Answer]:
    """The answer to each question. normalisation: nats are compared per "token", "byte", "character" or as they are ("none").

    risk: 0 takes all draws of every question.
    """
    asked = [_Asked(subject, one, normalisation) for one in questions]
    waiting = [one for one in asked if not one.why]
    rounds = max(1, draws // ROUND) if method == "bound" else 1
    each = draws if rounds == 1 else ROUND
    for number in range(rounds):
        requests = [request for one in waiting for request in one.requests(number)]
        found = iter(scoring.scores(subject.denoiser, requests, method, each, seed))
        for one in waiting:
            one.add([next(found) for _ in one.question.texts])
        if number < rounds - 1 and risk > 0:
            waiting = [one for one in waiting if not one.settled(risk / (rounds - 1))]
    return [one.answer(each if method in ("bound", "published") else 0) for one in asked]


class _Asked:
    """A question on its way: what each choice cost so far."""

    def __init__(self, subject: Subject, question: Question, normalisation: str) -> None:
        self.question = question
        self.cut, self.forwards, self.rounds, self.why = 0, 0, 0, ""
        self._requests: list[Request] = []
        self.share: list[float] = []
        key = randomness.key(question.key)
        for context, choice, suffix in question.texts:
            found, cut = scoring.encoded(subject.tokenizer, subject.bos, context, choice, suffix, limit=subject.context)
            self.cut = max(self.cut, cut)
            if found is None:
                self.why = "too long" if cut else "empty"
                return
            if found.start < (1 if subject.lm.record.shift else 0):
                self.why = "empty"  # without BOS the first token has nothing to be predicted from
                return
            self._requests.append(replace(found, key=key))
            sizes = {"token": found.tokens, "byte": len(choice.encode()), "character": len(choice), "none": 1}
            self.share.append(1 / sizes[normalisation])
        self.values: list[list[float]] = [[] for _ in question.texts]
        self.nats = [0.0 for _ in question.texts]

    def requests(self, number: int) -> list[Request]:
        """Those of a round; each has random numbers of its own."""
        return [replace(one, key=randomness.key(one.key, number)) if number else one for one in self._requests]

    def add(self, found: Sequence[scoring.Scored]) -> None:
        for choice, one in enumerate(found):
            self.nats[choice] = (self.nats[choice] * self.rounds + one.nats * self.share[choice]) / (self.rounds + 1)
            self.values[choice] += [value * self.share[choice] for value in one.values]
            self.forwards += one.forwards
        self.rounds += 1

    @property
    def best(self) -> int:
        return min(range(len(self.nats)), key=self.nats.__getitem__)

    def _against(self, rival: int) -> tuple[float, float, int]:
        """(by how much the best is ahead of a rival, the standard error of that, its degrees of freedom)."""
        ahead = self.nats[rival] - self.nats[self.best]
        a, b = (torch.tensor(self.values[i], dtype=torch.float64) for i in (rival, self.best))
        error, freedom = bounds.spread(a - b) if len(a) else (0.0, 1)
        return ahead, error, freedom

    def settled(self, risk: float) -> bool:
        """Whether every rival is behind by more than the noise explains, at this risk for all of them together."""
        rivals = [i for i in range(len(self.nats)) if i != self.best]
        for rival in rivals:
            ahead, error, freedom = self._against(rival)
            if not ahead > error * bounds.student(freedom, risk / len(rivals)):
                return False
        return True

    def answer(self, each: int) -> Answer:
        if self.why:
            return Answer(None, cut=self.cut, why=self.why)
        best, label = self.best, self.question.label
        # the right choice against the best, or, where it is the best, against the closest rival
        rivals = [i for i in range(len(self.nats)) if i != best] if best == label else [label]
        sure = min(probability(*self._against(rival)[:2]) for rival in rivals)
        return Answer(best, best == label, sure, each * self.rounds, self.forwards, self.cut)


def probability(ahead: float, error: float) -> float:
    """Of being ahead indeed, for what is ahead by so much with this standard error; a half where the error is not known."""
    return NormalDist().cdf(ahead / error) if 0 < error < math.inf else 1.0 if error == 0 else 0.5


def accuracy(task: str, found: Sequence[Answer], chance: float, **more: Any) -> Cell:
    """The share of right answers. Its error is that of the questions and of the draws; questions that could not be asked are
    left out and counted."""
    items = [float(one.correct) for one in found if one.picked is not None]
    counts = {
        "contexts cut": sum(one.cut > 0 and one.picked is not None for one in found),
        "answers empty": sum(one.why == "empty" for one in found),
        "beyond the context": sum(one.why == "too long" for one in found),
    }
    settings = {**more.pop("settings", {}), "chance": chance}
    drawn = [one for one in found if one.draws]
    if drawn:
        settings["draws_taken"] = round(statistics.fmean(one.draws for one in drawn), 2)
    more |= {"settings": settings, "counts": {name: count for name, count in counts.items() if count}}
    noise = math.sqrt(sum(one.sure * (1 - one.sure) for one in found if one.picked is not None)) / max(1, len(items))
    return share_cell(task, "accuracy", items, noise, **more)


def journaled(journal: Journal, name: str, subject: Subject, questions: Sequence[Question], **how: Any) -> list[Answer]:
    """`answers` through a journal; `how` is theirs."""
    kept = journal.map(
        f"{name} of {subject.name}, {how}",
        questions,
        lambda group: [vars(one) for one in answers(subject, group, **how)],
        together=64,
    )
    return [Answer(**one) for one in kept]
