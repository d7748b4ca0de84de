"""Checkpoint folders on disk: where a name leads, checksums, and reading that ends in one clear line."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffulm.errors import BadInput

SHIPPED = ("pocket", "pocket-ar")
CHECKSUMS = "sha256.json"


def locate(source: str | Path) -> Path | str:
    """A folder for a path or a shipped name; a string that can be neither stays as it is, a hub id. Raises BadInput."""
    if str(source) in SHIPPED:
        folder = Path(str(files("diffulm"))) / "assets" / str(source)
        if not (folder / "config.json").is_file():
            raise BadInput(
                f"{source}: the shipped model is not part of this installation; run `make pocket` to train it"
            )
        return folder
    path = Path(source)
    if path.is_dir():
        return path
    name = str(source)
    if path.exists():
        raise BadInput(f"{source}: is a file; give the folder of a checkpoint")
    if (
        isinstance(source, str)
        and name.count("/") <= 1
        and not name.startswith((".", "/", "~"))
        and name.strip("/") == name
        and name
    ):
        return name
    raise BadInput(f"{source}: no such folder")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises BadInput when there is none, or no JSON object in it."""
    file = folder / "config.json"
    if not file.is_file():
        newest = newest_checkpoint(folder)
        hint = f"; the run in it is not finished, its newest checkpoint is {newest}" if newest else ""
        raise BadInput(f"{folder}: has no config.json, so it is not a checkpoint{hint}")
    try:
        found = json.loads(file.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise BadInput(f"{file}: holds no JSON object")
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step: a save in progress is called `.tmp` until it is whole."""
    steps = {int(p.name.split("-")[1]): p for p in folder.glob("checkpoint-*") if p.name.split("-")[1].isdigit()}
    return steps[max(steps)] if steps else None


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """safetensors has no checksum of its own: a flipped bit would load without complaint."""
    sums = {file.name: digest(file) for file in sorted(folder.glob("*.safetensors"))}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", "utf-8")


def headers(folder: Path) -> dict[str, str]:
    """Tensor name -> dtype as safetensors spells it ("F32", "BF16"), from the headers alone.

    Raises BadInput for pickled, missing, truncated or corrupt weights.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        hint = f" ({pickled[0]} is pickled, which is never read; convert it to safetensors)" if pickled else ""
        raise BadInput(f"{folder}: has no .safetensors weights{hint}")
    from safetensors import SafetensorError, safe_open

    found: dict[str, str] = {}
    for file in weights:
        try:
            with safe_open(file, "pt") as opened:  # checks that the header is whole and the file as long as it says
                found.update({name: opened.get_slice(name).get_dtype() for name in opened.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file}: cannot be read as safetensors ({error}); copy or download it again") from None
    return found


def check_sums(folder: Path) -> None:
    """Raise BadInput where weights are not those that were written here; folders without checksums pass."""
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return
    try:
        expected = dict(json.loads(sums.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise BadInput(f"{sums}: is not a JSON object of checksums ({error})") from None
    for name, value in expected.items():
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: is missing though {CHECKSUMS} lists it; copy the folder again")
        if digest(folder / name) != value:
            raise BadInput(
                f"{folder / name}: its sha256 is not the one in {CHECKSUMS}: the file was altered or damaged; copy it again"
            )
