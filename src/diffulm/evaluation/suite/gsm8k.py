"""GSM8K worked out in symbols, for models that were fine-tuned on it (the paper's Table 1): the number after the last `####`.

A canvas has 256 positions, as in fine-tuning, and what the question leaves of them is the answer, its EOS and padding; T = 64,
greedy, most confident first.
"""

from diffulm.canvas import encode
from diffulm.evaluation import answers, tasks, writing
from diffulm.evaluation.cells import Cell
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.trial import Trial
from diffulm.evaluation.writing import Prompt

TITLE = "sums in words, after fine-tuning"
NAME = "gsm8k_symbolic"
CANVAS, LEAST, STEPS = 256, 64, 64


def run(trial: Trial) -> list[Cell]:
    subject = trial.subject
    documents = tasks.documents(tasks.load(NAME), trial.data, trial.limit)
    numbers = [answers.number(one["answer"]) for one in documents]
    asked = [
        (row, one["context"], right) for row, (one, right) in enumerate(zip(documents, numbers, strict=True)) if right
    ]
    prompts = [Prompt(f"{NAME} {row}", context, length(subject, context)) for row, context, _ in asked]
    found = writing.written(trial, NAME, prompts, steps=STEPS)
    said = [answers.marked(one.texts[0]) for one in found]
    hits = [answers.same_number(one, right) for one, (_, _, right) in zip(said, asked, strict=True)]
    cell = writing.share(
        NAME,
        hits,
        found,
        counts={"no answer found": said.count(None), "answers empty": numbers.count(None)},
        length=writing.told(subject),
        note="" if tuned(subject) else "not fine-tuned",
        settings=writing.settings(trial, steps=STEPS, shots=0, canvas=min(CANVAS, subject.context)),
        monte_carlo=0.0,
    )
    return [cell]


def length(subject: Subject, question: str) -> int:
    """Tokens for the answer: what the question leaves of the canvas, but at least LEAST, where the context has them."""
    taken = len(subject.bos) + len(encode(subject.tokenizer, question))
    return max(min(CANVAS, subject.context) - taken, writing.room(subject, LEAST))


def tuned(subject: Subject) -> bool:
    """Whether the record says that the model was fine-tuned on instructions or tasks (its note `sft`)."""
    return bool(subject.lm.record.notes.get("sft"))
