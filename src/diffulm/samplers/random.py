"""Uniformly random order: positions are chosen before anything is projected, so little of the vocabulary is touched."""

from diffulm.samplers._loop import ORDER, Reveal, State, smallest, spread


def random(state: State) -> Reveal:
    """Reveal the next ones of a random order that each row keeps to the end.

    Exactly int(N t / T) positions stay masked. With T >= N the tokens come one at a time in a uniformly random order,
    and the law is exactly the mean over all N! orders of p_order.
    """
    priority = state.uniform(ORDER, state.step * 0)  # the same at every step
    chosen = smallest(priority, state.masked, state.quota)
    drawn = state.draw(chosen, state.project(chosen))
    return Reveal(chosen, spread(chosen, drawn.tokens))
