"""Fast-dLLM v2 (arXiv 2509.26328): Qwen2 in blocks of clean context, with the shift of its parent."""

from typing import Any

from diffulm.families._foreign import Foreign, expect, plain, whole

MASK = 151665  # stands in its code, not in its config
BLOCK = 32


def read(config: dict[str, Any]) -> Foreign | None:
    """None for another model. BadInput for settings that were not compared."""
    if config.get("model_type") != "Fast_dLLM_Qwen":
        return None
    expect(config, rope_scaling=(None, None), use_sliding_window=(False, False))
    size = whole(config, "bd_size", BLOCK)
    return Foreign("Fast-dLLM v2", plain(config, "qwen2"), mask=MASK, shift=True, block_size=size)
