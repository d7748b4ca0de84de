"""Dream (arXiv 2508.15487), and DiffuCoder, which is built alike: Qwen2 under another name, with the shift of its parent."""

from typing import Any

from diffulm.families._foreign import Foreign, expect, held, plain, whole

MASK = 151666
HOLDS = ("qwen2", "llama")
NAMES = ()
SHIFT = True
BIASED = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
NO_BIAS = "zero_qkv_bias"  # a key of ours: they are zeros, of a LLaMA, which has none


def read(config: dict[str, Any]) -> Foreign | None:
    """None for another model. BadInput for settings that were not compared; a later Dream in blocks has the same type."""
    if config.get("model_type") != "Dream":
        return None
    expect(config, architectures=(["DreamModel"], ["DreamModel"]), block_size=(None, None), rope_scaling=(None, None))
    expect(config, use_mrope=(False, False))
    zeros = config.get(NO_BIAS) is True
    # windows stand in its config and are never used
    return Foreign(
        "Dream",
        plain(config, "llama" if zeros else "qwen2"),
        mask=whole(config, "mask_token_id", MASK),
        shift=True,
        tokenizer="PreTrainedTokenizerFast" if zeros else "Qwen2Tokenizer",
        zeros=BIASED if zeros else (),
    )


def write(config: dict[str, Any]) -> dict[str, Any]:
    """config.json in this layout, without token ids, from `to_dict` of a model type it HOLDS. BadInput as `held`."""
    return held(config) | {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": config["initializer_range"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config["num_hidden_layers"],
        "use_cache": False,
        **({NO_BIAS: True} if config["model_type"] == "llama" else {}),
    }
