"""Blocks: rows of a fixed number of token ids, packed from a stream of documents, kept as memory-mapped Arrow.

packing "stream": a block is BOS and then `length - 1` tokens of the stream in which each document is followed by EOS, with
no BOS inside (the layout that the scores of held-out text are defined on). packing "documents": each document has its own
BOS, and a second column, `document`, numbers the documents of a block, position by position (see `packed.py`).

Samples are numbered over the whole run; `row` says which block a number stands for, so that a run that was killed needs no
state of a shuffling iterator to go on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from diffulm.checkpoint.files import digest
from diffulm.data.documents import Skips, documents, sources
from diffulm.errors import BadInput

_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 1000, 4_000_000  # as much text as is tokenised at once
_BATCH_ROWS = 1000  # rows in one Arrow record batch
_ROUNDS = 6
_LAYOUT = 1  # raise when the same data would be packed into other blocks
_OURS = {"blocks.arrow", "manifest.json"}
Block = tuple[list[int], ...]  # ids, and with packing "documents" the document of each position


@dataclass
class Counts:
    """What went into blocks: documents, those of them that a block's edge cuts, tokens left over that fill no block."""

    documents: int = 0
    cut: int = 0
    left_over: int = 0


def pack(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    bos_token_id: int | None,
    eos_token_id: int,
    length: int,
) -> Iterator[list[int]]:
    """Blocks of `length` ids: BOS, then `length - 1` tokens of the stream (all `length` of them without a BOS).

    The stream is each document's tokens, no special token added, followed by EOS. A tail that fills no block is
    dropped.

    Raises:
        BadInput: a length that leaves no room for a token beside BOS.
    """
    blocks = packed(documents, tokenizer, bos_token_id, eos_token_id, length, "stream")
    return (ids for (ids,) in blocks)


def packed(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    bos_token_id: int | None,
    eos_token_id: int,
    length: int,
    packing: str,
    counts: Counts | None = None,
    tick: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Block]:
    """The blocks of a packing, each (ids,) or (ids, document). counts is filled while they are read; tick hears how many
    tokens have been made.

    With packing "documents" the stream is BOS, a document's tokens, EOS, BOS, ... A document that a block's edge cuts goes on
    in the next block as another one, with a BOS of its own: so is the last of a block begun there though it does not fit,
    and where one position is left, its BOS stands there alone. The last block is dropped if it is not full.

    Raises:
        BadInput: a length that leaves no room for a token beside BOS; packing "documents" without a BOS.
    """
    head = [] if bos_token_id is None else [bos_token_id]
    if length - len(head) < 1:
        raise BadInput(f"length {length}: a block needs room for at least one token" + " beside BOS" * len(head))
    tokens = _tokens(documents, tokenizer, eos_token_id, tick)
    counts = Counts() if counts is None else counts
    if packing == "stream":
        return _cut(tokens, head, length - len(head), counts)
    if bos_token_id is None:
        raise BadInput("packing=documents: each document begins with a BOS, and there is none; take packing=stream")
    return _by_document(tokens, bos_token_id, length, counts)


def build(
    data: str | list[str],
    tokenizer: PreTrainedTokenizerBase,
    bos_token_id: int | None,
    eos_token_id: int,
    length: int,
    folder: str | Path,
    packing: str = "stream",
    skips: Skips | None = None,
) -> Dataset:
    """The blocks of `data` (as `documents` takes it), a memory-mapped data set; column `ids`: `length` int32 a row.

    packing "documents" adds the column `document`. With `skips` bad rows are left out and counted there. It lies in `folder`
    and is used again when that holds the blocks of the same files (path, size, time of change), tokenizer, length, BOS, EOS
    and packing, unaltered (sha256). It is written to `folder`.tmp and renamed, so that `folder` is whole or not there. One
    process at a time.

    Raises:
        BadInput: as `documents` does; less text than one block; a `folder` that holds something else.
    """
    folder = Path(folder)
    wanted = _manifest(data, tokenizer, bos_token_id, eos_token_id, length)
    # what was not there in the first version is named only where it is not as it was then
    wanted |= ({} if packing == "stream" else {"packing": packing}) | ({} if skips is None else {"bad_rows": "skip"})
    arrow, found = folder / "blocks.arrow", read_manifest(folder) or {}
    known = {key: value for key, value in found.items() if key not in ("skipped", "places")}
    if not (arrow.is_file() and known == wanted | {"sha256": digest(arrow)}):
        if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _OURS):
            raise BadInput(f"{folder}: exists and holds no packed blocks; name another folder")
        blocks = packed(documents(data, skips), tokenizer, bos_token_id, eos_token_id, length, packing)
        first = next(blocks, None)
        if first is None:
            named = data if isinstance(data, str) else ", ".join(data)
            raise BadInput(f"{named}: has less text than one block of {length} tokens; give more, or a smaller length")
        _write(chain([first], blocks), length, wanted, folder, skips)
    elif skips is not None:
        skips.add(int(str(found.get("skipped", 0))), list(found.get("places", [])))  # pyright: ignore[reportArgumentType]
    return Dataset.from_file(str(arrow))


def fingerprint(folder: str | Path) -> str:
    """The sha256 of the blocks in a folder, whoever made them; empty where there are none."""
    return str((read_manifest(Path(folder)) or {}).get("sha256", ""))


def row(rows: Sized, seed: int, n: int) -> int:
    """The index in `rows` of sample `n` (from 0, over all epochs): each epoch visits every row once, in its own order.

    The order is a function of (seed, epoch, number of rows) alone. Random access in constant time: a Feistel network
    over the next power of four, walked until it falls within the rows (4 steps or fewer in the mean).
    """
    size = len(rows)
    epoch, index = divmod(n, size)
    if size == 1:
        return 0
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [_mix(_mix(seed) ^ _mix(epoch * _ROUNDS + r + 1)) for r in range(_ROUNDS)]
    index = _feistel(index, half, keys)
    while index >= size:
        index = _feistel(index, half, keys)
    return index


def _tokens(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, eos_token_id: int, tick: Callable[[int], None]
) -> Iterator[list[int]]:
    for batch in _batches(documents):
        # verbose=False: a document longer than the model's context is what packing is for, no reason to warn
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids in encoded["input_ids"]:
            yield [*ids, eos_token_id]
        tick(sum(map(len, encoded["input_ids"])) + len(batch))


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _cut(pieces: Iterable[list[int]], head: list[int], size: int, counts: Counts) -> Iterator[Block]:
    stream: list[int] = []
    for ids in pieces:
        counts.documents += 1
        counts.cut += len(stream) + len(ids) > size
        stream += ids
        whole = len(stream) - len(stream) % size
        for start in range(0, whole, size):
            yield (head + stream[start : start + size],)
        del stream[:whole]
    counts.left_over = len(stream)


def _by_document(pieces: Iterable[list[int]], bos: int, length: int, counts: Counts) -> Iterator[Block]:
    ids: list[int] = []
    numbers: list[int] = []
    for piece in pieces:
        counts.documents += 1
        at = 0
        while at < len(piece):
            room = length - len(ids) - 1
            counts.cut += at == 0 and 0 < room < len(piece)
            number = numbers[-1] + 1 if numbers else 0
            ids += [bos, *piece[at : at + room]]
            numbers += [number] * (len(ids) - len(numbers))
            at += room
            if len(ids) == length:
                yield ids, numbers
                ids, numbers = [], []
    counts.left_over = len(ids)


def _write(
    blocks: Iterator[Block], length: int, manifest: dict[str, object], folder: Path, skips: Skips | None
) -> None:
    with replacing(folder) as temporary:
        write_arrow(blocks, length, temporary / "blocks.arrow")
        if skips is not None:
            manifest = manifest | {"skipped": skips.count, "places": skips.places}
        write_manifest(temporary, manifest)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """`folder`.tmp to write to, which then takes the place of `folder`; what an earlier attempt left there is dropped."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except OSError:  # most often a full disk: half of the blocks are of no use, and in the way
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def write_manifest(folder: Path, manifest: dict[str, object]) -> None:
    """What the blocks in a folder are made of, with their checksum."""
    manifest = manifest | {"sha256": digest(folder / "blocks.arrow")}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def write_arrow(
    blocks: Iterator[Block],
    length: int,
    path: Path,
    small: bool = False,
    batch: int | None = None,
    names: tuple[str, ...] = ("ids", "document"),
) -> int:
    """Write all of `blocks` as an Arrow stream, a column a list; returns how many rows. small: ids below 65,536, in two
    bytes. batch: rows of a record batch. names: of the columns. The same blocks give the same bytes."""
    import pyarrow

    narrow = pyarrow.int16() if length < 2**15 else pyarrow.int32()
    types = [pyarrow.uint16() if small else pyarrow.int32(), narrow, narrow]
    first = next(blocks, ([],))
    names = names[: len(first)]
    columns = [pyarrow.list_(kind, length) for kind in types[: len(names)]]
    schema, written = pyarrow.schema(list(zip(names, columns, strict=True))), 0
    blocks = chain([first] if first[0] else [], blocks)
    with path.open("wb") as file:
        with pyarrow.ipc.new_stream(file, schema) as stream:
            while rows := list(islice(blocks, batch or _BATCH_ROWS)):
                arrays = [
                    pyarrow.FixedSizeListArray.from_arrays(
                        pyarrow.array(list(chain.from_iterable(row[n] for row in rows)), kind.value_type), type=kind
                    )
                    for n, kind in enumerate(columns)
                ]
                stream.write_batch(pyarrow.record_batch(arrays, schema=schema))
                written += len(rows)
        file.flush()
        os.fsync(file.fileno())
    return written


def _manifest(
    data: str | list[str],
    tokenizer: PreTrainedTokenizerBase,
    bos_token_id: int | None,
    eos_token_id: int,
    length: int,
) -> dict[str, object]:
    files: list[list[object]] = []
    for source in sources(data):
        if isinstance(source, str):
            files.append([source])
        else:
            status = source.stat()
            files.append([str(source.resolve()), status.st_size, status.st_mtime_ns])
    return {
        "layout": _LAYOUT,
        "data": files,
        "tokenizer": tokenizer_hash(tokenizer),
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "length": length,
    }


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of all that a fast tokenizer is; of a slow one only its class and vocabulary can be asked."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    # set by each call of the tokenizer, not part of what it is
    whole = {key: value for key, value in whole.items() if key not in ("truncation", "padding")}
    whole["class"] = type(tokenizer).__name__
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, object] | None:
    """The manifest of a folder of blocks; None where there is none, or none that can be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "layout" in manifest else None


def _feistel(index: int, half: int, keys: list[int]) -> int:
    """A permutation of the integers below 4**half."""
    mask = (1 << half) - 1
    left, right = index >> half, index & mask
    for key in keys:
        left, right = right, left ^ (_mix(key ^ right) & mask)
    return left << half | right


def _mix(value: int) -> int:
    """splitmix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit integers that leaves no bit near where it was."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
