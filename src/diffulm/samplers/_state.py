"""What a sampler sees and says: State -> Reveal for one step. And what callbacks see: Frame."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffulm import randomness
from diffulm.samplers._commit import Commit
from diffulm.samplers._draw import Drawn
from diffulm.shapes import Bool, Float, Int

ORDER, REVEAL = randomness.key("sampler", "order"), randomness.key("sampler", "reveal")
AHEAD = 16
"""Tokens of an order known before the forward that an adaptive rule looks at, and so the most it commits."""


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
class State:
    """What a rule sees before a forward: B rows of L positions, some rows perhaps finished (nothing masked).

    With blocks everything is that of each row's current block; outside it nothing is free.
    """

    ids: Int[Tensor, "b l"]
    """The canvases; the mask token where `masked`."""
    free: Bool[Tensor, "b l"]
    """What was masked at the start, less what the end of the text has made padding since."""
    masked: Bool[Tensor, "b l"]
    """What is masked now."""
    step: Int[Tensor, " b"]
    """Steps each row has behind it."""
    steps: Int[Tensor, " b"]
    """T, the number of steps that was asked for."""
    quota: Int[Tensor, " b"]
    """How many to reveal now, by the schedule of the steps: at least one in every row that is not finished."""
    rule: Commit
    """How many to reveal in fact."""
    draw: Callable[..., Drawn]
    """(where (B, L), *fields of Drawn wanted) -> tokens drawn there with each row's own uniforms of this step, (B, L);
    one forward for each row with anything in `where`."""
    uniform: Callable[[int, Tensor], Tensor]
    """(ORDER or REVEAL, step (B,)) -> (B, L) float64 in [0, 1), from each row's own stream."""

    def by_order(self, order: Float[Tensor, "b l"]) -> Reveal:
        """Reveal by an order known before the forward, smallest first: only what may be revealed is projected."""
        adaptive = self.rule.adaptive is not None
        where = smallest(order, self.masked, torch.full_like(self.quota, AHEAD) if adaptive else self.quota)
        drawn = self.draw(where, *self._measured)
        return self._beginning(order, where, drawn) if adaptive else Reveal(where, drawn.tokens)

    def by_score(self, score: Callable[[Drawn], Tensor], *wanted: str) -> Reveal:
        """Draw wherever there is a mask; those of highest `score`, which may read the `wanted` fields of Drawn, come first."""
        drawn = self.draw(self.masked, *dict.fromkeys((*wanted, *self._measured)))
        order = -score(drawn)
        if self.rule.adaptive is not None:
            return self._beginning(order, self.masked, drawn)
        return Reveal(smallest(order, self.masked, self.quota), drawn.tokens)

    @property
    def _measured(self) -> tuple[str, ...]:
        return ("entropy",) if self.rule.wants_entropy else ()

    def _beginning(self, order: Tensor, among: Tensor, drawn: Drawn) -> Reveal:
        """Reveal as long a beginning of the order as the adaptive rule allows."""
        assert self.rule.adaptive is not None
        column = order.masked_fill(~among, torch.inf).argsort(dim=1, stable=True)
        measured = drawn.entropy if self.rule.wants_entropy else drawn.log_probability.exp()
        # Beyond the end of a row's order stand positions that `smallest` does not take, however many are allowed.
        allowed = self.rule.adaptive(measured.gather(1, column), self.rule.limit).sum(1)
        return Reveal(smallest(order, among, allowed.clamp(min=1)), drawn.tokens)


@dataclass(frozen=True)
class Frame:
    """The canvases of a batch, for callbacks: first all masked, then after every forward. On the CPU, not shared."""

    rows: tuple[int, ...]
    """Which of the texts these are."""
    ids: Int[Tensor, "b l"]
    masked: Bool[Tensor, "b l"]
    step: Int[Tensor, " b"]
    """Steps each row has behind it."""
    revealed: Int[Tensor, "b l"]
    """The row's step (from 0) at which a token was revealed; -1 where none was: fixed, or still masked."""
    confidence: Float[Tensor, "b l"]
    """Probability that the model gave a token when it was revealed; NaN where unknown: not revealed, or padding."""


Rule = Callable[[State], Reveal]
_OWN_COUNT: set[Rule] = set()


def counts_itself(rule: Rule) -> Rule:
    """Mark a sampler that says itself how many to reveal, so that no other commit rule than linear steps goes with it."""
    _OWN_COUNT.add(rule)
    return rule


def takes(rule: Rule, commit: str) -> bool:
    """Whether a sampler goes with linear, cosine, threshold, entropy_bound, factor, or remask."""
    return commit == "linear" or rule not in _OWN_COUNT


def smallest(values: Float[Tensor, "b l"], among: Bool[Tensor, "b l"], count: Int[Tensor, " b"]) -> Bool[Tensor, "b l"]:
    """The `count` (B,) positions of smallest value among those given, row by row; equal ones from the left."""
    rank = values.masked_fill(~among, torch.inf).argsort(dim=1, stable=True).argsort(1)
    return among & (rank < count[:, None])
