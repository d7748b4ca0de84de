"""The engine of every likelihood: requests of any length become masked canvases, canvases become batches, batches nats.

    found = scores(lm.denoiser, [Request(ids, start=5, stop=9)], method="bound", draws=32)

A row is a canvas of which some positions are hidden and some are asked for. Each method says which rows a request needs and
what their costs come to; rows of all requests run together, sorted by length, in calls of a fixed number of positions, so
that a score depends on nothing beside it but through float error (1e-4 nats a token in float32 at the most).

A record with block attention is read block by block beside the clean text, as it decodes: the bound is then over the orders
within a block, which is tighter.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from diffulm import bounds, visibility
from diffulm.canvas import encode
from diffulm.denoiser.denoiser import Clean, Denoiser, evaluating
from diffulm.denoiser.tile import bucket
from diffulm.errors import BadInput
from diffulm.randomness import key as make_key
from diffulm.randomness import uniform
from diffulm.shapes import Bool, Float

Method = Literal["left_to_right", "right_to_left", "bound", "multi_order", "published", "autoregressive"]
METHODS: tuple[Method, ...] = get_args(Method)

# Positions a forward: bounds the memory, does not change a result beyond float error. On a CPU what its caches hold is
# faster, by a quarter at the size of the 260K parent.
TOKENS_A_CALL, TOKENS_A_CALL_CPU = 8192, 2048
LOGITS_A_CALL = 2**25  # numbers: where the likeliest token is asked for, its logits have to exist

_LEVEL = make_key("published noise level")


@dataclass(frozen=True)
class Request:
    """A canvas whose positions start..stop-1 are free and scored; everything else is fixed, and seen.

    key: requests with the same key share their random numbers, by position within the answer.
    """

    ids: tuple[int, ...]
    start: int
    stop: int
    key: int = 0

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Scored:
    """The cost of a request's free tokens."""

    nats: float
    """Total, not a mean."""
    stderr: float
    """Standard error of `nats`, see `bounds.standard_error`; 0 where exact."""
    tokens: int
    forwards: int
    """Canvases that were run for it."""
    greedy: bool | None = None
    """Whether every token was the likeliest in its place; None where the method does not say."""
    values: tuple[float, ...] = ()
    """What each draw estimates: those of two requests with the same key are paired."""


@dataclass(frozen=True)
class _Plan:
    """Rows of a request, (R, L) each, and what their costs (R,) come to: (nats, stderr, values)."""

    hidden: Bool[Tensor, "r l"]
    where: Bool[Tensor, "r l"]
    weight: Float[Tensor, "r l"] | None
    """Of each token in the row's cost; None: 1."""
    total: Callable[[Tensor], tuple[float, float, tuple[float, ...]]]


def scores(
    denoiser: Denoiser,
    requests: Sequence[Request],
    method: Method = "bound",
    draws: int = 32,
    seed: int = 0,
    orders: int = 8,
) -> list[Scored]:
    """What the free tokens of each request cost, in the order of the requests.

    method: `left_to_right` and `right_to_left` (exact, a forward a token, the rest masked), `bound` (any-order, `draws` by the
    count estimator), `multi_order` (-log of the mean probability over `orders` random orders, a forward a token and order),
    `published` (the paper's estimator: `draws` noise levels, mean nats of a masked token times the tokens; no bound, for
    parity) and `autoregressive` (the causal reading, one forward). BadInput for an empty request, one beyond the context or
    one that asks for position 0 of a model with shift; FloatingPointError where the model's logits are not finite.
    """
    _check(denoiser, requests)
    found: list[Scored | None] = [None] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].ids))
    plans = ((i, _plan(denoiser, requests[i], method, draws, seed, orders)) for i in order)
    with evaluating(denoiser.model):
        for i, plan, costs, greedy in _run(denoiser, requests, plans, method):
            nats, stderr, values = plan.total(costs)
            if math.isnan(nats):
                raise FloatingPointError("the model's logits are not finite")
            found[i] = Scored(nats, stderr, requests[i].tokens, len(costs), greedy, values)
    return [one for one in found if one is not None]


def encoded(
    tokenizer: Any, bos: Sequence[int], context: str, text: str, suffix: str = "", limit: int | None = None
) -> tuple[Request | None, int]:
    """(the request that scores `text` between `context` and `suffix`, tokens of the context cut on its left for `limit`).

    All three are encoded together; what the whole shares with the context alone and with the suffix alone is fixed, so no
    token is lost where they meet. None: the text adds no token, or does not fit into `limit` even without a context.
    """
    whole = encode(tokenizer, context + text + suffix)
    start = shared(whole, encode(tokenizer, context)) if context else 0
    end = shared(whole[start:][::-1], encode(tokenizer, suffix, inside=True)[::-1]) if suffix else 0
    ids, start, stop = [*bos, *whole], start + len(bos), len(bos) + len(whole) - end
    cut = max(0, len(ids) - limit) if limit is not None else 0
    if start == stop or cut > start - len(bos):
        return None, cut
    return Request((*bos, *ids[len(bos) + cut :]), start - cut, stop - cut), cut


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def best_of(nats: Sequence[float], tokens: int) -> Scored:
    """The least of what several orders cost, and the log of how many they are: an upper bound on -log of their mean
    probability, so that choosing among them is paid for."""
    return Scored(min(nats) + math.log(len(nats)), 0.0, tokens, 0)


def _check(denoiser: Denoiser, requests: Sequence[Request]) -> None:
    limit, first = denoiser.context, 1 if denoiser.record.shift else 0
    for one in requests:
        if not first <= one.start < one.stop <= len(one.ids):
            raise BadInput(f"nothing to score at {one.start}..{one.stop} of {len(one.ids)} tokens")
        if limit is not None and len(one.ids) > limit:
            raise BadInput(f"{len(one.ids)} tokens do not fit into the model's context of {limit}")


def _plan(denoiser: Denoiser, request: Request, method: Method, draws: int, seed: int, orders: int) -> _Plan:
    length, free = len(request.ids), torch.arange(request.start, request.stop)
    size = block_size(denoiser, length)
    if method == "autoregressive":
        where = torch.zeros(1, length, dtype=torch.bool)
        where[:, free] = True
        return _Plan(torch.zeros_like(where), where, None, _exact)
    if method == "left_to_right":
        return _by_order(length, free, _turns(free, size)[None], _exact)
    if method == "bound":
        return _bound(length, free, size, draws, seed, request.key)
    if size < length:
        raise BadInput(f"method={method}: is for full attention; take left_to_right or bound for a block-causal model")
    if method == "right_to_left":
        return _by_order(length, free, _turns(free, size).flip(0)[None], _exact)
    if method == "multi_order":
        turns = bounds.random_orders(len(free), orders, seed, request.key).argsort(1)
        return _by_order(length, free, turns, _mean_probability(orders))
    if method == "published":
        return _published(length, free, draws, seed, request.key)
    raise BadInput(f"method={method}: is none of {', '.join(METHODS)}")


def positions_a_call(device: torch.device) -> int:
    return TOKENS_A_CALL_CPU if device.type == "cpu" else TOKENS_A_CALL


def block_size(denoiser: Denoiser, length: int) -> int:
    """Positions that are filled together: the whole text under full attention."""
    record = denoiser.record
    return min(record.block_size or length, length) if record.attention == "block" else length


def _turns(free: Tensor, size: int) -> Tensor:
    """(N,) when each free position is filled from left to right; the same turn in all blocks, which do not see each other's
    masks."""
    block = free // size
    first = torch.full((int(block[-1]) + 1,), len(free) + int(free[-1])).scatter_reduce(0, block, free, "amin")
    return free - first[block]


def _by_order(length: int, free: Tensor, turns: Tensor, total: Callable[..., Any]) -> _Plan:
    """One row for each order in turns (K, N) and each of its turns: what comes now or later is hidden, what comes now is asked
    for."""
    steps = int(turns.max()) + 1
    turn, step = turns[:, None, :], torch.arange(steps)[None, :, None]
    hidden = torch.zeros(len(turns) * steps, length, dtype=torch.bool)
    where = hidden.clone()
    hidden[:, free] = (turn >= step).flatten(0, 1)
    where[:, free] = (turn == step).flatten(0, 1)
    return _Plan(hidden, where, None, total)


def _exact(costs: Tensor) -> tuple[float, float, tuple[float, ...]]:
    return float(costs.sum()), 0.0, ()


def _mean_probability(orders: int) -> Callable[[Tensor], tuple[float, float, tuple[float, ...]]]:
    """-log of the mean over orders of their probabilities, its error by the jackknife."""

    def total(costs: Tensor) -> tuple[float, float, tuple[float, ...]]:
        nats = costs.view(orders, -1).sum(1)
        if orders == 1:
            return float(nats), math.inf, (float(nats),)
        without = torch.stack([_log_mean(torch.cat([nats[:i], nats[i + 1 :]])) for i in range(orders)])
        error = math.sqrt((orders - 1) / orders * float(((without - without.mean()) ** 2).sum()))
        return float(_log_mean(nats)), error, tuple(nats.tolist())

    return total


def _log_mean(nats: Tensor) -> Tensor:
    return math.log(len(nats)) - (-nats).logsumexp(0)


def hidden_draws(
    free: Tensor, length: int, size: int, samples: int, seed: int, key: int
) -> tuple[Bool[Tensor, "samples l"], Float[Tensor, "samples l"]]:
    """What each draw of the count estimator hides of the `free` positions (N,), in each of their blocks of `size` by itself,
    and the weight n / k of the block's tokens (float64, 1 elsewhere)."""
    hidden, weight = torch.zeros(samples, length, dtype=torch.bool), torch.ones(samples, length, dtype=torch.float64)
    for block in (free // size).unique().tolist():
        own = free[free // size == block]
        drawn, of_draw = bounds.draws(len(own), samples, seed, key if size >= length else make_key(key, block * size))
        hidden[:, own] = drawn
        weight[:, own] = of_draw[:, None]
    return hidden, weight


def _bound(length: int, free: Tensor, size: int, draws: int, seed: int, key: int) -> _Plan:
    hidden, weight = hidden_draws(free, length, size, draws, seed, key)
    # of a short answer many draws are the same: each is run once
    rows, back = hidden.unique(dim=0, return_inverse=True)
    weights = torch.ones_like(weight[: len(rows)])
    weights[back] = weight
    single = bool((_turns(free, size) == 0).all())  # a token a block is hidden in every draw: nothing to estimate

    def total(costs: Tensor) -> tuple[float, float, tuple[float, ...]]:
        values = costs[back]
        return float(values.mean()), 0.0 if single else bounds.standard_error(values), tuple(values.tolist())

    return _Plan(rows, rows, weights, total)


def _published(length: int, free: Tensor, levels: int, seed: int, key: int) -> _Plan:
    """See `bounds.published_estimate`; the total is its mean over levels times the number of tokens."""
    level = torch.arange(1, levels + 1)
    hidden = torch.zeros(levels, length, dtype=torch.bool)
    drawn = uniform(seed, key, _LEVEL, level[:, None], torch.arange(len(free)))
    hidden[:, free] = drawn < (level / levels)[:, None]
    weight = (len(free) / hidden.sum(1).clamp(min=1).double())[:, None].expand(-1, length)

    def total(costs: Tensor) -> tuple[float, float, tuple[float, ...]]:
        return float(costs.mean()), bounds.standard_error(costs), tuple(costs.tolist())

    return _Plan(hidden, hidden, weight, total)


def _run(
    denoiser: Denoiser, requests: Sequence[Request], plans: Iterator[tuple[int, _Plan]], method: Method
) -> Iterator[tuple[int, _Plan, Tensor, bool | None]]:
    """(request, plan, cost of each row (R,) float64, whether all tokens asked for are the likeliest) as they are finished.

    Rows are collected until they fill a call; the plans come by length, so little is padding.
    """
    reads = method in ("left_to_right", "autoregressive")
    most = positions_a_call(denoiser.device)
    waiting: list[tuple[int, int, int]] = []  # (request, first row, row behind the last)
    open_plans: dict[int, tuple[_Plan, Tensor, list[bool]]] = {}

    def flush() -> Iterator[tuple[int, _Plan, Tensor, bool | None]]:
        if not waiting:
            return
        pieces = [(requests[i].ids, open_plans[i][0], slice(a, b)) for i, a, b in waiting]
        done = _call(denoiser, pieces, method, reads)
        for (i, a, b), (costs, greedy) in zip(waiting, done, strict=True):
            plan, kept, likeliest = open_plans[i]
            kept[a:b] = costs
            likeliest.append(greedy)
            if b == len(kept):
                del open_plans[i]
                yield i, plan, kept, all(likeliest) if reads else None
        waiting.clear()

    rows, width = 0, 0
    for i, plan in plans:
        length = bucket(len(requests[i].ids), denoiser.context)
        if length != width:
            yield from flush()
            rows, width = 0, length
        open_plans[i] = plan, torch.zeros(len(plan.hidden), dtype=torch.float64), []
        asked = max(1, int(plan.where.sum(1).amax())) * denoiser.vocabulary if reads else 1
        limit = max(1, min(most // length, LOGITS_A_CALL // asked))
        start, count = 0, len(plan.hidden)
        while start < count:
            if rows >= limit:
                yield from flush()
                rows = 0
            taken = min(count - start, limit - rows)
            waiting.append((i, start, start + taken))
            start, rows = start + taken, rows + taken
    yield from flush()


def _call(
    denoiser: Denoiser, pieces: list[tuple[tuple[int, ...], _Plan, slice]], method: Method, reads: bool
) -> list[tuple[Tensor, bool]]:
    """One forward; for each piece the cost of its rows (float64) and whether what was asked for is the likeliest."""
    length, record = max(len(ids) for ids, _, _ in pieces), denoiser.record
    hidden, where = (
        torch.cat([_padded(getattr(plan, name)[rows], length) for _, plan, rows in pieces])
        for name in ("hidden", "where")
    )
    counts = [len(plan.hidden[rows]) for _, plan, rows in pieces]
    text = torch.cat(
        [_padded(torch.tensor([ids]), length).expand(n, -1) for (ids, _, _), n in zip(pieces, counts, strict=True)]
    )
    ends = torch.tensor([len(ids) for (ids, _, _), n in zip(pieces, counts, strict=True) for _ in range(n)])
    text, hidden, where, ends = (each.to(denoiser.device) for each in (text, hidden, where, ends))
    canvas = text.masked_fill(hidden, record.mask_token_id)
    reader, visible, clean = denoiser, None, None
    present = torch.arange(length, device=ends.device) < ends[:, None]
    if method == "autoregressive":
        reader, visible = denoiser.shifted(), visibility.causal(length, device=canvas.device)
    elif record.attention == "block" and record.block_size is not None:
        clean = Clean(text, record.block_size, record.clean_causal)
    if not bool(present.all()):
        base = visibility.full(length, device=canvas.device) if visible is None else visible
        visible = base & visibility.present(present)
    if reads:
        logits = reader(canvas, visible, where, clean=clean).float()
        nats, likeliest = (
            functional.cross_entropy(logits, text[where], reduction="none"),
            logits.argmax(1) == text[where],
        )
    else:
        nats = reader.cross_entropy(canvas, text[where], where, visible, clean=clean)
        likeliest = torch.ones_like(nats, dtype=torch.bool)
    cost = torch.zeros(where.shape, dtype=torch.float64, device=where.device)
    cost[where] = nats.double()
    wrong = torch.zeros_like(where)
    wrong[where] = ~likeliest
    costs, wrongs = cost.cpu().split(counts), wrong.any(1).cpu().split(counts)
    return [
        (_weighed(cost, plan, rows), not bool(wrong.any()))
        for (_, plan, rows), cost, wrong in zip(pieces, costs, wrongs, strict=True)
    ]


def _weighed(cost: Tensor, plan: _Plan, rows: slice) -> Tensor:
    cost = cost[:, : plan.where.shape[1]]
    return (cost if plan.weight is None else cost * plan.weight[rows]).sum(1)


def _padded(rows: Tensor, length: int) -> Tensor:
    return functional.pad(rows, (0, length - rows.shape[1]))
