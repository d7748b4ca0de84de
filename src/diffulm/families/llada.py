"""LLaDA (arXiv 2502.09992): LLaMA under the names of OLMo, without a shift."""

from typing import Any

from diffulm.families._foreign import Foreign, expect, need, whole

MASK = 126336
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
        include_qkv_bias=(False, False, None), bias_for_layer_norm=(None, None, False), alibi=(False, False),
        attention_layer_norm=(False, False), input_emb_norm=(False, False), scale_logits=(False, False),
        multi_query_attention=(None, None, False), block_group_size=(1, 1),
    )  # fmt: skip
    eps, theta = need(config, "rms_norm_eps", "rope_theta")
    width, heads = whole(config, "d_model"), whole(config, "n_heads")
    told = {
        "model_type": "llama",
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
