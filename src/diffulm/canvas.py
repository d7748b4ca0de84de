"""Canvas = (ids, fixed): text with holes becomes token ids of which some may not change, and comes back as text.

Text outside the holes is never decoded: `render` splices the given strings, so that they survive byte for byte. What
the tokenizer does at the edges of a hole is dealt with here and nowhere else.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffulm.errors import BadInput, shown
from diffulm.shapes import Bool, Int

_MARK = re.compile(r"<hole(:[^<>]*)?>")
_UNFINISHED = "\ufffd"  # how a decoder shows bytes that are not yet, or never become, a character

# What a text behind a hole is encoded after. Different in kind, so that one of them does not merge with the text.
_ANCHORS = ("\n", "a", ".", "0", " ", "\n\n")


@dataclass(frozen=True)
class Hole:
    """A gap of `length` tokens to be filled; None leaves the length to the model. BadInput unless length >= 1."""

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is None:
            return
        if not isinstance(self.length, int) or isinstance(self.length, bool) or self.length < 1:
            raise BadInput(f"a hole is at least one token long, not {shown(self.length)}; write <hole:3> or Hole(3)")


@dataclass(frozen=True)
class Span:
    """Positions start..end-1 of a canvas and the text they stand for; text None is a hole."""

    start: int
    end: int
    text: str | None


@dataclass(frozen=True)
class Canvas:
    """ids (L,) int64, the mask token in every hole; fixed (L,) bool, True where nothing may change."""

    ids: Int[Tensor, " l"]
    fixed: Bool[Tensor, " l"]
    spans: tuple[Span, ...]
    tokenizer: Any


def parse(markup: str) -> list[str | Hole]:
    """`"The <hole:3> sat"` -> ["The ", Hole(3), " sat"]; `<hole>` is a Hole of no given length. "" -> [""].

    BadInput for a mark that is neither (`<hole:0>`, `<hole:x>`); text without marks comes back whole.
    """
    parts: list[str | Hole] = []
    end = 0
    for mark in _MARK.finditer(markup):
        parts += [markup[end : mark.start()], Hole(_length(mark))]
        end = mark.end()
    parts.append(markup[end:])
    return [part for part in parts if part != ""] or [""]


def _length(mark: re.Match[str]) -> int | None:
    if mark[1] is None:
        return None
    if not re.fullmatch(r":0*[1-9][0-9]{0,8}", mark[1]):
        raise BadInput(
            f"{shown(mark[0])} is not a hole: write <hole:3> for three tokens "
            "(text that contains such marks can be given in Python as a list with diffulm.Hole)"
        )
    return int(mark[1][1:])


def encode(tokenizer: Any, text: str, inside: bool = False) -> list[int]:
    """The ids of `text` without any special token: such a token's name in the text is ordinary text.

    inside: the text continues something unknown (it stands behind a hole). SentencePiece-like tokenizers put a space
    in front of whatever they encode, so the text is encoded behind an anchor whose own ids begin the joint encoding
    and are then cut off, one that decodes to the text if any does. BadInput for text that is not Unicode (lone
    surrogates).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the text is not valid Unicode: {error}") from None
    if not text:
        return []
    # verbose=False: what is too long for the model is told by `template`
    plain = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    if not inside:
        return plain
    cut: list[list[int]] = []
    for anchor in _ANCHORS:
        head, joint = encode(tokenizer, anchor), encode(tokenizer, anchor + text)
        if joint[: len(head)] == head:
            cut.append(joint[len(head) :])
            if decode(tokenizer, joint) == decode(tokenizer, head) + text:
                return cut[-1]
    # A tokenizer that tidies text up (runs of spaces, Unicode forms) never gives it back exactly.
    return cut[0] if cut else plain


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids on their own, special tokens left out, nothing tidied up."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def continuation(tokenizer: Any, left: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add behind `left`: decoded together, so that a leading space or half a character survives."""
    left, ids = list(left), list(ids)
    head, whole = decode(tokenizer, left), decode(tokenizer, left + ids)
    # A stray byte that begins `ids` can spoil how a byte-fallback tokenizer decodes the bytes that end `left`.
    return whole[len(head) :] if whole.startswith(head) else decode(tokenizer, ids)


def template(
    tokenizer: Any, bos_token_id: int | None, mask_token_id: int, parts: Iterable[str | Hole], limit: int | None = None
) -> Canvas:
    """The canvas of text with holes: BOS (unless None) at position 0, the texts fixed, the holes masked.

    limit: positions the model can take. BadInput for a hole without length, for a canvas beyond `limit`, and for parts
    that are neither str nor Hole.
    """
    parts = _joined(parts)
    ids = [] if bos_token_id is None else [bos_token_id]
    fixed = [True] * len(ids)
    spans: list[Span] = []
    for part in parts:
        length = part.length if isinstance(part, Hole) else None
        if isinstance(part, Hole) and length is None:
            raise BadInput("a hole needs a length for now: write <hole:3> (or Hole(3)) for three tokens")
        # Before the list is made: a hole can be written longer than any memory.
        needed = len(ids) + (length if length is not None else _at_least(tokenizer, str(part), limit))
        if limit is not None and needed > limit:
            raise _too_long(needed, limit)
        new = encode(tokenizer, part, inside=bool(spans)) if isinstance(part, str) else [mask_token_id] * (length or 0)
        spans.append(Span(len(ids), len(ids) + len(new), part if isinstance(part, str) else None))
        ids += new
        fixed += [isinstance(part, str)] * len(new)
    if limit is not None and len(ids) > limit:
        raise _too_long(len(ids), limit)
    return Canvas(torch.tensor(ids, dtype=torch.int64), torch.tensor(fixed, dtype=torch.bool), tuple(spans), tokenizer)


def _at_least(tokenizer: Any, text: str, limit: int | None) -> int:
    """A number of tokens that `text` has at least, where its beginning alone is far too long; else 0.

    A tokenizer takes many seconds for a file of 10 MB that somebody gave as a prompt.
    """
    start = 64 * (limit or 0)
    found = len(encode(tokenizer, text[:start])) if limit is not None and len(text) > start else 0
    # at the cut the tokens may differ: not by half of them
    return found // 2 if limit is not None and found > 2 * limit else 0


def prompt(
    tokenizer: Any, bos_token_id: int | None, mask_token_id: int, text: str, length: int, limit: int | None = None
) -> Canvas:
    """The canvas of a text to be continued by `length` tokens; see `template`."""
    return template(tokenizer, bos_token_id, mask_token_id, [text, Hole(length)], limit)


def _too_long(tokens: int, limit: int) -> BadInput:
    return BadInput(
        f"the text and what is to be filled need at least {tokens} positions; the model's context is {limit}: give less"
    )


def _joined(parts: Iterable[str | Hole]) -> list[str | Hole]:
    """Neighbouring texts as one (they are encoded together), empty ones left out."""
    out: list[str | Hole] = []
    for part in parts:
        if not isinstance(part, str | Hole):
            raise BadInput(f"a text with holes is made of str and Hole, not {type(part).__name__}")
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        elif part != "":
            out.append(part)
    return out


def fills(canvas: Canvas, ids: Sequence[int]) -> list[str]:
    """The text of each hole, given the canvas' ids (L) filled in; `render` is these between the given texts."""
    ids = list(ids)
    first = canvas.spans[0].start if canvas.spans else 0  # behind BOS, which is not text
    out: list[str] = []
    start, shown = first, ""
    for span, following in pairwise([*canvas.spans, Span(len(ids), len(ids), "")]):
        if span.text is not None:
            start, shown = span.end, ""
            continue
        # Holes side by side are decoded as one: a character cut by their border belongs to the later one.
        whole = continuation(canvas.tokenizer, ids[first:start], ids[start : span.end])
        if following.text is None:
            whole = whole.rstrip(_UNFINISHED)
        out.append(whole[len(shown) :])
        shown = whole
    return out


def render(canvas: Canvas, ids: Sequence[int]) -> str:
    """The whole text: the given texts byte for byte, and `fills` in the holes."""
    filled = iter(fills(canvas, ids))
    return "".join(next(filled) if span.text is None else span.text for span in canvas.spans)
