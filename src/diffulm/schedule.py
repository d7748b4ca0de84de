"""Noise schedules: from a time t in (0, 1] to the probability that a free token is masked, and its weight.

With alpha(t) the probability that a token is still visible at time t (alpha(0) = 1, alpha(1) = 0), the negative
ELBO of masking diffusion is the integral over t of weight(t) x E[sum of cross-entropy over masked tokens], where
weight(t) = -alpha'(t) / (1 - alpha(t)). The value of the integral does not depend on the schedule, its variance does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffulm.errors import unknown


@dataclass(frozen=True)
class Schedule:
    """A noise schedule. Both functions take times in (0, 1] and keep shape and dtype."""

    name: str
    level: Callable[[Tensor], Tensor]
    """1 - alpha(t): the probability that a free token is masked."""
    weight: Callable[[Tensor], Tensor]
    """-alpha'(t) / (1 - alpha(t)): the weight of the cross-entropy of a masked token."""


_EXPONENT = 2
_QUARTER = math.pi / 2

_SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        # alpha = 1 - t (paper, section 3.1)
        Schedule("linear", level=lambda t: t, weight=lambda t: 1 / t),
        # alpha = 1 - cos(pi/2 (1 - t)). The sine of 1 - t, not the cosine of t: exactly 0, never below, at t = 1.
        Schedule(
            "cosine",
            level=lambda t: torch.sin(_QUARTER * t),
            weight=lambda t: _QUARTER * torch.sin(_QUARTER * (1 - t)) / torch.sin(_QUARTER * t),
        ),
        # alpha = 1 - t^2
        Schedule("polynomial", level=lambda t: t**_EXPONENT, weight=lambda t: _EXPONENT / t),
    )
}


def by_name(name: str) -> Schedule:
    """The schedule called `name` (linear, cosine, polynomial); BadInput that names the nearest if there is none."""
    if name not in _SCHEDULES:
        raise unknown("schedule", name, _SCHEDULES)
    return _SCHEDULES[name]
