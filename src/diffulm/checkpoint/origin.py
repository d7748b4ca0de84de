"""Where a model comes from: names of the hub told from folders of this machine, and what a folder's own card says."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from diffulm.checkpoint.files import SHIPPED, hub_answers, locate
from diffulm.errors import BadInput

CARD = "README.md"
# Old names on the hub that have no owner in them, and where they lead.
CANONICAL = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    "distilgpt2": "distilbert/distilgpt2",
}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def front_matter(folder: Path | None) -> dict[str, Any]:
    """The metadata of a folder's card; {} where there is none that can be read."""
    card = None if folder is None else folder / CARD
    if card is None or not card.is_file():
        return {}
    found = re.match(r"---\s*\n(.*?\n)---\s*(\n|$)", card.read_text("utf-8", errors="replace"), re.DOTALL)
    try:
        told = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    if not isinstance(told, dict):
        return {}
    if told.get("language") is False:  # Norwegian: YAML reads `no` as false
        told["language"] = "no"
    return told


def folder_of(name: str | None) -> Path | None:
    """Where a card and licence files may lie: a local folder, or what the hub has of them (nothing when it is offline)."""
    if name is None:
        return None
    if os.path.isdir(place(name)):
        return place(name)
    if (repository := hub_name(name)) is None:
        return None
    from huggingface_hub import snapshot_download

    try:
        wanted = [CARD, "LICENSE*", "NOTICE*", "USE_POLICY*"]
        return Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=not hub_answers()))
    except Exception:  # not in the cache, renamed, gated: then the card says that it does not know
        return None


def place(name: str) -> Path:
    """The path that a name means if it means one: the same for all ways to write it."""
    if name in SHIPPED:
        with suppress(BadInput):  # not part of this installation
            return Path(locate(name))
    return Path(os.path.abspath(os.path.expanduser(name)))


def hub_name(name: str | None) -> str | None:
    """The repository that a name means on the hub; None for a local folder and for what only looks like one."""
    if name is None or name in SHIPPED or os.path.exists(place(name)):
        return None if name is None else _snapshot(name)
    return _snapshot(name) or CANONICAL.get(name) or (name if HUB_NAME.fullmatch(name) else None)


def _snapshot(name: str) -> str | None:
    """owner/name for a folder of the hub's cache: .../models--owner--name/snapshots/REVISION."""
    parts = Path(name).parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return None


def shown(name: str | None) -> str:
    """A parent or a file as a card shows it: a hub name as it is, of a path only the last part."""
    if not name:
        return "a model made in memory"
    return (_snapshot(name) or name) if hub_name(name.partition(":")[0]) else last_part(name)


def last_part(path: str) -> str:
    return flat(Path(path).name or path)


def flat(value: Any) -> str:
    """On one line."""
    return " ".join(str(value).split())
