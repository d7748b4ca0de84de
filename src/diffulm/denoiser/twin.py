"""A tiny random model of the same class and wiring as a large one: to look beyond its window, or when its weights are far
away."""

from typing import Any

import torch

from diffulm.checkpoint.opening import first_line
from diffulm.denoiser import layers
from diffulm.errors import BadInput

WINDOW = 4
# Attribute -> its size in the twin, where the config has it. What is left out is wiring, and stays.
SIZES: dict[str, int | float] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "mlp_hidden_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "mamba_n_groups"), 1),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_d_state", "mamba_head_dim", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(
        ("vocab_size", "vocab_size_per_layer_input", "max_position_embeddings", "n_positions", "n_ctx"), 64
    ),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size"), WINDOW),
    **dict.fromkeys(("index_topk", "index_n_heads"), WINDOW),
    "num_kv_shared_layers": 0,
    # weights of 0.1 rather than the usual 0.02: at this width attention then matters as in a trained model
    **dict.fromkeys(("initializer_range", "init_std", "initializer_factor"), 0.1),
}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")


def twin_of(config: Any) -> Any:
    """The twin of the decoder that a transformers config describes, in eval mode; each kind of layer is kept once, and
    there are at least two.

    Raises BadInput when the architecture does not take such sizes.
    """
    from transformers import AutoModelForCausalLM

    try:
        small = type(config).from_dict(_shrunk(config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
    except Exception as error:  # whatever a foreign class says to sizes it never saw
        raise BadInput(f"no tiny twin of a {config.model_type} model could be made ({first_line(error)})") from None


def _shrunk(config: Any) -> dict[str, Any]:
    values = config.to_dict()
    values.pop("quantization_config", None)
    text = config.get_text_config(decoder=True)
    # a model of several parts keeps its decoder's settings in a dict of their own
    inner = values if text is config else next(v for v in values.values() if isinstance(v, dict) and "vocab_size" in v)
    count, kept = text.num_hidden_layers, _kept(text)
    sizes = SIZES | _key_heads(inner)
    if "qk_rope_head_dim" in inner:  # latent attention: what such a config calls a head is the part that rotates
        sizes["head_dim"] = sizes["qk_rope_head_dim"]
    for part in (
        inner,
        *(inner.get("per_layer_config") or {}).values(),
    ):  # what some layers have otherwise than the rest
        part.update(
            {name: sizes[name] for name, value in part.items() if name in sizes and type(value) in (int, float)}
        )
    for name, value in inner.items():
        if name in TOKENS and value is not None:
            inner[name] = 0
        elif name == "per_layer_config" and value:
            inner[name] = {new: value[key] for new, old in enumerate(kept) for key in (old, str(old)) if key in value}
        elif isinstance(value, list) and len(value) == count:
            inner[name] = [value[i] for i in kept]
        elif name in LAYERS and value == count:
            inner[name] = len(kept)
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            inner[name] = _plain_rope(value)
    return values


def _kept(text: Any) -> list[int]:
    """The first layer of each kind, and a second one where all are alike."""
    found = layers.kinds(text)
    first = sorted(found.index(kind) for kind in set(found))
    return first if len(first) > 1 or len(found) == 1 else [0, 1]


def _key_heads(config: dict[str, Any]) -> dict[str, int]:
    """All heads with keys of their own, or one key for all, or something between: as the large model has it."""
    heads = config.get("num_attention_heads")
    keys = {name: config[name] for name in ("num_key_value_heads", "num_kv_heads") if config.get(name) is not None}
    return {name: 4 if count == heads else 1 if count == 1 else 2 for name, count in keys.items()}


def _plain_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotation without scaling, whose factors are as many as a head of the large model is wide."""
    if any(isinstance(value, dict) for value in rope.values()):  # one for each kind of layer
        return {kind: _plain_rope(value) if isinstance(value, dict) else value for kind, value in rope.items()}
    kept = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return kept | {"rope_type": "default"}
