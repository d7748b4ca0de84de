"""A tiny configuration of each decoder family: what the test of "any decoder" goes through.

model_type -> keywords of its config. Written out family by family rather than shrunk by `denoiser.twin`, which is itself
under test here.
"""

from typing import Any

from models import GPT2, LLAMA, MIXED, OPT, SLIDING, SMALL

MOE = LLAMA | {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LOCAL, ROUTED, EXPERTS = {"num_local_experts": 4}, {"n_routed_experts": 4}, {"num_experts": 4}
GEMMA = LLAMA | {"head_dim": 8}
SOFT = {"query_pre_attn_scalar": 8}
HALF_ROTARY = {"partial_rotary_factor": 0.5}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
    "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
GATED_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
RECURRENT_FIRST = ["linear_attention", "full_attention"]

# Every layer obeys the matrix.
ATTENTION: dict[str, dict[str, Any]] = {
    "afmoe": MOE | MIXED | ROUTED | {"num_experts": 4, "num_dense_layers": 1},
    "apertus": LLAMA,
    "arcee": LLAMA,
    "biogpt": LLAMA,
    "bitnet": LLAMA,
    "codegen": GPT2 | {"rotary_dim": 4},
    "cohere": LLAMA,
    "cohere2": LLAMA | MIXED,
    "deepseek_v3": MOE | ROUTED | LATENT,
    "diffllama": LLAMA,
    "ernie4_5": LLAMA,
    "ernie4_5_moe": MOE | {"moe_num_experts": 4, "moe_k": 2},
    "exaone4": LLAMA | MIXED,
    "falcon": SMALL | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "flex_olmo": MOE | EXPERTS,
    "gemma": GEMMA,
    "gemma2": GEMMA | MIXED | SOFT,
    "gemma3_text": GEMMA | MIXED | SOFT,
    "glm": GEMMA | HALF_ROTARY,
    "glm4": GEMMA | HALF_ROTARY,
    "glm4_moe": MOE | ROUTED | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox": LLAMA,
    "gpt_oss": MOE | MIXED | LOCAL,
    "gptj": GPT2 | {"rotary_dim": 4},
    "granite": LLAMA,
    "granitemoe": MOE | LOCAL,
    "helium": GEMMA,
    "hunyuan_v1_dense": GEMMA,
    "jetmoe": LLAMA | LOCAL | {"kv_channels": 8, "num_experts_per_tok": 2},
    "llama": LLAMA,
    "llama4_text": MOE | LOCAL | {
        "intermediate_size_mlp": 48, "head_dim": 8, "attention_chunk_size": 4, "num_experts_per_tok": 1,
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "ministral": GEMMA | MIXED,
    "mistral": LLAMA | SLIDING,
    "mixtral": LLAMA | LOCAL,
    "modernbert-decoder": LLAMA | {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 10},
    "mpt": SMALL | {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "nanochat": LLAMA,
    "nemotron": GEMMA,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "olmo3": LLAMA | MIXED,
    "olmoe": MOE | EXPERTS,
    "opt": OPT,
    "persimmon": LLAMA,
    "phi": LLAMA,
    "phi3": LLAMA,
    "phimoe": LLAMA | LOCAL,
    "qwen2": LLAMA,
    "qwen2_moe": MOE | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3": LLAMA | MIXED | {"use_sliding_window": True},
    "qwen3_moe": MOE | EXPERTS,
    "seed_oss": GEMMA,
    "smollm3": LLAMA,
    "stablelm": LLAMA,
    "starcoder2": LLAMA,
    "xglm": SMALL | {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64},
}  # fmt: skip

# name -> config, which layers look left always
HYBRID: dict[str, tuple[dict[str, Any], list[int]]] = {
    "bamba": (LLAMA | MAMBA2 | {"num_hidden_layers": 2, "attn_layer_indices": [1]}, [0]),
    "falcon_h1": (LLAMA | MAMBA2 | {"mamba_d_ssm": 64}, [0, 1]),
    "granitemoehybrid": (LLAMA | MAMBA2 | {"layer_types": RECURRENT_FIRST, "shared_intermediate_size": 48}, [0]),
    "jamba": (LLAMA | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "num_experts": 1,
                       "num_experts_per_tok": 1, "use_mamba_kernels": False}, [0]),
    "lfm2": (LLAMA | {"layer_types": ["conv", "full_attention"]}, [0]),
    "minimax": (LLAMA | LOCAL | {"head_dim": 8, "layer_types": RECURRENT_FIRST}, [0]),
    "nemotron_h": (LLAMA | {"layers_block_type": ["mamba", "attention"], "head_dim": 8, "ssm_state_size": 8,
                            "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1}, [0]),
    "olmo_hybrid": (LLAMA | GATED_DELTA | {"layer_types": RECURRENT_FIRST}, [0]),
    "qwen3_5_text": (GEMMA | GATED_DELTA | {"layer_types": RECURRENT_FIRST}, [0]),
    "qwen3_next": (MOE | EXPERTS | GATED_DELTA | {"head_dim": 8, "layer_types": RECURRENT_FIRST,
                                                  "shared_expert_intermediate_size": 16}, [0]),
    "recurrent_gemma": (LLAMA | {"attention_window_size": 5, "num_hidden_layers": 3, "lru_width": 32}, [0, 1]),
}  # fmt: skip

# As the forward takes a matrix it has no use for, or takes none at all (older versions of transformers).
RECURRENT = "(it can only look left|it is recurrent)"

# name -> config, the reason
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (SMALL | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
             "its own forward looks at tokens to the right"),
    "bloom": (SMALL | {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "its forward takes no 4-D attention mask"),
    "falcon_mamba": (SMALL | {"hidden_size": 32, "num_hidden_layers": 2}, RECURRENT),
    "gpt_neo": (SMALL | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
                         "attention_types": [[["global", "local"], 1]]}, "can only look left"),
    "mamba": (SMALL | {"hidden_size": 32, "num_hidden_layers": 2}, RECURRENT),
    "mamba2": (SMALL | {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8,
                        "n_groups": 1}, RECURRENT),
    "openai-gpt": (GPT2, "its forward takes no 4-D attention mask"),
    "rwkv": (SMALL | {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64, "attention_hidden_size": 32,
                      "intermediate_size": 48}, RECURRENT),
}  # fmt: skip
