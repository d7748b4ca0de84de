"""TinyStories (Eldan and Li, 2023): stories in the words of small children; validation part."""

from diffulm.errors import BadInput
from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document

SOURCE = Source("text/tinystories/valid.jsonl.gz", ("text",), ("roneneldan/TinyStories", None, "validation"))
NORMALISATION = "byte"


def document(row: Row) -> Document:
    if not row["text"]:
        raise BadInput("an empty text; mend or delete this row")
    return {"text": row["text"]}
