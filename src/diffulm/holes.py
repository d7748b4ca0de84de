"""Holes whose length the model picks, or whose text is one of some: filled in several ways, scored and ranked.

Ways are compared by -log p(hole, the next `WINDOW` tokens of the text | everything to the left of the hole), read left to
right on a canvas that ends at one place for all of them: one and the same conditional distribution, whatever the length.
A bound per token of the hole given both sides compares different ones, and favours repeats.

Several holes: first those with choices, then those of several lengths or with a pattern, each kind from left to right. What
is found stands from then on, and holes whose turn is to come are masked, at their middle length. Holes of one length are
filled last, together.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diffulm import bounds, canvas, constraints, streaming
from diffulm.bounds import Denoise
from diffulm.canvas import Canvas, Hole
from diffulm.constraints import Constraint
from diffulm.errors import BadInput, shown
from diffulm.filling import Filled
from diffulm.shapes import Bool, Int

WINDOW = 8
"""Tokens to the right of a hole that enter its score: beyond 8 nothing was gained (docs/experiments.md)."""

TRIED = 16
"""Lengths that `rank` tries at once."""

Template = Callable[[Sequence[str | Hole]], Canvas]

Prior = Callable[[int], float]
"""Tokens of a hole -> -log prior in nats."""


@dataclass(frozen=True)
class Candidate:
    """One way to fill the holes of a text."""

    text: str
    """The whole text."""
    fills: list[str]
    """The text of each hole, in order."""
    score: float
    """-log p in nats, of the holes and of the text right after them: lower is better, and only differences count."""


@dataclass(frozen=True)
class Solution:
    candidate: Candidate
    ids: list[int]


@dataclass(frozen=True)
class Scored:
    """A canvas with a hole more that is filled and fixed, and the nats of all that was scored so far."""

    made: Canvas
    nats: float


@dataclass
class Search:
    """What it takes to fill and to score: functions of a model, so that both can be fakes.

    fill: (canvases, constraint) -> as `filling.fill`, the free positions of each. texts: `constraints.token_texts`, asked
    for if a constraint needs it. context: positions the model can take. forwards counts what was run.
    """

    denoise: Denoise
    fill: Callable[[Sequence[Canvas], Constraint | None], list[Filled]]
    mask_token_id: int
    texts: Callable[[], Sequence[str]] = list
    eos_token_id: int | None = None
    context: int | None = None
    prior: Prior = lambda tokens: 0.0
    window: int = WINDOW
    forwards: int = 0

    def filled(self, made: Sequence[Canvas], constraint: Constraint | None = None) -> list[Filled]:
        results = self.fill(made, constraint)
        self.forwards += sum(each.forwards for each in results)
        return results

    def nats(self, ids: Int[Tensor, " l"], free: Bool[Tensor, " l"]) -> float:
        """-log p of the tokens at `free`, each given everything but itself and the free ones after it."""
        self.forwards += int(free.sum())
        return bounds.left_to_right(self.denoise, ids, free, self.mask_token_id).nats if bool(free.any()) else 0.0

    def joint(self, made: Canvas, since: int, stop: int, size: int) -> float:
        """-log p(known tokens from `since` to stop - 1, then the next `window` known ones | those before `since`).

        Everything after that is masked, up to `size` positions; so is a hole whose turn is to come, which is passed over.
        """
        scored = _scope(made, since, stop, self.window)
        end = _reach(scored, stop)
        ids = made.ids.masked_fill(~made.fixed, self.mask_token_id)[:end]
        missing = max(size, end) - end
        return self.nats(
            functional.pad(ids, (0, missing), value=self.mask_token_id), functional.pad(scored[:end], (0, missing))
        )


def _scope(made: Canvas, since: int, stop: int, window: int) -> Bool[Tensor, " l"]:
    """What is scored: known positions from `since` to stop - 1, and the next `window` known ones."""
    at = torch.arange(len(made.ids))
    right = made.fixed & (at >= stop)
    return (made.fixed & (at >= since) & (at < stop)) | (right & (right.cumsum(0) <= window))


def _reach(scored: Tensor, stop: int) -> int:
    return max(stop, int(scored.nonzero().max()) + 1 if bool(scored.any()) else 0)


def geometric(stop: float) -> Prior:
    """The prior of a hole that ends after each token with probability `stop`."""
    goes_on, stops = torch.tensor([1 - stop, stop], dtype=torch.float64).log().neg().tolist()
    return lambda tokens: (tokens - 1) * goes_on + stops


def bound_per_token(search: Search, ways: Iterable[Scored], index: int, samples: int = 32) -> Scored:
    """Of several ways the one of smallest any-order bound per token, both sides given: to compare with, not to choose by."""

    def cost(way: Scored) -> float:
        span = way.made.spans[index]
        free = (torch.arange(len(way.made.ids)) >= span.start) & (torch.arange(len(way.made.ids)) < span.end)
        found = bounds.bound(search.denoise, way.made.ids, free, search.mask_token_id, samples, 0)
        search.forwards += samples
        return found.nats / found.tokens

    return min(ways, key=cost)


@dataclass(frozen=True)
class Gap:
    """One hole whose turn it is: span `index` of a canvas on which everything that was decided is fixed."""

    search: Search
    start: Scored
    index: int
    hole: Hole
    heal: bool = True

    @cached_property
    def lengths(self) -> range:
        """What the hole may have, as far as there is room. BadInput if there is none."""
        made, limit = self.start.made, self.search.context
        span, longest = made.spans[self.index], self.hole.longest
        if limit is not None:
            longest = min(longest, limit - len(made.ids) + span.end - span.start)
        if longest < self.hole.least:
            raise BadInput(
                f"there is no room for a hole of {self.hole.least} tokens: the model's context is {limit}: give less"
            )
        return range(self.hole.least, longest + 1)

    @cached_property
    def _broken(self) -> tuple[int, list[int]]:
        """See `constraints.broken`."""
        made, index = self.start.made, self.index
        if not self.heal or self.hole.pattern is not None or index == 0 or made.spans[index - 1].text is None:
            return 0, []
        before = made.spans[index - 1]
        left = made.ids[before.start : before.end].tolist()
        return constraints.broken(self.search.texts(), left)

    @cached_property
    def _automaton(self) -> constraints.Automaton | None:
        if self.hole.pattern is None:
            return None
        return constraints.automaton(self.hole.pattern, self.search.texts(), self.search.eos_token_id)

    def ways(self, lengths: Iterable[int]) -> list[Scored]:
        """The hole filled at each of these lengths, and scored: as it is, and with a broken word before it taken back."""
        canvases: list[tuple[Canvas, Constraint | None]] = []
        for length in lengths:
            made = canvas.resized(self.start.made, self.index, length, self.search.mask_token_id)
            constraint = None
            if self._automaton is not None:
                if self._automaton.allowed([None] * length) is None:
                    continue
                first = made.spans[self.index].start
                constraint = constraints.matching(self._automaton, first, first + length, self.search.mask_token_id)
            canvases.append((made, constraint))
        take, going_on = self._broken
        if take:
            first = self.start.made.spans[self.index].start - take
            constraint = constraints.only(going_on, first)
            for made, _ in list(canvases):
                length = made.spans[self.index].end - made.spans[self.index].start
                healed = canvas.resized(self.start.made, self.index, length, self.search.mask_token_id, take)
                canvases.append((healed, constraint))
        found = []
        for constraint, group in groupby(canvases, key=lambda pair: pair[1]):
            made = [each for each, _ in group]
            filled = self.search.filled([canvas.alone(each, self.index) for each in made], constraint)
            full = [canvas.settled(each, self.index, one.ids) for each, one in zip(made, filled, strict=True)]
            found += [self._scored(each) for each in full if canvas.keeps(each, self.index)]
        return found

    def _scored(self, made: Canvas) -> Scored:
        take, _ = self._broken
        old, new = self.start.made.spans[self.index], made.spans[self.index]
        # where the canvas would end if the hole were as long as it may be
        beyond = _reach(_scope(self.start.made, old.end, old.end, self.search.window), old.end) - old.end
        size = old.start + self.lengths[-1] + beyond
        nats = self.search.joint(made, old.start - take, new.end, size)
        return Scored(made, self.start.nats + nats + self.search.prior(new.end - new.start))


def rank(gap: Gap) -> list[Scored]:
    """Every length from least to most, best first; beyond 16 of them that many, evenly by ratio, then those around the best."""
    lengths = _spread(gap.lengths)
    ways = gap.ways(lengths)
    if ways and len(lengths) < len(gap.lengths):
        best = _length(min(ways, key=_nats), gap.index)
        near = [
            n for n in gap.lengths if n not in lengths and not any(min(n, best) < m < max(n, best) for m in lengths)
        ]
        ways += gap.ways(sorted(near, key=lambda n: abs(n - best))[:TRIED])
    return sorted(ways, key=_nats)


def _spread(lengths: range) -> list[int]:
    if len(lengths) <= TRIED:
        return list(lengths)
    ratio = (lengths[-1] / lengths[0]) ** (1 / (TRIED - 1))
    return sorted({min(lengths[-1], round(lengths[0] * ratio**k)) for k in range(TRIED)})


def grow(gap: Gap) -> list[Scored]:
    """Growing and shrinking: from the middle length towards the better of two neighbours, a factor of 2 away and then one
    token, as long as that improves the score. Those tried, best first: a third of the forwards of `rank`, more or less."""
    known: dict[int, list[Scored]] = {}

    def at(length: int) -> float:
        length = min(max(length, gap.lengths[0]), gap.lengths[-1])
        if length not in known:
            known[length] = gap.ways([length])
        return min((way.nats for way in known[length]), default=float("inf"))

    here = min(max(canvas.start_length(gap.hole), gap.lengths[0]), gap.lengths[-1])
    for smaller, larger in ((lambda n: n // 2, lambda n: n * 2), (lambda n: n - 1, lambda n: n + 1)):
        while True:
            best = min((here, smaller(here), larger(here)), key=at)
            if at(best) >= at(here):
                break
            here = min(max(best, gap.lengths[0]), gap.lengths[-1])
    return sorted((way for ways in known.values() for way in ways), key=_nats)


METHODS: dict[str, Callable[[Gap], list[Scored]]] = {"rank": rank, "grow": grow}


def _nats(way: Any) -> float:
    return way.nats


def _length(way: Scored, index: int) -> int:
    return way.made.spans[index].end - way.made.spans[index].start


@dataclass(frozen=True)
class Partly:
    """A text whose first holes with choices are decided: they have become text in `parts`."""

    parts: tuple[str | Hole, ...]
    nats: float = 0.0
    chosen: dict[int, str] = field(default_factory=dict)


def choose(search: Search, template: Template, state: Partly, at: int) -> list[Partly]:
    """The hole parts[at] as each of its choices, best first: scored, nothing sampled.

    Text and choice are tokenised together, so the score begins where the canvases begin to differ.
    """
    hole = state.parts[at]
    assert isinstance(hole, Hole) and hole.choices
    ways = [(*state.parts[:at], choice, *state.parts[at + 1 :]) for choice in hole.choices]
    made = [template(parts) for parts in ways]
    rows = [one.ids.tolist() for one in made]
    shortest = min(len(row) for row in rows)
    since = _common(rows, shortest)
    after = _common([row[::-1] for row in rows], shortest - since)
    stops = [len(row) - after for row in rows]
    size = max(_reach(_scope(one, since, stop, search.window), stop) for one, stop in zip(made, stops, strict=True))
    found = [
        Partly(parts, state.nats + search.joint(one, since, stop, size), state.chosen | {at: choice})
        for parts, one, stop, choice in zip(ways, made, stops, hole.choices, strict=True)
    ]
    return sorted(found, key=lambda way: way.nats)


def _common(rows: Sequence[Sequence[int]], most: int) -> int:
    """How many tokens all rows begin with, `most` at most."""
    columns = zip(*(row[:most] for row in rows), strict=True)
    return next((n for n, column in enumerate(columns) if len(set(column)) > 1), most)


def solve(search: Search, template: Template, parts: Sequence[str | Hole], method: str, n: int = 1) -> list[Solution]:
    """The best `n` ways to fill the holes of a text, best first; fewer if there are no more.

    template: parts -> canvas. With several holes to search, the best n go on from each to the next. BadInput for a hole
    that has no room, and for a pattern that no text of so many tokens matches.
    """
    decided = [Partly(tuple(parts))]
    for at, part in enumerate(parts):
        if isinstance(part, Hole) and part.choices:
            decided = sorted((way for one in decided for way in choose(search, template, one, at)), key=_nats)[:n]
    rest = [part for part in parts if isinstance(part, Hole) and not part.choices]
    ways = [(one, Scored(template(one.parts), one.nats)) for one in decided]
    for number, hole in enumerate(rest):
        if not hole.settled:
            ways = _searched(search, ways, number, hole, METHODS[method])[:n]
    open_ones = [way.made for _, way in ways if not bool(way.made.fixed.all())]
    filled = iter(search.filled(open_ones)) if open_ones else iter(())
    found = []
    for one, way in ways:
        made = way.made
        if not bool(made.fixed.all()):
            made = replace(made, ids=torch.tensor(next(filled).ids), fixed=torch.ones_like(made.fixed))
        found.append(solution(parts, made, way.nats, one.chosen))
    return found


def _searched(
    search: Search, ways: list[tuple[Partly, Scored]], number: int, hole: Hole, method: Callable[[Gap], list[Scored]]
) -> list[tuple[Partly, Scored]]:
    found: dict[tuple[str, ...], tuple[Partly, Scored]] = {}
    every = []
    for one, way in ways:
        index = [at for at, span in enumerate(way.made.spans) if span.text is None][number]
        every += [(one, each) for each in method(Gap(search, way, index, hole))]
    for one, way in sorted(every, key=lambda pair: pair[1].nats):
        # one text may be several rows of tokens
        found.setdefault((*one.chosen.values(), *canvas.fills(way.made, way.made.ids.tolist())), (one, way))
    if not found:
        raise BadInput(
            f"no text of {hole.least} to {hole.longest} tokens matches the pattern {shown(hole.pattern)}: allow more tokens"
        )
    return list(found.values())


def solution(parts: Sequence[str | Hole], made: Canvas, nats: float, chosen: dict[int, str] | None = None) -> Solution:
    """A canvas without masks as text; chosen: position in `parts` -> text of a hole that is none on the canvas."""
    ids, chosen = made.ids.tolist(), chosen or {}
    rest = iter(canvas.fills(made, ids))
    fills = [chosen[at] if at in chosen else next(rest) for at, part in enumerate(parts) if isinstance(part, Hole)]
    return Solution(Candidate(interleaved(parts, fills), fills, nats), ids)


def interleaved(parts: Iterable[str | Hole], fills: Iterable[str]) -> str:
    """The text: what was given, byte for byte, and the fills in its holes."""
    each = iter(fills)
    return "".join(next(each) if isinstance(part, Hole) else part for part in parts)


def cut(parts: Sequence[str | Hole], found: Candidate, stop: Sequence[str]) -> Candidate:
    """The candidate, each fill cut before the first of the stop strings in it."""
    fills = [streaming.cut(fill, stop) for fill in found.fills]
    return Candidate(interleaved(parts, fills), fills, found.score)
