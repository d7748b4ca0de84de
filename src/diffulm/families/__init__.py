"""What a model family really needs, one small file each, found by `config.model_type`: nothing here is required."""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType


def of(model_type: str) -> ModuleType | None:
    """The family's module, or None: most families need nothing."""
    name = f"{__name__}.{model_type}"
    return import_module(name) if model_type.isidentifier() and find_spec(name) else None


def layouts() -> list[str]:
    """The names of all released layouts, over all families."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return sorted({name for module in modules for name in getattr(module, "LAYOUTS", {})})
