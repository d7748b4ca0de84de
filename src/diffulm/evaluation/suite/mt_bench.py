"""MT-bench (Zheng et al., 2023): its prompts of two turns, and what can be said of the answers without a judge.

Shares of all prompts: answered, empty, truncated (no end within the length); of those with a form that code can decide, how
many have it (`formats.py`); how much of an answer is 4-grams that it had before. Each is asked through the model's chat
template, child and AR parent alike, the second turn after the model's own answer to the first. A prompt that does not fit
beside its answer is not asked, and counts as not answered; where the first turn has to go to make room, that is counted too.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffulm import chat
from diffulm.canvas import encode
from diffulm.chat import Message, Template
from diffulm.errors import BadInput
from diffulm.evaluation import formats, generation, tasks, writing
from diffulm.evaluation.cells import Cell, mean_cell, share_cell
from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.trial import Trial
from diffulm.evaluation.writing import Prompt

TITLE = "instructions in two turns"
NAME = "mt_bench"
LENGTH, STEPS = 256, 64
FIELDS = ("id", "turns")


def from_hub(row: Row) -> Row:
    return {**row, "id": row["question_id"]}


SOURCE = Source("mt-bench.jsonl", FIELDS, ("lighteval/mt-bench", None, "train"), from_hub)


def document(row: Row) -> tasks.Document:
    first, second = row["turns"]
    for turn in (first, second):
        if not isinstance(turn, str) or not turn.strip():
            raise BadInput("a turn without text; mend or delete this row")
    return {"id": int(row["id"]), "turns": (first, second)}


@dataclass(frozen=True)
class Answer:
    """text None: not asked, its prompt does not fit. ended: by the token that ends a turn. whole: nothing of the conversation
    was left out."""

    text: str | None
    ended: bool = True
    whole: bool = True


def run(trial: Trial) -> list[Cell]:
    template = chat.template_of(trial.subject.tokenizer)
    rows = tasks.documents(sys.modules[__name__], trial.data, trial.limit)
    talks: list[list[Message]] = [[{"role": "user", "content": row["turns"][0]}] for row in rows]
    said = asked(trial, template, talks, [f"{row['id']} 1" for row in rows])
    for talk, row, one in zip(talks, rows, said, strict=True):
        talk += [
            {"role": "assistant", "content": one.text or ""},
            {"role": "user", "content": row["turns"][1]},
        ]
    said += asked(trial, template, talks, [f"{row['id']} 2" for row in rows])
    prompts = [(row["id"], turn) for turn in (1, 2) for row in rows]
    return cells(trial, prompts, said)


def asked(trial: Trial, template: Template, talks: Sequence[list[Message]], keys: Sequence[str]) -> list[Answer]:
    """The reply to each conversation."""
    subject, length = trial.subject, writing.room(trial.subject, LENGTH)
    fitting: dict[int, bool] = {}
    prompts = []
    for number, (talk, key) in enumerate(zip(talks, keys, strict=True)):
        try:
            kept, dropped = chat.fitted(template, talk, subject.context - len(subject.bos) - length)
        except BadInput:
            continue
        fitting[number] = dropped == 0
        prompts.append(Prompt(f"{NAME} {key}", "", length, tuple(template.opening(kept))))
    found = iter(replies(trial, template, prompts))
    return [
        Answer(*next(found), whole=fitting[number]) if number in fitting else Answer(None)
        for number in range(len(talks))
    ]


def replies(trial: Trial, template: Template, prompts: Sequence[Prompt]) -> list[tuple[str, bool]]:
    """(text, whether the model has ended it) for each prompt."""
    subject = trial.subject
    how = {"seed": trial.seed, "closing": (template.end, template.pad)}
    how |= {} if subject.autoregressive else {"steps": trial.steps or STEPS, "sampler": "confidence"}

    def reply(group: list[Prompt]) -> list[tuple[str, bool]]:
        ids, lengths = [list(one.ids or ()) for one in group], [one.length for one in group]
        keys = [one.key for one in group]
        found = subject.complete(ids, lengths, keys=keys, batch_size=trial.batch_size, **how)
        return [(one.text.strip(), one.ended) for (one,) in found]

    reads = "left to right" if subject.autoregressive else "diffusion"
    kept = trial.journal.map(f"{NAME}: {subject.name}, {reads}, {how}", prompts, reply, writing.GROUP)
    return [(text, ended) for text, ended in kept]


def cells(trial: Trial, prompts: Sequence[tuple[int, int]], said: Sequence[Answer]) -> list[Cell]:
    """The figures of all turns. prompts: number and turn of each."""
    subject = trial.subject
    own = getattr(subject.tokenizer, "chat_template", None)
    settings = writing.settings(trial, steps=STEPS, tokens=writing.room(subject, LENGTH), shots=0)
    settings |= {"template": "its own" if own else "plain"}
    counts = {"beyond the context": sum(one.text is None for one in said)}
    counts |= {"first turn left out": sum(not one.whole for one in said)}
    common = {"counts": {name: count for name, count in counts.items() if count}, "settings": settings}
    common |= {"length": writing.told(subject), "note": "" if own else "not fine-tuned"}

    def of(metric: str, what: Callable[[Answer], bool], better: str = "higher") -> Cell:
        return share_cell(NAME, metric, [float(what(one)) for one in said], better=better, **common)

    made = [
        of("share answered", lambda one: bool(one.text)),
        of("share empty", lambda one: one.text == "", "lower"),
        of("share truncated", lambda one: not one.ended, "lower"),
    ]
    for metric, checks in (("share in the form asked", formats.FORMS), ("share within the limit", formats.LIMITS)):
        pairs = zip(prompts, said, strict=True)
        held = [formats.kept(checks, *prompt, one.text or "") for prompt, one in pairs if prompt in checks]
        made.append(share_cell(NAME, metric, [float(one) for one in held], **common))
    again = [repeated(subject, one.text) for one in said if one.text]
    return [*made, mean_cell(NAME, "repeated 4-grams", again, better="lower", **common)]


def repeated(subject: Subject, text: str) -> float:
    return generation.repeated(torch.tensor([[0, *encode(subject.tokenizer, text)]]))
