"""SQuAD (Rajpurkar et al., 2016): questions whose answer stands in the text above them; development part."""

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, answered


def from_hub(row: Row) -> Row:
    """The first of the answers that people gave, and all of them."""
    answers = row["answers"]["text"]
    return {"context": row["context"], "question": row["question"], "answer": answers[0], "aliases": answers}


SOURCE = Source("squad.jsonl", ("context", "question", "answer"), ("rajpurkar/squad", None, "validation"), from_hub)


def document(row: Row) -> Document:
    context = f"{row['context']}\n\nQuestion: {row['question']}\n\nAnswer:"
    return answered(context, row["answer"], aliases=row.get("aliases"))
