"""A disk that is full or may not be written: one line that says what, where, and how much room was needed."""

import errno
import glob
import os
import platform
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffulm.denoiser.adapter import attached
from diffulm.errors import BadInput

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "file too large"}
CLOSED = {errno.EROFS: "the disk is read-only", errno.EACCES: "may not be written", errno.EPERM: "may not be written"}


@contextmanager
def writing(folder: Path, needed: int = 0, advice: str = "") -> Iterator[None]:
    """Turn a write into `folder` that fails inside, in whatever library, into BadInput.

    needed: bytes that are about to be written, 0 when nobody knows. advice: what else the user should know.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # safetensors, tokenizers and torch have their own kinds
        code = _code(error)
        if code in FULL:
            raise _full(folder, FULL[code], needed, advice) from None
        where = Path(getattr(error, "filename", None) or folder)
        inside, beside = where.is_relative_to(folder), where.parent == folder.parent
        if code in CLOSED and (inside or beside):  # what may not be read elsewhere is another matter
            raise BadInput(f"{where if inside else folder}: {CLOSED[code]}; name another folder") from None
        raise


def require(folder: Path, needed: int, advice: str = "") -> None:
    """BadInput when the disk of `folder` has less than `needed` bytes free: better known before the work than after."""
    if _free(folder) < needed:
        raise _full(folder, "the disk is too full", needed, advice)


def size(model: Any) -> int:
    """Bytes that a checkpoint's weights take, tied ones once; what an adapter left frozen is not in it."""
    alone = attached(model)
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not alone)


def stored(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def partial(target: Path) -> Path:
    """The folder to write what shall become `target` into: beside it, named after this process.

    What processes that are dead left there is deleted; only those of this machine can be known to be dead.
    """
    head = f".{target.name}.{platform.node()}."
    for path in target.parent.glob(f"{glob.escape(head)}*.tmp"):
        number = path.name.removeprefix(head).removesuffix(".tmp")
        if number.isdecimal() and (int(number) == os.getpid() or not _alive(int(number))):
            shutil.rmtree(path, ignore_errors=True)
    return target.with_name(f"{head}{os.getpid()}.tmp")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _full(folder: Path, what: str, needed: int, advice: str) -> BadInput:
    if what == FULL[errno.EFBIG]:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        none = limit == resource.RLIM_INFINITY
        there = "more than this disk takes" if none else f"a file may have at most {_amount(limit)} (ulimit -f)"
        do = "name a folder on another disk" if none else "raise that limit"
    else:
        there, do = f"{_amount(_free(folder))} free", "make room"
    wanted = f"about {_amount(needed)} needed, " if needed else ""
    return BadInput(f"{folder}: {what}: {wanted}{there}; {do}{advice and '; '}{advice}")


def _code(error: BaseException | None) -> int | None:
    """The errno behind an error, also where a library written in Rust put it into words, or raised over it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        found = re.search(r"os error (\d+)", str(error))
        if found:
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def _free(folder: Path) -> int:
    """Bytes free on the disk of a folder that need not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _amount(count: int) -> str:
    value, units = float(count), ["bytes", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
