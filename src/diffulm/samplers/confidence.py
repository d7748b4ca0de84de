"""Most confident first, with an exact budget."""

from diffulm.samplers._loop import Reveal, State, smallest, spread


def confidence(state: State) -> Reveal:
    """Draw a token for every masked position and reveal the most confident ones; exactly int(N t / T) stay masked.

    The confidence of a position is the log-probability of the token drawn there, before temperature and top-p. This is
    the rule in the paper's text (arXiv 2410.17891); its code does something else (`published_confidence`).
    """
    drawn = state.draw(state.masked, state.project(state.masked))
    score = spread(state.masked, drawn.log_probability)
    chosen = smallest(-score, state.masked, state.quota)
    return Reveal(chosen, spread(state.masked, drawn.tokens))
