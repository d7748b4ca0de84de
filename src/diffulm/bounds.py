"""Scores: how many nats the free tokens of a canvas cost, by a Monte-Carlo bound or exactly.

Write f(S) for the sum of -log p(x_i | everything outside S) over the free positions i in S, all of S masked. Then

    any-order bound = E over k uniform in 1..N, over S uniform among the subsets of size k, of N/k f(S)
                    = mean over all N! orders of -log p_order       (p_order: fill one token at a time in that order)
                   >= -log(mean over orders of p_order)             (Jensen)

`bound` estimates the first line, `exact_bound` sums it, `order_nats` gives the terms of the other two.
The functions know the network only as a `Denoise`, whose rows must not depend on each other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from diffulm.errors import BadInput
from diffulm.randomness import key as make_key
from diffulm.randomness import uniform
from diffulm.shapes import Bool, Float, Int

EXACT_TOKENS = 12
"""`exact_bound` runs 2^N - 1 canvases; beyond this many tokens it refuses."""

_QUANTILE, _POSITION, _ORDER = make_key("score quantile"), make_key("score position"), make_key("score order")
NORMAL_95 = NormalDist().inv_cdf(0.975)


@runtime_checkable
class Denoise(Protocol):
    """The logits for the tokens AT `where`, in row-major order: (where.sum(), vocabulary) float32.

    ids (B, L); where (B, L) bool; present (B, L) bool or None, False for batch padding. Rows are independent.
    """

    def __call__(
        self, ids: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], present: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "n v"]: ...


@dataclass(frozen=True)
class Score:
    """The cost of the free tokens of one canvas."""

    nats: float
    """Total over the free tokens, not a mean."""
    stderr: float
    """Standard error of `nats`: nats +- 1.96 stderr is a 95% interval. 0 if exact, infinite if it cannot be known."""
    tokens: int
    """Number of free tokens."""


def _stratum(samples: int) -> tuple[Tensor, Tensor]:
    """(samples,) stratum of each draw and (strata,) draws in each: two, and three in the last if `samples` is odd."""
    strata = max(samples // 2, 1)
    stratum = (torch.arange(samples) // 2).clamp(max=strata - 1)
    return stratum, torch.bincount(stratum, minlength=strata)


def draws(
    tokens: int, samples: int, seed: int, key: int = 0
) -> tuple[Bool[Tensor, "samples tokens"], Float[Tensor, " samples"]]:
    """What each draw of the count estimator masks (samples, tokens) and its weight N/k (samples,) float64.

    A draw's quantile v is uniform in its stratum, a part of [0, 1) as wide as its share of the draws; k = ceil(v N)
    of the N tokens are masked, those with the smallest uniforms. v is a function of (seed, key, draw), the uniforms
    of that and the position within the answer: choices of one question, scored with the same key, share them, so
    that the noise cancels in their differences. BadInput unless tokens >= 1 and samples >= 1.
    """
    if tokens < 1 or samples < 1:
        raise BadInput(f"drawing needs at least one token and one sample, not {tokens} and {samples}")
    draw = torch.arange(samples)
    stratum, size = _stratum(samples)
    start = (size.cumsum(0) - size)[stratum]
    quantile = (start + size[stratum] * uniform(seed, key, _QUANTILE, draw)) / samples
    count = (quantile * tokens).ceil().clamp(1, tokens)
    rank = uniform(seed, key, _POSITION, draw[:, None], torch.arange(tokens)[None, :]).argsort(1).argsort(1)
    return rank < count[:, None], tokens / count


@lru_cache(maxsize=1024)  # asked for every score, with few different freedoms
def student(freedom: int, tail: float = 0.025) -> float:
    """The quantile of Student's t that it exceeds with probability `tail`, by bisection of the closed form of its
    distribution for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    if freedom > 300:  # the series has as many terms as half of that, and the normal's quantile is within 0.4%
        return NormalDist().inv_cdf(1 - tail)
    low, high = 0.0, 1.0
    while (1 - _within(high, freedom)) / 2 > tail:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - _within(middle, freedom)) / 2 > tail else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def spread(values: Float[Tensor, " samples"]) -> tuple[float, int]:
    """(standard error of the mean of `values` drawn by `draws`, from their variances within strata; the degrees of freedom
    that it is worth, by Welch and Satterthwaite: one stratum's variance may outweigh the rest).

    Draws of several rounds, one behind the other, are as one if each round is even. Infinite for a single draw, which says
    nothing of its error, and for values that are not finite.
    """
    samples = len(values)
    if samples < 2 or not bool(values.isfinite().all()):
        return math.inf, 1
    stratum, size = (part.to(values.device) for part in _stratum(samples))
    mean = torch.zeros(len(size), dtype=values.dtype, device=values.device).index_add(0, stratum, values) / size
    squares = torch.zeros_like(mean).index_add(0, stratum, (values - mean[stratum]) ** 2)
    # A stratum's mean has the variance s^2 / n and counts n / samples in the whole: n s^2 of it, over samples^2.
    part = squares * size / (size - 1)
    variance = float(part.sum())
    if variance == 0:
        return 0.0, samples - len(size)
    # A squared variance on f degrees of freedom is expected 1 + 2 / f times too large: f + 2 and - 2 undo that.
    freedom = variance**2 / float((part**2 / (size + 1)).sum()) - 2
    return math.sqrt(variance) / samples, min(max(round(freedom), 1), samples - len(size))


def standard_error(values: Float[Tensor, " samples"]) -> float:
    """The standard error of `spread`, inflated by the quantile of Student's t over the normal's, so that +- 1.96 of it
    covers 95%: that is much below 30 draws, next to nothing for hundreds."""
    error, freedom = spread(values)
    return error * student(freedom) / NORMAL_95 if 0 < error < math.inf else error


def _free_positions(ids: Tensor, free: Tensor, present: Tensor | None) -> Tensor:
    """(N,): where `free` is True; BadInput if a free position is not present."""
    if present is not None and bool((free & ~present).any()):
        raise BadInput("a position that is not present cannot be free")
    return free.nonzero()[:, 0]


def _chunks(rows: int, rows_per_call: int) -> Iterator[slice]:
    if rows_per_call < 1:
        raise BadInput(f"rows_per_call must be at least 1, not {rows_per_call}")
    return (slice(start, start + rows_per_call) for start in range(0, rows, rows_per_call))


def _masked_nats(
    denoise: Denoise,
    ids: Tensor,
    masked: Tensor,
    where: Tensor,
    mask_token_id: int,
    present: Tensor | None,
    rows_per_call: int,
) -> Tensor:
    """(R,) float64: for each row of masked (R, L), the summed -log p of the tokens at its `where` (R, L)."""
    nats = torch.zeros(len(masked), dtype=torch.float64, device=ids.device)
    for rows in _chunks(len(masked), rows_per_call):
        canvas = ids.masked_fill(masked[rows], mask_token_id)
        seen = None if present is None else present.expand_as(canvas)
        row, column = where[rows].nonzero(as_tuple=True)
        cost = functional.cross_entropy(denoise(canvas, where[rows], seen).float(), ids[column], reduction="none")
        nats[rows] = nats[rows].index_add(0, row, cost.double())
    return nats


def _subset_nats(
    denoise: Denoise,
    ids: Tensor,
    positions: Tensor,
    subsets: Tensor,
    mask_token_id: int,
    present: Tensor | None,
    rows_per_call: int,
) -> Tensor:
    """(R,) float64: f(S) for each row S of subsets (R, N), which speak of the free positions; equal rows run once."""
    distinct, back = subsets.unique(dim=0, return_inverse=True)
    masked = torch.zeros(len(distinct), len(ids), dtype=torch.bool, device=ids.device)
    masked[:, positions] = distinct.to(ids.device)
    nats = _masked_nats(denoise, ids, masked, masked, mask_token_id, present, rows_per_call)
    return nats[back.to(ids.device)]


@torch.no_grad()
def bound(
    denoise: Denoise,
    ids: Int[Tensor, " l"],
    free: Bool[Tensor, " l"],
    mask_token_id: int,
    samples: int,
    seed: int,
    key: int = 0,
    present: Bool[Tensor, " l"] | None = None,
    rows_per_call: int = 32,
) -> Score:
    """The any-order bound on -log p(free tokens | fixed tokens), estimated from `samples` draws of `draws`.

    ids, free, present: (L,). Texts scored with the same seed and key share their random numbers. A single token
    (or none) is exact, with stderr 0, and costs one forward (or none); otherwise the stderr of one sample is
    infinite. BadInput if samples < 1, or a free position is not present.
    """
    positions = _free_positions(ids, free, present)
    tokens = len(positions)
    if samples < 1:
        raise BadInput(f"samples must be at least 1, not {samples}")
    if tokens == 0:
        return Score(0.0, 0.0, 0)
    masked, weight = draws(tokens, samples, seed, key)
    nats = _subset_nats(denoise, ids, positions, masked, mask_token_id, present, rows_per_call)
    values = weight.to(nats.device) * nats
    # One token is masked in every draw: there is no error to estimate.
    return Score(float(values.mean()), 0.0 if tokens == 1 else standard_error(values), tokens)


@torch.no_grad()
def exact_bound(
    denoise: Denoise,
    ids: Int[Tensor, " l"],
    free: Bool[Tensor, " l"],
    mask_token_id: int,
    present: Bool[Tensor, " l"] | None = None,
    rows_per_call: int = 32,
) -> Score:
    """The number that `bound` estimates, by summing over all 2^N - 1 subsets; BadInput if N > 12."""
    positions = _free_positions(ids, free, present)
    tokens = len(positions)
    if tokens > EXACT_TOKENS:
        raise BadInput(f"the exact bound sums over 2^N subsets: at most {EXACT_TOKENS} free tokens, not {tokens}")
    if tokens == 0:
        return Score(0.0, 0.0, 0)
    subsets = (torch.arange(1, 2**tokens)[:, None] >> torch.arange(tokens)) & 1 == 1
    nats = _subset_nats(denoise, ids, positions, subsets, mask_token_id, present, rows_per_call)
    # P(S) N/k = 1/N x 1/binomial(N, k) x N/k
    weight = torch.tensor([1 / (k * math.comb(tokens, k)) for k in subsets.sum(1).tolist()], dtype=torch.float64)
    return Score(float((weight.to(nats.device) * nats).sum()), 0.0, tokens)


@torch.no_grad()
def order_nats(
    denoise: Denoise,
    ids: Int[Tensor, " l"],
    free: Bool[Tensor, " l"],
    mask_token_id: int,
    orders: Int[Tensor, "k n"],
    present: Bool[Tensor, " l"] | None = None,
    rows_per_call: int = 32,
) -> Float[Tensor, " k"]:
    """-log p_order (K,) float64 for each of the orders (K, N), permutations of 0..N-1 over the free positions.

    N forwards an order. BadInput if a row of `orders` is no permutation.
    """
    positions = _free_positions(ids, free, present)
    tokens = len(positions)
    orders = orders.to(ids.device)
    if not torch.equal(orders.sort(1).values, torch.arange(tokens, device=ids.device).expand(len(orders), -1)):
        raise BadInput(f"an order is a permutation of 0 to {tokens - 1}, the free positions")
    # A token is still masked at a step if its turn is this step or a later one.
    turn = orders.argsort(1)[:, None, :]
    step = torch.arange(tokens, device=ids.device)[None, :, None]
    masked = torch.zeros(len(orders) * tokens, len(ids), dtype=torch.bool, device=ids.device)
    where = masked.clone()
    masked[:, positions] = (turn >= step).flatten(0, 1)
    where[:, positions] = (turn == step).flatten(0, 1)
    nats = _masked_nats(denoise, ids, masked, where, mask_token_id, present, rows_per_call)
    return nats.view(len(orders), tokens).sum(1)


def left_to_right(
    denoise: Denoise,
    ids: Int[Tensor, " l"],
    free: Bool[Tensor, " l"],
    mask_token_id: int,
    present: Bool[Tensor, " l"] | None = None,
    rows_per_call: int = 32,
) -> Score:
    """Sum of -log p(x_i | free tokens before i, fixed tokens; the rest masked): exact, in N forwards.

    The likelihood of the sampler that fills from left to right; at most `bound` if that order is better than average.
    """
    tokens = int(free.sum())
    order = torch.arange(tokens)[None, :]
    nats = order_nats(denoise, ids, free, mask_token_id, order, present, rows_per_call)
    return Score(float(nats[0]), 0.0, tokens)


def random_orders(tokens: int, samples: int, seed: int, key: int = 0) -> Int[Tensor, "samples tokens"]:
    """Uniform permutations of 0..tokens-1, (samples, tokens): a function of (seed, key, draw)."""
    draw, position = torch.arange(samples)[:, None], torch.arange(tokens)[None, :]
    return uniform(seed, key, _ORDER, draw, position).argsort(1)


def multi_order_bound(
    denoise: Denoise,
    ids: Int[Tensor, " l"],
    free: Bool[Tensor, " l"],
    mask_token_id: int,
    orders: Int[Tensor, "k n"],
    present: Bool[Tensor, " l"] | None = None,
    rows_per_call: int = 32,
) -> float:
    """-log(mean over the K given orders of p_order), in nats.

    With `random_orders` its expectation is an upper bound on the any-order -log p that tightens as K grows.
    BadInput without any order.
    """
    if len(orders) == 0:
        raise BadInput("the multi-order bound needs at least one order")
    nats = order_nats(denoise, ids, free, mask_token_id, orders, present, rows_per_call)
    return math.log(len(nats)) - float((-nats).logsumexp(0))


@torch.no_grad()
def published_estimate(
    denoise: Denoise,
    ids: Int[Tensor, " l"],
    free: Bool[Tensor, " l"],
    mask_token_id: int,
    levels: Float[Tensor, " t"],
    uniforms: Float[Tensor, "t l"],
    rows_per_call: int = 32,
) -> Float[Tensor, " t"]:
    """What the paper's code (arXiv 2410.17891) ranks choices by, for parity only: at each noise level the mean -log p,
    (T,) float64 nats a token, over the free tokens whose uniform lies below the level; the lowest mean over levels wins.

    ids, free: (L,); levels: (T,) in (0, 1]; uniforms: (T, L) in [0, 1). No bound on anything: the levels are not
    weighed, and one at which nothing is masked counts as 0, which favours short answers. `bound` is the score to use.
    """
    masked = free & (uniforms < levels[:, None])
    nats = _masked_nats(denoise, ids, masked, masked, mask_token_id, None, rows_per_call)
    return nats / masked.sum(1).clamp(min=1)
