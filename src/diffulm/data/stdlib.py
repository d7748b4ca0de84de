"""The source of this Python's own standard library as documents: real text that every user has, with no download.

Its tests are left out (more than half of it), and so are files that differ between machines with the same Python
(build settings, what a distribution adds) or are no code: tables of character encodings, and the one module that holds
the language reference as text (together a sixth of it all). Split into training and held-out modules by a hash of the
module's path, so that a module stays on its side whatever else changes.
"""

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from diffulm.errors import BadInput

HELD_OUT = 0.05
_TESTS = {"test", "tests", "idle_test"}
_OTHERS = {"site-packages", "dist-packages", "ensurepip", "msilib", "pydoc_data"}  # msilib: on Windows alone
_FILES = {"sitecustomize.py", "usercustomize.py", "_distutils_system_mod.py"}
_TABLE = "codecs.charmap_"  # what every table of a character encoding calls


def modules(split: Literal["train", "heldout"]) -> Iterator[tuple[str, str]]:
    """(path, source) of each module of the split, sorted by path: relative to the library, with forward slashes.

    Raises:
        BadInput: a Python whose library lies in a zip archive or was installed without source.
    """
    return ((path, source) for path, source in _all() if held_out(path) == (split == "heldout"))


def held_out(path: str) -> bool:
    """Whether the module at this relative path is held out: by the sha256 of the path alone, for 5% of paths."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") < HELD_OUT * 2**64


def fingerprint() -> dict[str, str | int]:
    """What was read: `python` (implementation and version), `modules`, `bytes`, `sha256` over paths and sources."""
    digest, count, size = hashlib.sha256(), 0, 0
    for path, source in _all():
        content = source.encode()
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
        count, size = count + 1, size + len(content)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"python": python, "modules": count, "bytes": size, "sha256": digest.hexdigest()}


def _all() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = {file.relative_to(root).as_posix(): file for file in root.rglob("*.py")}
    if not paths:
        raise BadInput(f"{root}: no source of the standard library here")
    for path in sorted(path for path in paths if _wanted(path)):
        try:
            source = paths[path].read_text(encoding="utf-8")  # universal newlines: the same text on every system
        except UnicodeDecodeError:
            continue  # a few modules declare another encoding
        if source and not (path.startswith("encodings/") and _TABLE in source):
            yield path, source


def _wanted(path: str) -> bool:
    *folders, name = path.split("/")
    build = name.startswith("_sysconfigdata") or any(folder.startswith("config-") for folder in folders[:1])
    return not (build or name in _FILES or (_TESTS | _OTHERS).intersection(folders))
