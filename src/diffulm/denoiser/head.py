"""What the output embedding does with the hidden states it is handed: logits, cross-entropy, or a loss with its gradient.

None of them ever holds the logits of more than a chunk, so the vocabulary does not set the peak of memory.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Elements of a logits chunk: 2**24 float32 are 64 MiB.
CHUNK_ELEMENTS = 2**24

Project = Callable[[nn.Module, Tensor], Tensor]
"""(output embedding, hidden (n, d)) -> what stands in for its output."""


def row_by_row(counts: list[int]) -> Project:
    """Logits (n, V), each row of the batch by itself: one product of another shape would round a row differently
    according to what its neighbours asked for."""
    return lambda head, hidden: torch.cat([head(part) for part in hidden.split(counts)])


def cross_entropy(targets: Tensor, forbidden: int | None, vocabulary: int) -> Project:
    """-log p(target) for each hidden row -> (n,) float32."""

    def project(head: nn.Module, hidden: Tensor) -> Tensor:
        def of(part: Tensor, wanted: Tensor) -> Tensor:
            logits = head(part).float()
            if forbidden is not None:
                logits[:, forbidden] = float("-inf")
            return F.cross_entropy(logits, wanted.to(logits.device), reduction="none")

        size = max(1, CHUNK_ELEMENTS // vocabulary)
        if len(hidden) <= size:
            return of(hidden, targets)
        pairs = zip(hidden.split(size), targets.split(size), strict=True)
        return torch.cat([checkpoint(of, *pair, use_reentrant=False) for pair in pairs])

    return project


def weighed_loss(targets: Tensor, weights: Tensor, forbidden: int | None, vocabulary: int) -> Project:
    """sum of weights x -log p(target) over the hidden rows -> (1,) float32; weights (n,) carry no gradient.

    For a plain linear head the gradient is computed in the forward, while a chunk of logits is at hand: three products a
    chunk, where recomputing would take four, and nothing of it is kept but the gradients themselves.
    """
    plain = cross_entropy(targets, forbidden, vocabulary)

    def project(head: nn.Module, hidden: Tensor) -> Tensor:
        if type(head) is not nn.Linear or not torch.is_grad_enabled():
            return (plain(head, hidden) * weights.to(hidden.device)).sum()[None]
        wanted, each = targets.to(hidden.device), weights.to(hidden.device)
        return _Weighed.apply(hidden, head.weight, head.bias, wanted, each, forbidden)  # pyright: ignore[reportReturnType]

    return project


class _Weighed(torch.autograd.Function):
    """sum(weights x cross-entropy) of the logits `hidden @ weight.T + bias`, gradients and all in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        forbidden: int | None,
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        states, matrix = hidden.to(dtype), weight.to(dtype)
        of_hidden, of_weight, of_bias = (x is not None and x.requires_grad for x in (hidden, weight, bias))
        grad_hidden = torch.empty_like(states) if of_hidden else None
        grad_weight = grad_bias = None
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact, device=hidden.device)
        size = max(1, CHUNK_ELEMENTS // len(weight))
        with torch.autocast(kind, enabled=False):
            for first in range(0, max(1, len(states)), size):
                part = slice(first, first + size)
                logits = F.linear(states[part], matrix, None if bias is None else bias.to(dtype))
                if forbidden is not None:
                    logits[:, forbidden] = float("-inf")
                at, w = targets[part, None], weights[part, None].to(exact)
                log_p = logits.log_softmax(1, dtype=exact)
                total -= (log_p.gather(1, at) * w).sum()
                # d loss / d logits = weight x (softmax - one at the target)
                slope = log_p.exp_().mul_(w).scatter_add_(1, at, -w)
                if of_bias:
                    grad_bias = _plus(grad_bias, slope.sum(0), weight.dtype)
                slope = logits.copy_(slope)
                if grad_hidden is not None:
                    torch.mm(slope, matrix, out=grad_hidden[part])
                if of_weight:
                    grad_weight = _plus(grad_weight, slope.T @ states[part], weight.dtype)
        ctx.hidden_dtype, ctx.gradients = hidden.dtype, (grad_hidden, grad_weight, grad_bias)
        return total[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, *others = ctx.gradients
        ctx.gradients = None  # scaled in place, so there is no second time
        if slope.device.type != "cpu" or float(slope) != 1:  # to look would make a GPU wait
            for gradient in (grad_hidden, *others):
                if gradient is not None:
                    gradient *= slope
        return None if grad_hidden is None else grad_hidden.to(ctx.hidden_dtype), *others, None, None, None


def _plus(total: Tensor | None, more: Tensor, dtype: torch.dtype) -> Tensor:
    return more.to(dtype) if total is None else total.add_(more)
