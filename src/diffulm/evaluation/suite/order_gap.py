"""The order gap on TinyStories: what adaptation lost, and what averaging over orders costs."""

from diffulm.evaluation import tasks
from diffulm.evaluation.cells import Cell, mean_cell
from diffulm.evaluation.order_gap import FEW, order_gap, requests
from diffulm.evaluation.trial import Trial

TITLE = "the order gap: one text, read in several orders"
POSITIONS, LIMITED = 128, 64  # of a text; where the rows are limited
TEXTS = 64


def run(trial: Trial) -> list[Cell]:
    subject = trial.subject
    documents = tasks.documents(tasks.load("tinystories"), trial.data, min(trial.limit or TEXTS, TEXTS))
    length = POSITIONS if trial.limit is None else LIMITED
    asked = requests(subject, [(f"tinystories {n}", one["text"]) for n, one in enumerate(documents)], length)

    def read(group: list) -> list[dict[str, list[float]]]:
        found = order_gap(subject, group, trial.draws, FEW, trial.seed)
        return [{name: [each[i].nats, each[i].stderr] for name, each in found.items()} for i in range(len(group))]

    name = f"order gap of {subject.name}, {trial.draws} draws, {FEW} orders, seed {trial.seed}"
    kept = trial.journal.map(name, asked, read, together=16)
    return [
        _cell(trial, reading, asked, [row[reading] for row in kept], length) for reading in (kept[0] if kept else ())
    ]


def _cell(trial: Trial, reading: str, asked: list, rows: list[list[float]], length: int) -> Cell:
    tokens = sum(one.tokens for one in asked) / len(asked)
    noise = sum(error**2 for _, error in rows) ** 0.5 / len(rows) / tokens
    return mean_cell(
        f"order gap, {reading}",
        "nats a token",
        [nats / tokens for nats, _ in rows],  # their mean is all nats over all tokens
        length="none" if reading == "autoregressive" else "oracle",
        normalisation="token",
        monte_carlo=noise,
        better="lower",
        settings={"text": "tinystories", "positions": length, "draws": trial.draws, "orders": FEW, "seed": trial.seed},
    )
