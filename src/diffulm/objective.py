"""What is minimised: one function for each objective, found by its name.

Each returns the weight of every token's cross-entropy and a denominator, and the loss of a global batch is

    sum over its micro-batches of sum(token_weight x cross-entropy) / sum over its micro-batches of denominator

so that it does not depend on how the batch was cut: it is no mean of means (`published` is one, on purpose).
In all of them masked (B, L) is what is hidden, free (B, L) what may be hidden, weight (B,) what the noise says a
hidden token of the row weighs (1/t or N/k); padding_weight (B, L), if given, multiplies the cross-entropy of each
token and counts in the denominator likewise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffulm.errors import unknown
from diffulm.shapes import Bool, Float

Weighed = tuple[Float[Tensor, "b l"], Float[Tensor, ""]]
"""token_weight (B, L) float32, 0 where nothing is masked, and the denominator, a float32 scalar."""


def _weighed(where: Tensor, padding_weight: Tensor | None) -> Tensor:
    return where.float() if padding_weight is None else where * padding_weight.float()


def bound(
    masked: Bool[Tensor, "b l"],
    free: Bool[Tensor, "b l"],
    weight: Float[Tensor, " b"],
    padding_weight: Float[Tensor, "b l"] | None = None,
) -> Weighed:
    """The negative ELBO in nats a token: sum(weight x CE over masked) / number of free. Paper, section 3.1."""
    return weight[:, None].float() * _weighed(masked, padding_weight), _weighed(free, padding_weight).sum()


def row_mean(
    masked: Bool[Tensor, "b l"],
    free: Bool[Tensor, "b l"],
    weight: Float[Tensor, " b"],
    padding_weight: Float[Tensor, "b l"] | None = None,
) -> Weighed:
    """Mean over rows with anything free of the mean CE over the row's masked tokens. Ignores `weight`."""
    token = _weighed(masked, padding_weight)
    total = token.sum(1, keepdim=True)
    return torch.where(total > 0, token / total, 0.0), free.any(1).sum().float()


def unweighted(
    masked: Bool[Tensor, "b l"],
    free: Bool[Tensor, "b l"],
    weight: Float[Tensor, " b"],
    padding_weight: Float[Tensor, "b l"] | None = None,
) -> Weighed:
    """sum(CE over masked) / number of free: the bound without its weight, another objective. Ignores `weight`."""
    return _weighed(masked, padding_weight), _weighed(free, padding_weight).sum()


def published(
    masked: Bool[Tensor, "b l"],
    free: Bool[Tensor, "b l"],
    weight: Float[Tensor, " b"],
    padding_weight: Float[Tensor, "b l"] | None = None,
) -> Weighed:
    """sum(weight x CE over masked) / number masked, averaged over micro-batches: what the paper's code computes.

    For parity only: it is 2 to 4 times the bound and depends on the micro-batch. Ignores `free`.
    """
    token = weight[:, None].float() * _weighed(masked, padding_weight)
    total = _weighed(masked, padding_weight).sum()
    return torch.where(total > 0, token / total, 0.0), torch.ones((), device=masked.device)


def by_name(name: str) -> Callable[..., Weighed]:
    """The objective called `name`; BadInput that names the nearest if there is none."""
    known = {"bound": bound, "row_mean": row_mean, "unweighted": unweighted, "published": published}
    if name not in known:
        raise unknown("objective", name, known)
    return known[name]


def ratio(total: Float[Tensor, ""], denominator: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """total / denominator, and 0 (with gradient 0) instead of NaN where nothing was free or masked."""
    return total / torch.where(denominator > 0, denominator, 1.0)


def loss(
    ce: Float[Tensor, "b l"],
    masked: Bool[Tensor, "b l"],
    free: Bool[Tensor, "b l"],
    weight: Float[Tensor, " b"],
    name: str,
    padding_weight: Float[Tensor, "b l"] | None = None,
) -> Float[Tensor, ""]:
    """The objective called `name` for one batch alone; `ce` (B, L) may be anything where nothing is masked."""
    token_weight, denominator = by_name(name)(masked, free, weight, padding_weight)
    # `where` before the product: 0 x inf at a position nobody asked about would be NaN.
    return ratio((token_weight * torch.where(masked, ce, 0.0)).sum(), denominator)
