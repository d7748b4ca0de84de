"""Documents, one string each, from files, globs, folders and data sets on the Hugging Face hub.

.txt (a file is one document), .jsonl (field `text`), .parquet (column `text`), each also with .gz. A bad row is fatal
and is named by file and line: text that is dropped silently is a bug that no loss curve shows.
"""

import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from diffulm.errors import BadInput

KINDS = (".txt", ".jsonl", ".parquet")
# owner/name or owner/name:configuration, as on the hub; one slash, so that a misspelt file name is not looked up there
_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<configuration>[\w.-]+))?")


def documents(data: str | list[str]) -> Iterator[str]:
    """The documents of `data`: paths, globs, folders (their files, sorted; not the folders within) and hub names.

    A hub name is `owner/name` or `owner/name:configuration`; its split `train`, column `text`, is streamed.
    Files are found at once and read as the iterator goes; order is that of `data`, then of the sorted paths.

    Raises:
        BadInput: a missing file, a glob without matches, an unknown kind of file, a row that is not UTF-8, not JSON or
            has no string `text` (naming file and line), or no text at all.
    """
    return _not_empty(sources(data), data)


def sources(data: str | list[str]) -> list[Path | str]:
    """What `data` names: local files as `Path`, hub data sets as `str`; raises `BadInput` as `documents` does."""
    names = [data] if isinstance(data, str) else list(data)
    if not names:
        raise BadInput("no data given: name at least one file, folder, glob or hub data set")
    return [source for name in names for source in _resolve(str(name))]


def kind(path: Path) -> str | None:
    """`.txt`, `.jsonl` or `.parquet`, whether or not `.gz` follows; None for any other file."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else None


def _resolve(name: str) -> list[Path | str]:
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and kind(file))
        if not files:
            raise BadInput(f"{name}: a folder without {', '.join(KINDS)} files")
        return [*files]
    if path.exists():
        return [_known(path)]
    if glob.has_magic(name):
        files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [_known(file) for file in files if not file.is_dir()]
        if not files:
            raise BadInput(f"{name}: no file matches this pattern")
        return [*files]
    looks_local = kind(path) or path.suffix == ".gz" or path.parent.is_dir()  # the hub takes long to say no
    if _HUB_NAME.fullmatch(name) and not looks_local:
        return [name]
    raise BadInput(f"{name}: no such file or folder")


def _known(path: Path) -> Path:
    if kind(path) is None:
        raise BadInput(f"{path}: unknown kind of file; known are {', '.join(KINDS)}, each also with .gz")
    return path


def _not_empty(found: list[Path | str], data: str | list[str]) -> Iterator[str]:
    empty = True
    for source in found:
        for text in _hub(source) if isinstance(source, str) else _file(source):
            empty = empty and not text
            yield text
    if empty:
        raise BadInput(f"{data if isinstance(data, str) else ', '.join(data)}: no text in it")


def _file(path: Path) -> Iterator[str]:
    readers = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            yield from readers[cast(str, kind(path))](path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}: damaged gzip file: {error}") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error


def _txt(path: Path, file: io.BufferedIOBase) -> Iterator[str]:
    content = file.read()
    try:
        yield content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}, line {line}: not UTF-8 ({error.reason})") from error


def _jsonl(path: Path, file: io.BufferedIOBase) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue  # most often the end of the file; there is no row to be bad
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadInput(f"{where}: not UTF-8 ({error.reason})") from error
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadInput(f"{where}: a {type(row).__name__}, not an object with a field `text`")
        yield _text(row, where)


def _parquet(path: Path, file: io.BufferedIOBase) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        # a gzip stream cannot seek, which Parquet needs
        table = pyarrow.parquet.ParquetFile(io.BytesIO(file.read()) if path.name.endswith(".gz") else file)
        if "text" not in table.schema_arrow.names:
            raise BadInput(f"{path}: no column `text`; it has {', '.join(table.schema_arrow.names) or 'none'}")
        number = 0
        for batch in table.iter_batches(batch_size=1000, columns=["text"]):
            for value in batch.column(0):
                number += 1
                try:
                    text = value.as_py()
                except UnicodeDecodeError as error:
                    raise BadInput(f"{path}, row {number}: not UTF-8 ({error.reason})") from error
                yield _text({"text": text}, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: damaged Parquet file: {str(error).splitlines()[0]}") from error


def _hub(name: str) -> Iterator[str]:
    import datasets

    match = cast(re.Match[str], _HUB_NAME.fullmatch(name))
    try:
        rows = datasets.load_dataset(match["name"], match["configuration"], split="train", streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # what `datasets` raises for: not found, gated, no network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{name}: no such file, and no data set of this name on the hub can be opened ({reason})"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield _text(cast(dict[str, object], row), f"{name}, row {number}")


def _text(row: dict[str, object], where: str) -> str:
    if "text" not in row:
        raise BadInput(f"{where}: no field `text`; it has {', '.join(map(str, row)) or 'none'}")
    text = row["text"]
    if not isinstance(text, str):
        raise BadInput(f"{where}: `text` is {type(text).__name__}, not a string")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair; no tokenizer takes it
            raise BadInput(f"{where}: `text` is not Unicode text ({error.reason})") from error
    return text
