"""Tokens out of logits: temperature, top-k, top-p, min-p, and one uniform number a token through the inverse of the CDF.

No noise over the vocabulary and no sort of it: beside a forward these would be the slow part. A few rows at a time, so
that they stay in the processor's cache, and as few passes over them as will do.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from diffulm import randomness
from diffulm.shapes import Float, Int

_BLOCK = 256
_CHUNK = {"cpu": 2**19}  # elements: 2 MiB of float32 stay in the cache
_LARGE_CHUNK = 2**24  # where starting a kernel costs more than memory
COLDEST = 1e-30  # a smaller positive temperature would be 0 in float32; long before this it is arg max
HOTTEST = 1e30  # a higher one would be infinite there; long before this all that may stand is equally likely
_FLOOR = -1e4  # for what times 0 shall be 0; exp of it is 0
_UNKNOWN = torch.tensor(torch.nan)
_AGAIN = randomness.key("sampler", "again")


@dataclass(frozen=True)
class Drawn:
    """What was drawn in n places, or, from `State.draw`, at (B, L) positions. NaN in what was not asked for."""

    tokens: Int[Tensor, "..."]
    log_probability: Float[Tensor, "..."]
    """Of the drawn token, before temperature and filters."""
    filtered: Float[Tensor, "..."] = _UNKNOWN
    """Of the drawn token, after temperature and filters (at temperature 0 as `log_probability`)."""
    entropy: Float[Tensor, "..."] = _UNKNOWN
    """Nats, of the distribution before temperature and filters."""
    margin: Float[Tensor, "..."] = _UNKNOWN
    """Probability of the best token less that of the second, before temperature and filters."""


def draw(
    logits: Float[Tensor, "n v"],
    uniforms: Float[Tensor, " n"],
    temperature: float,
    top_p: float = 1.0,
    top_k: int | None = None,
    min_p: float = 0.0,
    forbidden: Int[Tensor, " f"] | None = None,
    also: tuple[str, ...] = (),
) -> Drawn:
    """One token a row: arg max at temperature 0 (of equal ones the first), else of softmax(logits / temperature), filtered.

    The filters apply in this order, each to what the one before has left: `top_k`, the k likeliest tokens (and those
    equal to the last of them); `top_p`, the tokens whose likelier ones together have at most this share of the mass (the
    best always); `min_p`, the tokens with at least this share of the best one's probability. uniforms: (n,) in [0, 1),
    one a row. forbidden: ids never drawn, as is a logit of -inf. also: fields of Drawn wanted besides the first two.
    `logits` stay as they are. FloatingPointError if a row has no finite maximum: the model gave NaN, or everything is
    forbidden.
    """
    count, width = logits.shape
    rows = max(1, _CHUNK.get(logits.device.type, _LARGE_CHUNK) // max(1, width))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    shape = min(rows, count), -(-width // _BLOCK) * _BLOCK
    scores = torch.full(shape, -torch.inf, dtype=dtype, device=logits.device)
    buffers = torch.empty(2, *shape, dtype=dtype, device=logits.device)
    parts = []
    for part, numbers in zip(logits.split(rows), uniforms.split(rows), strict=True):
        here = scores[: len(part)]
        here[:, :width] = part
        if forbidden is not None:
            here.index_fill_(1, forbidden, -torch.inf)
        parts.append(_draw(here, buffers[:, : len(part)], numbers, temperature, top_p, top_k, min_p, also))
    return Drawn(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Drawn)))


def _draw(
    scores: Tensor,
    buffers: Tensor,
    uniforms: Tensor,
    temperature: float,
    top_p: float,
    top_k: int | None,
    min_p: float,
    also: tuple[str, ...],
) -> Drawn:
    """`draw` of a chunk (r, w), w in whole blocks; overwrites `scores` and the two buffers (2, r, w)."""
    greedy, best, second = best_two(scores)
    if not bool(best.isfinite().all()):
        raise FloatingPointError("the logits of a position are NaN, infinite or all forbidden: no token can be drawn")
    scores.sub_(best[:, None])  # so that no temperature overflows
    p = torch.softmax(scores, -1, out=buffers[0])
    top = p.gather(1, greedy[:, None])[:, 0]
    unknown = torch.full_like(best, torch.nan)
    margin = top * (1 - (second - best).exp()) if "margin" in also else unknown
    entropy = unknown
    if "entropy" in also:
        entropy = -torch.linalg.vecdot(p, torch.clamp(scores, min=_FLOOR, out=buffers[1])) - top.log()
    if temperature == 0:
        return Drawn(greedy, top.log(), top.log(), entropy, margin)
    weights = p
    if temperature != 1:
        bounded = min(max(temperature, COLDEST), HOTTEST)
        weights = torch.softmax(torch.div(scores, bounded, out=buffers[1]), -1, out=buffers[0])
    if top_k is not None and top_k < weights.shape[1]:
        weights.mul_(weights >= weights.topk(top_k).values[:, -1:])
    mass = unknown
    if "filtered" in also:
        kept = nucleus(weights, top_p)[1] if top_p < 1 else weights
        mass = (kept * (kept >= min_p * weights.amax(-1, keepdim=True))).sum(-1)
    tokens = _within(weights, buffers[1], uniforms, top_p, min_p)
    filtered = (weights.gather(1, tokens[:, None])[:, 0] / mass).log()
    return Drawn(tokens, scores.gather(1, tokens[:, None])[:, 0] + top.log(), filtered, entropy, margin)


def best_two(scores: Float[Tensor, "n w"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(the best column, its value, the second largest value), of equal ones the first; by blocks, w a multiple of them."""
    rows = torch.arange(len(scores), device=scores.device)
    blocks = _in_blocks(scores)
    peaks = blocks.amax(-1)
    best, block = peaks.max(1)
    inside = blocks[rows, block]
    column = inside.argmax(1)
    peaks[rows, block] = inside[rows, column] = -torch.inf
    return block * _BLOCK + column, best, torch.maximum(peaks.amax(1), inside.amax(1))


def _within(weights: Tensor, buffer: Tensor, uniforms: Tensor, top_p: float, min_p: float) -> Tensor:
    """(n,) tokens by weight, of those within top-p and min-p; `weights` become 0 outside the latter.

    Draw, look whether the token is within top-p, and if not draw again from those likelier than it. So nobody has to find
    the set, and still each of its tokens comes by its weight: what is drawn from holds the whole set at every attempt, and
    whether a token is within does not depend on the attempt.
    """
    allowed = top_p * _block_sums(weights).sum(-1) if top_p < 1 else None
    if min_p > 0:
        weights.mul_(weights >= min_p * weights.amax(-1, keepdim=True))
    tokens = drawn = inverse_cdf(weights, uniforms)
    if allowed is None:
        return tokens
    rows, attempt = torch.arange(len(weights), device=weights.device), 0
    while True:
        value = weights.gather(1, drawn[:, None])
        # Those likelier, in units of the drawn one's weight: one number a row cannot be a threshold, but 1 can.
        likelier = torch.threshold_(torch.mul(weights, 1 / value, out=buffer[: len(rows)]), 1.0, 0.0)
        outside = _block_sums(likelier).sum(-1) * value[:, 0] > allowed
        if not bool(outside.any()):
            return tokens
        attempt += 1
        rows, weights, allowed = rows[outside], weights[outside], allowed[outside]
        again = randomness.uniform(_AGAIN, (uniforms[rows].double() * 2.0**53).long(), attempt)
        drawn = inverse_cdf(likelier[outside], again)
        tokens[rows] = drawn


def nucleus(
    weights: Float[Tensor, "n v"], top_p: float, size: int = 64
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """The likeliest tokens: those whose likelier ones together have at most `top_p` of the mass (the best always).

    weights: unnormalised probabilities. Returns ids (n, k) and their weights (n, k), 0 for what is not kept. Only the
    `size` largest are looked at; rows in which they do not reach `top_p` look at four times as many.
    """
    size = min(size, weights.shape[1])
    values, ids = weights.topk(size)
    mass = values.double()
    kept = mass.cumsum(-1) - mass <= top_p * weights.sum(-1, keepdim=True).double()
    values = values * kept
    open_ended = kept[:, -1]
    if size == weights.shape[1] or not bool(open_ended.any()):
        return ids, values
    more_ids, more_values = nucleus(weights[open_ended], top_p, 4 * size)
    extra = (0, more_ids.shape[1] - size)
    ids, values = functional.pad(ids, extra), functional.pad(values, extra)
    ids[open_ended], values[open_ended] = more_ids, more_values
    return ids, values


def inverse_cdf(weights: Float[Tensor, "n v"], uniforms: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """(n,): the column in which a share `uniforms` of each row's weight is passed; never one of weight 0.

    By id, not by weight, so an ulp between near-equal weights does not swap their places. Found by blocks: a cumulative
    sum of their sums, then one within the block, which spares the long one.
    """
    rest = -weights.shape[1] % _BLOCK
    weights = functional.pad(weights, (0, rest)) if rest else weights
    mass = _block_sums(weights)
    block, rest = _pass(mass, uniforms.double() * mass.sum(-1))
    inside = _in_blocks(weights)[torch.arange(len(weights), device=weights.device), block]
    column, _ = _pass(inside.double(), rest)
    return block * _BLOCK + column


def _in_blocks(values: Tensor) -> Tensor:
    return values.view(len(values), values.shape[1] // _BLOCK, _BLOCK)


def _block_sums(weights: Tensor) -> Tensor:
    """(n, w / block) float64: sums of float32 short enough to be the same whatever the number of rows."""
    return _in_blocks(weights).sum(-1).double()


def _pass(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first column of (n, k) whose cumulative weight exceeds target (n,), and what of target falls into it."""
    cdf = weights.cumsum(-1)
    target = target.clamp(min=0).minimum(
        torch.nextafter(cdf[:, -1], torch.zeros_like(target))
    )  # strictly below the total
    column = torch.searchsorted(cdf, target[:, None], right=True)
    before = cdf.gather(-1, column) - weights.gather(-1, column)
    return column[:, 0], target - before[:, 0]
