"""Canvas = (ids, fixed): text with holes becomes token ids of which some may not change, and comes back as text.

Text outside the holes is never decoded: `render` splices the given strings, so that they survive byte for byte. What
the tokenizer does at the edges of a hole is dealt with here and nowhere else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffulm.errors import BadInput
from diffulm.markup import LONGEST as LONGEST
from diffulm.markup import Hole
from diffulm.markup import parse as parse
from diffulm.shapes import Bool, Int

_UNFINISHED = "\ufffd"  # how a decoder shows bytes that are not yet, or never become, a character

# What a text behind a hole is encoded after. Different in kind, so that one of them does not merge with the text.
_ANCHORS = ("\n", "a", ".", "0", " ", "\n\n")


@dataclass(frozen=True)
class Span:
    """Positions start..end-1 of a canvas and the text they stand for; text None is a hole.

    taken: with what a hole begins that is text before it, see `resized`.
    """

    start: int
    end: int
    text: str | None
    taken: str = ""


@dataclass(frozen=True)
class Canvas:
    """ids (L,) int64, the mask token in every hole; fixed (L,) bool, True where nothing may change.

    closing: (token that ends the text, what then follows) where these are not the tokenizer's EOS and padding.
    """

    ids: Int[Tensor, " l"]
    fixed: Bool[Tensor, " l"]
    spans: tuple[Span, ...]
    tokenizer: Any
    closing: tuple[int, int] | None = None

    @property
    def ends(self) -> tuple[int | None, int | None]:
        """(token that ends a text that goes on to the end of the canvas, what is put behind it; None: the same)."""
        return self.closing or (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)


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
    tokenizer: Any,
    bos_token_id: int | None,
    mask_token_id: int,
    parts: Iterable[str | Hole],
    limit: int | None = None,
    before: Sequence[int] = (),
) -> Canvas:
    """The canvas of text with holes: BOS (unless None) at position 0, the texts fixed, the holes masked.

    limit: positions the model can take. before: ids between BOS and the text, fixed and no part of it. A hole of several
    lengths is made as long as `start_length` says. BadInput for a canvas beyond `limit`, and for parts that are neither str
    nor Hole.
    """
    parts = joined(parts)
    ids = [*([] if bos_token_id is None else [bos_token_id]), *before]
    fixed = [True] * len(ids)
    spans: list[Span] = []
    for part in parts:
        length = start_length(part) if isinstance(part, Hole) else None
        # Before the list is made: a hole can be written longer than any memory.
        needed = len(ids) + (length if length is not None else _at_least(tokenizer, str(part), limit))
        if limit is not None and needed > limit:
            raise _too_long(needed, limit)
        new = (
            encode(tokenizer, part, inside=bool(spans or before))
            if isinstance(part, str)
            else [mask_token_id] * (length or 0)
        )
        spans.append(Span(len(ids), len(ids) + len(new), part if isinstance(part, str) else None))
        ids += new
        fixed += [isinstance(part, str)] * len(new)
    if limit is not None and len(ids) > limit:
        raise _too_long(len(ids), limit)
    return Canvas(torch.tensor(ids, dtype=torch.int64), torch.tensor(fixed, dtype=torch.bool), tuple(spans), tokenizer)


def start_length(hole: Hole) -> int:
    """Tokens that a hole has while nothing is known of it: the geometric middle of what it may have."""
    return round((hole.least * hole.longest) ** 0.5)


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


def continued(
    tokenizer: Any,
    bos: list[int],
    before: list[int],
    mask_token_id: int,
    length: int,
    closing: tuple[int, int] | None = None,
) -> Canvas:
    """The canvas of ids to be continued by `length` tokens: what `bos` and `before` are stands fixed in front."""
    ids = torch.tensor([*bos, *before, *[mask_token_id] * length], dtype=torch.int64)
    at = len(bos) + len(before)
    spans = (Span(len(bos), at, decode(tokenizer, before)), Span(at, len(ids), None))
    return Canvas(ids, torch.arange(len(ids)) < at, spans, tokenizer, closing)


def _too_long(tokens: int, limit: int) -> BadInput:
    return BadInput(
        f"the text and what is to be filled need at least {tokens} positions; the model's context is {limit}: give less"
    )


def joined(parts: Iterable[str | Hole]) -> list[str | Hole]:
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


def resized(canvas: Canvas, index: int, length: int, mask_token_id: int, take: int = 0) -> Canvas:
    """The canvas with the hole that is span `index` made `length` tokens long, all masked; the rest stands as it is.

    take: so many tokens of the text before the hole are taken back, and its first token has to say them again and more
    (`Span.taken`): what stands before a hole may end within what would be one token (token healing).
    """
    span, before = canvas.spans[index], canvas.spans[index - 1] if take else None
    start, end = span.start - take, span.start + length - take
    spans = [replace(each, start=each.start + end - span.end, end=each.end + end - span.end) for each in canvas.spans]
    spans[: index + 1] = [*canvas.spans[:index], Span(start, end, None, span.taken)]
    if before is not None:
        ids = canvas.ids[canvas.spans[0].start : span.start].tolist()
        taken = continuation(canvas.tokenizer, ids[:-take], ids[-take:])
        spans[index - 1 : index + 1] = [replace(before, end=start), Span(start, end, None, taken)]
    new = torch.full((length,), mask_token_id)
    ids = torch.cat([canvas.ids[:start], new, canvas.ids[span.end :]])
    fixed = torch.cat([canvas.fixed[:start], torch.zeros_like(new, dtype=torch.bool), canvas.fixed[span.end :]])
    return replace(canvas, ids=ids, fixed=fixed, spans=tuple(spans))


def alone(canvas: Canvas, index: int) -> Canvas:
    """The canvas with nothing free but the hole that is span `index`; other holes stay masked."""
    fixed = torch.ones_like(canvas.fixed)
    fixed[canvas.spans[index].start : canvas.spans[index].end] = False
    return replace(canvas, fixed=fixed)


def settled(canvas: Canvas, index: int, ids: Sequence[int]) -> Canvas:
    """The canvas with the hole that is span `index` filled as in `ids` (L), from now on fixed."""
    hole = slice(canvas.spans[index].start, canvas.spans[index].end)
    new, fixed = canvas.ids.clone(), canvas.fixed.clone()
    new[hole], fixed[hole] = torch.tensor(ids[hole], dtype=torch.int64), True
    return replace(canvas, ids=new, fixed=fixed)


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
        out.append(whole[len(shown) :].removeprefix(span.taken))
        shown = whole
    return out


def keeps(canvas: Canvas, index: int) -> bool:
    """Whether the hole that is span `index` says again what it has taken from the text before it."""
    first, span = canvas.spans[0].start, canvas.spans[index]
    ids = canvas.ids.tolist()
    return continuation(canvas.tokenizer, ids[first : span.start], ids[span.start : span.end]).startswith(span.taken)


def render(canvas: Canvas, ids: Sequence[int]) -> str:
    """The whole text: the given texts byte for byte, and `fills` in the holes."""
    filled = iter(fills(canvas, ids))
    return "".join(next(filled) if span.text is None else span.text for span in canvas.spans)
