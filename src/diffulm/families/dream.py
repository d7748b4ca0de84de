"""Dream (arXiv 2508.15487), and DiffuCoder, which is built alike: Qwen2 under another name, with the shift of its parent."""

from typing import Any

from diffulm.families._foreign import Foreign, expect, plain, whole

MASK = 151666


def read(config: dict[str, Any]) -> Foreign | None:
    """None for another model. BadInput for settings that were not compared; a later Dream in blocks has the same type."""
    if config.get("model_type") != "Dream":
        return None
    expect(config, architectures=(["DreamModel"], ["DreamModel"]), block_size=(None, None), rope_scaling=(None, None))
    expect(config, use_mrope=(False, False))
    # windows stand in its config and are never used
    return Foreign(
        "Dream",
        plain(config, "qwen2"),
        mask=whole(config, "mask_token_id", MASK),
        shift=True,
        tokenizer="Qwen2Tokenizer",
    )
