"""What `diffulm` alone says: what it is for and three ways to begin, in ten lines of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

EXAMPLES = (
    'diffulm infill pocket --text "def <hole:1>(self): self.file.close()"',
    "diffulm demo",
    "diffulm adapt tiny model=gpt2 data=corpus.txt out=runs/mine",
)


def overview(version: str, verbs: Iterable[str]) -> str:
    """The text, without a newline at its end."""
    shipped, whole, own = EXAMPLES
    return f"""\
DiffuLM {version}: any Hugging Face decoder in, a diffusion language model out.
It adapts a model that reads left to right. The new one goes on from a prompt,
fills holes in the middle of a text, and says how likely a text is. To begin:
  {shipped}
  {whole:61} # 4 minutes
  {own:61} # your own
{textwrap.fill(f"Verbs: {', '.join(sorted(verbs))}.", 80, subsequent_indent=" " * 7)}
`diffulm VERB --help` says how; `diffulm doctor` says what is missing here."""
