"""Parts: what a corpus is cut into, so that each can be packed on its own, in any process and in any order.

The cut depends on the files alone. A part is whole files together, some bytes of a plain .jsonl file, some row groups of a
.parquet file, or one file of a hub data set; a .gz file cannot be read from its middle and is one part however large.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from diffulm.checkpoint.files import digest
from diffulm.data.blocks import Counts, packed, row, write_arrow
from diffulm.data.documents import Column, Skips, hub_rows, kind, read, sources

SMALLEST, LARGEST, MANY = 2**22, 2**28, 1024  # bytes of text in a part, and how many parts are enough
SHARD_BYTES = 2**28
BATCH_BYTES = 2**23  # of a record batch: to open a file is to read the head of each, and the pages around that
_PACKED = 4  # about how much text is in a byte of .gz or .parquet


@dataclass(frozen=True)
class Source:
    """Text of one kind: names as `documents` takes them, the column that holds the text, its share of the tokens."""

    data: tuple[str, ...]
    column: str = "text"
    weight: float | None = None


@dataclass(frozen=True)
class Part:
    """Some rows of source number `source`: whole `files`, or a stretch of one (see `documents.read`); `size`: about how many
    bytes of text."""

    source: int
    column: str
    files: tuple[Path | str, ...]
    stretch: tuple[int, int] | None
    size: int

    @property
    def identity(self) -> list[Any]:
        """What its blocks depend on besides the settings, and the content of files that have not changed."""
        stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in self.files if isinstance(f, Path)]
        return [self.column, stats or self.files, self.stretch]


@dataclass(frozen=True)
class Packer:
    """How text becomes blocks."""

    tokenizer: PreTrainedTokenizerBase
    bos_token_id: int | None
    eos_token_id: int
    length: int
    packing: str
    bad_rows: str

    @property
    def small(self) -> bool:
        """Whether an id takes two bytes."""
        return len(self.tokenizer) <= 2**16

    def pack(self, part: Part, stem: Path, limit: int | None, tick: Callable[[int], None]) -> dict[str, Any]:
        """Write the blocks of a part, at most `limit`, to files of at most SHARD_BYTES: `stem`-0.arrow, ... What fills no
        block is left out. Returns rows, counts, and name, size and sha256 of each file. BadInput as `documents`."""
        skips, counts = Skips() if self.bad_rows == "skip" else None, Counts()
        texts = chain.from_iterable(read(file, skips, Column(part.column), part.stretch) for file in part.files)
        blocks = packed(
            texts, self.tokenizer, self.bos_token_id, self.eos_token_id, self.length, self.packing, counts, tick
        )
        width = (2 if self.small else 4) + (2 if self.packing == "documents" else 0)
        most, batch = (max(1, size // (self.length * width)) for size in (SHARD_BYTES, BATCH_BYTES))
        left, shards = 2**63 if limit is None else limit, []
        while left:
            file = stem.with_name(f"{stem.name}-{len(shards)}.arrow")
            rows = write_arrow(islice(blocks, min(most, left)), self.length, file, self.small, batch)
            if rows:
                shards.append({"file": file.name, "rows": rows, "bytes": file.stat().st_size, "sha256": digest(file)})
            else:
                file.unlink()
            left -= rows
            if rows < most:
                break
        found = {"rows": sum(shard["rows"] for shard in shards), "documents": counts.documents, "cut": counts.cut}
        skipped = {"skipped": skips.count if skips else 0, "places": skips.places if skips else []}
        return {"source": part.source, **found, "left_over": counts.left_over, **skipped, "shards": shards}


def parts(mixture: list[Source], seed: int) -> list[list[Part]]:
    """The parts of each source in the order in which they are taken, a function of the files and the seed; without weights
    all sources are one. BadInput as `documents`."""
    found = [list(chain.from_iterable(sources(name) for name in source.data)) for source in mixture]
    total = sum(_text_bytes(file) for files in found for file in files)
    size = SMALLEST
    while size < LARGEST and size * MANY < total:  # powers of two, so that a corpus that grows is cut as before
        size *= 2
    cut = [list(_parts(n, mixture[n].column, files, size)) for n, files in enumerate(found)]
    groups = cut if mixture[0].weight is not None else [list(chain.from_iterable(cut))]
    return [[group[row(group, seed, n)] for n in range(len(group))] for group in groups]


def key(settings: dict[str, Any], part: Part, limit: int | None) -> str:
    return hashlib.sha256(json.dumps([settings, part.identity, limit]).encode()).hexdigest()


def _parts(source: int, column: str, files: list[Path | str], size: int) -> Iterator[Part]:
    together: list[Path | str] = []
    filled = 0
    for file in files:
        if isinstance(file, str):
            count = getattr(hub_rows(file), "num_shards", 1)
            yield from (Part(source, column, (file,), (n, count), size) for n in range(count))
            continue
        stretches = _stretches(file, size)
        if len(stretches) > 1:
            yield from (Part(source, column, (file,), stretch, size) for stretch in stretches)
            continue
        if together and filled + _text_bytes(file) > size:
            yield Part(source, column, tuple(together), None, filled)
            together, filled = [], 0
        together, filled = [*together, file], filled + _text_bytes(file)
    if together:
        yield Part(source, column, tuple(together), None, filled)


def _stretches(file: Path, size: int) -> list[tuple[int, int]]:
    """Where a file is cut; empty where it is not."""
    if file.name.endswith(".gz") or _text_bytes(file) <= size or kind(file) == ".txt":
        return []
    if kind(file) == ".jsonl":
        return [(at, at + size) for at in range(0, file.stat().st_size, size)]
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            groups = [table.metadata.row_group(n).total_byte_size for n in range(table.num_row_groups)]
    except (pyarrow.ArrowException, OSError):
        return []  # who reads it says what is wrong with it
    ends, filled = [0], 0
    for n, group in enumerate(groups, 1):
        filled += group
        if filled >= size or n == len(groups):
            ends.append(n)
            filled = 0
    return list(pairwise(ends))


def _text_bytes(file: Path | str) -> int:
    if isinstance(file, str):
        return 0
    size = file.stat().st_size
    return size * _PACKED if file.suffix in (".gz", ".parquet") else size
