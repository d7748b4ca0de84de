"""Qwen2: nobody publishes adapted ones under its own name, but other projects' layouts hold it (`families.engines`)."""

from typing import Any

RELEASED_NAMES = ()
LAYOUTS: dict[str, Any] = {}
