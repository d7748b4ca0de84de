"""GSM8K (Cobbe et al., 2021): sums in words from grade school, worked out in sentences; the answer follows the last `####`."""

from dataclasses import replace

from diffulm.errors import BadInput, shown
from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, answered

SOURCE = Source("gsm8k/test.jsonl", ("question", "answer"), ("openai/gsm8k", "main", "test"))
SHOTS = replace(SOURCE, file="gsm8k/train.jsonl", hub=("openai/gsm8k", "main", "train"))


def document(row: Row) -> Document:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise BadInput(f"no '####' before the result in {shown(row['answer'])}; mend or delete this row")
    return answered(f"Question: {row['question']}\nAnswer:", answer.strip(), f" {row['answer']}")
