"""LAMBADA: the last word of a passage, right when every token of it is the likeliest in its place, left to right."""

from diffulm import scoring
from diffulm.evaluation import tasks
from diffulm.evaluation.cells import Cell, mean_cell, share_cell
from diffulm.evaluation.trial import Trial

TITLE = "the last word of a passage"


def run(trial: Trial) -> list[Cell]:
    subject = trial.subject
    documents = tasks.documents(tasks.load("lambada"), trial.data, trial.limit)
    method = "autoregressive" if subject.autoregressive else "left_to_right"

    def ask(group: list[tuple[int, str, str]]) -> list[list[float] | None]:
        encoded = [
            scoring.encoded(subject.tokenizer, subject.bos, context, word, limit=subject.context)
            for _, context, word in group
        ]
        found = iter(scoring.scores(subject.denoiser, [one for one, _ in encoded if one], method))
        each = [(one and next(found), cut) for one, cut in encoded]
        return [scored and [float(scored.greedy or 0), scored.nats, scored.tokens, cut] for scored, cut in each]

    questions = [(n, one["context"], one["continuation"]) for n, one in enumerate(documents)]
    kept = trial.journal.map(f"lambada of {subject.name}, {method}", questions, ask)
    rows = [row for row in kept if row is not None]
    counts = {"contexts cut": sum(row[3] > 0 for row in rows), "not askable": len(kept) - len(rows)}
    more = {
        "length": "none" if subject.autoregressive else "oracle",
        "settings": {"method": method, "shots": 0},
        "counts": {name: count for name, count in counts.items() if count},
    }
    nats = mean_cell("lambada", "nats a word", [row[1] for row in rows], better="lower", monte_carlo=0.0, **more)
    return [share_cell("lambada", "accuracy", [row[0] for row in rows], **more), nats]
