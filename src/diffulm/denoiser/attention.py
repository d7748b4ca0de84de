"""Attention without a matrix where everything is visible: the fastest kernels of SDPA take none.

A mask that says so carries a mark; an attention function, registered with transformers beside its own, drops a mask with
that mark. On the mask itself it outlives recomputation in the backward pass and needs no state of the model or the thread.
"""

from typing import Any

import torch
from torch import Tensor, nn

NAME = "diffulm_sdpa"
MARK = "diffulm_sees_everything"


def marked(mask: Tensor) -> Tensor:
    setattr(mask, MARK, True)
    return mask


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **options: Any
) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if getattr(attention_mask, MARK, False):
        attention_mask, options["is_causal"] = None, False
    return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **options)


def register() -> None:
    """Make the function known to transformers, once."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def use(model: Any, logits: Any) -> bool:
    """Switch the model's attention over where that changes nothing; logits() gives those of some canvas, all visible.

    Families that look for the word "sdpa", or do anything else with the mask, stay as they were.
    """
    if model.config._attn_implementation != "sdpa":
        return False
    register()
    before = logits()
    try:
        model.set_attn_implementation(NAME)
        after = logits()
    except (ValueError, KeyError, ImportError, TypeError):
        after = torch.full_like(before, torch.nan)
    # Other kernels round otherwise; attention that had stayed causal would move logits by their own size.
    spread = before.float().std()
    if bool((before.float() - after.float()).abs().max() <= 0.02 * spread):
        return True
    model.set_attn_implementation("sdpa")
    return False
