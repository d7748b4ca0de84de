"""A diffusion model to a folder: a plain Hugging Face checkpoint, the record in its config, a sha256 beside the weights."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.files import write_checksums
from diffulm.denoiser.quiet import quietly
from diffulm.errors import BadInput


def save(denoiser: Denoiser, tokenizer: Any, path: str | Path) -> None:
    """Write model, tokenizer (None: none) and record to `path`, which must not exist or be an empty folder, else BadInput.

    Atomic: the folder appears whole or not at all.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target}: exists and is not empty; nothing was written, choose another folder")
    target = target.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write_model(denoiser.model, tokenizer, partial, record=denoiser.record.to_dict())
        os.replace(partial, target)  # onto an empty folder or nothing; anything that came meanwhile makes it fail
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(target.parent)


def write_model(model: Any, tokenizer: Any, folder: Path, record: dict[str, Any] | None, state: Any = None) -> None:
    """The files of a checkpoint into `folder`, fsynced. record None leaves a plain AR checkpoint. Changes nothing in
    memory."""
    folder.mkdir(parents=True, exist_ok=True)
    with quietly():
        model.save_pretrained(folder, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    _write_record(folder / "config.json", record)
    write_checksums(folder)
    flush(folder)


def _write_record(file: Path, record: dict[str, Any] | None) -> None:
    config = json.loads(file.read_text("utf-8"))
    config.pop("is_causal", None)  # the plain checkpoint reads from left to right, as its parent
    config.pop("diffulm", None)
    if record is not None:
        config["diffulm"] = record
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def flush(folder: Path) -> None:
    """fsync every file and the folder, so that a rename after it never publishes a torn checkpoint."""
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        sync(path)


def sync(path: Path) -> None:
    """fsync a file, or a folder: its renames are then on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
