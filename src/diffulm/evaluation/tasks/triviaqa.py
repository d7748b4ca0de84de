"""TriviaQA (Joshi et al., 2017): questions of quizzes, asked without any text beside them; validation part."""

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, answered


def from_hub(row: Row) -> Row:
    return {"question": row["question"], "answer": row["answer"]["value"], "aliases": row["answer"]["aliases"]}


SOURCE = Source(
    "triviaqa.jsonl",
    ("question", "answer", "aliases"),
    ("mandarjoshi/trivia_qa", "rc.nocontext", "validation"),
    from_hub,
)


def document(row: Row) -> Document:
    return answered(f"Question: {row['question']}\nAnswer:", row["answer"], aliases=row["aliases"])
