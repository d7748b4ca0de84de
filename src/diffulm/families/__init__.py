"""What a model family really needs, one small file each, found by `config.model_type`: nothing here is required."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def of(model_type: str) -> ModuleType | None:
    """The family's module, or None: most families need nothing."""
    name = f"{__name__}.{model_type}"
    return import_module(name) if model_type.isidentifier() and find_spec(name) else None
