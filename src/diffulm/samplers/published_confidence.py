"""The confidence order of the code published with DiffuLLaMA (arXiv 2410.17891), for parity."""

import torch

from diffulm.samplers._state import Reveal, State, counts_itself


@counts_itself
def published_confidence(state: State) -> Reveal:
    """At step t = T - 1 ... 0 reveal what scores no less than rank int(N t / T) of ALL N initially free positions.

    The score is the log-probability of the token drawn there now, after temperature and filters; it is taken in revealed
    positions too. So more is revealed than the budget says, and at some steps nothing: those are passed over without a
    forward, since the scores would be the same again.
    """
    where = state.free & state.masked.any(1, keepdim=True)
    drawn = state.draw(where, "filtered")
    score = drawn.filtered.masked_fill(~where, torch.inf)
    count = where.sum(1).clamp(min=1)
    # How many score no more than the best masked position; its rank (from 0) gives the first t it is revealed at.
    best = score.masked_fill(~state.masked, -torch.inf).amax(1, keepdim=True)
    reached = (where & (score <= best)).sum(1)
    t = (reached * state.steps - 1).clamp(min=0) // count
    t = t.minimum(state.steps - 1 - state.step).clamp(min=0)
    threshold = score.sort(1).values.gather(1, (count * t // state.steps)[:, None])
    return Reveal(state.masked & (score >= threshold), drawn.tokens, state.steps - 1 - t)
