"""Losses on held-out blocks, in nats a token: the any-order bound, left to right, and the AR reading, on the same tokens.

Blocks are (n, L) ids whose position 0 is BOS; every other position is scored. A record with block attention is measured
block by block with clean context, as it decodes: the bound is over the orders within a block.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffulm import visibility
from diffulm.bounds import standard_error
from diffulm.denoiser.denoiser import Clean, Denoiser
from diffulm.denoiser.probe import evaluating
from diffulm.randomness import key, uniform
from diffulm.scoring import block_size, hidden_draws, positions_a_call
from diffulm.shapes import Float, Int

LEVELS = 10
_STEP, _FUTURE = key("left-to-right step"), key("influence of the future")


@dataclass(frozen=True)
class Loss:
    """Nats a token; stderr: Monte-Carlo error of that figure on these very blocks (0 where exact)."""

    nats: float
    stderr: float
    blocks: int
    tokens: int
    levels: tuple[float | None, ...] = ()
    """Of a bound: mean nats of a masked token where 0 to 10%, 10 to 20%, ... are masked; None: that was not drawn."""


def bound(denoiser: Denoiser, blocks: Int[Tensor, "n l"], samples: int = 16, seed: int = 0) -> Loss:
    """Any-order bound by the count estimator, `samples` draws a block, the same draws for the same seed."""
    blocks = blocks.to(denoiser.device)
    length = blocks.shape[1]
    size = block_size(denoiser, length)
    samples = 1 if size == 1 else samples  # blocks of one are exactly autoregressive
    drawn = [_drawn(length, size, samples, seed, index) for index in range(len(blocks))]
    where, weight = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    with evaluating(denoiser.model):
        ids = blocks.repeat_interleave(samples, 0)
        ce = _cross_entropy(denoiser, ids, where.to(ids.device)).double().cpu()
    cost = torch.zeros_like(weight)
    cost[where] = ce
    values = (cost * weight).sum(1).view(len(blocks), samples)
    squares = 0.0 if size == 1 else sum(standard_error(of_text) ** 2 for of_text in values)
    level = (LEVELS / weight[where]).ceil().long() - 1  # a share of exactly 1 belongs to the last
    sums, counts = torch.zeros(2, LEVELS, dtype=torch.float64).unbind()
    sums.index_add_(0, level, ce)
    counts.index_add_(0, level, torch.ones_like(ce))
    levels = tuple(float(s / c) if c else None for s, c in zip(sums, counts, strict=True))
    tokens = (length - 1) * len(blocks)
    return Loss(float(values.mean(1).sum()) / tokens, math.sqrt(squares) / tokens, len(blocks), tokens, levels)


@lru_cache(maxsize=256)  # an evaluation draws what the one before drew
def _drawn(length: int, size: int, samples: int, seed: int, index: int) -> tuple[Tensor, Tensor]:
    return hidden_draws(torch.arange(1, length), length, size, samples, seed, index)


def left_to_right(denoiser: Denoiser, blocks: Int[Tensor, "n l"], forwards: int | None = None, seed: int = 0) -> Loss:
    """-log p(x_i | x_<i, the rest masked), the rest of its own block under block attention.

    Exact, in L - 1 forwards a text (as many as a block is long, under block attention), or from so many `forwards` a text,
    spread evenly over it and the same for the same seed; the error is then no more than `stderr`.
    """
    blocks = blocks.to(denoiser.device)
    length = blocks.shape[1]
    size = block_size(denoiser, length)
    position = torch.arange(length, device=blocks.device)
    first = 1 if size >= length else 0
    steps = size - first
    chosen = min(forwards or steps, steps)
    step = torch.arange(chosen).expand(len(blocks), -1)
    if chosen < steps:
        text = torch.arange(len(blocks))[:, None]
        step = ((step + uniform(seed, _STEP, text, step)) * steps / chosen).long()
    step = (step + first).to(blocks.device).reshape(-1, 1)
    where = (position % size == step) & (position > 0)
    with evaluating(denoiser.model):
        ce = _cross_entropy(denoiser, blocks.repeat_interleave(chosen, 0), where, position % size >= step).double()
    sums, counts = _by_text(ce, where.nonzero()[:, 0] // chosen, len(blocks))
    stderr = 0.0 if chosen == steps else _error(sums / counts)
    return Loss(float(ce.mean()), stderr, len(blocks), len(ce))


def autoregressive(denoiser: Denoiser, blocks: Int[Tensor, "n l"]) -> Loss:
    """The AR loss under a causal matrix: of a parent its own, of an adapted model that of its causal view, with shift."""
    denoiser = denoiser.shifted()
    blocks = blocks.to(denoiser.device)
    causal = visibility.causal(blocks.shape[1], device=blocks.device)
    where = denoiser.predictable(blocks)
    total = 0.0
    with evaluating(denoiser.model):
        for rows, asked in zip(_chunks(blocks), _chunks(where), strict=True):
            total += float(denoiser.cross_entropy(rows, rows[asked], asked, causal).double().sum())
    tokens = int(where.sum())
    return Loss(total / tokens, 0.0, len(blocks), tokens)


def future(denoiser: Denoiser, blocks: Int[Tensor, "n l"], seed: int = 0) -> tuple[float, float]:
    """(nats that a masked token is cheaper for seeing what stands to its right, standard error over the texts), half of
    each text masked at random. Exactly 0 where the model does not look right at all."""
    blocks = blocks.to(denoiser.device)
    length = blocks.shape[1]
    causal = visibility.causal(length, device=blocks.device)
    row, column = torch.arange(len(blocks))[:, None], torch.arange(length)[None, :]
    where = ((uniform(seed, _FUTURE, row, column) < 0.5) & (column > 0)).to(blocks.device)
    with evaluating(denoiser.model):
        left = _cross_entropy(denoiser, blocks, where, visible=causal)
        gain = left.double() - _cross_entropy(denoiser, blocks, where).double()
    sums, counts = _by_text(gain, where.nonzero()[:, 0], len(blocks))
    return float(gain.mean()), _error(sums / counts.clamp(min=1))


def _by_text(values: Float[Tensor, " m"], text: Int[Tensor, " m"], count: int) -> tuple[Tensor, Tensor]:
    """(sum, number) of the values of each of `count` texts."""
    sums, counts = torch.zeros(2, count, dtype=torch.float64, device=values.device).unbind()
    return sums.index_add(0, text, values), counts.index_add(0, text, torch.ones_like(values))


def _error(means: Float[Tensor, " n"]) -> float:
    """The standard error of the mean of texts; infinite for one text."""
    return float(means.std() / len(means) ** 0.5) if len(means) > 1 else math.inf


def _cross_entropy(
    denoiser: Denoiser, ids: Tensor, where: Tensor, hidden: Tensor | None = None, visible: Tensor | None = None
) -> Tensor:
    """-log p at `where` with `hidden` (default: the same positions) masked, in calls of bounded size; beside the clean text
    where the record says that blocks are filled one after the other."""
    canvas = ids.masked_fill(where if hidden is None else hidden, denoiser.record.mask_token_id)
    record = denoiser.record
    size = record.block_size if record.attention == "block" else None
    parts = zip(_chunks(canvas), _chunks(ids), _chunks(where), strict=True)
    return torch.cat(
        [
            denoiser.cross_entropy(
                c, i[w], w, visible, clean=None if size is None else Clean(i, size, record.clean_causal)
            )
            for c, i, w in parts
        ]
    )


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, positions_a_call(rows.device) // rows.shape[1]))
