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
SLICE = 2**13  # rows of the output embedding that are multiplied at once

Project = Callable[[nn.Module, Tensor], Tensor]
"""(output embedding, hidden (n, d)) -> what stands in for its output."""


def row_by_row(counts: list[int]) -> Project:
    """Logits (n, V), each row of the batch by itself: one product of another shape would round a row differently
    according to what its neighbours asked for."""

    def project(head: nn.Module, hidden: Tensor) -> Tensor:
        parts = [head(part) for part in hidden.split(counts) if len(part)]
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else head(hidden)

    return project


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
    """sum(weights x cross-entropy) of the logits `hidden @ weight.T + bias`, gradients and all in the forward.

    Rows are taken in chunks, and within one the vocabulary in slices: so neither the matrix nor its gradient is ever held a
    second time in the precision of the products.
    """

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
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        gradients = [torch.zeros_like(x) if x is not None and x.requires_grad else None for x in (hidden, weight, bias)]
        total = torch.zeros((), dtype=exact, device=hidden.device)
        chunks = -(-len(hidden) * len(weight) * dtype.itemsize // (4 * CHUNK_ELEMENTS))
        slices = [slice(v, v + SLICE) for v in range(0, len(weight), SLICE)]
        with torch.autocast(kind, enabled=False):
            for part in torch.arange(len(hidden)).tensor_split(max(1, chunks)):
                if not len(part):
                    continue
                part = slice(int(part[0]), int(part[-1]) + 1)
                states = hidden[part].to(dtype)
                logits = torch.empty(len(states), len(weight), dtype=dtype, device=hidden.device)
                for v in slices:
                    logits[:, v] = F.linear(states, weight[v].to(dtype), None if bias is None else bias[v].to(dtype))
                if forbidden is not None:
                    logits[:, forbidden] = float("-inf")
                total += _to_slopes(logits, targets[part, None], weights[part, None].to(exact))
                of_hidden, of_weight, of_bias = gradients
                for v in slices:
                    if of_hidden is not None:
                        of_hidden[part] += logits[:, v] @ weight[v].to(dtype)
                    if of_weight is not None:
                        of_weight[v] += logits[:, v].T @ states
                if of_bias is not None:
                    of_bias += logits.sum(0, dtype=exact)
        ctx.gradients = gradients
        return total[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so there is no second time
        if slope.device.type != "cpu" or float(slope) != 1:  # to look would make a GPU wait
            for gradient in gradients:
                if gradient is not None:
                    gradient *= slope
        return *gradients, None, None, None


def _to_slopes(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum of weights x cross-entropy of logits (n, V) for targets (n, 1); in place the logits become its derivative by them,
    weights x (softmax - one at the target). A few rows at a time are held in full precision."""
    total = torch.zeros((), dtype=weights.dtype, device=logits.device)
    rows = max(1, CHUNK_ELEMENTS // 4 // logits.shape[1])
    for some, at, w in zip(logits.split(rows), targets.split(rows), weights.split(rows), strict=True):
        log_p = some.log_softmax(1, dtype=weights.dtype)
        total -= (log_p.gather(1, at) * w).sum()
        some.copy_(log_p.exp_().mul_(w).scatter_add_(1, at, -w))
    return total
