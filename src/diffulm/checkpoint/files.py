"""Checkpoint folders on disk: where a name leads, checksums, and reading that ends in one clear line."""

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffulm.errors import BadInput, nearest, shown

SHIPPED = ("pocket", "pocket-ar")
CHECKSUMS = "sha256.json"
INDEX = "model.safetensors.index.json"
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
HUB_SECONDS = 6.0  # how long the hub may take to say anything at all


def locate(source: str | Path) -> Path | str:
    """A folder for a path or a shipped name; a string that can be neither stays as it is, a hub id. Raises BadInput."""
    if str(source) in SHIPPED:
        folder = Path(str(files("diffulm"))) / "assets" / str(source)
        if not (folder / "config.json").is_file():
            raise BadInput(
                f"{source}: the shipped model is not part of this installation; run `make pocket` to train it"
            )
        return folder
    name = str(source)
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python spells what it cannot decode
            raise BadInput(f"{source!r}: its name is not UTF-8 text (or the locale is not); rename the folder")
        return path
    if os.path.isfile(path):
        raise BadInput(f"{source}: is a file; give the folder of a checkpoint")
    if isinstance(source, str) and HUB_ID.fullmatch(name):
        return name
    raise absent(name)


def absent(name: str, error: str = "") -> BadInput:
    """What to say of a model that is nowhere. error: what the hub said, where it was asked."""
    near = nearest(name, SHIPPED)
    hint = f"; did you mean {near!r}?" if near else "; check the name"
    asked = f", and not on the hub ({error})" if error else ""
    return BadInput(
        f"{name if len(name) <= 200 and name.isprintable() and name else shown(name)}: no such folder{asked}{hint}"
    )


def hub_answers() -> bool:
    """Whether the hub can be reached. Its own libraries would try for half a minute; what they have cached stays of use.

    Asked once a minute, in a thread because a name server that is silent takes its own time.
    """
    return _hub_answers(int(time.monotonic() // 60))


@lru_cache(maxsize=1)
def _hub_answers(minute: int) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # no network, no such host, offline mode: each library has its own kinds
            answers.append(get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return bool(answers)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises BadInput when there is none, or no JSON object in it."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise _adapter(folder)
        newest = newest_checkpoint(folder)
        hint = f"; the run in it is not finished, its newest checkpoint is {newest}" if newest else ""
        raise BadInput(f"{folder}: has no config.json, so it is not a checkpoint{hint or '; give a folder that has'}")
    found = read_object(file)
    if (
        "diffulm" not in found
        and (folder / "adapter_config.json").is_file()
        and not [*folder.glob("model*.safetensors")]
    ):
        raise _adapter(folder)
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint. Raises BadInput for anything else."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: is not valid JSON ({error}); copy or download it again") from None
    if not isinstance(found, dict):
        raise BadInput(f"{file}: holds no JSON object; copy or download it again")
    return found


def _adapter(folder: Path) -> BadInput:
    base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    return BadInput(
        f"{folder}: is an adapter of {shown(base) if base else 'a model that it does not name'}, not a model; merge it into "
        "that (`merge_and_unload` of PEFT), save the result and give its folder"
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step: a save in progress is called `.tmp` until it is whole."""
    return next(reversed(checkpoints_in(folder)), None)


def checkpoints_in(run: Path) -> list[Path]:
    """The folders checkpoint-N of a run by N. What is being written or was set aside has another name."""
    found = {p: p.name.removeprefix("checkpoint-") for p in run.glob("checkpoint-*")}
    return sorted((p for p, step in found.items() if step.isdecimal()), key=lambda p: int(found[p]))


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
    if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        _all_there(folder)
    if not weights:
        pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        hint = f" ({pickled[0]} is pickled, which is never read; convert it to safetensors)" if pickled else ""
        raise BadInput(f"{folder}: has no .safetensors weights{hint or '; copy or download them'}")
    from safetensors import SafetensorError, safe_open

    found: dict[str, str] = {}
    for file in weights:
        try:
            with safe_open(file, "pt") as opened:  # checks that the header is whole and the file as long as it says
                found.update({name: opened.get_slice(name).get_dtype() for name in opened.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file}: cannot be read as safetensors ({error}); copy or download it again") from None
    return found


def _all_there(folder: Path) -> None:
    """Raise BadInput where the index of a model in several files is broken, or names one that is not there."""
    parts = read_object(folder / INDEX).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise BadInput(f"{folder / INDEX}: has no weight_map of tensors to files; copy or download it again")
    for part in sorted(set(parts.values())):
        if not (folder / part).is_file():
            raise BadInput(f"{folder / part}: is missing though {INDEX} names it; copy or download it again")


def check_sums(folder: Path) -> None:
    """Raise BadInput where weights are not those that were written here; folders without checksums pass."""
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return
    try:
        expected = dict(json.loads(sums.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{sums}: is not a JSON object of checksums ({error}); copy the folder again") from None
    for name, value in expected.items():
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: is missing though {CHECKSUMS} lists it; copy the folder again")
        if digest(folder / name) != value:
            raise BadInput(
                f"{folder / name}: its sha256 is not the one in {CHECKSUMS}: the file was altered or damaged; copy it again"
            )
