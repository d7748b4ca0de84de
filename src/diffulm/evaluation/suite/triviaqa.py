"""TriviaQA, questions without any text beside them (the paper's Table 1), answered zero-shot.

A hit as the paper counts it: an answer stands anywhere in a text as long as the longest answer, which tells the length.
Beside it the same with a length that tells nothing, and exact match.
"""

from diffulm.canvas import encode
from diffulm.evaluation import answers, tasks, writing
from diffulm.evaluation.cells import Cell
from diffulm.evaluation.trial import Trial
from diffulm.evaluation.writing import Prompt

TITLE = "questions of quizzes, closed book"
NAME = "triviaqa"
LENGTH = 16


def run(trial: Trial) -> list[Cell]:
    subject = trial.subject
    documents = tasks.documents(tasks.load(NAME), trial.data, trial.limit)
    asked = [(f"{NAME} {row}", one) for row, one in enumerate(documents) if answers.known(one["aliases"])]
    counts = {"answers empty": len(documents) - len(asked)}
    aliases = [one["aliases"] for _, one in asked]

    longest = [max(len(encode(subject.tokenizer, f" {one}")) for one in of) for of in aliases]
    prompts = [
        Prompt(key, one["context"], writing.room(subject, n)) for (key, one), n in zip(asked, longest, strict=True)
    ]
    told = writing.written(trial, NAME, prompts)
    hits = [answers.contains(one.texts[0], of) for one, of in zip(told, aliases, strict=True)]
    how = {"counts": counts, "monte_carlo": 0.0}
    given = writing.settings(trial, shots=0, tokens="as the longest answer", hit="an answer stands in the text")
    cells = [writing.share(NAME, hits, told, length=writing.told(subject, oracle=True), settings=given, **how)]

    length = writing.room(subject, LENGTH)
    free = writing.written(trial, NAME, [Prompt(one.key, one.text, length) for one in prompts], stop=("\n",))
    for metric, right in (("accuracy", answers.contains), ("exact match", answers.exact)):
        hits = [right(one.texts[0], of) for one, of in zip(free, aliases, strict=True)]
        hit = "an answer stands in the text" if metric == "accuracy" else "the text is an answer"
        given = writing.settings(trial, shots=0, tokens=length, stop="newline", hit=hit)
        task = f"{NAME}, free length"
        cells.append(writing.share(task, hits, free, metric, length=writing.told(subject), settings=given, **how))
    return cells
