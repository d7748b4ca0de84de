"""A diffusion model to a folder: a plain Hugging Face checkpoint, the record in its config, a sha256 beside the weights,
a model card."""

import ctypes
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffulm.checkpoint import adapter, card, disk
from diffulm.checkpoint.files import CHECKSUMS, write_checksums
from diffulm.checkpoint.origin import CARD
from diffulm.denoiser.adapter import attached
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.quiet import quietly
from diffulm.errors import BadInput

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux' renameat2
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
# What `overwrite` may throw away: the files of a model, and nothing else that somebody may have put beside them.
OF_A_MODEL = re.compile(
    r"(adapter_|generation_)?config\.json|.*\.safetensors(\.index\.json)?|\.gitattributes|"
    + "|".join(re.escape(name) for name in (CHECKSUMS, CARD, *TOKENIZER_FILES))
)


def save(denoiser: Denoiser, tokenizer: Any, path: str | Path, overwrite: bool = False) -> None:
    """Write model, tokenizer (None: none), record and card to `path`, which must not exist or be an empty folder.

    overwrite: a folder that holds a checkpoint, and nothing else, is replaced; a card in it that somebody has edited stays.
    Atomic: at any moment the folder is the old or the new one, whole. BadInput for a folder that may not be written.
    """
    with appearing(path, overwrite, disk.size(denoiser.model)) as (partial, target):
        facts = card.of_model(denoiser.model, denoiser.record, target)
        write_model(denoiser.model, tokenizer, partial, denoiser.record.to_dict(), facts=facts)


@contextmanager
def appearing(path: str | Path, overwrite: bool = False, needed: int = 0) -> Iterator[tuple[Path, Path]]:
    """(a folder to make and to fill with flushed files, `path` resolved): it becomes `path` at the end, at one stroke.

    When an exception ends the block, `path` is as it was. BadInput as in `save`, before anything is written; also for a
    disk that is full (needed: about how many bytes there must be room for) or read-only.
    """
    target = Path(path)
    replacing = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if replacing and not overwrite:
        raise BadInput(f"{target}: exists and is not empty; nothing was written, choose another folder")
    if replacing:
        _check_replaceable(target)
    target = target.resolve()
    partial = disk.partial(target)
    try:
        with disk.writing(target, needed):
            yield partial, target
            if replacing:
                _exchange(partial, target)
            else:
                os.replace(partial, target)  # onto an empty folder or nothing; what came meanwhile makes it fail
            sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # what was begun, or what was replaced


def _check_replaceable(target: Path) -> None:
    if not (target / "config.json").is_file():
        raise BadInput(f"{target}: holds no checkpoint that could be replaced; choose another folder")
    others = [p.name for p in sorted(target.iterdir()) if not _of_a_model(p)]
    if others:
        raise BadInput(f"{target}: holds more than a model: {', '.join(others)}; move that, or choose another folder")


def _of_a_model(path: Path) -> bool:
    return path.is_file() and bool(OF_A_MODEL.fullmatch(path.name) or card.LEGAL.fullmatch(path.name))


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders at one stroke: at no moment is there nothing at `old`. BadInput where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(new), os.fsencode(old)
    if not hasattr(libc, "renameat2") or libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE):
        why = os.strerror(ctypes.get_errno()) if hasattr(libc, "renameat2") else "no renameat2"
        raise BadInput(f"{old}: cannot be replaced at one stroke on this system ({why}); save to a new folder")


def write_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    record: dict[str, Any] | None,
    state: Any = None,
    facts: card.Facts | None = None,
) -> None:
    """The files of a checkpoint into `folder`, fsynced; of a model with an adapter the adapter alone. record None leaves a
    plain AR checkpoint. facts: of the card, None writes none. Changes nothing in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    with quietly():
        if attached(model):
            adapter.write(model, folder, state)
        else:
            model.save_pretrained(folder, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if attached(model):
        config.pop("quantization_config", None)  # how a run held the parent
    config.pop("is_causal", None)  # the plain checkpoint reads from left to right, as its parent
    write_config(folder, config, record)
    finish(folder, facts)


def write_config(folder: Path, config: dict[str, Any], record: dict[str, Any] | None) -> None:
    """config.json with this record, or with none."""
    told = {key: value for key, value in config.items() if key != "diffulm"}
    if record is not None:
        told["diffulm"] = record
    (folder / "config.json").write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", "utf-8")


def finish(folder: Path, facts: card.Facts | None) -> None:
    """What every saved model gets at the end: its card, its checksums, and a flush."""
    if facts is not None:
        card.write(folder, facts)
    write_checksums(folder)
    flush(folder)


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
