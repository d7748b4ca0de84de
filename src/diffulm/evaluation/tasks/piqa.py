"""PIQA (Bisk et al., 2020): which of two ways to a goal works; validation part."""

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, choices

SOURCE = Source("piqa.jsonl", ("goal", "sol1", "sol2", "label"), ("baber/piqa", None, "validation"))
NORMALISATION = "token"


def document(row: Row) -> Document:
    return choices(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"])
