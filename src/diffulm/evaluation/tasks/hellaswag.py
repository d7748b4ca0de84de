"""HellaSwag (Zellers et al., 2019): which of four endings goes on with a text; validation part."""

import re

from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.tasks import Document, choices

NORMALISATION = "token"


def from_hub(row: Row) -> Row:
    """The hub's rows have the marks of WikiHow in them, `[title]` and the like, which are no part of the text."""
    ctx = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"ctx": _plain(ctx), "endings": [_plain(one) for one in row["endings"]], "label": row["label"]}


def _plain(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


SOURCE = Source("hellaswag.jsonl", ("ctx", "endings", "label"), ("Rowan/hellaswag", None, "validation"), from_hub)


def document(row: Row) -> Document:
    return choices(row["ctx"], row["endings"], row["label"])
