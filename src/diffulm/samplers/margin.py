"""Least torn between two tokens first."""

from diffulm.samplers._state import Reveal, State


def margin(state: State) -> Reveal:
    """Reveal first where the best token is furthest ahead of the second (arXiv 2502.06768), whichever was drawn.

    The margin is the difference of their probabilities, before temperature and filters.
    """
    return state.by_score(lambda drawn: drawn.margin, "margin")
