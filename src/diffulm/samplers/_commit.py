"""Commit rules: how long a beginning of an order is committed at a step, at least one token. Any order, any rule.

Two kinds. A schedule says beforehand how many stay masked: `linear`, `cosine`. An adaptive rule looks at what the model
is sure of: `threshold`, `entropy_bound`, `factor`. Confidence and entropy are those before temperature and filters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffulm.errors import BadInput, unknown
from diffulm.shapes import Bool, Float, Int


def linear(free: Int[Tensor, " b"], steps: Int[Tensor, " b"], step: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """How many of the `free` tokens of each row stay masked after step 0, 1 ... T - 1: int(N t / T), t = T - 1 - step."""
    return free * (steps - 1 - step).clamp(min=0) // steps


def cosine(free: Int[Tensor, " b"], steps: Int[Tensor, " b"], step: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The same with int(N cos(pi/2 (step + 1) / T)): few at first, many at the end (MaskGIT, arXiv 2202.04200)."""
    share = ((step + 1).minimum(steps).double() / steps * (math.pi / 2)).cos()
    return (free * share + 1e-9).long()  # cos(pi/3) is an ulp beside a half, on one device or the other


def threshold(confidence: Float[Tensor, "b k"], limit: float) -> Bool[Tensor, "b k"]:
    """Which beginnings of an order, of length 1 ... k, hold only confidences of at least `limit` (Fast-dLLM, 2505.22618).

    As for all adaptive rules: if a beginning will do, so do the shorter ones.
    """
    return confidence.cummin(1).values >= limit


def entropy_bound(entropy: Float[Tensor, "b k"], limit: float) -> Bool[Tensor, "b k"]:
    """Which beginnings have sum of entropies - largest entropy <= limit, in nats (EB-Sampler, arXiv 2505.24857).

    The difference bounds what drawing them at once, and not one after the other, can cost.
    """
    return entropy.cumsum(1) - entropy.cummax(1).values <= limit


def factor(confidence: Float[Tensor, "b k"], limit: float) -> Bool[Tensor, "b k"]:
    """Which beginnings have (n + 1)(1 - c_n) < limit, c_n the lowest confidence among their n (Fast-dLLM, 2505.22618)."""
    length = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
    return (length + 1) * (1 - confidence.cummin(1).values) < limit


SCHEDULES = {"linear": linear, "cosine": cosine}
ADAPTIVE = {"threshold": threshold, "entropy_bound": entropy_bound, "factor": factor}


@dataclass(frozen=True)
class Commit:
    """The rule of one call of `sample`."""

    name: str = "linear"
    stay: Callable[[Tensor, Tensor, Tensor], Tensor] = linear
    """The schedule; what it says does not count where the rule is adaptive."""
    adaptive: Callable[[Tensor, float], Tensor] | None = None
    limit: float = 0.0

    @property
    def wants_entropy(self) -> bool:
        return self.adaptive is entropy_bound


def commit_rule(schedule: str, **adaptive: float | None) -> Commit:
    """The rule that was asked for; BadInput for an unknown schedule, two adaptive rules, or one with a schedule."""
    asked = {name: limit for name, limit in adaptive.items() if limit is not None}
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if len(asked) + (schedule == "cosine") > 1:
        names = [*asked, *["schedule=cosine"] * (schedule == "cosine")]
        raise BadInput(f"{' and '.join(names)} each say how many tokens to commit at once: give one of them")
    for name, limit in asked.items():
        return Commit(name, adaptive=ADAPTIVE[name], limit=limit)
    return Commit(schedule, SCHEDULES[schedule])
