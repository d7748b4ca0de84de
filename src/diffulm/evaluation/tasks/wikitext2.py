"""WikiText-2 (Merity et al., 2017): articles of Wikipedia, tokenised, rare words as <unk>; test part."""

import re
from pathlib import Path

from diffulm.evaluation.data import Row, Source, text
from diffulm.evaluation.tasks import Document

SOURCE = Source("text/wikitext-2/test.txt.gz", ("text",), ("Salesforce/wikitext", "wikitext-2-v1", "test"))
NORMALISATION = "byte"


def rows(folder: Path | None) -> list[Row]:
    """The file cut into its articles, each with its heading, nothing lost."""
    return [{"text": one} for one in articles(text(SOURCE, folder))]


def articles(whole: str) -> list[str]:
    """Cut before each heading of the first order: ` = Robert <unk> = ` between empty lines."""
    cuts = re.split(r"(?m)^(?= = [^=\n]+ = ?\n \n)", whole)
    return [one for one in cuts if one.strip()]


def document(row: Row) -> Document:
    return {"text": row["text"]}
