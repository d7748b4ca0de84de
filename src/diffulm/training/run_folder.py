"""A run's folder: config.yaml, metrics.jsonl, checkpoints, report.json, and the model at its root once it is finished.

The command that started a run resumes it. Nothing here is ever half written: files are renamed into place, a lock of the
operating system keeps a second run out and dies with the first. What something else cuts short is found by its checksum
and named. Of several processes only the first writes; the others wait for it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from diffulm.checkpoint import disk
from diffulm.checkpoint.card import CARD
from diffulm.checkpoint.files import checkpoints_in
from diffulm.checkpoint.save import sync
from diffulm.errors import BadInput
from diffulm.training import checkpoints, processes
from diffulm.training.processes import RESUMES

# What may differ between two commands of the same run: where it lies, on what it runs, how it is watched.
FREE_KEYS = (
    "out",
    "micro_batch",
    "device",
    "report_to",
    "save_seconds",
    "keep_checkpoints",
    "sharding",
    "deepspeed",
    "compile",
)


class _Dumper(yaml.SafeDumper):
    """What is read again as it was: PyYAML writes U+0085 and its like bare, and reads the end of a line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)


class RunFolder:
    """One run. `config` is the resolved config as plain values, `free` the keys that may differ when it goes on; `data` names
    the blocks it trains on, by checksum."""

    def __init__(self, path: Path, config: dict[str, Any], free: Sequence[str] = FREE_KEYS) -> None:
        self.path, self.config, self.free = path, config, free
        self.data: dict[str, str] = {}

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def check(self) -> None:
        """Raise BadInput when the folder is in use, belongs to something else, or to another run. Writes nothing."""
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            raise BadInput(f"out={self.path}: its name is not UTF-8 text (or the locale is not); rename it") from None
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"out={self.path}: is a file; name a folder")
        if (self.path / ".lock").exists():
            with (self.path / ".lock").open() as lock:
                self._lock(lock, fcntl.LOCK_SH)
        self._check_owner()

    def _check_owner(self) -> None:
        saved = self.path / "config.yaml"
        if not saved.exists():
            if self.metrics.exists() or checkpoints_in(self.path):
                raise BadInput(f"{saved}: is missing, so nobody knows what run this was; name another folder")
            # what a run killed at its very start leaves
            if self.path.exists() and any(p.name not in (".lock", "config.yaml.tmp") for p in self.path.iterdir()):
                raise BadInput(f"out={self.path}: is not empty and holds no run; name another folder")
            return
        before = _read_config(saved, set(self.config))
        for key in sorted(set(self.config) | set(before)):
            if key not in self.free and before.get(key) != self.config.get(key):
                old, new = before.get(key), self.config.get(key)
                raise BadInput(
                    f"out={self.path}: holds another run: {key} is {old!r} there, {new!r} here; name another folder"
                )

    def report(self) -> dict[str, Any] | None:
        """The report of a finished run; None for one that has still something to do.

        Raises:
            BadInput: it is finished, and a file of it has been damaged since.
        """
        try:
            found = json.loads((self.path / "report.json").read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            # a torn report is written again from the last checkpoint
            if (self.path / "config.json").exists() and not checkpoints_in(self.path):
                raise BadInput(
                    f"{self.path / 'report.json'}: is missing or damaged, and there is no checkpoint to write it from; "
                    "name another folder"
                ) from None
            return None
        if damaged := checkpoints.damage(self.path):
            raise BadInput(
                f"{damaged}; the run was finished: delete {self.path / 'report.json'}, and the same command writes "
                "the model again from the last checkpoint"
            )
        return found

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the folder if need be and keep it to this run. A full disk inside becomes BadInput."""
        with ExitStack() as stack:
            processes.from_first(lambda: stack.enter_context(self._started()))
            with disk.writing(self.path, advice=RESUMES), processes.together():
                yield

    @contextmanager
    def _started(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"out={self.path}: cannot be made ({error.strerror}); name another folder") from None
        with disk.writing(self.path), (self.path / ".lock").open("w") as lock:
            self._lock(lock, fcntl.LOCK_EX)
            self._check_owner()
            if not (self.path / "config.yaml").exists():
                self.write("config.yaml", yaml.dump(self.config, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
            yield

    def _lock(self, file: IO[str], kind: int) -> None:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"out={self.path}: another process is running in it") from None
        except OSError as error:
            why = error.strerror
            raise BadInput(f"out={self.path}: its disk knows no locks ({why}); name a folder on another") from None

    def write(self, name: str, text: str) -> None:
        """A small file, whole or not at all."""
        partial = self.path / f"{name}.tmp"
        try:
            with partial.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, self.path / name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def log(self, row: dict[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def resume_point(self) -> Path | None:
        """The checkpoint to go on from, the log as it was when that was written. Clears away what a killed run left.

        Raises:
            BadInput: no checkpoint is whole; the data is not what the run began with.
        """
        for partial in self.path.glob("*.tmp"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        newest = checkpoints.newest_whole(self.path)
        if newest is None:
            self.write("metrics.jsonl", "")
            return None
        if json.loads((newest / "data.json").read_text("utf-8")) != self.data:
            raise BadInput(
                f"data: packs into other blocks than those {self.path} began with; give it the same text, or name "
                "another folder"
            )
        self.write("metrics.jsonl", (newest / "metrics.jsonl").read_text("utf-8"))
        return newest

    def complete(self, checkpoint: Path) -> None:
        """Add to a checkpoint that is being written what the run itself needs to go on from it, and seal it."""
        (checkpoint / "data.json").write_text(json.dumps(self.data) + "\n", "utf-8")
        shutil.copyfile(self.metrics, checkpoint / "metrics.jsonl")
        checkpoints.seal(checkpoint)

    def publish(self, write_model: Callable[[Path], None]) -> list[Path]:
        """The final model to the root, file by file, config.json last: before that the root is no checkpoint.
        write_model leaves its files flushed, as `checkpoint.save.write_model` does. Returns the files."""
        partial = self.path / "final.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        write_model(partial)
        names = sorted((p.name for p in partial.iterdir()), key=lambda name: name == "config.json")
        for name in names:
            os.replace(partial / name, self.path / name)
        partial.rmdir()
        sync(self.path)
        return [self.path / name for name in names]

    def finish(self, report: dict[str, Any], published: list[Path]) -> None:
        """Seal the log and the published model, and write report.json, which says that nothing is left to do."""
        files = [self.metrics, *(file for file in published if file.name != CARD)]  # the card is the user's to edit
        self.write(checkpoints.MANIFEST, checkpoints.manifest(self.path, files))
        self.write("report.json", json.dumps(report, indent=2) + "\n")


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a killed process tore is left out."""
    rows: list[dict[str, Any]] = []
    lines = file.read_text("utf-8", errors="replace").splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise BadInput(f"{file}:{number}: is not JSON; delete that line or the folder") from None
    return rows


def _read_config(file: Path, keys: set[str]) -> dict[str, Any]:
    """A run's config.yaml, which has all of `keys` and ends with a newline unless something cut it short."""
    try:
        text = file.read_text("utf-8")
        found = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: is not valid YAML ({str(error).splitlines()[0]})") from None
    missing = sorted(keys - set(found)) if isinstance(found, dict) else sorted(keys)
    if missing or not text.endswith("\n"):
        what = f"lacks {missing[0]!r}" if missing else "ends in the middle of a line"
        raise BadInput(f"{file}: {what}: it is damaged, or of another version of DiffuLM; name another folder")
    return found
