"""The scaling law of adaptation: what parents of several sizes lose, by the tokens that they are adapted on.

    gap = E + A (N / 1M)^-a (D / 1M)^-b          N parameters, D tokens of adaptation, gap in nats a token

Gaps: the left-to-right loss over the parent's own AR loss on the same blocks, the any-order bound over it, and `averaging`,
what lies between the two. Fitted by least squares of log(gap), over a grid of floors E; intervals are percentiles over refits
to resampled residuals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffulm.bounds import student

Array = NDArray[np.float64]

# Parents: width, layers; heads of 16, an MLP of 8/3 of the width, the tokenizer of stories260k. 54K to 429K parameters.
SHAPES = {"54K": (32, 3), "135K": (48, 4), "428K": (80, 5)}
PARENT_TOKENS, CONTROL_TOKENS = "4M", "1M"
TOKENS = ("500K", "1M", "2M", "4M")
READINGS = ("left_to_right", "averaging", "bound")
# The smallest once more, from a parent that was trained for longer: does the gap depend on that?
LONG_PARENT, LONG_TOKENS, LONG_CHILD = "54K", "16M", "4M"
UNIT = 1e6
NORMAL = 1.96
REFITS, FLOORS = 1000, 40
# GPT-2 small, adapted on as many tokens as DiffuGPT-S (arXiv 2410.17891) and on what a small budget would be.
GPT2, GPT2_TOKENS = 124_439_808, (1e9, 131e9)


def rate(width: int) -> float:
    """3e-3 at the width of stories260k, where benchmarks/ablation.py found it best of three; as 1 / sqrt(width) elsewhere."""
    return round(3e-3 * (64 / width) ** 0.5, 5)


def runs() -> list[str]:
    """Every run of the law, size by size."""
    return [
        name
        for size in SHAPES
        for name in (f"parent-{size}", *(f"child-{size}-{tokens}" for tokens in TOKENS), f"control-{size}")
    ] + [f"long-parent-{LONG_PARENT}", f"long-child-{LONG_PARENT}"]


@dataclass(frozen=True)
class Fit:
    """constants (refits + 1, 4): E, log A, a, b; the first row is the fit itself. residuals (n,): of log(gap), inflated,
    as those that are left after a fit are too small and their spread is itself uncertain (Student's t)."""

    constants: Array
    residuals: Array

    def told(self) -> dict[str, tuple[float, float, float]]:
        """Constant -> (value, low, high) of its 95% interval."""
        values = self.constants.copy()
        values[:, 1] = np.exp(values[:, 1])
        low, high = np.quantile(values[1:], (0.025, 0.975), axis=0)
        found = zip(values[0], low, high, strict=True)
        return dict(zip("EAab", (tuple(map(float, three)) for three in found), strict=True))

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """(gap, low, high): the 95% interval of one more run, its own deviation included."""
        return _told(*self.refits(parameters, tokens))

    def refits(self, parameters: float, tokens: float) -> tuple[float, Array]:
        """(gap, what each refit says of one more run)."""
        level = self.constants[:, 0] + np.exp(self.constants[:, 1:] @ _design([parameters], [tokens])[0])
        return float(level[0]), level[1:] * np.exp(np.random.default_rng(1).choice(self.residuals, len(level) - 1))


def _told(gap: float, refits: Array) -> tuple[float, float, float]:
    low, high = np.quantile(refits, (0.025, 0.975))
    return gap, float(low), float(high)


def fit(
    parameters: Sequence[float], tokens: Sequence[float], gap: Sequence[float], floor: bool = False, seed: int = 0
) -> Fit:
    """The law through points of positive gap; floor: with E between 0 and the least gap, else E = 0."""
    design, values = _design(parameters, tokens), np.asarray(gap, np.float64)
    best = _solve(design, values[None], floor)
    level = best[0, 0] + np.exp(design @ best[0, 1:])
    free = len(values) - 3 - floor
    residuals = np.log(values / level) * math.sqrt(len(values) / free) * student(free) / NORMAL
    drawn = np.random.default_rng(seed).choice(residuals, (REFITS, len(values)))
    return Fit(np.concatenate([best, _solve(design, level * np.exp(drawn), floor)]), residuals)


def _design(parameters: Sequence[float], tokens: Sequence[float]) -> Array:
    logs = -np.log(np.asarray([parameters, tokens], np.float64).T / UNIT)
    return np.concatenate([np.ones((len(logs), 1)), logs], 1)


def _solve(design: Array, gaps: Array, floor: bool) -> Array:
    """(r, 4): E, log A, a, b of each row of gaps (r, n): the line through log(gap - E) at each of a grid of floors, and of
    these the one with the least squares of log(gap)."""
    best, least = np.zeros((len(gaps), 4)), np.full(len(gaps), np.inf)
    for share in np.linspace(0, 0.98, FLOORS) if floor else (0.0,):
        bottom = share * gaps.min(1, keepdims=True)
        found = np.log(gaps - bottom) @ np.linalg.pinv(design).T
        squares = (np.log(gaps / (bottom + np.exp(found @ design.T))) ** 2).sum(1)
        better = squares < least
        least = np.where(better, squares, least)
        best = np.where(better[:, None], np.concatenate([bottom, found], 1), best)
    return best


def left_out(points: list[dict[str, Any]], reading: str, floor: bool) -> float:
    """Root mean square of log(measured / predicted), each size predicted from the others alone."""
    errors = []
    for size in dict.fromkeys(point["size"] for point in points):
        rest = [point for point in points if point["size"] != size]
        found = _fitted(rest, reading, floor)
        own = [point for point in points if point["size"] == size]
        errors += [math.log(one[reading][0] / found.predict(one["parameters"], one["tokens"])[0]) for one in own]
    return float(np.sqrt(np.mean(np.square(errors))))


def _fitted(points: list[dict[str, Any]], reading: str, floor: bool) -> Fit:
    return fit(
        *([point[key] for point in points] for key in ("parameters", "tokens")), [p[reading][0] for p in points], floor
    )


def law(points: list[dict[str, Any]], checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Points (parameters, tokens, a gap for each reading) -> both fits, what they say of points, `checks` and GPT-2."""
    points, checks = ([{**one, "predicted": {}} for one in some] for some in (points, checks))
    fits: dict[str, Any] = {reading: {} for reading in READINGS}
    gpt2 = []
    for name, floor in (("no floor", False), ("floor", True)):
        made = {reading: _fitted(points, reading, floor) for reading in READINGS}
        for reading, found in made.items():
            for one in (*points, *checks):
                one["predicted"].setdefault(reading, {})[name] = found.predict(one["parameters"], one["tokens"])
            left = [math.log(point[reading][0] / point["predicted"][reading][name][0]) for point in points]
            fits[reading][name] = {
                "constants": found.told(),
                "residual": float(np.sqrt(np.mean(np.square(left)))),
                "left_out": left_out(points, reading, floor),
            }
        for tokens in GPT2_TOKENS:
            # drawn alike for all readings, so that what is common to them stays so in a sum
            drawn = {reading: found.refits(GPT2, tokens) for reading, found in made.items()}
            parts = [drawn["left_to_right"], drawn["averaging"]]
            drawn["sum"] = (sum(gap for gap, _ in parts), np.sum([refits for _, refits in parts], axis=0))
            gpt2 += [{"reading": one, "fit": name, "tokens": tokens, "gap": _told(*of)} for one, of in drawn.items()]
    return {"points": points, "checks": checks, "fits": fits, "gpt2": gpt2}
