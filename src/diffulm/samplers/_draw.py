"""Tokens out of logits: temperature, top-p, and one uniform number a token through the inverse of the CDF.

No noise over the vocabulary and no sort of it: beside a forward these would be the slow part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from diffulm.shapes import Float, Int

_BLOCK = 256
_COLDEST = 1e-30  # a smaller positive temperature would be 0 in float32; long before this it is arg max


@dataclass(frozen=True)
class Drawn:
    """What was drawn in n places."""

    tokens: Int[Tensor, " n"]
    log_probability: Float[Tensor, " n"]
    """Of the drawn token, before temperature and top-p."""
    filtered: Float[Tensor, " n"]
    """Of the drawn token, after temperature and top-p (at temperature 0 as `log_probability`)."""


def draw(logits: Float[Tensor, "n v"], uniforms: Float[Tensor, " n"], temperature: float, top_p: float) -> Drawn:
    """One token a row: arg max at temperature 0, else of softmax(logits / temperature) within the nucleus `top_p`.

    uniforms: (n,) in [0, 1), one a row. A logit of -inf is never drawn. FloatingPointError if a row has no finite
    maximum: the model gave NaN, or everything is forbidden.
    """
    best, greedy = logits.max(-1)
    if not bool(best.isfinite().all()):
        raise FloatingPointError("the logits of a position are NaN, infinite or all forbidden: no token can be drawn")
    norm = logits.logsumexp(-1)
    if temperature == 0:
        return Drawn(greedy, best - norm, best - norm)
    # The maximum goes first, so that no temperature overflows.
    weights = (logits - best[:, None]).div_(max(temperature, _COLDEST)).exp_()
    if top_p < 1:
        ids, kept = nucleus(weights, top_p)
        # By id, not by weight: an ulp between two near-equal weights must not swap their places in the CDF.
        ids, order = ids.sort(-1)
        kept = kept.gather(-1, order)
        column = inverse_cdf(kept, uniforms)[:, None]
        tokens = ids.gather(-1, column)
        share = kept.gather(-1, column)[:, 0] / kept.sum(-1)
    else:
        tokens = inverse_cdf(weights, uniforms)[:, None]
        share = weights.gather(-1, tokens)[:, 0] / weights.sum(-1)
    return Drawn(tokens[:, 0], logits.gather(-1, tokens)[:, 0] - norm, share.log())


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

    Found by blocks: a cumulative sum of their sums, then one within the block, which spares the long one.
    """
    rows, width = weights.shape
    size = min(_BLOCK, width)
    blocks = functional.pad(weights, (0, -width % size)).view(rows, -(-width // size), size)
    mass = blocks.sum(-1).double()
    block, rest = _pass(mass, uniforms.double() * mass.sum(-1))
    column, _ = _pass(blocks[torch.arange(rows, device=weights.device), block].double(), rest)
    return block * size + column


def _pass(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first column of (n, k) whose cumulative weight exceeds target (n,), and what of target falls into it."""
    cdf = weights.cumsum(-1)
    target = target.clamp(min=0).minimum(
        torch.nextafter(cdf[:, -1], torch.zeros_like(target))
    )  # strictly below the total
    column = torch.searchsorted(cdf, target[:, None], right=True)
    before = cdf.gather(-1, column) - weights.gather(-1, column)
    return column[:, 0], target - before[:, 0]
