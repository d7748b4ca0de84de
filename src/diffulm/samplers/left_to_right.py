"""From left to right, as the autoregressive parent reads."""

import torch

from diffulm.samplers._state import Reveal, State


def left_to_right(state: State) -> Reveal:
    """Reveal the leftmost masked positions, chosen before anything is projected.

    One at a time this is the chain rule: the law is that of p_order for the order 1, 2, ..., N.
    """
    return state.by_order(torch.arange(state.masked.shape[1], device=state.masked.device).expand_as(state.masked) / 1)
