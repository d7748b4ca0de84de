"""What the importers of other projects' checkpoints share; `families.foreign` finds the one that knows a config.json."""

from dataclasses import dataclass
from typing import Any

from diffulm.errors import BadInput, shown

Names = tuple[tuple[str, str], ...]
"""Beginnings of tensor names, in the files <-> in the plain class, first match wins; {} stands for a number."""

# What Qwen and LLaMA configs of that time say, and transformers' classes read under the same names.
NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "rope_theta",
)  # fmt: skip
TAKEN = (
    "head_dim", "hidden_act", "attention_bias", "initializer_range", "tie_word_embeddings", "attention_dropout",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """Another project's checkpoint in the terms of transformers.

    layout: how people call it. config: config.json of the plain class. mask: the mask token's id, None: the tokenizer's own
    mask token. shift, block_size (None: full attention): as in a Record. begins: whether a text begins with the tokenizer's
    BOS; with shift it always does. tokenizer: the class to fall back on. zeros: how the names of tensors end that hold zeros
    and that the plain class does without. notes: what a user should know.
    """

    layout: str
    config: dict[str, Any]
    names: Names = ()
    mask: int | None = None
    shift: bool = False
    block_size: int | None = None
    begins: bool = False
    tokenizer: str = "PreTrainedTokenizerFast"
    zeros: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def need(config: dict[str, Any], *keys: str) -> list[Any]:
    """The values of these settings. BadInput for one that is missing or null."""
    for key in keys:
        if config.get(key) is None:
            raise BadInput(f"config.json says nothing of {key}; copy or download it again")
    return [config[key] for key in keys]


def whole(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """A setting that is a positive number. BadInput for anything else."""
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise BadInput(f"config.json has {key} = {shown(value)}, not a positive number")
    return value


def expect(config: dict[str, Any], **settings: tuple[Any, ...]) -> None:
    """settings: key -> (what the published code takes where nothing is said, what we read, ...). BadInput for all else."""
    for key, (default, *read) in settings.items():
        if (value := config.get(key, default)) not in read:
            only = " or ".join(map(repr, read))
            raise BadInput(f"config.json has {key} = {shown(value)}; only {only} was compared with the published code")


def plain(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """config.json of a plain Qwen or LLaMA class, from one that has the same settings under the same names."""
    need(config, *NEEDED)
    return {"model_type": model_type} | {key: config[key] for key in (*NEEDED, *TAKEN) if key in config}


def held(config: dict[str, Any]) -> dict[str, Any]:
    """The settings in NEEDED of a Qwen2 or LLaMA whose blocks are those of Dream and LLaDA. config: `to_dict` of
    transformers' object. BadInput, without the model's name, for another make."""
    rope = config.get("rope_parameters") or {}
    alike = {
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_type": "default",
        "partial_rotary_factor": 1.0, "head_dim": config["hidden_size"] // config["num_attention_heads"],
    }  # fmt: skip
    for key, only in alike.items():
        if (value := (config | rope).get(key)) not in (None, only):
            raise BadInput(f"has {key} = {shown(value)}, where this layout has {only!r} only")
    return {key: config.get(key) for key in NEEDED} | {"rope_theta": rope.get("rope_theta", 10000.0)}
