"""Lowest entropy first."""

from diffulm.samplers._state import Reveal, State


def entropy(state: State) -> Reveal:
    """Reveal first where the distribution has the lowest entropy, before temperature and filters, whatever was drawn.

    With `entropy_bound` this is the EB-Sampler (arXiv 2505.24857).
    """
    return state.by_score(lambda drawn: -drawn.entropy, "entropy")
