"""Which free tokens are hidden at a training step: a function of (seed, step, row of the global batch) alone.

Rank, micro-batch and device never enter, so one process and eight hide the same tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffulm import schedule as schedules
from diffulm.errors import BadInput, unknown
from diffulm.randomness import key, uniform
from diffulm.shapes import Bool, Float, Int

_LEVEL, _ROTATION, _POSITION = key("noise level"), key("noise rotation"), key("noise position")


@dataclass(frozen=True)
class Noise:
    """What is hidden in each row of a micro-batch, and what the cross-entropy of a hidden token weighs."""

    masked: Bool[Tensor, "b l"]
    """Free and hidden now."""
    weight: Float[Tensor, " b"]
    """float32: 1/t for `bernoulli` with the linear schedule, N/k for `count` (0 where nothing is free)."""
    level: Float[Tensor, " b"]
    """float32: the probability that a free token is masked for `bernoulli`, k/N for `count`."""


@lru_cache(maxsize=4)
def _spread(global_batch: int) -> Tensor:
    """(global_batch,): ranks of the van der Corput sequence, a permutation whose every run spans 0..global_batch-1."""
    index = torch.arange(global_batch)
    reversed_bits = torch.zeros_like(index)
    for _ in range((global_batch - 1).bit_length()):
        reversed_bits = (reversed_bits << 1) | (index & 1)
        index = index >> 1
    return reversed_bits.argsort().argsort()


def strata(seed: int, step: int, rows: Int[Tensor, " b"], global_batch: int) -> Float[Tensor, " b"]:
    """(B,) rows of the global batch -> (B,) float64 in [0, 1): frac(u_step + permutation_step(row) / global_batch).

    Over the global batch the values are equally spaced with a random offset, each row's own value is uniform, and
    any run of consecutive rows (a micro-batch) is spread over [0, 1) as well. (A stride of 2 through the rows is
    not: the van der Corput sequence puts even and odd rows into different halves.) BadInput for a row outside it.
    """
    if bool(((rows < 0) | (rows >= global_batch)).any()):
        raise BadInput(f"rows of a global batch of {global_batch} are 0 to {global_batch - 1}")
    rotation = int(uniform(seed, _ROTATION, step) * global_batch)
    permutation = _spread(global_batch).to(rows.device)[(rows + rotation) % global_batch]
    return (uniform(seed, _LEVEL, step) + permutation.to(torch.float64) / global_batch) % 1.0


def _positions(free: Tensor, seed: int, step: int, rows: Tensor) -> Tensor:
    """(B, L) float64: one uniform for each position."""
    return uniform(seed, _POSITION, step, rows[:, None], torch.arange(free.shape[1], device=free.device)[None, :])


def bernoulli(
    free: Bool[Tensor, "b l"],
    seed: int,
    step: int,
    rows: Int[Tensor, " b"],
    global_batch: int,
    schedule: str = "linear",
    floor: float = 1e-3,
    ceiling: float = 1.0,
) -> Noise:
    """Each free token is hidden with the probability its row's time gives; times are stratified in [floor, ceiling).

    free (B, L); rows (B,): the rows' indices in the global batch of `global_batch` rows. Paper, section 3.1, with its
    floor of 1e-3; other ranges give another objective, of less variance (BD3-LM, arXiv 2503.09573, section 5). BadInput
    for an unknown schedule, a range outside (0, 1] or a row outside the batch.
    """
    if not 0 < floor < ceiling <= 1:
        raise BadInput(f"floor and ceiling must lie between 0 and 1 in this order, not {floor} and {ceiling}")
    chosen = schedules.by_name(schedule)
    time = floor + (ceiling - floor) * strata(seed, step, rows, global_batch)
    level = chosen.level(time)
    masked = free & (_positions(free, seed, step, rows) < level[:, None])
    return Noise(masked, chosen.weight(time).float(), level.float())


def count(free: Bool[Tensor, "b l"], seed: int, step: int, rows: Int[Tensor, " b"], global_batch: int) -> Noise:
    """k of a row's N free tokens are hidden: k uniform in 1..N (stratified), then a uniform subset; weight N/k.

    free (B, L); rows (B,) as in `bernoulli`. Never empty where something is free, so short answers give fewer spikes
    than with Bernoulli noise. A row with nothing free has nothing masked and weight 0.
    """
    total = free.sum(1)
    chosen = (strata(seed, step, rows, global_batch) * total).ceil().clamp(min=1).minimum(total)
    # Fixed positions rank behind all free ones, whose uniforms are below 1.
    rank = _positions(free, seed, step, rows).masked_fill(~free, 2.0).argsort(1).argsort(1)
    masked = free & (rank < chosen[:, None])
    weight = torch.where(total > 0, total / chosen.clamp(min=1), 0.0)
    return Noise(masked, weight.float(), (chosen / total.clamp(min=1)).float())


def by_name(name: str) -> Callable[..., Noise]:
    """`bernoulli` or `count`; BadInput that names the nearest for anything else."""
    known = {"bernoulli": bernoulli, "count": count}
    if name not in known:
        raise unknown("noise", name, known)
    return known[name]
