"""The random order of the code published with DiffuLLaMA (arXiv 2410.17891), for parity."""

from diffulm.samplers._state import REVEAL, Reveal, State, counts_itself


@counts_itself
def published_random(state: State) -> Reveal:
    """At step t = T - 1 ... 0 each masked position is revealed with probability 1 / (t + 1): at t = 0 all the rest.

    How many are revealed at a step is random. Steps at which a row reveals nothing are passed over without a forward.
    """
    step, unfinished = state.step, state.masked.any(1)
    while True:
        chance = 1 / (state.steps - step).clamp(min=1)
        chosen = state.masked & (state.uniform(REVEAL, step) < chance[:, None])
        idle = unfinished & ~chosen.any(1)
        if not bool(idle.any()):
            break
        step = step + idle
    return Reveal(chosen, state.draw(chosen).tokens, step)
