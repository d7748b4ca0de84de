"""The order of exact first-hitting times: one token a forward."""

import torch

from diffulm.samplers._state import ORDER, Reveal, State, counts_itself


@counts_itself
def first_hitting(state: State) -> Reveal:
    """Reveal the masked position that the reverse process, in continuous time, reveals next (arXiv 2409.02908).

    Going back from t = 1 to 0 each position has its own time of being revealed, independent and uniform under linear
    masking (under another schedule a monotone function of that); the largest comes next. As our denoisers are not told the
    time, only the order of these times matters: the law of the text is that of `random` one at a time. What differs: the
    time steps of `steps` are never made, nor is their error; it is one token a forward whatever `steps` says.
    """
    time = state.uniform(ORDER, torch.zeros_like(state.step))  # a position keeps its time
    latest = time.masked_fill(~state.masked, -1).argmax(1, keepdim=True)
    chosen = torch.zeros_like(state.masked).scatter(1, latest, True) & state.masked
    return Reveal(chosen, state.draw(chosen).tokens)
