"""The mathematics of the SAT (AGIEval: Zhong et al., 2023), four options a question."""

import re

from diffulm.errors import BadInput, shown
from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, answered, choices

NORMALISATION = "character"
LETTERS = "ABCDEFGH"


def from_hub(row: Row) -> Row:
    """The hub keeps question and options as one text."""
    question = re.split(r"\s*Answer Choices:", row["query"].removeprefix("Q: "))[0]
    return {"question": question, "options": row["choices"], "label": LETTERS[row["gold"][0]]}


SOURCE = Source("satmath.jsonl", ("question", "options", "label"), ("hails/agieval-sat-math", None, "test"), from_hub)


def document(row: Row) -> Document:
    """Options as choices, and the letter of the right one as an answer to write."""
    options, label = row["options"], row["label"]
    letters = LETTERS[: len(options)]
    if not isinstance(label, str) or len(label) != 1 or label not in letters:
        raise BadInput(f"label {shown(label)} is none of {letters}; mend or delete this row")
    asked = f"Among A through {letters[-1]}, the answer is"
    context = f"Q: {row['question']} Answer Choices: {' '.join(options)}\nA: {asked}"
    return answered(context, label) | choices(context, options, letters.index(label))
