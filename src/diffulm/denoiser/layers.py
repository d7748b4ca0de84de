"""What kinds of layers a decoder has, by its own config, and how far each of them may look."""

from typing import Any

import torch
from torch import Tensor

FULL = "full_attention"
# Layers that take no matrix: recurrences and convolutions run from left to right, experts mix no tokens.
UNMASKED = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv", "moe", "mlp"})
# Layers with an attention beside a recurrence: they take the matrix, and see what is to their left all the same.
PARALLEL = frozenset({"hybrid", "hybrid_sliding"})


def kinds(config: Any) -> list[str]:
    """The kind of each layer as `config.layer_types` names it; where it says nothing, all layers are alike."""
    named = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if named:
        return ["full_attention" if kind == "attention" else kind for kind in named]
    alike = FULL if _sliding(config) is None else "sliding_attention"
    return [alike] * config.num_hidden_layers


def windows(config: Any) -> dict[str, int | None]:
    """Kind of layer -> positions of its window or chunk (None: sees everything), in the order they first come."""
    sizes = {"sliding": _sliding(config), "chunked": getattr(config, "attention_chunk_size", None)}
    return {kind: sizes.get(kind.removeprefix("hybrid_").split("_")[0]) for kind in dict.fromkeys(kinds(config))}


def _sliding(config: Any) -> int | None:
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def within(kind: str, size: int, rows: Tensor, columns: Tensor) -> Tensor:
    """What a layer of this kind can reach: positions of rows (..., R) and columns (..., C) -> bool (..., R, C)."""
    row, column = rows[..., :, None], columns[..., None, :]
    return row // size == column // size if kind == "chunked_attention" else (row - column).abs() < size


def decoder_layers(model: Any) -> list[torch.nn.Module] | None:
    """The layers of a transformers decoder, in order; None when they cannot be told."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]
    # of several (a list of small things a layer) the layers are the largest
    sizes = [sum(p.numel() for p in module.parameters()) for module in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else None


def recompute(model: Any) -> None:
    """Keep of each layer only its input, and run it again in the backward pass."""
    # its name before transformers 5.20 or so
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
