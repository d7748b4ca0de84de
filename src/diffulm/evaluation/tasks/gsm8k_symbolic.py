"""GSM8K (Cobbe et al., 2021) worked out in symbols, as models are fine-tuned on it (Deng et al., 2023):
`<<16-3-4=9>> <<9*2=18>> #### 18`."""

from dataclasses import replace

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, answered


def from_hub(row: Row) -> Row:
    return {"question": row["question"], "chain": row["cot"], "answer": row["answer"]}


SOURCE = Source(
    "gsm8k-symbolic/test.jsonl", ("question", "chain", "answer"), ("zen-E/GSM8k-Aug", None, "test"), from_hub
)
SHOTS = replace(SOURCE, file="gsm8k-symbolic/train.jsonl", hub=("zen-E/GSM8k-Aug", None, "train"))


def document(row: Row) -> Document:
    answer = row["answer"].strip()
    asked = answered(f"Question: {row['question']}\nAnswer:", answer, f" {row['chain']} #### {answer}")
    return {**asked, "question": row["question"]}  # as it is asked of a model that was fine-tuned on it
