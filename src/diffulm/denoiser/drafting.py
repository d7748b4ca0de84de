"""One forward that reads ahead: exact next-token logits along a drafted tree, and behind its places the tokens after them.

The rows behind the cached clean text are [its last token; the drafted tokens; a group of masks for each place]. Text and
draft see what is to their left, a drafted token those that it follows, and no mask: so they say what the causal view says,
whatever is drafted. The masks of a group see the text, the draft up to their place, and each other. Rows that speak of the
same position share its number. (Draft and verification in one forward: SimSD, arXiv 2606.02544; guesses from mask tokens
behind a parent that only they change: arXiv 2507.11851; a tree under one matrix: SpecInfer, arXiv 2305.09781.)
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diffulm import visibility
from diffulm.denoiser.adapter import attached, gated
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.hooks import Request
from diffulm.errors import BadInput
from diffulm.shapes import Bool, Float, Int

LARGEST = 4096  # tokens of a vocabulary for which `affinity` is held: 64 MiB in float32
STRENGTH = 0.7  # of 0.3 to 1, see docs/experiments.md
_affinities: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()


def affinity(denoiser: Denoiser) -> Float[Tensor, "v v"] | None:
    """STRENGTH x log of how much likelier the causal view finds token [., v] behind [BOS, u] than on average, for each u.

    A guess from a mask does not know the token before its own position; when that is drawn, this tells the guess (as
    naive Bayes would). Made once a model, from 2 V rows; None without BOS, and for vocabularies above LARGEST.
    """
    bos, size = denoiser.record.bos_token_id, denoiser.vocabulary
    if bos is None or not denoiser.record.shift or size > LARGEST:
        return None
    if denoiser.model not in _affinities:
        seen = visibility.causal(2, device=denoiser.device)
        with denoiser.turn(), _clean(denoiser.model):
            parts = [
                denoiser.rows(torch.stack([torch.full_like(some, bos), some], 1), seen)[:, 1].float().log_softmax(-1)
                for some in torch.arange(size, device=denoiser.device).split(512)
            ]
        table = torch.cat(parts)
        _affinities[denoiser.model] = STRENGTH * (table - table.logsumexp(0) + math.log(size))
    return _affinities[denoiser.model]


def _clean(model: Any) -> AbstractContextManager[None]:
    """Inside, what is no mask is read by the parent alone, where the model has an adapter."""
    return gated(model) if attached(model) else nullcontext()


def reader(denoiser: Denoiser) -> Callable[[Tensor, Any], tuple[Tensor, tuple[Tensor, ...]]]:
    """The `Read` of `samplers.verified` for one text that grows: keys and values of what is known stay from call to call.

    The exact logits are those of the causal view; of a model with an adapter they are those of its parent, for the adapter
    acts on masks alone here. Without shift each is read off a mask that sees nothing but the clean text before it.
    BadInput for families that take no positions, or have layers whose past cannot be kept.
    """
    from transformers import DynamicCache

    if not denoiser.takes_clean_copy:
        raise BadInput("sampler=verified: needs a family that takes positions, and no layer that looks left always")
    cache, device = DynamicCache(), denoiser.device
    held: list[tuple[int, int]] = []  # of each cached column its token and the column before it in its text

    def read(known: Tensor, draft: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        nonlocal held
        columns = _path(held, known.tolist()[:-1])
        _keep(cache, columns, device)
        new = len(known) - len(columns)
        visible, offset, rows = (
            part.to(device) for part in layout(new, draft.parents, draft.ahead, denoiser.record.shift)
        )
        clean = [*known.tolist()[len(columns) :], *draft.tokens]
        masks = [denoiser.record.mask_token_id] * (len(offset) - len(clean))
        visible = torch.cat([visible.new_ones(len(visible), len(columns)), visible], 1)
        request = Request(rows, lambda head, hidden: head(hidden))
        with denoiser.turn(), _clean(denoiser.model):
            ids, positions = torch.tensor([clean + masks], device=device), (len(columns) + offset)[None]
            logits = denoiser._forward(ids, visible, positions, cache, request)
        before = [*range(-1, len(known) - 1), *(len(known) - 1 + parent for parent in draft.parents)]
        held = list(zip([*known.tolist(), *draft.tokens], before, strict=True))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).to(known.device)
        exact, *ahead = logits.split([len(draft.ahead), *draft.ahead])
        return exact, tuple(ahead)

    return read


def _path(held: list[tuple[int, int]], text: list[int]) -> list[int]:
    """The cached columns of the longest beginning of `text` that there is."""
    column = {(before, token): i for i, (token, before) in enumerate(held)}
    path = [-1]
    for token in text:
        found = column.get((path[-1], token))
        if found is None:
            break
        path.append(found)
    return path[1:]


def _keep(cache: Any, columns: list[int], device: torch.device) -> None:
    if columns == list(range(len(columns))):
        cache.crop(len(columns) - cache.get_seq_length())
        return
    at = torch.tensor(columns, device=device)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.index_select(2, at), layer.values.index_select(2, at)


def layout(
    new: int, parents: tuple[int, ...], ahead: tuple[int, ...], shift: bool
) -> tuple[Bool[Tensor, "rows rows"], Int[Tensor, " rows"], Int[Tensor, " exact_and_ahead"]]:
    """(visible among the new rows, their positions counted from the first of them, rows whose outputs are wanted).

    new: clean rows that are not cached yet. Wanted are the rows of the exact logits, one a place, then those of the groups.
    """
    above = torch.zeros(len(ahead), len(parents), dtype=torch.bool)  # place x drafted token: is it on the way there
    level = torch.zeros(len(ahead), dtype=torch.int64)
    for i, parent in enumerate(parents):
        above[i + 1], level[i + 1] = above[parent], level[parent] + 1
        above[i + 1, i] = True
    clean = new + len(parents)
    sizes = torch.tensor(ahead) + (not shift)
    place = torch.arange(len(ahead)).repeat_interleave(sizes)  # of each mask
    within = torch.arange(len(place)) - (sizes.cumsum(0) - sizes)[place]
    visible = torch.zeros(clean + len(place), clean + len(place), dtype=torch.bool)
    visible[:new, :new] = torch.ones(new, new, dtype=torch.bool).tril()
    visible[new:, :new] = True
    visible[new:clean, new:clean], visible[clean:, new:clean] = above[1:], above[place]
    visible[clean:, clean:] = place[:, None] == place
    exact, guesses = torch.arange(max(new, 1) - 1, clean), clean + torch.arange(len(place))
    if not shift:  # the first mask of a group reads the next token
        exact, guesses = clean + sizes.cumsum(0) - sizes, clean + within.nonzero()[:, 0]
        visible[exact, clean:] = torch.arange(clean, len(visible)) == exact[:, None]
    offset = torch.cat([torch.arange(new), new - 1 + level[1:], new + level[place] + within])
    return visible, offset, torch.cat([exact, guesses])
