"""MAWPS (Koncel-Kedziorski et al., 2016): arithmetic in a sentence or two; the answer is a number."""

from dataclasses import replace

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, answered


def from_hub(row: Row) -> Row:
    return {"question": row["question"], "answer": row["result_float"]}


SOURCE = Source("mawps/test.jsonl", ("question", "answer"), ("MU-NLPC/Calc-mawps", None, "test"), from_hub)
SHOTS = replace(SOURCE, file="mawps/train.jsonl", hub=("MU-NLPC/Calc-mawps", None, "train"))


def document(row: Row) -> Document:
    number = float(row["answer"])
    return answered(f"Question: {row['question']}\nAnswer:", str(int(number)) if number.is_integer() else repr(number))
