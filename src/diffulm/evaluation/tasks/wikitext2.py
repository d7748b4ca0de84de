"""WikiText-2 (Merity et al., 2017): articles of Wikipedia, tokenised, rare words as <unk>; test part."""

import re
from pathlib import Path

from diffulm.evaluation.data import Row, Source, text
from diffulm.evaluation.tasks import Document

NORMALISATION = "byte"


def from_hub(row: Row) -> Row:
    """The hub has a row for each line and keeps nothing of the empty ones, which are a space in the file."""
    return {"text": row["text"] or " \n"}


SOURCE = Source("text/wikitext-2/test.txt.gz", ("text",), ("Salesforce/wikitext", "wikitext-2-v1", "test"), from_hub)


def rows(folder: Path | None) -> list[Row]:
    """The file cut into its articles, each with its heading; only an empty line in front is lost."""
    return [{"text": one} for one in articles(text(SOURCE, folder))]


def articles(whole: str) -> list[str]:
    """Cut before each heading of the first order: ` = Robert <unk> = ` between empty lines."""
    cuts = re.split(r"(?m)^(?= = [^=\n]+ = ?\n \n)", whole)
    return [one for one in cuts if one.strip()]


def document(row: Row) -> Document:
    return {"text": row["text"]}
