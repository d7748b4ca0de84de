"""Uniformly random order: positions are chosen before anything is projected, so little of the vocabulary is touched."""

from diffulm.samplers._state import ORDER, Reveal, State


def random(state: State) -> Reveal:
    """Reveal masked positions drawn uniformly at each step.

    With linear steps exactly int(N t / T) positions stay masked. With T >= N the tokens come one at a time in a uniformly
    random order, and the law is exactly the mean over all N! orders of p_order.
    """
    return state.by_order(state.uniform(ORDER, state.step))
