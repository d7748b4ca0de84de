"""Which canvases of a step spoil it: found by looking at them one by one, for a loss that is not finite has no gradient to
go on with and tells nothing of where it came from."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from diffulm.denoiser.denoiser import evaluating
from diffulm.training import processes, sharding

SHOWN = 8  # rows that a line of error has room for
Inputs = dict[str, Tensor]  # of a micro-batch; "row" (B,) says which rows of the global batch they are


LossOf = Callable[[Inputs], Tensor]


def spoilt(model: nn.Module, taken: list[Inputs], loss_of: LossOf) -> list[int]:
    """Rows of the global batch whose own loss is not finite, or else whose own gradient is not (of a sharded model that is
    not known); called by all processes, each with the micro-batches that it took."""
    rows = _merged(_by_loss(model, taken, loss_of))
    return rows if rows or sharding.is_sharded(model) else _merged(_by_gradient(model, taken, loss_of))


def _merged(rows: list[int]) -> list[int]:
    return sorted(row for part in processes.all_of(rows) for row in part)


def _by_loss(model: nn.Module, taken: list[Inputs], loss_of: LossOf) -> list[int]:
    # all of them, so that each process of a sharded run does as much
    with evaluating(model):
        return [row for row, one in _singles(taken) if not bool(loss_of(one).isfinite())]


def _by_gradient(model: nn.Module, taken: list[Inputs], loss_of: LossOf) -> list[int]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for row, one in _singles(taken):
        # not backward(): this may be the inside of DDP, which would wait for the other processes
        gradients = torch.autograd.grad(loss_of(one), parameters, allow_unused=True)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None):
            found.append(row)
    return found


def _singles(taken: list[Inputs]) -> Iterator[tuple[int, Inputs]]:
    for inputs in taken:
        for i, row in enumerate(inputs["row"].tolist()):
            yield row, {name: value[i : i + 1] for name, value in inputs.items()}


def told(step: int, what: str, blocks: dict[int, int], batch: int, sharded: bool) -> str:
    """Where it was, in words. what: loss or gradient; blocks: row of the global batch -> number of its block in the data."""
    said = f"step {step}: the {what} is not finite"
    if not blocks:
        return f"{said}, though {'the loss' if sharded else 'that'} of each row is"
    if len(blocks) == batch:
        return f"{said} in any of the {batch} rows"
    places = ", ".join(f"row {row} (block {blocks[row]} of the data)" for row in sorted(blocks)[:SHOWN])
    return f"{said} in {places}" + (f" and {len(blocks) - SHOWN} more" if len(blocks) > SHOWN else "")
