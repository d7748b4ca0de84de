"""Whole documents, window by window: each sees text to its left, never to its right.

The sum over windows is -log p of writing the document window after window: exact for an AR model (each token with at least
half a window of context) and left to right; with the any-order bound within each window an upper bound.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffulm import randomness, scoring
from diffulm.canvas import encode
from diffulm.evaluation.cells import Cell, absent
from diffulm.evaluation.subject import Subject
from diffulm.scoring import Method, Request


@dataclass(frozen=True)
class Document:
    """What a document cost. bytes: of its text; tokens: scored, its EOS included. windows: how many, and how many it was cut
    to (`most`)."""

    nats: float
    stderr: float
    tokens: int
    bytes: int
    windows: int


def windows(ids: Sequence[int], bos: Sequence[int], context: int, key: int = 0) -> Iterator[Request]:
    """The first window scores as many tokens as fit; every other half as many, behind as many that are fixed."""
    room = context - len(bos)
    start = 0
    while start < len(ids):
        stop = start + (room if start == 0 else max(1, room // 2))
        stop = min(stop, len(ids))
        first = max(0, stop - room)
        own = (*bos, *ids[first:stop])
        yield Request(own, len(bos) + start - first, len(own), randomness.key(key, start))
        start = stop


def documents(
    subject: Subject,
    texts: Sequence[tuple[str, str]],
    method: Method,
    draws: int = 32,
    seed: int = 0,
    most: int | None = None,
    end: bool = True,
) -> list[Document | None]:
    """The cost of each (key, text), with `end` EOS after it; None for a text of no token.

    method: as `scoring.scores`. Draws are shared by the windows of a document, two each at least: their errors average out.
    most: score no more than so many windows of each; its bytes are then those of what was scored.
    """
    cut = [_cut(subject, key, text, most, end) for key, text in texts]
    found: dict[tuple[int, int], scoring.Scored] = {}
    by_draws: dict[int, list[tuple[int, int]]] = {}
    for number, (requests, _) in enumerate(cut):
        each = max(2, -(-draws // max(1, len(requests))))
        by_draws.setdefault(each if method == "bound" else draws, []).extend((number, i) for i in range(len(requests)))
    for each, places in sorted(by_draws.items()):
        scored = scoring.scores(subject.denoiser, [cut[n][0][i] for n, i in places], method, each, seed)
        found.update(zip(places, scored, strict=True))
    return [
        _document([found[n, i] for i in range(len(requests))], size) if requests else None
        for n, (requests, size) in enumerate(cut)
    ]


def _cut(subject: Subject, key: str, text: str, most: int | None, end: bool) -> tuple[list[Request], int]:
    """(the windows of a text, the bytes they stand for)."""
    ids = encode(subject.tokenizer, text)
    eos = subject.tokenizer.eos_token_id
    whole = [*ids, eos] if end and eos is not None else ids
    # With shift and no BOS the first token has nothing it could be predicted from.
    blind = 1 if subject.lm.record.shift and not subject.bos else 0
    made = list(windows(whole, subject.bos, subject.context, randomness.key(key))) if len(whole) > blind else []
    if made and blind:
        made[0] = Request(made[0].ids, blind, made[0].stop, made[0].key)
    if most is None or len(made) <= most:
        return made, len(text.encode())
    made = made[:most]
    scored = sum(one.tokens for one in made) + blind
    return made, len(subject.tokenizer.decode(ids[:scored]).encode())


def _document(scored: list[scoring.Scored], size: int) -> Document:
    error = math.sqrt(sum(one.stderr**2 for one in scored))
    return Document(sum(one.nats for one in scored), error, sum(one.tokens for one in scored), size, len(scored))


def bits_per_byte(task: str, found: Sequence[Document], **more: Any) -> Cell:
    """Total bits over total bytes; the error is that of a ratio, over documents, and has the draws' in it."""
    if not found:
        return absent(task, "bits a byte", "no text", **more)
    size = sum(one.bytes for one in found)
    bits = [one.nats / math.log(2) for one in found]
    value, count = sum(bits) / size, len(found)
    residuals = sum((b - value * one.bytes) ** 2 for b, one in zip(bits, found, strict=True))
    error = math.sqrt(residuals * count / (count - 1)) / size if count > 1 else None
    noise = math.sqrt(sum(one.stderr**2 for one in found)) / math.log(2) / size
    items = tuple(b * count / size for b in bits)  # their mean is the ratio
    return Cell(
        task,
        "bits a byte",
        value,
        error,
        count,
        normalisation="byte",
        monte_carlo=noise,
        better="lower",
        items=items,
        **more,
    )
