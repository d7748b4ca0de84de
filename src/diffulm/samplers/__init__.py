"""Samplers: each public module here is one rule for what to reveal next, a function of its own name.

    from diffulm.samplers import by_name, sample

A rule is a pure function State -> Reveal for one step; `sample` is the loop around it (_loop.py). A new sampler is one
new file: `names` finds it, there is no table. Importing this package does not import torch.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from diffulm.errors import unknown

if TYPE_CHECKING:
    from diffulm.samplers._loop import Frame, Reveal, Rule, State, sample

__all__ = ["Frame", "Reveal", "Rule", "State", "by_name", "names", "sample"]


def names() -> list[str]:
    """Every `sampler=` there is."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def by_name(name: str) -> "Rule":
    """The rule called `name`; BadInput, naming the nearest, if there is none."""
    if name not in names():
        raise unknown("sampler", name, names())
    return getattr(import_module(f"{__name__}.{name}"), name)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}._loop"), name)
