"""The loop around a sampler: run, reveal, count, until no mask is left.

Randomness is a function of (row seed, purpose, the row's own step, position) and nothing else, and a row that has
nothing left to reveal is not run, so what becomes of a row depends on its seed and content alone. The denoiser has no
time input: a row in which nothing changed would give the same logits again, so every forward reveals something.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffulm import randomness
from diffulm.bounds import Denoise
from diffulm.samplers import by_name
from diffulm.samplers._draw import Drawn, draw
from diffulm.shapes import Bool, Float, Int

ORDER, REVEAL, _TOKEN = (randomness.key("sampler", purpose) for purpose in ("order", "reveal", "token"))


@dataclass(frozen=True)
class State:
    """What a rule sees before a forward: B rows of L positions, some rows perhaps finished (nothing masked)."""

    free: Bool[Tensor, "b l"]
    """What was masked at the start."""
    masked: Bool[Tensor, "b l"]
    """What is masked now."""
    step: Int[Tensor, " b"]
    """Steps each row has behind it."""
    steps: int
    """T, the number of steps that was asked for."""
    project: Callable[[Tensor], Tensor]
    """where (B, L) bool -> logits (where.sum(), V), row-major; one forward for each row with anything in it."""
    draw: Callable[[Tensor, Tensor], Drawn]
    """(where, its logits) -> tokens drawn with each row's own uniforms of this step."""
    uniform: Callable[[int, Tensor], Tensor]
    """(ORDER or REVEAL, step (B,)) -> (B, L) float64 in [0, 1), from each row's own stream."""

    @property
    def quota(self) -> Int[Tensor, " b"]:
        """How many to reveal now, so that exactly int(N t / T) stay masked: t = T - 1 ... 0, T at most N.

        At least one in every row that is not finished, as N / T >= 1.
        """
        count = self.free.sum(1)
        steps = count.clamp(min=1, max=max(1, min(self.steps, self.free.shape[1])))
        keep = count * (steps - 1 - self.step).clamp(min=0) // steps
        return (self.masked.sum(1) - keep).clamp(min=0)


@dataclass(frozen=True)
class Reveal:
    """What a rule does: the positions to reveal, and tokens for them."""

    where: Bool[Tensor, "b l"]
    """At least one masked position in every row that is not finished; only masked ones."""
    tokens: Int[Tensor, "b l"]
    """Read only at `where`."""
    step: Int[Tensor, " b"] | None = None
    """The step this was, if the rule passed over steps that reveal nothing; None: the state's."""


@dataclass(frozen=True)
class Frame:
    """The canvases of a batch, for callbacks: first all masked, then after every forward. On the CPU, not shared."""

    rows: tuple[int, ...]
    """Which of the texts these are."""
    ids: Int[Tensor, "b l"]
    masked: Bool[Tensor, "b l"]
    step: Int[Tensor, " b"]
    """Steps each row has behind it."""


Rule = Callable[[State], Reveal]


def smallest(values: Float[Tensor, "b l"], among: Bool[Tensor, "b l"], count: Int[Tensor, " b"]) -> Bool[Tensor, "b l"]:
    """The `count` (B,) positions of smallest value among those given, row by row; equal ones from the left."""
    rank = values.masked_fill(~among, torch.inf).argsort(dim=1, stable=True).argsort(1)
    return among & (rank < count[:, None])


def spread(where: Bool[Tensor, "b l"], values: Tensor, fill: float | int = 0) -> Tensor:
    """(n,) values at the n positions of `where`, `fill` elsewhere: (B, L)."""
    out = torch.full(where.shape, fill, dtype=values.dtype, device=values.device)
    out[where] = values
    return out


@torch.no_grad()
def sample(
    denoise: Denoise,
    ids: Int[Tensor, "b l"],
    fixed: Bool[Tensor, "b l"],
    present: Bool[Tensor, "b l"] | None = None,
    *,
    mask_token_id: int,
    sampler: str | Rule = "confidence",
    steps: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int | tuple[int, int]],
    forbidden: Sequence[int] = (),
    callback: Callable[[Frame], Any] | None = None,
    uniform: Callable[[int, Tensor], Tensor] | None = None,
) -> tuple[Int[Tensor, "b l"], Int[Tensor, " b"]]:
    """Fill what is neither fixed nor padding: (ids (B, L) with no mask left to reveal, forwards (B,) of each row).

    ids, fixed, present: (B, L); what stands in a free position does not matter. sampler: a name or a rule. steps: T, an
    upper limit to the forwards of a row. seeds: one a row, (seed, stream) or an int for (seed, 0). forbidden: ids never
    drawn, besides the mask token. uniform: replaces the rules' own random numbers (for parity with other code).
    BadInput for an unknown sampler; ValueError unless there is one seed a row; RuntimeError if a rule breaks its word.
    """
    if len(seeds) != len(ids):
        raise ValueError(f"{len(ids)} rows need as many seeds, not {len(seeds)}")
    rule = by_name(sampler) if isinstance(sampler, str) else sampler
    free = ~fixed if present is None else ~fixed & present
    masked, ids = free, ids.masked_fill(free, mask_token_id)
    step = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    forwards = step.clone()
    banned = torch.tensor([mask_token_id, *forbidden], device=ids.device)
    stream = uniform or _streams(seeds, ids)

    def project(where: Tensor) -> Tensor:
        rows = where.any(1)
        forwards[rows] += 1
        logits = denoise(ids[rows], where[rows], None if present is None else present[rows])
        return logits.index_fill(1, banned, -torch.inf)

    def draw_tokens(where: Tensor, logits: Tensor) -> Drawn:
        return draw(logits, stream(_TOKEN, step)[where], temperature, top_p)

    def show() -> None:
        if callback is not None:
            callback(Frame(tuple(range(len(ids))), ids.clone().cpu(), masked.clone().cpu(), step.clone().cpu()))

    show()
    while bool(masked.any()):
        reveal = rule(State(free, masked, step, steps, project, draw_tokens, stream))
        if bool((reveal.where & ~masked).any()) or bool((masked.any(1) & ~reveal.where.any(1)).any()):
            raise RuntimeError("a sampler reveals at least one masked position in every row that has one, and no other")
        # A finished row stays where it is, whatever the rule says of it.
        step = torch.where(masked.any(1), (step if reveal.step is None else reveal.step) + 1, step)
        ids, masked = torch.where(reveal.where, reveal.tokens, ids), masked & ~reveal.where
        show()
    return ids, forwards


def _streams(seeds: Sequence[int | tuple[int, int]], ids: Tensor) -> Callable[[int, Tensor], Tensor]:
    """(purpose, step (B,)) -> uniforms (B, L): a row's numbers come from its own seed."""
    pairs = [seed if isinstance(seed, tuple) else (seed, 0) for seed in seeds]
    rows = torch.tensor([randomness.key("sample", *pair) for pair in pairs], dtype=torch.int64, device=ids.device)
    position = torch.arange(ids.shape[1], device=ids.device)
    return lambda purpose, step: randomness.uniform(rows[:, None], purpose, step[:, None], position)
