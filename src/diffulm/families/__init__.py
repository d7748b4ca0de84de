"""What a model family really needs, one small file each: nothing here is required.

A family of transformers is found by `config.model_type`; other projects' checkpoints by a function `read` that knows their
config.json.
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from diffulm.families._foreign import Foreign


def of(model_type: str) -> ModuleType | None:
    """The family's module, or None: most families need nothing."""
    name = f"{__name__}.{model_type}"
    return import_module(name) if model_type.isidentifier() and find_spec(name) else None


def foreign(config: dict[str, Any]) -> Foreign | None:
    """What another project's checkpoint is in the terms of transformers; None for a config.json that nobody here knows.
    BadInput for settings that nobody compared with the published code."""
    readers = (getattr(module, "read", None) for module in _modules())
    found = (read(config) for read in readers if read is not None)
    return next((one for one in found if one is not None), None)


def engines() -> dict[str, ModuleType]:
    """Other projects' layouts that can be written: name -> module, which says what it HOLDS (model types), the NAMES of
    tensors, whether its code has the SHIFT, which biases it must have (BIASED), and what `write` makes of a config."""
    return {module.__name__.rpartition(".")[2]: module for module in _modules() if hasattr(module, "write")}


def known() -> list[str]:
    """The model types of which there is a layout to write."""
    return [module.__name__.rpartition(".")[2] for module in _modules() if hasattr(module, "LAYOUTS")]


def layouts() -> list[str]:
    """The names of all layouts that can be written, over all families."""
    return sorted({*engines(), *(name for module in _modules() for name in getattr(module, "LAYOUTS", {}))})


def _modules() -> list[ModuleType]:
    return [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
