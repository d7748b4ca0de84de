"""Social IQa (Sap et al., 2019): what people feel or do next, of three answers; development part."""

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, choices

NORMALISATION = "token"


def from_hub(row: Row) -> Row:
    answers = [row[f"answer{letter}"] for letter in "ABC"]
    return {"context": row["context"], "question": row["question"], "answers": answers, "label": int(row["label"]) - 1}


SOURCE = Source(
    "siqa.jsonl", ("context", "question", "answers", "label"), ("lighteval/siqa", None, "validation"), from_hub
)


def document(row: Row) -> Document:
    return choices(f"Q: {row['context']} {row['question']}\nA:", row["answers"], row["label"])
