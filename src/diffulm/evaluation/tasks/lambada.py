"""LAMBADA (Paperno et al., 2016): the last word of a passage that only the whole passage gives away; test part."""

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, answered


def from_hub(row: Row) -> Row:
    context, _, target = row["text"].rstrip().rpartition(" ")
    return {"text": row["text"], "context": context, "target": target}


SOURCE = Source("lambada.jsonl", ("context", "target"), ("cimec/lambada", None, "test"), from_hub)


def document(row: Row) -> Document:
    return answered(row["context"].rstrip(), row["target"].strip())
