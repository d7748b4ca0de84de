"""One forward that reads ahead: exact next-token logits along a draft, and behind every place where the draft may break, the
tokens after it.

The rows behind the cached clean text are [its last token; the draft; a group of masks for each place]. Text and draft see
what is to their left and no mask, so they say what the causal view of the same weights says, whatever is drafted. The masks
of a group see the text, the draft up to their place, and each other; groups share positions. (Draft and verification in one
forward: SimSD, arXiv 2606.02544, and multi-token prediction with mask tokens, arXiv 2507.11851, without their acceptance
rules.)
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from diffulm.denoiser.adapter import attached, gated
from diffulm.denoiser.denoiser import Denoiser, _Request
from diffulm.errors import BadInput
from diffulm.shapes import Bool, Int

Read = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, list[Tensor]]]
"""(known (n,) ids, drafted (k,) ids, groups: k + 1 sizes) -> (exact (k + 1, V), ahead: k + 1 tensors (size, V)), logits.

exact[g] is for position n + g, given the known tokens and the first g drafted ones, left to right. ahead[g] is for the
positions from n + g + 1 on, a guess that knows no more than exact[g]."""


def reader(denoiser: Denoiser) -> Read:
    """`Read` for one text that grows: keys and values of what is known stay from call to call.

    The exact logits are those of the causal view; of a model with an adapter they are those of its parent, for the adapter
    acts on masks alone here. Without shift each is read off a mask that sees nothing but the clean text before it.
    BadInput for families that take no positions, or have layers whose past cannot be kept.
    """
    from transformers import DynamicCache

    if not denoiser.takes_clean_copy:
        raise BadInput("sampler=verified: needs a family that takes positions, and no layer that looks left always")
    shift, mask = denoiser.record.shift, denoiser.record.mask_token_id
    cache, held = DynamicCache(), None

    def read(known: Tensor, drafted: Tensor, groups: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        nonlocal held
        device = denoiser.device
        held = known[:0] if held is None else held
        kept = min(_shared(held, known), max(len(known) - 1, 0))
        cache.crop(kept - len(held))
        clean = torch.cat([known[kept:], drafted])
        new = len(known) - kept
        visible, offset, rows = (part.to(device) for part in layout(new, tuple(groups), shift))
        ids = torch.cat([clean, clean.new_full((len(offset) - len(clean),), mask)])
        visible = torch.cat([visible.new_ones(len(visible), kept), visible], 1)
        request = _Request(rows, lambda head, hidden: head(hidden))
        with gated(denoiser.model) if attached(denoiser.model) else nullcontext():
            logits = denoiser._forward(ids[None].to(device), visible, (kept + offset)[None], cache, request)
        held = torch.cat([known, drafted])
        cache.crop(len(clean) - len(ids))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).to(known.device)
        exact, *ahead = logits.split([len(groups), *groups])
        return exact, ahead

    return read


def _shared(one: Tensor, other: Tensor) -> int:
    """How many tokens two texts have in common from the left."""
    size = min(len(one), len(other))
    return int((one[:size] == other[:size]).long().cumprod(0).sum())


@lru_cache(maxsize=256)
def layout(
    new: int, groups: tuple[int, ...], shift: bool
) -> tuple[Bool[Tensor, "rows rows"], Int[Tensor, " rows"], Int[Tensor, " exact_and_ahead"]]:
    """(visible among the new rows, their positions counted from the first of them, rows whose outputs are wanted).

    new: clean rows that are not cached yet. Wanted are the rows of the exact logits, one a place, then those of the groups.
    """
    clean = new + len(groups) - 1
    sizes = torch.tensor([size + (not shift) for size in groups])
    place = torch.arange(len(groups)).repeat_interleave(sizes)  # of each mask row
    within = torch.arange(len(place)) - (sizes.cumsum(0) - sizes)[place]
    index = torch.arange(clean + len(place))
    last_seen = torch.cat([torch.arange(clean), new - 1 + place])  # the last clean row that a row sees
    group = torch.cat([torch.full((clean,), -1), place])
    together = (group[:, None] == group) & (group >= 0)
    exact = torch.arange(new - 1, clean)
    if not shift:
        exact = clean + sizes.cumsum(0) - sizes
        together[exact] = index == exact[:, None]
    visible = (index < clean) & (index <= last_seen[:, None]) | together
    offset = torch.cat([torch.arange(clean), new + place + within])
    ahead = clean + torch.arange(len(place)) if shift else clean + within.nonzero()[:, 0]
    return visible, offset, torch.cat([exact, ahead])
