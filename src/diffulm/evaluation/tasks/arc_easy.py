"""ARC (Clark et al., 2018): science questions of grades 3 to 9, those that simple methods answer too; test part."""

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, choices

NORMALISATION = "character"


def from_hub(row: Row) -> Row:
    """The labels of the hub are letters in most rows and digits in some."""
    label = row["choices"]["label"].index(row["answerKey"])
    return {"question": row["question"], "choices": row["choices"]["text"], "label": label}


SOURCE = Source("arc-easy.jsonl", ("question", "choices", "label"), ("allenai/ai2_arc", "ARC-Easy", "test"), from_hub)


def document(row: Row) -> Document:
    return choices(f"Question: {row['question']}\nAnswer:", row["choices"], row["label"])
