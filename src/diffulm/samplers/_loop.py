"""The loop around a sampler: run, reveal, count, until no mask is left.

Randomness is a function of (row seed, purpose, the row's own step, position) and nothing else, and a row that has
nothing left to reveal is not run, so what becomes of a row depends on its seed and content alone. The denoiser has no
time input: a row in which nothing changed would give the same logits again, so every forward reveals something.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diffulm import randomness
from diffulm.bounds import Denoise
from diffulm.errors import BadInput
from diffulm.samplers import by_name
from diffulm.samplers._commit import Commit, commit_rule
from diffulm.samplers._draw import Drawn, draw
from diffulm.samplers._state import Frame, Reveal, Rule, State, smallest, takes
from diffulm.shapes import Bool, Int

__all__ = ["Frame", "Reveal", "Rule", "State", "sample"]

_STEPS = 32
_TOKEN, _HIDE = randomness.key("sampler", "token"), randomness.key("sampler", "hide")
Stream = Callable[[int, Tensor], Tensor]


@torch.no_grad()
def sample(
    denoise: Denoise,
    ids: Int[Tensor, "b l"],
    fixed: Bool[Tensor, "b l"],
    present: Bool[Tensor, "b l"] | None = None,
    *,
    mask_token_id: int,
    seeds: Sequence[int | tuple[int, int]],
    sampler: str | Rule = "confidence",
    steps: int | None = None,
    schedule: str = "linear",
    threshold: float | None = None,
    entropy_bound: float | None = None,
    factor: float | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    min_p: float = 0.0,
    remask: float = 0.0,
    block: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    forbidden: Sequence[int] = (),
    callback: Callable[[Frame], Any] | None = None,
    uniform: Stream | None = None,
) -> tuple[Int[Tensor, "b l"], Int[Tensor, " b"]]:
    """Fill what is neither fixed nor padding: (ids (B, L) with no mask left to reveal, forwards (B,) of each row).

    ids, fixed, present: (B, L); what stands in a free position does not matter. `denoise` gets all B rows every time; one
    that is not to be run has nothing in `where`. seeds: one a row, (seed, stream) or an int for (seed, 0).

    sampler: the order, a name or a rule. How many are revealed at once: `steps`, an upper limit T to the forwards of a
    row (None: one token at a time), with its `schedule`; or one of `threshold`, `entropy_bound` and `factor` (_commit.py),
    and `steps` is not read.
    temperature, top_p, top_k, min_p: see `draw`. forbidden: ids never drawn, besides the mask token.

    block: a row fills only the block (of positions j // block) of its leftmost mask, until that is full; `steps` are
    shared out by the blocks' free tokens, at least one each. eos_token_id: where it is revealed, all free positions after
    it become `pad_token_id` (default: the same id) and are done; those before it go on. remask: at each step but the last
    a revealed token of the block is masked again with at most this probability, and as many more are revealed (ReMDM with
    a capped rate, arXiv 2503.00307), so that forwards may exceed the number of tokens, but not T.

    uniform: replaces the rules' own random numbers (for parity with other code). BadInput for an unknown sampler, or one
    that cannot do what is asked; ValueError unless there is one seed a row; RuntimeError if a rule breaks its word.
    """
    if len(seeds) != len(ids):
        raise ValueError(f"{len(ids)} rows need as many seeds, not {len(seeds)}")
    order = by_name(sampler) if isinstance(sampler, str) else sampler
    commit = commit_rule(schedule, threshold=threshold, entropy_bound=entropy_bound, factor=factor)
    _refuse(order, commit, remask)
    free = ~fixed if present is None else ~fixed & present
    masked, ids = free, ids.masked_fill(free, mask_token_id)
    width = min(block or ids.shape[1], ids.shape[1]) or 1
    number = torch.arange(ids.shape[1], device=ids.device) // width
    tokens, shares = _blocks(free, steps, width)
    now = step = began = current = forwards = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    banned = torch.tensor([mask_token_id, *forbidden], device=ids.device)
    stream = uniform or _streams(seeds, ids)
    history = _History(ids, callback)
    history.show(ids, masked, step)

    def look(where: Tensor, *also: str) -> Drawn:
        nonlocal forwards
        forwards = forwards + where.any(1)
        logits = denoise(ids, where, present)
        chance = stream(_TOKEN, now)[where] if temperature else torch.zeros(len(logits), device=ids.device)
        drawn = draw(logits, chance, temperature, top_p, top_k, min_p, banned, also)
        at = {name: _spread(where, getattr(drawn, name)) for name in ("tokens", "log_probability", *also)}
        history.seen = at["log_probability"]
        return Drawn(**at)

    while bool(masked.any()):
        leftmost = masked.long().argmax(1) // width
        began, current = torch.where(leftmost == current, began, step), leftmost
        here = number == current[:, None]
        own_free, own, now = free & here, masked & here, step - began
        steps_of = shares.gather(1, current[:, None])[:, 0].clamp(min=1)
        # More steps than tokens are of use only where tokens are hidden again.
        most = steps_of if remask else steps_of.minimum(tokens.gather(1, current[:, None])[:, 0]).clamp(min=1)
        stay = partial(commit.stay, own_free.sum(1), most)
        hidden, left = own & False, own.sum(1)
        if remask:
            revealed = own_free & ~own if eos_token_id is None else own_free & ~own & (ids != eos_token_id)
            now, hidden = _hide(revealed, left, now, stay, remask, stream)
        quota = ((left - stay(now)).clamp(min=0) + hidden.sum(1)).clamp(min=1).minimum(left)
        reveal = order(State(ids, own_free, own, now, steps_of, quota, commit, look, stream))
        if bool((reveal.where & ~own).any() | (own.any(1) & ~reveal.where.any(1)).any()):
            raise RuntimeError("a sampler reveals at least one masked position in every row that has one, and no other")
        # A finished row stays where it is, whatever the rule says of it.
        step = torch.where(own.any(1), began + (now if reveal.step is None else reveal.step) + 1, step)
        ids = torch.where(reveal.where, reveal.tokens, ids).masked_fill(hidden, mask_token_id)
        masked = masked & ~reveal.where | hidden
        history.add(reveal.where, hidden, step)
        if eos_token_id is not None:
            ended = reveal.where & (reveal.tokens == eos_token_id)
            after = free & (ended.cumsum(1) > ended)
            ids = ids.masked_fill(after, eos_token_id if pad_token_id is None else pad_token_id)
            free, masked = free & ~after, masked & ~after
            history.pad(after, step)
        history.show(ids, masked, step)
    return ids, forwards


def _refuse(order: Rule, commit: Commit, remask: float) -> None:
    """BadInput for what a sampler cannot do, or a commit rule cannot go with."""
    if remask and commit.adaptive is not None:
        raise BadInput(f"remask goes with a number of steps, not with {commit.name}: leave out one of them")
    asked = "remask" if remask else commit.name
    if not takes(order, asked):
        name = getattr(order, "__name__", "this sampler")
        raise BadInput(f"{name} says itself how many tokens to reveal at a step: leave out {asked}, or the sampler")


def _blocks(free: Tensor, steps: int | None, width: int) -> tuple[Tensor, Tensor]:
    """(B, blocks) free tokens of each block, and its share of the steps: by its tokens, at least one where there are any.

    Rounded so that they add up to `steps`, or to the number of blocks if that is more.
    """
    tokens = functional.pad(free.long(), (0, -free.shape[1] % width)).view(len(free), -1, width).sum(-1)
    if steps is None:
        return tokens, tokens
    number = (tokens > 0).cumsum(1)  # 1, 2, ... of the blocks with anything to do
    blocks, count = number[:, -1:], tokens.sum(1, keepdim=True).clamp(min=1)
    ends = (2 * steps * tokens.cumsum(1) + count) // (2 * count)
    # Each block ends at least a step after the one before, and leaves one for each that follows.
    spare = ends.minimum(blocks.clamp(min=steps) - blocks + number) - number
    ends = number + spare.clamp(min=0).cummax(1).values
    return tokens, ends.diff(dim=1, prepend=torch.zeros_like(blocks))


def _hide(
    revealed: Tensor, left: Tensor, step: Tensor, stay: Callable[..., Tensor], rate: float, stream: Stream
) -> tuple[Tensor, Tensor]:
    """(the step (B,), what it masks again (B, L)); steps that would change nothing are passed over, without a forward.

    left: (B,) tokens masked. stay: step -> how many stay masked after it. As many as are hidden are revealed beside the
    quota, so no more of them than are masked, nor than may stay so: the last step hides none.
    """
    while True:
        chance, keep = stream(_HIDE, step), stay(step)
        hidden = smallest(chance, revealed & (chance < rate), keep.minimum(left))
        idle = (left > 0) & (left <= keep) & ~hidden.any(1)
        if not bool(idle.any()):
            return step, hidden
        step = step + idle


class _History:
    """What callbacks hear of beside the canvases: when each token was revealed, and how sure the model was."""

    def __init__(self, ids: Tensor, callback: Callable[[Frame], Any] | None) -> None:
        self.callback = callback
        self.revealed = torch.full_like(ids, -1)
        self.nothing = self.seen = self.confidence = torch.full(ids.shape, torch.nan, device=ids.device)
        """`seen`: log-probabilities of the tokens of the last forward."""

    def add(self, where: Tensor, hidden: Tensor, step: Tensor) -> None:
        if self.callback is not None:
            self.revealed = torch.where(where, step[:, None] - 1, self.revealed).masked_fill(hidden, -1)
            self.confidence = torch.where(where, self.seen.exp(), self.confidence).masked_fill(hidden, torch.nan)
            self.seen = self.nothing

    def pad(self, after: Tensor, step: Tensor) -> None:
        if self.callback is not None:
            self.revealed = torch.where(after & (self.revealed < 0), step[:, None] - 1, self.revealed)
            self.confidence = self.confidence.masked_fill(after, torch.nan)

    def show(self, ids: Tensor, masked: Tensor, step: Tensor) -> None:
        if self.callback is not None:
            shown = (part.clone().cpu() for part in (ids, masked, step, self.revealed, self.confidence.float()))
            self.callback(Frame(tuple(range(len(ids))), *shown))


def _spread(where: Tensor, values: Tensor) -> Tensor:
    """(n,) values at the n positions of `where`, NaN or token 0 elsewhere: (B, L)."""
    fill = torch.nan if values.is_floating_point() else 0
    out = torch.full(where.shape, fill, dtype=values.dtype, device=values.device)
    out[where] = values
    return out


def _streams(seeds: Sequence[int | tuple[int, int]], ids: Tensor) -> Stream:
    """(purpose, step (B,)) -> uniforms (B, L): a row's numbers come from its own seed.

    Made for some steps at a time: for a short canvas the work is in starting the operations, not in the numbers.
    """
    pairs = [seed if isinstance(seed, tuple) else (seed, 0) for seed in seeds]
    rows = torch.tensor([randomness.key("sample", *pair) for pair in pairs], dtype=torch.int64, device=ids.device)
    position, number = torch.arange(ids.shape[1], device=ids.device), torch.arange(len(rows), device=ids.device)
    made: dict[int, tuple[int, Tensor]] = {}

    def stream(purpose: int, step: Tensor) -> Tensor:
        first, last = int(step.min()), int(step.max())
        start, table = made.get(purpose, (last + 1, ids))
        if not start <= first <= last < start + _STEPS:
            if last >= first + _STEPS:
                return randomness.uniform(rows[:, None], purpose, step[:, None], position)
            start, ahead = first, first + torch.arange(_STEPS, device=ids.device)
            table = randomness.uniform(rows[:, None, None], purpose, ahead[:, None], position)
            made[purpose] = start, table
        return table[number, step - start]

    return stream
