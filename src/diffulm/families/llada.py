"""LLaDA (arXiv 2502.09992): LLaMA, or Qwen2, under the names of OLMo, without a shift."""

from typing import Any

from diffulm.families._foreign import Foreign, expect, held, need, whole

MASK = 126336
HOLDS = ("llama", "qwen2")
SHIFT = False
BIASED = ()
# What OLMo's config can say of blocks, and LLaMA's are.
BLOCKS = {
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "layer_norm_with_affine": True, "rope": True,
    "rope_full_precision": True, "include_bias": False, "bias_for_layer_norm": False, "alibi": False,
    "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False, "multi_query_attention": None,
    "block_group_size": 1, "flash_attention": False, "attention_dropout": 0.0, "residual_dropout": 0.0,
    "embedding_dropout": 0.0, "mlp_ratio": 4, "use_cache": False,
}  # fmt: skip
NAMES = (
    ("model.transformer.wte.", "model.embed_tokens."),
    ("model.transformer.ln_f.", "model.norm."),
    ("model.transformer.ff_out.", "lm_head."),
    ("model.transformer.blocks.{}.attn_norm.", "model.layers.{}.input_layernorm."),
    ("model.transformer.blocks.{}.q_proj.", "model.layers.{}.self_attn.q_proj."),
    ("model.transformer.blocks.{}.k_proj.", "model.layers.{}.self_attn.k_proj."),
    ("model.transformer.blocks.{}.v_proj.", "model.layers.{}.self_attn.v_proj."),
    ("model.transformer.blocks.{}.attn_out.", "model.layers.{}.self_attn.o_proj."),
    ("model.transformer.blocks.{}.ff_norm.", "model.layers.{}.post_attention_layernorm."),
    ("model.transformer.blocks.{}.ff_proj.", "model.layers.{}.mlp.gate_proj."),
    ("model.transformer.blocks.{}.up_proj.", "model.layers.{}.mlp.up_proj."),
    ("model.transformer.blocks.{}.ff_out.", "model.layers.{}.mlp.down_proj."),
)


def read(config: dict[str, Any]) -> Foreign | None:
    """None for another model. BadInput for a block of another make: OLMo's config describes many."""
    if config.get("model_type") != "llada":
        return None
    expect(
        config, block_type=("sequential", "llama"), activation_type=("swiglu", "silu"), rope=(False, True),
        layer_norm_type=("default", "rms"), layer_norm_with_affine=(True, True), include_bias=(False, False),
        include_qkv_bias=(False, False, None, True), bias_for_layer_norm=(None, None, False), alibi=(False, False),
        attention_layer_norm=(False, False), input_emb_norm=(False, False), scale_logits=(False, False),
        multi_query_attention=(None, None, False), block_group_size=(1, 1),
    )  # fmt: skip
    eps, theta = need(config, "rms_norm_eps", "rope_theta")
    width, heads = whole(config, "d_model"), whole(config, "n_heads")
    told = {
        "model_type": "qwen2" if config.get("include_qkv_bias") else "llama",
        "vocab_size": config.get("embedding_size") or whole(config, "vocab_size"),
        "hidden_size": width,
        "intermediate_size": config.get("mlp_hidden_size") or whole(config, "mlp_ratio", 4) * width,
        "num_hidden_layers": whole(config, "n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("n_kv_heads") or heads,
        "max_position_embeddings": whole(config, "max_sequence_length"),
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "tie_word_embeddings": bool(config.get("weight_tying", True)),
        "bos_token_id": None,
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
    }
    # Its own evaluation gives a text no BOS; the chat template of the instruct model brings one.
    return Foreign("LLaDA", told, NAMES, whole(config, "mask_token_id", MASK))


def write(config: dict[str, Any]) -> dict[str, Any]:
    """config.json in this layout, without token ids, from `to_dict` of a model type it HOLDS. BadInput as `held`."""
    told = held(config)
    return BLOCKS | {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "include_qkv_bias": config["model_type"] == "qwen2",
        "d_model": told["hidden_size"],
        "n_heads": told["num_attention_heads"],
        "n_kv_heads": told["num_key_value_heads"],
        "n_layers": told["num_hidden_layers"],
        "mlp_hidden_size": told["intermediate_size"],
        "max_sequence_length": told["max_position_embeddings"],
        "vocab_size": told["vocab_size"],
        "embedding_size": told["vocab_size"],
        "rms_norm_eps": told["rms_norm_eps"],
        "rope_theta": told["rope_theta"],
        "weight_tying": config["tie_word_embeddings"],
        "init_std": config["initializer_range"],
    }
