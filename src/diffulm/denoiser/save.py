"""A diffusion model to a folder: a plain Hugging Face checkpoint, the record in its config, a sha256 beside the weights."""

import os
import shutil
from pathlib import Path
from typing import Any

from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.files import write_checksums
from diffulm.errors import BadInput


def save(denoiser: Denoiser, tokenizer: Any, path: str | Path) -> None:
    """Write model, tokenizer and record to `path`, which must not exist or be empty. Atomic: the folder appears whole."""
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target}: exists and is not empty; nothing was written, choose another folder")
    partial = target.with_name(target.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    write_model(denoiser.model, tokenizer, partial, record=denoiser.record.to_dict())
    if target.exists():
        target.rmdir()
    os.rename(partial, target)


def write_model(model: Any, tokenizer: Any, folder: Path, record: dict[str, Any] | None, state: Any = None) -> None:
    """The files of a checkpoint into `folder`, fsynced. record None leaves a plain AR checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.diffulm = record
    if record is None:
        del model.config.diffulm
    model.save_pretrained(folder, state_dict=state)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_checksums(folder)
    flush(folder)


def flush(folder: Path) -> None:
    """fsync every file and the folder, so that a rename after it never publishes a torn checkpoint."""
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
