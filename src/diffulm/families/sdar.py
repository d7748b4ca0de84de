"""SDAR (arXiv 2510.06303): Qwen3 in blocks of clean context, without a shift. The mixture of experts is not read."""

from typing import Any

from diffulm.families._foreign import Foreign, expect, plain, whole


def read(config: dict[str, Any]) -> Foreign | None:
    """None for another model. BadInput for settings that were not compared."""
    if config.get("model_type") != "sdar":
        return None
    expect(config, rope_scaling=(None, None), use_sliding_window=(False, False))
    mask, size = whole(config, "mask_token_id"), whole(config, "block_size")
    return Foreign("SDAR", plain(config, "qwen3"), mask=mask, block_size=size)
