"""Losses on held-out blocks, in nats a token: the any-order bound, left to right, and the AR reading, on the same tokens.

Blocks are (n, L) ids whose position 0 is BOS; every other position is scored.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffulm import visibility
from diffulm.bounds import draws, standard_error
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.probe import evaluating
from diffulm.shapes import Int

TOKENS_A_CALL = 8192  # positions a forward: bounds the memory, does not change a result beyond float error


@dataclass(frozen=True)
class Loss:
    """Nats a token; stderr: Monte-Carlo error of that figure on these very blocks (0 where exact)."""

    nats: float
    stderr: float
    blocks: int
    tokens: int


def bound(denoiser: Denoiser, blocks: Int[Tensor, "n l"], samples: int = 16, seed: int = 0) -> Loss:
    """Any-order bound by the count estimator, `samples` draws a block, the same draws for the same seed."""
    blocks = blocks.to(denoiser.device)
    totals, squares = 0.0, 0.0
    size = blocks.shape[1] - 1
    with evaluating(denoiser.model):
        for index, ids in enumerate(blocks):
            masked, weight = draws(size, samples, seed, index)
            where = torch.nn.functional.pad(masked, (1, 0)).to(ids.device)
            ce = _cross_entropy(denoiser, ids.expand(samples, -1), where)
            sums = torch.zeros(samples, dtype=torch.float64).index_add(
                0, where.nonzero()[:, 0].cpu(), ce.double().cpu()
            )
            values = sums * weight
            totals += float(values.mean())
            squares += standard_error(values) ** 2
    tokens = size * len(blocks)
    return Loss(totals / tokens, math.sqrt(squares) / tokens, len(blocks), tokens)


def left_to_right(denoiser: Denoiser, blocks: Int[Tensor, "n l"]) -> Loss:
    """sum of -log p(x_i | x_<i, the rest masked): L - 1 forwards a block, exact."""
    blocks = blocks.to(denoiser.device)
    length = blocks.shape[1]
    position = torch.arange(length, device=blocks.device)
    where = position[None, :] == position[1:, None]
    hidden = position[None, :] >= position[1:, None]
    total = 0.0
    with evaluating(denoiser.model):
        for ids in blocks:
            rows = ids.expand(length - 1, -1)
            total += float(_cross_entropy(denoiser, rows, where, hidden).double().sum())
    tokens = (length - 1) * len(blocks)
    return Loss(total / tokens, 0.0, len(blocks), tokens)


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


def _cross_entropy(denoiser: Denoiser, ids: Tensor, where: Tensor, hidden: Tensor | None = None) -> Tensor:
    """-log p at `where` with `hidden` (default: the same positions) masked, in calls of bounded size."""
    canvas = ids.masked_fill(where if hidden is None else hidden, denoiser.record.mask_token_id)
    parts = zip(_chunks(canvas), _chunks(ids), _chunks(where), strict=True)
    return torch.cat([denoiser.cross_entropy(c, i[w], w) for c, i, w in parts])


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, TOKENS_A_CALL // rows.shape[1]))
