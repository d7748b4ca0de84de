"""Documents, one string each, from files, globs, folders and data sets on the Hugging Face hub.

.txt (a file is one document), .jsonl (field `text`), .parquet (column `text`), each also with .gz. A bad row is named by
file and line; it is fatal unless somebody counts what is skipped: text that is dropped silently is a bug that no loss
curve shows.
"""

import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, cast

from diffulm.checkpoint.files import hub_answers
from diffulm.errors import BadInput, nearest, shown

KINDS = (".txt", ".jsonl", ".parquet")
PLACES = 5  # of bad rows that are shown
# owner/name or owner/name:configuration, as on the hub; one slash, so that a misspelt file name is not looked up there
_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<configuration>[\w.-]+))?")


@dataclass
class Skips:
    """Bad rows that were left out: how many, and of the first few where and why."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, count: int, places: list[str]) -> None:
        self.count += count
        self.places += places[: PLACES - len(self.places)]

    def __str__(self) -> str:
        more = f"; and {self.count - len(self.places)} more" if self.count > len(self.places) else ""
        return f"{self.count} bad row{'s' * (self.count != 1)} left out: {'; '.join(self.places)}{more}"


@dataclass(frozen=True)
class Column:
    """What to take of a row: the text of one column."""

    name: str = "text"

    def __call__(self, row: dict[str, Any]) -> str:
        """BadInput for a row without a text there."""
        if self.name not in row:
            raise BadInput(f"no field `{self.name}`, it has {some(row)}; rename the one that holds the text")
        return unicode(row[self.name], f"`{self.name}`")


Pick = Callable[[dict[str, Any]], Any]
"""What to take of a row; BadInput, without a word about where, for a bad one."""


def documents(data: str | list[str], skips: Skips | None = None) -> Iterator[str]:
    """The documents of `data`: paths, globs, folders (their files, sorted; not the folders within) and hub names.

    A hub name is `owner/name` or `owner/name:configuration`; its split `train`, column `text`, is streamed.
    Files are found at once and read as the iterator goes; order is that of `data`, then of the sorted paths. With `skips`
    a bad row is counted there and left out.

    Raises:
        BadInput: a missing file, a glob without matches, an unknown kind of file, a row that is not UTF-8, not JSON or
            has no string `text` (naming file and line), or no text at all.
    """
    found = sources(data)
    return _not_empty(chain.from_iterable(read(source, skips) for source in found), data)


def read(
    source: Path | str,
    skips: Skips | None = None,
    pick: Pick = Column(),
    stretch: tuple[int, int] | None = None,
) -> Iterator[Any]:
    """The documents of one of `sources`, or what else `pick` takes of its rows; or of a stretch (start, end) of it: the rows
    that begin in these bytes of a plain .jsonl file, these row groups of a .parquet file; of a hub data set (i, n) is part i
    of n. BadInput as `documents`."""
    for row in _hub(source, pick, stretch) if isinstance(source, str) else _file(source, pick, stretch):
        if not isinstance(row, BadInput):
            yield row
        elif skips is None:
            raise row
        else:
            skips.add(1, [str(row).partition(";")[0]])


def sources(data: str | list[str]) -> list[Path | str]:
    """What `data` names: local files as `Path`, hub data sets as `str`; raises `BadInput` as `documents` does."""
    names = [data] if isinstance(data, str) else list(data)
    if not names:
        raise BadInput("no data given: name at least one file, folder, glob or hub data set")
    return [source for name in names for source in _resolve(str(name))]


def takes_in(name: str, file: Path) -> bool:
    """Whether the folder or glob `name` would find `file` if it were there: a run's own log must not become its data."""
    there, pattern = Path(os.path.abspath(file)), Path(os.path.abspath(os.path.expanduser(name)))
    return there.parent == pattern or _matches(there.parts, pattern.parts)


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def kind(path: Path) -> str | None:
    """`.txt`, `.jsonl` or `.parquet`, whether or not `.gz` follows; None for any other file."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else None


def _resolve(name: str) -> list[Path | str]:
    path = Path(os.path.expanduser(name))
    if not name or not _nameable(path):
        raise BadInput(
            f"data {shown(name)}: is no name that a file can have; name a file, folder, glob or hub data set"
        )
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and kind(file))
        if not files:
            raise BadInput(
                f"{name}: a folder without {', '.join(KINDS)} files in it (those of its folders are not read)"
            )
        return [*files]
    if path.exists():
        return [_known(path)]
    if glob.has_magic(name):
        files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [_known(file) for file in files if not file.is_dir()]
        if not files:
            raise BadInput(f"{name}: no file matches this pattern; patterns start from {Path.cwd()}")
        return [*files]
    looks_local = kind(path) or path.suffix == ".gz" or path.parent.is_dir()  # the hub takes long to say no
    if _HUB_NAME.fullmatch(name) and not looks_local:
        return [name]
    if path.with_name(path.name + ".tmp").is_dir():
        raise BadInput(f"{name}: is not whole yet; the `diffulm prepare` that makes it, given again, goes on")
    near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else None
    raise BadInput(f"{name}: no such file or folder" + (f"; did you mean {path.with_name(near)}?" if near else ""))


def _nameable(path: Path) -> bool:
    try:
        path.lstat()
    except (ValueError, OSError) as error:  # NUL; a part of more than 255 bytes
        return isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
    return True


def _known(path: Path) -> Path:
    if kind(path) is None:
        raise BadInput(f"{path}: unknown kind of file; convert it: known are {', '.join(KINDS)}, each also with .gz")
    return path


def _not_empty(texts: Iterable[str], data: str | list[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        empty = empty and not text
        yield text
    if empty:
        raise BadInput(f"{data if isinstance(data, str) else ', '.join(data)}: no text in it; give a file with some")


# The readers yield the error in the place of a bad row; what makes the rest unreadable, too, is raised.


def _file(path: Path, pick: Pick, stretch: tuple[int, int] | None) -> Iterator[Any]:
    readers = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            yield from readers[cast(str, kind(path))](path, file, pick, stretch)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}: damaged gzip file ({error}); copy or download it again") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error


def _txt(path: Path, file: io.BufferedIOBase, pick: Pick, stretch: Any) -> Iterator[Any]:
    if not isinstance(pick, Column):
        raise BadInput(f"{path}: is plain text, which has no rows; convert it to .jsonl")
    content = file.read()
    try:
        yield content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield BadInput(f"{path}, line {line}: not UTF-8 ({error.reason}); convert the file to UTF-8")


def _jsonl(path: Path, file: io.BufferedIOBase, pick: Pick, stretch: tuple[int, int] | None) -> Iterator[Any]:
    at, end = stretch or (0, None)
    if at:
        file.seek(at - 1)
        at += len(file.readline()) - 1  # the rest of a row that begins before this stretch
    first = None if at else 1  # the number of the first line; counted when it is asked for
    begin = at
    for number, line in enumerate(file):
        if end is not None and at >= end:
            return
        at += len(line)
        if not line.strip():
            continue  # most often the end of the file; there is no row to be bad
        row = _row(line, pick, marked=begin == 0 and number == 0)
        if isinstance(row, BadInput):
            first = first or _lines(path, begin) + 1
            row = BadInput(f"{path}, line {first + number}: {row}")
        yield row


def _lines(path: Path, end: int) -> int:
    """How many lines the first `end` bytes of a file are."""
    with path.open("rb") as file:
        pieces = (file.read(min(1 << 20, end - at)) for at in range(0, end, 1 << 20))
        return sum(piece.count(b"\n") for piece in pieces)


def _row(line: bytes, pick: Pick, marked: bool) -> Any:
    """What there is in one line of JSON, or what is wrong with it. marked: a mark of the encoding may stand before it."""
    try:
        row = json.loads(line.decode("utf-8-sig" if marked else "utf-8"))
    except UnicodeDecodeError as error:
        return BadInput(f"not UTF-8 ({error.reason}); convert the file to UTF-8")
    except json.JSONDecodeError as error:  # its own words count the lines of the row, which is one
        return BadInput(f"not JSON ({error.msg}, column {error.pos + 1}); mend or delete this row")
    except (ValueError, RecursionError) as error:
        return BadInput(f"not JSON that can be read ({error}); mend or delete this row")
    if not isinstance(row, dict):
        what = f"with a field `{pick.name}`" if isinstance(pick, Column) else "with named fields"
        return BadInput(f"a {type(row).__name__}, not an object {what}; mend or delete it")
    return _picked(row, pick)


def _parquet(path: Path, file: io.BufferedIOBase, pick: Pick, stretch: tuple[int, int] | None) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        # a gzip stream cannot seek, which Parquet needs
        table = pyarrow.parquet.ParquetFile(io.BytesIO(file.read()) if path.name.endswith(".gz") else file)
        names = table.schema_arrow.names
        if isinstance(pick, Column) and pick.name not in names:
            raise BadInput(f"{path}: no column `{pick.name}`, it has {some(names)}; rename one")
        wanted = [pick.name] if isinstance(pick, Column) else names
        groups = range(*(stretch or (0, table.num_row_groups)))
        number = sum(table.metadata.row_group(group).num_rows for group in range(groups.start))
        for batch in table.iter_batches(batch_size=1000, row_groups=list(groups), columns=wanted):
            for index in range(batch.num_rows):
                number += 1
                try:
                    row = {name: column[index].as_py() for name, column in zip(wanted, batch.columns, strict=True)}
                except UnicodeDecodeError as error:
                    row = BadInput(f"not UTF-8 ({error.reason})")
                row = row if isinstance(row, BadInput) else _picked(row, pick)
                yield BadInput(f"{path}, row {number}: {row}") if isinstance(row, BadInput) else row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: damaged Parquet file ({reason}); copy or download it again") from error


def hub_rows(name: str) -> Any:
    """The split `train` of a hub data set, streamed: `num_shards` files. BadInput where it cannot be opened."""
    import datasets

    from diffulm.checkpoint.opening import first_line

    match = cast(re.Match[str], _HUB_NAME.fullmatch(name))
    if not hub_answers():  # `datasets` would try for half a minute
        raise BadInput(f"{name}: no such file, and the hub, where a data set may have this name, cannot be reached")
    try:
        return datasets.load_dataset(match["name"], match["configuration"], split="train", streaming=True)
    except Exception as error:  # not found, gated, no network, no split of this name: each in a kind of its own
        raise BadInput(
            f"{name}: no such file, and no data set of this name on the hub can be opened ({first_line(error)})"
        ) from error


def _hub(name: str, pick: Pick, stretch: tuple[int, int] | None) -> Iterator[Any]:
    from diffulm.checkpoint.opening import first_line

    rows, where = hub_rows(name), name
    if stretch is not None:
        rows, where = rows.shard(index=stretch[0], num_shards=stretch[1]), f"{name}, part {stretch[0] + 1}"
    rows = iter(rows)
    for number in count(1):
        try:
            row = next(rows, None)
        except Exception as error:  # the network, or whatever a reader of some format raises
            raise BadInput(
                f"{where}, row {number}: cannot be read ({first_line(error)}); the same command tries again"
            ) from error
        if row is None:
            return
        row = _picked(cast(dict[str, Any], row), pick)
        yield BadInput(f"{where}, row {number}: {row}") if isinstance(row, BadInput) else row


def _picked(row: dict[str, Any], pick: Pick) -> Any:
    try:
        return pick(row)
    except BadInput as error:
        return error


def unicode(text: object, name: str) -> str:
    """A text that tokenizers take; BadInput, which calls it `name`, for anything else."""
    if not isinstance(text, str):
        raise BadInput(f"{name} is {type(text).__name__}, not a string; mend or delete it")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair; no tokenizer takes it
            raise BadInput(f"{name} is not Unicode text ({error.reason}); mend or delete it") from None
    return text


def some(names: Iterable[object]) -> str:
    """The first few names, for a line."""
    first = [str(name) for name in islice(names, 6)]
    return ", ".join(name[:40] for name in first[:5]) + ", ..." * (len(first) > 5) if first else "none"
