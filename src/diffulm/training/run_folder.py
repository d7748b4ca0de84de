"""A run's folder: config.yaml, metrics.jsonl, checkpoints, report.json, and the model at its root once it is finished.

The command that started a run resumes it. Nothing here is ever half written: files are renamed into place, a lock of the
operating system keeps a second process out and dies with the first.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from diffulm.denoiser.files import newest_checkpoint
from diffulm.denoiser.save import sync
from diffulm.errors import BadInput

# What may differ between two commands of the same run: where it lies, on what it runs, how it is watched.
FREE_KEYS = ("out", "micro_batch", "device", "logging", "save_seconds", "keep_checkpoints")


class RunFolder:
    """One run. Use `open_run`; `config` is the resolved config as plain values."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def check(self) -> None:
        """Raise BadInput when the folder belongs to something else, or to another run. Writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"out={self.path}: is a file; name a folder")
        saved = self.path / "config.yaml"
        if not saved.exists():
            if self.path.exists() and any(p.name != ".lock" for p in self.path.iterdir()):
                raise BadInput(f"out={self.path}: is not empty and holds no run; name another folder")
            return
        try:
            before = yaml.safe_load(saved.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BadInput(f"{saved}: is not valid YAML ({str(error).splitlines()[0]})") from None
        for key in sorted(set(self.config) | set(before or {})):
            if key not in FREE_KEYS and (before or {}).get(key) != self.config.get(key):
                old, new = (before or {}).get(key), self.config.get(key)
                raise BadInput(
                    f"out={self.path}: holds another run: {key} is {old!r} there, {new!r} here; name another folder"
                )

    def report(self) -> dict[str, Any] | None:
        """The report of a finished run."""
        file = self.path / "report.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the folder if need be and keep it to this process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BadInput(f"out={self.path}: another process is running in it") from None
            self.check()
            if not (self.path / "config.yaml").exists():
                self.write("config.yaml", yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
            yield

    def write(self, name: str, text: str) -> None:
        """A small file, whole or not at all."""
        partial = self.path / f"{name}.tmp"
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, self.path / name)

    def log(self, row: dict[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def resume_point(self) -> Path | None:
        """The checkpoint to go on from; `metrics.jsonl` is cut back to its step, a torn last line dropped."""
        for partial in self.path.glob("*.tmp"):
            shutil.rmtree(partial, ignore_errors=True)
        newest = newest_checkpoint(self.path)
        step = int(newest.name.split("-")[1]) if newest else -1
        rows = read_metrics(self.metrics)
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
        return newest

    def publish(self, write_model: Callable[[Path], None]) -> None:
        """The final model to the root, file by file, config.json last: before that the root is no checkpoint.
        write_model leaves its files flushed, as `denoiser.save.write_model` does."""
        partial = self.path / "final.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        write_model(partial)
        for file in sorted(partial.iterdir(), key=lambda p: p.name == "config.json"):
            os.replace(file, self.path / file.name)
        partial.rmdir()
        sync(self.path)


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
