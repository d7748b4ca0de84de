"""Tiny checkpoints as other projects leave them, written without a word of the code under test: config.json with the keys
and tensors with the names of the published code, values drawn at random."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from models import VOCABULARY, build, tokenizer

MASK = VOCABULARY - 1
BLOCK = 4
QWEN = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 32,
    "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 64, "max_window_layers": 2,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 0, "rms_norm_eps": 1e-6,
    "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": False,
    "torch_dtype": "float32", "use_cache": True, "use_sliding_window": False, "vocab_size": VOCABULARY,
}  # fmt: skip
LLADA = {
    "activation_type": "silu", "alibi": False, "architectures": ["LLaDAModelLM"], "attention_layer_norm": False,
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": 32, "embedding_size": VOCABULARY,
    "eos_token_id": 2, "include_bias": False, "include_qkv_bias": False, "input_emb_norm": False, "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "mask_token_id": MASK, "max_sequence_length": 64, "mlp_hidden_size": 48, "mlp_ratio": 4,
    "model_type": "llada", "multi_query_attention": None, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "pad_token_id": 2,
    "rms_norm_eps": 1e-6, "rope": True, "rope_theta": 10000.0, "scale_logits": False, "vocab_size": VOCABULARY,
    "weight_tying": False,
}  # fmt: skip
LLADA_NAMES = {
    "embed_tokens": "wte", "norm": "ln_f", "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
}  # fmt: skip
WITHOUT_WINDOW = {"sliding_window": None, "layer_types": None, "use_sliding_window": False, "head_dim": 16}
DIT = {"vocab_size": VOCABULARY, "hidden_dim": 32, "cond_dim": 16, "n_blocks": 2, "n_heads": 4, "model_length": 64}

# layout -> (config.json, the plain model with the same weights; None for a diffusion transformer)
CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, dict[str, Any]] | None]] = {
    "Dream": (
        QWEN | {"model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": MASK, "use_mrope": False,
                "auto_map": {"AutoConfig": "configuration_dream.DreamConfig"}},
        ("qwen2", {}),
    ),
    "LLaDA": (LLADA, ("llama", {})),
    "A2D": (
        QWEN | {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "head_dim": 16,
                "layer_types": ["full_attention", "full_attention"]},
        ("qwen3_mixed", WITHOUT_WINDOW),
    ),
    "SDAR": (
        QWEN | {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "head_dim": 16, "attention_bias": False,
                "block_size": BLOCK, "mask_token_id": MASK, "fuse_cross_entropy": True},
        ("qwen3_mixed", WITHOUT_WINDOW),
    ),
    "Fast-dLLM v2": (
        QWEN | {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": BLOCK,
                "layer_types": ["full_attention", "full_attention"]},
        ("qwen2", {}),
    ),
    "MDLM": (DIT | {"model_type": "mdlm", "architectures": ["MDLM"], "dropout": 0.1, "time_conditioning": False}, None),
    "SEDD": (
        {"tokens": MASK, "graph": {"type": "absorb"}, "noise": {"type": "loglinear"},
         "model": {"type": "ddit", "hidden_size": 32, "cond_dim": 16, "length": 64, "n_blocks": 2, "n_heads": 4,
                   "scale_by_sigma": True, "dropout": 0.1}},
        None,
    ),
}  # fmt: skip


def plain_model(layout: str) -> Any:
    """The transformers model that a layout's tensors belong to."""
    made = CONFIGS[layout][1]
    assert made is not None
    return build(made[0], **made[1])


def tensors(layout: str) -> dict[str, torch.Tensor]:
    """What lies in the file, under the published names."""
    if CONFIGS[layout][1] is None:
        state = dit_tensors()
        return state if layout == "SEDD" else {f"backbone.{name}": value for name, value in state.items()}
    state = plain_model(layout).state_dict()
    return {llada_name(name) if layout == "LLaDA" else name: value.clone() for name, value in state.items()}


def llada_name(name: str) -> str:
    """A name of LlamaForCausalLM as LLaDA spells it."""
    if name == "lm_head.weight":
        return "model.transformer.ff_out.weight"
    *path, _ = name.removeprefix("model.").split(".")
    before = f"model.transformer.blocks.{path[1]}." if path[0] == "layers" else "model.transformer."
    return f"{before}{LLADA_NAMES['.'.join(path[2:] if path[0] == 'layers' else path)]}.weight"


def dit_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """A diffusion transformer of width 32, its tensors as SEDD and the trunk of MDLM name them."""
    width, time = 32, 16
    shapes = {
        "vocab_embed.embedding": (VOCABULARY, width),
        "sigma_map.mlp.0": (time, 256),
        "sigma_map.mlp.2": (time, time),
    }
    for i in range(2):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,), f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.attn_qkv.weight": (3 * width, width), f"blocks.{i}.attn_out.weight": (width, width),
            f"blocks.{i}.mlp.0": (4 * width, width), f"blocks.{i}.mlp.2": (width, 4 * width),
            f"blocks.{i}.adaLN_modulation": (6 * width, time),
        }  # fmt: skip
    shapes |= {
        "output_layer.norm_final.weight": (width,), "output_layer.linear": (VOCABULARY, width),
        "output_layer.adaLN_modulation": (2 * width, time),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        whole = name.endswith((".weight", ".embedding"))
        found[name if whole else f"{name}.weight"] = 0.3 * torch.randn(shape, generator=generator)
        if not whole:
            found[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)
    return found | {"rotary_emb.inv_freq": torch.ones(4)}


def neox_logits(state: dict[str, torch.Tensor], ids: torch.Tensor, sigma: float) -> torch.Tensor:
    """ids (L,) -> logits (L, V) of `dit_tensors` at one time, by transformers' GPT-NeoX: at one time the shifts, scales and
    gates are constants, so they can be multiplied into a plain transformer's weights."""
    angles = sigma * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = torch.cat([angles.cos(), angles.sin()])
    for layer in ("sigma_map.mlp.0", "sigma_map.mlp.2"):
        time = torch.nn.functional.linear(time, state[f"{layer}.weight"], state[f"{layer}.bias"])
        time = torch.nn.functional.silu(time)  # the second is that of the blocks' condition

    def told(name: str, parts: int) -> tuple[torch.Tensor, ...]:
        made = torch.nn.functional.linear(time, state[f"{name}.weight"], state[f"{name}.bias"])
        return made.chunk(parts)

    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        hidden_act="gelu_pytorch_tanh", max_position_embeddings=64, use_parallel_residual=False, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        attention_dropout=0.0, hidden_dropout=0.0,
    )  # fmt: skip
    model = transformers.GPTNeoXForCausalLM(config).eval()
    head = next(name for name, its in model.named_parameters() if its is model.get_output_embeddings().weight)
    plain = {"gpt_neox.embed_in.weight": state["vocab_embed.embedding"], head: state["output_layer.linear.weight"]}
    for i in range(2):
        theirs, ours = f"blocks.{i}", f"gpt_neox.layers.{i}"
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = told(f"{theirs}.adaLN_modulation", 6)
        plain |= {
            f"{ours}.input_layernorm.weight": state[f"{theirs}.norm1.weight"] * (1 + scale),
            f"{ours}.input_layernorm.bias": shift,
            f"{ours}.post_attention_layernorm.weight": state[f"{theirs}.norm2.weight"] * (1 + scale_mlp),
            f"{ours}.post_attention_layernorm.bias": shift_mlp,
            # theirs: all queries, all keys, all values; NeoX: the three of each head together
            f"{ours}.attention.query_key_value.weight": state[f"{theirs}.attn_qkv.weight"]
            .view(3, 4, 8, 32).transpose(0, 1).reshape(96, 32),
            f"{ours}.attention.dense.weight": gate[:, None] * state[f"{theirs}.attn_out.weight"],
            f"{ours}.mlp.dense_h_to_4h.weight": state[f"{theirs}.mlp.0.weight"],
            f"{ours}.mlp.dense_h_to_4h.bias": state[f"{theirs}.mlp.0.bias"],
            f"{ours}.mlp.dense_4h_to_h.weight": gate_mlp[:, None] * state[f"{theirs}.mlp.2.weight"],
            f"{ours}.mlp.dense_4h_to_h.bias": gate_mlp * state[f"{theirs}.mlp.2.bias"],
        }  # fmt: skip
    shift, scale = told("output_layer.adaLN_modulation", 2)
    plain["gpt_neox.final_layer_norm.weight"] = state["output_layer.norm_final.weight"] * (1 + scale)
    plain["gpt_neox.final_layer_norm.bias"] = shift
    model.load_state_dict(plain)
    everything = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    with torch.no_grad():
        return model(ids[None], attention_mask=everything).logits[0] + state["output_layer.linear.bias"]


def own_tokenizer() -> Any:
    # the class that transformers takes for Qwen2 adds <|endoftext|> where it is not
    return tokenizer(special=("<|endoftext|>", "<mask>"), mask_token="<mask>")


def foreign(folder: Path, layout: str, words: bool = True, **config: Any) -> Path:
    """A folder in the layout. words: with a tokenizer. config: settings that differ; a dict is merged into what is there."""
    folder.mkdir()
    told = dict(CONFIGS[layout][0])
    for key, value in config.items():
        told[key] = told[key] | value if isinstance(told.get(key), dict) else value
    if words:
        own_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(told))
    save_file(tensors(layout), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
