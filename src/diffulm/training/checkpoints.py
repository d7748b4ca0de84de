"""The checkpoints of a run: a manifest, written last, tells a whole one from one that was cut short or altered since."""

import json
import os
import shutil
import sys
from pathlib import Path

from diffulm.checkpoint.files import checkpoints_in, digest
from diffulm.errors import BadInput

MANIFEST = "manifest.json"  # file name -> sha256


def manifest(folder: Path, files: list[Path]) -> str:
    return json.dumps({str(file.relative_to(folder)): digest(file) for file in sorted(files)}, indent=2) + "\n"


def seal(folder: Path) -> None:
    """Write the manifest of all that the folder holds."""
    (folder / MANIFEST).write_text(manifest(folder, [p for p in folder.rglob("*") if p.is_file()]), "utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a sealed folder, in words that name the file; None: nothing."""
    file = folder / MANIFEST
    try:
        sums = dict(json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        return f"{file} is missing"
    except (ValueError, TypeError):
        return f"{file} is damaged"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing, though {MANIFEST} lists it"
        if digest(folder / name) != expected:
            return f"{folder / name} is damaged (its sha256 is not the one in {MANIFEST})"
    return None


def step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def newest_whole(root: Path) -> Path | None:
    """The checkpoint to go on from; None where there is none. Newer ones that are damaged are renamed, with a word about
    it on standard error.

    Raises:
        BadInput: there are checkpoints, and all of them are damaged.
    """
    broken: dict[Path, str] = {}
    for path in reversed(checkpoints_in(root)):
        found = damage(path)
        if found is None:
            for each, why in broken.items():
                aside = each.with_name(f"{each.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(each, aside)
                print(f"{why}; going on from {path.name}, {aside.name} can be deleted", file=sys.stderr, flush=True)
            return path
        broken[path] = found
    if broken:
        why = next(iter(broken.values()))
        raise BadInput(f"{why}, and there is no whole checkpoint; delete {root}/checkpoint-* to begin again")
    return None


def keep_newest(root: Path, count: int) -> None:
    """Delete all checkpoints but the newest `count`."""
    for path in checkpoints_in(root)[:-count]:
        shutil.rmtree(path, ignore_errors=True)
