"""Exactly the left-to-right distribution, several tokens a forward.

Every token is drawn from the causal view p(. | x_<i) with random numbers that belong to its position, as if one were drawn
at a time. A draft, here a tree of likely continuations, only says how many of these draws one forward settles: as many as
were foreseen, and the first that was not. So the text is the same, token for token, whatever is drafted.

A token is the winner of a race, the largest of p(v) / E(position, v) with E exponential, whose law is p. The draft runs the
same race with its own probabilities, which makes the two agree nearly as often as any coupling can (at least (1 - d)/(1 + d)
of the time at total variation d: arXiv 2408.07978) and, as nothing that is kept comes from the draft, can bias nothing.
min(1, p/q) would agree in 1 - d, but with one candidate a position, and its text would depend on the drafter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffulm import randomness
from diffulm.errors import BadInput
from diffulm.samplers._draw import COLDEST, HOTTEST, nucleus
from diffulm.samplers._loop import Frame
from diffulm.shapes import Bool, Float, Int

_TOKEN = randomness.key("sampler", "verified")
CANDIDATES = 4
"""Tokens considered behind each place of a draft."""


@dataclass(frozen=True)
class Draft:
    """A tree of k tokens that may come next. Place 0 is the end of the known text, place i the end of drafted token i."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    """The place that each token follows; an earlier one."""
    ahead: tuple[int, ...] = (0,)
    """How many guesses are wanted behind each of the k + 1 places."""


Read = Callable[[Tensor, Draft], tuple[Tensor, Sequence[Tensor]]]
"""(known (n,) ids, draft) -> (exact (k + 1, V), ahead: k + 1 tensors (size, V)), logits.

exact[i]: of the token that follows place i, given the known text and the drafted tokens up to there. ahead[i]: of those after
that one, guessed without it."""


@dataclass(frozen=True)
class Race:
    """How a token is chosen at a position of one text: see `samplers._draw.draw` for the filters and their order."""

    key: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    forbidden: tuple[int, ...] = ()

    def scores(self, logits: Float[Tensor, "*n v"], position: int) -> Float[Tensor, "*n v"]:
        """The token is the arg max. -inf: it is never chosen. FloatingPointError where nothing can be."""
        size = logits.shape[-1]
        banned = [token for token in self.forbidden if token < size]
        logits = logits.index_fill(-1, torch.tensor(banned, dtype=torch.int64, device=logits.device), -torch.inf)
        best = logits.amax(-1, keepdim=True)
        if not bool(best.isfinite().all()):
            raise FloatingPointError(
                "the logits of a position are NaN, infinite or all forbidden: no token can be drawn"
            )
        if self.temperature == 0:
            return logits
        weights = ((logits - best) / min(max(self.temperature, COLDEST), HOTTEST)).softmax(-1)
        if self.top_k is not None and self.top_k < size:
            weights = weights * (weights >= weights.topk(self.top_k).values[..., -1:])
        if self.top_p < 1:
            kept, values = nucleus(weights.view(-1, size), self.top_p)
            weights = torch.zeros_like(weights).view(-1, size).scatter_(1, kept, values).view_as(weights)
        weights = weights * (weights >= self.min_p * weights.amax(-1, keepdim=True))
        return weights.double().log() + _luck(self.key, position, size, logits.device)

    def draft(
        self, guesses: Float[Tensor, "m v"], known: Int[Tensor, " n"], size: int, affinity: Tensor | None
    ) -> tuple[list[int], list[int], list[float]]:
        """(tokens, parents, chances): the tree of at most `size` tokens that most likely holds what follows `known`, if the
        guesses are right. They were made without the tokens between; `affinity` puts right what the last one says."""
        paths: list[tuple[float, int, int]] = [(1.0, int(known[-1]), -1)]  # (chance, token, the path that it goes on)
        level = [0]
        for depth, guess in enumerate(guesses if size else ()):
            before = torch.tensor([paths[i][1] for i in level], device=guess.device)
            informed = guess.expand(len(level), -1) if affinity is None else guess + affinity[before]
            found = self.scores(informed, len(known) + depth)
            best = found.topk(min(CANDIDATES, found.shape[1]))
            chances = (best.values - found.logsumexp(-1, keepdim=True)).exp().tolist()
            options = sorted(
                (
                    (paths[i][0] * chance, token, i)
                    for i, ids, row in zip(level, best.indices.tolist(), chances, strict=True)
                    for token, chance in zip(ids, row, strict=True)
                ),
                reverse=True,
            )[:size]
            level = list(range(len(paths), len(paths) + len(options)))
            paths += options
        # A path is no likelier than its beginning, and comes after it: the best are a tree.
        chosen = sorted(sorted(range(1, len(paths)), key=lambda i: -paths[i][0])[:size])
        place = {0: 0, **{i: at for at, i in enumerate(chosen, 1)}}
        return (
            [paths[i][1] for i in chosen],
            [place[paths[i][2]] for i in chosen],
            [paths[i][0] for i in chosen],
        )


@lru_cache(maxsize=32)
def _luck(key: int, position: int, size: int, device: torch.device) -> Float[Tensor, " v"]:
    """- log of an exponential variable for each token of a position of one text."""
    uniform = randomness.uniform(key, _TOKEN, position, torch.arange(size, device=device))
    return -(-torch.log1p(-uniform)).clamp(min=2.0**-54).log()


def planned(
    tokens: Sequence[int], parents: Sequence[int], values: Sequence[float], room: int, depth: int, groups: int | None
) -> Draft:
    """The draft with guesses behind each place, `depth` of them, or only behind the `groups` likeliest ends."""
    level, ends = [0], [1.0, *values]
    for parent, value in zip(parents, values, strict=True):
        level.append(level[parent] + 1)
        ends[parent] -= value
    order = sorted(range(len(ends)), key=lambda place: -ends[place])
    wanted = set(order[:groups])
    ahead = (max(0, min(depth, room - at - 2)) if place in wanted else 0 for place, at in enumerate(level))
    return Draft(tuple(tokens), tuple(parents), tuple(ahead))


def continued(
    read: Read,
    known: Int[Tensor, " n"],
    length: int,
    race: Race,
    size: int,
    depth: int = 3,
    groups: int | None = None,
    affinity: Tensor | None = None,
) -> Iterator[tuple[list[int], list[float]]]:
    """The tokens that each forward settles and their probabilities, until the text has `length`.

    size: drafted tokens a forward, 0: one token at a time. depth: how many positions ahead they reach. groups, affinity: see
    `planned` and `verified`.
    """
    depth = min(size, depth)
    draft = planned([], [], [], length - len(known), depth, groups)
    while len(known) < length:
        exact, ahead = read(known, draft)
        place: int | None = 0
        end, tokens, chances = 0, [], []
        children = {pair: i + 1 for i, pair in enumerate(zip(draft.parents, draft.tokens, strict=True))}
        while place is not None:
            end, token = place, int(race.scores(exact[place], len(known) + len(tokens)).argmax())
            tokens.append(token)
            chances.append(float(exact[place].softmax(0)[token]))
            place = children.get((place, token))
        known = torch.cat([known, known.new_tensor(tokens)])
        yield tokens, chances
        draft = planned(*race.draft(ahead[end], known, size, affinity), length - len(known), depth, groups)


@torch.no_grad()
def verified(
    reader: Callable[[], Read],
    ids: Int[Tensor, "b l"],
    fixed: Bool[Tensor, "b l"],
    present: Bool[Tensor, "b l"] | None = None,
    *,
    seeds: Sequence[int | tuple[int, int]],
    draft: int = 4,
    forbidden: Sequence[int] = (),
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    callback: Callable[[Frame], Any] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    min_p: float = 0.0,
    **shape: Any,
) -> tuple[Int[Tensor, "b l"], Int[Tensor, " b"]]:
    """Continue what is fixed at the start of each row: (ids (B, L), forwards (B,) of each row).

    reader: makes the `Read` of a row; rows are run one after the other. draft: tokens drafted at once, 0: one token a
    forward. forbidden: the mask token belongs to it. What follows EOS becomes `pad_token_id`, or EOS, without a forward.
    shape: `depth`, `groups` of the draft, and `affinity` (V, V): for each token, what is added to the logits of a guess that
    did not know it to stand before. The rest is as in `sample`. BadInput where something fixed stands behind something free.
    """
    real = torch.ones_like(fixed) if present is None else present
    free = real & ~fixed
    if bool((fixed & real & (free.cumsum(1) > 0)).any()):
        raise BadInput("sampler=verified reads from left to right and sees no text behind a hole; take another sampler")
    filters = (temperature, top_p, top_k, min_p, tuple(forbidden))
    ids, masked = ids.clone(), free.clone()
    forwards = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    revealed = torch.full(ids.shape, -1)
    confidence = torch.full(ids.shape, torch.nan)

    def show() -> None:
        if callback is not None:
            state = (part.clone().cpu() for part in (ids, masked, forwards, revealed, confidence))
            callback(Frame(tuple(range(len(ids))), *state))

    show()
    for row, seed in enumerate(seeds):
        key = randomness.key("sample", *(seed if isinstance(seed, tuple) else (seed, 0)))
        at, end = int((real & fixed)[row].sum()), int(real[row].sum())
        for tokens, chances in continued(reader(), ids[row, :at], end, Race(key, *filters), draft, **shape):
            if eos_token_id in tokens:
                tokens = tokens[: tokens.index(eos_token_id) + 1]
            new = slice(at, at + len(tokens))
            at = new.stop
            ids[row, new], confidence[row, new] = torch.tensor(tokens), torch.tensor(chances[: len(tokens)])
            masked[row, new], revealed[row, new] = False, forwards[row].cpu()
            forwards[row] += 1
            if tokens[-1] == eos_token_id:
                ids[row, at:end] = tokens[-1] if pad_token_id is None else pad_token_id
                masked[row], revealed[row, at:end] = False, forwards[row].cpu() - 1
            show()
            if tokens[-1] == eos_token_id:
                break
    return ids, forwards
