"""Conversations to rows of ids: what stands before a reply is fixed, the reply, its end and its padding are free.

A row of data has `messages`, `prompt` and `response`, or Alpaca's `instruction`, `input` and `output`; any other shape is
named by two format strings over its fields. Each reply is an example of its own, the turns before it fixed: so a model is
trained on just what it is asked at decoding. Examples share a row of `length` positions, each seeing only itself.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from diffulm import randomness
from diffulm.chat import Message, Template, conversation
from diffulm.checkpoint.files import digest
from diffulm.data import simple
from diffulm.data.blocks import read_manifest, replacing, tokenizer_hash, write_arrow, write_manifest
from diffulm.data.documents import PLACES, Skips, read, some, sources, unicode
from diffulm.errors import BadInput

FIXED, REPLY, PADDING = 0, 1, 2
"""Kinds of positions: may not change; is to be learned; is to be learned, with a weight of its own."""
MADE: dict[str, simple.Part] = {"simple": "train", "simple:test": "test"}
"""Data that every user has, by name."""
OPEN_ROWS = 64  # rows that are filled at the same time, so that short examples find the gaps of long ones
_TOGETHER = 1024
_LAYOUT = 1  # raise when the same data would be laid out otherwise
_PADDING, _CUT, _WHERE = (randomness.key(name) for name in ("padding of a reply", "cut of a reply", "place of a cut"))


@dataclass(frozen=True)
class Shape:
    """How conversations become rows. The fields are keys of `SftConfig`, which says what they mean.

    align: examples begin at multiples of so many positions (the block size of a block-causal model).
    """

    length: int
    turns: str = "each"
    too_long: str = "drop"
    padding: str = "random"
    padding_tokens: int = 32
    truncation: float = 0.0
    packing: bool = True
    align: int = 1
    seed: int = 0


@dataclass
class Counts:
    """What became of the data. dropped, cut: examples that do not fit; places: where the first few of them are."""

    conversations: int = 0
    examples: int = 0
    dropped: int = 0
    cut: int = 0
    longest_reply: int = 0
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = [
            f"{n} replies that do not fit {what}" for n, what in ((self.dropped, "left out"), (self.cut, "cut")) if n
        ]
        return f"{', '.join(told)}: {'; '.join(self.places)}" if told else ""


@dataclass(frozen=True)
class Example:
    """opening (n,): ids before the reply, BOS included; reply (m,): ids of the reply and its end (unless it was cut)."""

    opening: list[int]
    reply: list[int]


def messages_of(row: dict[str, Any], prompt: str | None = None, response: str | None = None) -> list[Message]:
    """The conversation that a row of data holds. BadInput for a row of another shape, and one that holds no reply.

    prompt, response: format strings over the row's fields, such as "{question}".
    """
    if prompt is not None and response is not None:
        found: Any = _pair(_formatted(prompt, row), _formatted(response, row))
    elif "messages" in row:
        found = row["messages"]
    elif "prompt" in row and "response" in row:
        found = _pair(row["prompt"], row["response"])
    elif "instruction" in row and "output" in row:
        given = row.get("input") or ""
        found = _pair(f"{row['instruction']}\n\n{given}" if given else row["instruction"], row["output"])
    else:
        raise BadInput(
            f"holds no conversation: it has {some(row)}, not messages, prompt and response, or instruction and output; name "
            'its fields, as in prompt="{question}" response="{answer}"'
        )
    talk = conversation(found)
    for number, one in enumerate(talk, 1):
        unicode(one["content"], f"message {number}")
    if talk[-1]["role"] != "assistant":
        talk = talk[:-1]
    if not any(one["role"] == "assistant" for one in talk):
        raise BadInput("has no answer: no message is the assistant's")
    return talk


def _pair(prompt: Any, response: Any) -> list[dict[str, Any]]:
    if not isinstance(response, str) or not response.strip():
        raise BadInput("has no answer: its text is empty")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadInput("has no prompt: its text is empty")
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _formatted(text: str, row: dict[str, Any]) -> str:
    try:
        return text.format_map(row)
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        raise BadInput(f"{text!r} asks for {error}, which this row does not have; it has {some(row)}") from None


def examples(
    data: str | list[str],
    template: Template,
    bos_token_id: int | None,
    shape: Shape,
    counts: Counts,
    fields: tuple[str | None, str | None] = (None, None),
    skips: Skips | None = None,
) -> Iterator[Example]:
    """The examples of `data` (as `documents` takes it, or `simple`), those that do not fit left out or cut, and counted.

    Raises:
        BadInput: a bad row, named by file and line, unless `skips` counts it; no example at all.
    """
    bos = [] if bos_token_id is None else [bos_token_id]

    def pick(row: dict[str, Any]) -> list[Example]:
        found = list(_examples(messages_of(row, *fields), template, bos, shape.turns))
        if shape.too_long == "stop":
            _check_fit(found, shape.length)
        return found

    for name in [data] if isinstance(data, str) else data:
        for found, place in _read(name, pick, skips):
            counts.conversations += 1
            for one in found:
                if (fitting := _fitted(one, shape, counts, place)) is not None:
                    counts.examples += 1
                    counts.longest_reply = max(counts.longest_reply, len(fitting.reply))
                    yield fitting


def _examples(talk: list[Message], template: Template, bos: list[int], turns: str) -> Iterator[Example]:
    replies = [n for n, one in enumerate(talk) if one["role"] == "assistant"]
    for n in replies if turns == "each" else replies[-1:]:
        yield Example(bos + template.opening(talk[:n]), template.answer(talk[n]["content"]))


def _read(name: str, pick: Callable[[dict[str, Any]], Any], skips: Skips | None) -> Iterator[tuple[Any, str]]:
    """(what was picked, where it was found)."""
    if name in MADE:
        yield from ((pick(row), f"{name}, row {n}") for n, row in enumerate(simple.rows(MADE[name]), 1))
        return
    for source in sources(name):
        for number, found in enumerate(read(source, skips, pick), 1):
            yield found, f"{Path(source).name}, conversation {number}"


def _check_fit(found: list[Example], length: int) -> None:
    longest = max(len(one.opening) + len(one.reply) for one in found)
    if longest > length:
        raise BadInput(f"takes {longest} positions, a row has {length}; set length higher, or too_long=drop or cut")


def _fitted(one: Example, shape: Shape, counts: Counts, place: str) -> Example | None:
    room = shape.length - len(one.opening)
    if len(one.reply) <= room:
        return one
    if len(counts.places) < PLACES:
        counts.places.append(place)
    if shape.too_long == "cut" and room > 0:
        counts.cut += 1
        return Example(one.opening, one.reply[:room])
    counts.dropped += 1
    return None


def laid(one: Example, number: int, shape: Shape, pad: int) -> tuple[list[int], list[int]]:
    """(ids, kinds) of an example with its padding: a function of (seed, its number, shape).

    padding: `full` to the end of the row, as in the paper; `random` from none to `padding_tokens`, all as likely; `block`
    to the end of the block; `none`. A share `truncation` of the examples ends within the reply, at any place alike.
    """
    reply, room = one.reply, shape.length - len(one.opening)
    if _drawn(shape.seed, _CUT, number) < shape.truncation and len(reply) > 1:
        reply = reply[: 1 + int(_drawn(shape.seed, _WHERE, number) * (len(reply) - 1))]
        padding = 0
    else:
        drawn = int(_drawn(shape.seed, _PADDING, number) * (shape.padding_tokens + 1))
        to_block = -(len(one.opening) + len(reply)) % shape.align
        padding = {"full": room, "random": drawn, "block": to_block, "none": 0}[shape.padding]
        padding = min(padding, room - len(reply))
    ids = [*one.opening, *reply, *[pad] * padding]
    return ids, [FIXED] * len(one.opening) + [REPLY] * len(reply) + [PADDING] * padding


def _drawn(seed: int, what: int, number: int) -> float:
    return _drawn_together(seed, what, number // _TOGETHER)[number % _TOGETHER]


@lru_cache(maxsize=3)
def _drawn_together(seed: int, what: int, part: int) -> list[float]:
    """Uniforms of so many examples: one by one they would take longer than all the rest."""
    first = part * _TOGETHER
    return randomness.uniform(seed, what, torch.arange(first, first + _TOGETHER)).tolist()


@dataclass
class _Row:
    ids: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)

    def add(self, ids: list[int], kind: list[int]) -> None:
        self.ids += ids
        self.kind += kind
        self.document += [self.document[-1] + 1 if self.document else 0] * len(ids)

    def fill(self, size: int, pad: int) -> None:
        """Padding of nobody: seen by none, nothing to learn."""
        if size > len(self.ids):
            self.add([pad] * (size - len(self.ids)), [FIXED] * (size - len(self.ids)))


def rows(found: Iterable[tuple[list[int], list[int]]], shape: Shape, pad: int) -> Iterator[tuple[list[int], ...]]:
    """Rows (ids, document, kind) of `length` positions each: examples where they first fit, the gaps filled up.

    document numbers the examples of a row, and its gaps, position by position (see `packed.py`).
    """
    open_rows: list[_Row] = []
    for ids, kind in found:
        row = next((row for row in open_rows if _start(row, shape.align) + len(ids) <= shape.length), None)
        if row is None or not shape.packing:
            row = _Row()
            open_rows.append(row)
        row.fill(_start(row, shape.align), pad)
        row.add(ids, kind)
        if len(open_rows) > (OPEN_ROWS if shape.packing else 0):
            yield _closed(open_rows.pop(0), shape.length, pad)
    for row in open_rows:
        yield _closed(row, shape.length, pad)


def _start(row: _Row, align: int) -> int:
    return -(-len(row.ids) // align) * align


def _closed(row: _Row, length: int, pad: int) -> tuple[list[int], ...]:
    row.fill(length, pad)
    return row.ids, row.document, row.kind


def parted(found: Iterable[Example], most: int, held: list[Example]) -> Iterator[Example]:
    """All but the last, which go to `held`: `most`, but a tenth at the most and, unless `most` is 0, one at least."""
    waiting: deque[Example] = deque()
    total = 0
    for one in found:
        waiting.append(one)
        total += 1
        if len(waiting) > most:
            yield waiting.popleft()
    count = min(most, max(1, total // 10))
    while len(waiting) > count:
        yield waiting.popleft()
    held += waiting


def build(
    data: str | list[str],
    template: Template,
    bos_token_id: int | None,
    shape: Shape,
    folder: Path,
    fields: tuple[str | None, str | None] = (None, None),
    skips: Skips | None = None,
    hold_out: int = 0,
    called: str = "data",
) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """(rows of `data`, rows of the examples that are held out, the manifest), memory-mapped.

    hold_out: the last so many examples, see `parted`; each has a row of its own, without padding. Kept in `folder`, and used
    again when that holds the same, unaltered. Columns ids, document and kind; the manifest has the counts, and `documents`: of
    a row at most. called: `data`, for errors. One process at a time.

    Raises:
        BadInput: as `examples` does; no example that fits, or none beside what is held out.
    """
    wanted = _wanted([vars(shape), fields, skips is not None, hold_out], data, template, bos_token_id)
    arrow, manifest = folder / "blocks.arrow", read_manifest(folder) or {}
    if not (arrow.is_file() and manifest.get("wanted") == wanted and manifest.get("sha256") == digest(arrow)):
        counts, held, most = Counts(), [], 0
        found = parted(examples(data, template, bos_token_id, shape, counts, fields, skips), hold_out, held)
        alone = replace(shape, padding="none", truncation=0.0, packing=False, align=1)

        def every_row() -> Iterator[tuple[list[int], ...]]:
            nonlocal most
            for row in rows((laid(one, n, shape, template.pad) for n, one in enumerate(found)), shape, template.pad):
                most = max(most, row[1][-1] + 1)
                yield row
            yield from rows((laid(one, n, alone, template.pad) for n, one in enumerate(held)), alone, template.pad)

        with replacing(folder) as temporary:
            names = ("ids", "document", "kind")
            written = write_arrow(every_row(), shape.length, temporary / "blocks.arrow", names=names)
            if most == 0:
                shutil.rmtree(temporary)
                told = f" ({counts})" if str(counts) else f", it has {counts.examples}"
                least = "two conversations that fit, one to be held out" if hold_out else "a conversation that fits"
                raise BadInput(f"{called}={data}: should have {least}{told}; set length higher, or give more")
            about = {"layout": _LAYOUT, "wanted": wanted, "rows": written, "held_out": len(held), "documents": most}
            about |= vars(counts) | ({} if skips is None else {"skipped": skips.count, "bad": skips.places})
            write_manifest(temporary, about)
        manifest = read_manifest(folder) or {}
    elif skips is not None:
        skips.add(int(str(manifest.get("skipped", 0))), list(manifest.get("bad", [])))  # pyright: ignore[reportArgumentType]
    whole, manifest = Dataset.from_file(str(arrow)), {**manifest}
    first = len(whole) - int(str(manifest["held_out"]))
    # a list: an empty range past the end is an IndexError
    return whole.select(range(first)), whole.select([*range(first, len(whole))]), manifest


def _wanted(settings: list[Any], data: str | list[str], template: Template, bos: int | None) -> str:
    """A checksum of all that the rows depend on: files by path, size and time of change."""
    files: list[Any] = []
    for name in [data] if isinstance(data, str) else data:
        for source in [name] if name in MADE else sources(name):
            about = [] if isinstance(source, str) else [source.stat().st_size, source.stat().st_mtime_ns]
            files.append([str(source if isinstance(source, str) else source.resolve()), *about])
    made = [_LAYOUT, files, template.source, tokenizer_hash(template.tokenizer), bos, settings]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
