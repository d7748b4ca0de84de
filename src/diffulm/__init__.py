"""DiffuLM: an autoregressive language model becomes a diffusion language model.

    import diffulm

    lm = diffulm.load("pocket")
    print(lm.infill("def add(a, b):\\n    return <hole:3>\\n").text)

Names are loaded when they are first used, so that `import diffulm` and `diffulm --help` do not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffulm.bounds import Score
    from diffulm.canvas import Hole
    from diffulm.dialogue import Dialogue
    from diffulm.errors import BadInput
    from diffulm.evaluation.answers import vote
    from diffulm.forms import Form
    from diffulm.lm import DiffusionLM, Generation, adopt, load
    from diffulm.recipes.adapt import adapt
    from diffulm.recipes.evaluate import evaluate
    from diffulm.recipes.sft import sft

__version__ = "0.1.0"
__all__ = [
    "BadInput",
    "Dialogue",
    "DiffusionLM",
    "Form",
    "Generation",
    "Hole",
    "Score",
    "__version__",
    "adapt",
    "adopt",
    "evaluate",
    "load",
    "sft",
    "vote",
]

_HOME = {
    "BadInput": "diffulm.errors",
    "Dialogue": "diffulm.dialogue",
    "DiffusionLM": "diffulm.lm",
    "Form": "diffulm.forms",
    "Generation": "diffulm.lm",
    "Hole": "diffulm.canvas",
    "Score": "diffulm.bounds",
    "adapt": "diffulm.recipes.adapt",
    "adopt": "diffulm.lm",
    "evaluate": "diffulm.recipes.evaluate",
    "load": "diffulm.lm",
    "sft": "diffulm.recipes.sft",
    "vote": "diffulm.evaluation.answers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffulm' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
