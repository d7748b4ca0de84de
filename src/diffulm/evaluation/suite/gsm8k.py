"""GSM8K worked out in symbols, for models that were fine-tuned on it (the paper's Table 1): the number after the last `####`.

A canvas has as many positions as a row in fine-tuning (the paper: 256), and what the question leaves of them is the answer,
its end and padding; T = 64, greedy, most confident first. A model with a chat template is asked in it, and its end of a turn
ends the text, as `diffulm sft` has tuned it; child and AR parent alike.
"""

from typing import Any

from diffulm import chat
from diffulm.canvas import encode
from diffulm.evaluation import answers, tasks, writing
from diffulm.evaluation.cells import Cell
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.tasks import Document
from diffulm.evaluation.trial import Trial
from diffulm.evaluation.writing import Prompt

TITLE = "sums in words, after fine-tuning"
NAME = "gsm8k_symbolic"
CANVAS, STEPS = 256, 64


def run(trial: Trial) -> list[Cell]:
    subject = trial.subject
    template = template_of(subject)
    documents = tasks.documents(tasks.load(NAME), trial.data, trial.limit)
    numbers = [answers.number(one["answer"]) for one in documents]
    asked = [(row, one, right) for row, (one, right) in enumerate(zip(documents, numbers, strict=True)) if right]
    prompts = [prompt(subject, template, f"{NAME} {row}", one) for row, one, _ in asked]
    closing = None if template is None else (template.end, template.pad)
    found = writing.written(trial, NAME, prompts, steps=STEPS, closing=closing)
    said = [answers.marked(one.texts[0]) for one in found]
    hits = [answers.same_number(one, right) for one, (_, _, right) in zip(said, asked, strict=True)]
    used = {"shots": 0, "canvas": canvas(subject), "template": "none" if template is None else "its own"}
    cell = writing.share(
        NAME,
        hits,
        found,
        counts={"no answer found": said.count(None), "answers empty": numbers.count(None)},
        length=writing.told(subject),
        note="" if tuned(subject) else "not fine-tuned",
        settings=writing.settings(trial, steps=STEPS, **used),
        monte_carlo=0.0,
    )
    return [cell]


def prompt(subject: Subject, template: chat.Template | None, key: str, document: Document) -> Prompt:
    """The question as a user's turn in the template, else as a text; the answer has what it leaves of the canvas, but at
    least a quarter of that."""
    if template is None:
        ids = None
        taken = len(encode(subject.tokenizer, document["context"]))
    else:
        ids = tuple(template.opening([{"role": "user", "content": document["question"]}]))
        taken = len(ids)
    room = max(canvas(subject) - len(subject.bos) - taken, canvas(subject) // 4)
    return Prompt(key, document["context"], room, ids)


def canvas(subject: Subject) -> int:
    """Positions of a row that the model was fine-tuned on, as far as the context has them."""
    return min(_note(subject).get("length", CANVAS), subject.context)


def template_of(subject: Subject) -> chat.Template | None:
    """The chat template that a tokenizer carries; `diffulm sft` leaves one with every model, an AR model too."""
    own = getattr(subject.tokenizer, "chat_template", None)
    return chat.template_of(subject.tokenizer) if own else None


def tuned(subject: Subject) -> bool:
    """Whether the model was fine-tuned on instructions or tasks: its record says so, or of an AR model its chat template."""
    return bool(_note(subject)) or (subject.autoregressive and template_of(subject) is not None)


def _note(subject: Subject) -> dict[str, Any]:
    return subject.lm.record.notes.get("sft") or {}
