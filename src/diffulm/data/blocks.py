"""Blocks: rows of a fixed number of token ids, packed from a stream of documents, kept as memory-mapped Arrow.

A block is BOS and then `length - 1` tokens of the stream in which each document is followed by EOS, with no BOS inside
(the layout that the scores of held-out text are defined on). Samples are numbered over the whole run; `row` says which
block a number stands for, so that a run that was killed needs no state of a shuffling iterator to go on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sized
from itertools import chain, islice
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from diffulm.checkpoint.files import digest
from diffulm.data.documents import documents, sources
from diffulm.errors import BadInput

_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 1000, 4_000_000  # as much text as is tokenised at once
_BATCH_ROWS = 1000  # rows in one Arrow record batch
_ROUNDS = 6
_LAYOUT = 1  # raise when the same data would be packed into other blocks
_OURS = {"blocks.arrow", "manifest.json"}


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
    head = [] if bos_token_id is None else [bos_token_id]
    size = length - len(head)
    if size < 1:
        raise BadInput(f"length {length}: a block needs room for at least one token" + " beside BOS" * len(head))
    return _cut(_tokens(documents, tokenizer, eos_token_id), head, size)


def build(
    data: str | list[str],
    tokenizer: PreTrainedTokenizerBase,
    bos_token_id: int | None,
    eos_token_id: int,
    length: int,
    folder: str | Path,
) -> Dataset:
    """The blocks of `data` (as `documents` takes it), a memory-mapped data set; column `ids`: `length` int32 a row.

    It lies in `folder` and is used again when that holds the blocks of the same files (path, size, time of change),
    tokenizer, length, BOS and EOS, unaltered (sha256). It is written to `folder`.tmp and renamed, so that `folder` is
    whole or not there. One process at a time.

    Raises:
        BadInput: as `documents` does; less text than one block; a `folder` that holds something else.
    """
    folder = Path(folder)
    wanted = _manifest(data, tokenizer, bos_token_id, eos_token_id, length)
    arrow = folder / "blocks.arrow"
    if not (arrow.is_file() and _read_manifest(folder) == wanted | {"sha256": digest(arrow)}):
        if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _OURS):
            raise BadInput(f"{folder}: exists and holds no packed blocks; name another folder")
        blocks = pack(documents(data), tokenizer, bos_token_id, eos_token_id, length)
        first = next(blocks, None)
        if first is None:
            named = data if isinstance(data, str) else ", ".join(data)
            raise BadInput(f"{named}: has less text than one block of {length} tokens; give more, or a smaller length")
        _write(chain([first], blocks), length, wanted, folder)
    return Dataset.from_file(str(arrow))


def fingerprint(folder: str | Path) -> str:
    """The sha256 of the blocks that `build` left in a folder; empty where it left none."""
    return str((_read_manifest(Path(folder)) or {}).get("sha256", ""))


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


def _tokens(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, eos_token_id: int) -> Iterator[list[int]]:
    for batch in _batches(documents):
        # verbose=False: a document longer than the model's context is what packing is for, no reason to warn
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids in encoded["input_ids"]:
            yield [*ids, eos_token_id]


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


def _cut(pieces: Iterable[list[int]], head: list[int], size: int) -> Iterator[list[int]]:
    stream: list[int] = []
    for ids in pieces:
        stream += ids
        whole = len(stream) - len(stream) % size
        for start in range(0, whole, size):
            yield head + stream[start : start + size]
        del stream[:whole]


def _write(blocks: Iterator[list[int]], length: int, manifest: dict[str, object], folder: Path) -> None:
    """Writes `folder`.tmp and renames it; what an earlier attempt left there is dropped."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_arrow(blocks, length, temporary / "blocks.arrow")
    except OSError:  # most often a full disk: half of the blocks are of no use, and in the way
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    manifest = manifest | {"sha256": digest(temporary / "blocks.arrow")}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _write_arrow(blocks: Iterator[list[int]], length: int, path: Path) -> None:
    import pyarrow

    column = pyarrow.list_(pyarrow.int32(), length)
    schema = pyarrow.schema({"ids": column})
    with path.open("wb") as file:
        with pyarrow.ipc.new_stream(file, schema) as stream:
            while rows := list(islice(blocks, _BATCH_ROWS)):
                flat = pyarrow.array([token for block in rows for token in block], pyarrow.int32())
                array = pyarrow.FixedSizeListArray.from_arrays(flat, type=column)
                stream.write_batch(pyarrow.record_batch([array], schema=schema))
        file.flush()
        os.fsync(file.fileno())


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
        "tokenizer": _tokenizer_hash(tokenizer),
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "length": length,
    }


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of all that a fast tokenizer is; of a slow one only its class and vocabulary can be asked."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    # set by each call of the tokenizer, not part of what it is
    whole = {key: value for key, value in whole.items() if key not in ("truncation", "padding")}
    whole["class"] = type(tokenizer).__name__
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, object] | None:
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
