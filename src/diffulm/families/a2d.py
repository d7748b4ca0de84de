"""A2D of the dLLM toolkit: Qwen and LLaMA that look both ways, their tensors unchanged, without a shift."""

from typing import Any

from diffulm.families._foreign import Foreign

PLAIN = {"a2d-qwen2": "qwen2", "a2d-qwen3": "qwen3", "a2d-llama": "llama"}
# transformers' own config otherwise; its windows are given the same mask as all else, so there are none
WITHOUT = ("auto_map", "architectures", "sliding_window", "layer_types")
BLOCKS = "its config.json does not say whether it was trained in blocks (BD3LM); if so, give --block-size"


def read(config: dict[str, Any]) -> Foreign | None:
    """None for another model."""
    kind = str(config.get("model_type"))
    if kind not in PLAIN:
        return None
    told = {key: value for key, value in config.items() if key not in WITHOUT} | {"model_type": PLAIN[kind]}
    if "qwen" in kind:
        told["use_sliding_window"] = False
    return Foreign("A2D", told, notes=(BLOCKS,))
