"""Rows of a task: from a folder of files where one is given, from the hub otherwise. No torch in here."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from diffulm.errors import BadInput, shown

Row = dict[str, Any]


class NoData(Exception):
    """The file of a task is not in the folder that was given; the cell says `no data`."""


def why(error: Exception) -> str:
    """What the cell of a task says whose rows cannot be had; other tasks go on."""
    return "no data" if isinstance(error, NoData) else str(error)


@dataclass(frozen=True)
class Source:
    """Where the rows of a task stand and what one must have.

    file: below the folder given, as `hellaswag.jsonl` or `text/wikitext-2/test.txt.gz`; .gz or not, either is found.
    fields: a row's keys in that file. hub: (data set, configuration or None, split); from_hub: a row of it as one of the file.
    """

    file: str
    fields: tuple[str, ...] = ()
    hub: tuple[str, str | None, str] | None = None
    from_hub: Callable[[Row], Row] = dict


def find(folder: Path, name: str) -> Path:
    """The file `name` in `folder`, in `folder/eval` or beside either (a folder of task files often stands beside one of
    texts); with .gz or without. NoData where there is none."""
    plain = name.removesuffix(".gz")
    for place in (folder, folder / "eval", folder.parent):
        for one in (place / plain, place / f"{plain}.gz"):
            if one.is_file():
                return one
    raise NoData(f"{folder}: no {plain}")


def rows(source: Source, folder: Path | None, limit: int | None = None) -> list[Row]:
    """The first `limit` rows (all: None). NoData: not in `folder`; BadInput: a row that is not JSON or lacks a field (with
    file and line), no rows at all, a hub that cannot be reached."""
    found = list(islice(_local(source, folder) if folder is not None else _hub(source), limit))
    if not found:
        raise BadInput(f"{source.file}: has no rows")
    return found


def text(source: Source, folder: Path | None) -> str:
    """The whole text of a .txt source (rows of the hub joined)."""
    if folder is None:
        return "".join(str(row["text"]) for row in _hub(source))
    path = find(folder, source.file)
    try:
        return _read(path).decode("utf-8")
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error}); copy or download it again") from None


def _read(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()


def _local(source: Source, folder: Path) -> Iterator[Row]:
    path = find(folder, source.file)
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _checked(line, source, f"{path}, line {number}")
    except (OSError, EOFError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); copy or download it again") from None


def _checked(line: bytes, source: Source, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        raise BadInput(f"{where}: not JSON; mend or delete this row") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where}: a {type(row).__name__}, not an object; mend or delete this row")
    for name in source.fields:
        if name not in row:
            raise BadInput(f"{where}: no field {name!r}, it has {', '.join(map(shown, row))}; mend or delete this row")
    return row


def _hub(source: Source) -> Iterator[Row]:
    from diffulm.checkpoint.files import hub_answers
    from diffulm.checkpoint.opening import first_line

    if source.hub is None:
        raise NoData(f"{source.file}: only from a folder")
    name, configuration, split = source.hub
    if not hub_answers():
        raise BadInput(f"{name}: the hub cannot be reached; name a folder with {source.file} as --data-dir")
    import datasets

    try:
        for row in datasets.load_dataset(name, configuration, split=split, streaming=True):
            yield source.from_hub(dict(row))
    except Exception as error:  # not found, gated, no network, a column that is not there
        raise BadInput(f"{name}: cannot be read from the hub ({first_line(error)}); try --data-dir") from error
