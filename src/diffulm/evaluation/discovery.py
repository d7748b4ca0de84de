"""How `lm_eval --model diffulm` finds the model class without anybody importing it.

Later versions of lm-eval read the entry points of the group `lm_eval.models`. Up to 0.4.13 it reads none, but it imports torch
before it looks the name up, and torch calls what packages have registered to be called then (group `torch.backends`): this.
"""

import sys

MODEL = "diffulm.evaluation.harness_model:DiffuLM"


def register() -> None:
    """Where lm-eval is what imports torch, it is told the name of the class, which it imports when it is asked for."""
    if "lm_eval" not in sys.modules:
        return
    try:
        import lm_eval.models  # noqa: F401  (its own models: it would not register them once another is there)
        from lm_eval.api.registry import model_registry

        if "diffulm" not in model_registry:
            model_registry.register("diffulm", target=MODEL)
    except Exception:  # torch must be importable whatever lm-eval has become
        return
