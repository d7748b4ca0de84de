"""Samplers: each public module here names an ORDER in which tokens are revealed, a function of its own name.

    from diffulm.samplers import by_name, sample

How many are revealed at a step is a COMMIT RULE (_commit.py), which goes with any order: as long a beginning of the order
as a schedule of steps, a threshold, an entropy bound or a factor says, and at least one. An order is a pure function
State -> Reveal for one step (_state.py); `sample` is the loop around it (_loop.py). A few orders say themselves how many,
and take no other rule: `first_hitting` and the published ones. A new sampler is one new file: `names` finds it, there is no
table. `verified` is no order, but a loop of its own. Importing this package does not import torch.
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
