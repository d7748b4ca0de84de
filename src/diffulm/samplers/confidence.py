"""Most confident first."""

from diffulm.samplers._state import Reveal, State


def confidence(state: State) -> Reveal:
    """Draw a token for every masked position and reveal the most confident ones.

    The confidence of a position is the probability of the token drawn there, before temperature and filters. With
    linear steps exactly int(N t / T) stay masked: the rule in the paper's text (arXiv 2410.17891); its code does something
    else (`published_confidence`). With `threshold` it is the parallel decoding of Fast-dLLM (arXiv 2505.22618).
    """
    return state.by_score(lambda drawn: drawn.log_probability)
