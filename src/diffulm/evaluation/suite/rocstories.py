"""ROCStories infilling: the third of five sentences, given the two before it and the two after; ROUGE-1, 2 and L.

As the paper asks it: the hole has as many tokens as the sentence that stood there, ROUGE is the F-measure without stemming.
But for the space before the sentence, which the published code leaves out, and the baseline, whose continuation is as long as
that sentence in tokens, not in characters.
"""

import re
import sys
from typing import Any

from diffulm.canvas import Hole
from diffulm.errors import BadInput
from diffulm.evaluation import tasks
from diffulm.evaluation.cells import Cell, absent, mean_cell
from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.infilling import Answer, Blank, answers, cost, missing
from diffulm.evaluation.trial import Trial

TITLE = "the middle sentence of a story"
SOURCE = Source("rocstories.jsonl", ("sentences",))
METRICS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
STEPS, BEST_OF = 64, 8
FREE, EVERY = Hole(4, 32), 4
"""A hole whose length the model finds takes ten times as many forwards, so every fourth story is asked for one."""


def document(row: Row) -> tasks.Document:
    sentences = row["sentences"]
    if len(sentences) != 5:
        raise BadInput(f"{len(sentences)} sentences, a story has 5; mend or delete this row")
    return {"sentences": [sentence.strip() for sentence in sentences]}


def run(trial: Trial) -> list[Cell]:
    stories = tasks.documents(sys.modules[__name__], trial.data, trial.limit)
    blanks = [blank(number, story["sentences"]) for number, story in enumerate(stories)]
    if not trial.subject.autoregressive and not trial.subject.lm.record.infills:
        return [
            absent("rocstories", name, "fills block by block: does not see the text behind a hole") for name in METRICS
        ]
    try:
        import rouge_score  # noqa: F401
    except ImportError:
        return [absent("rocstories", name, "needs rouge-score: pip install 'diffulm[eval]'") for name in METRICS]
    few, share = blanks[::EVERY], f"every {EVERY}th story"
    if not trial.subject.autoregressive:
        return [*_cells(trial, blanks), *_cells(trial, few, FREE, note=share, length="free")]
    return [
        *_cells(trial, blanks, note="prefix only"),
        *_cells(trial, blanks, best_of=BEST_OF, note=f"best of {BEST_OF}"),
        *_cells(trial, few, FREE, note=f"prefix only, cut after a sentence; {share}", length="free"),
    ]


def blank(number: int, sentences: list[str]) -> Blank:
    """Each space at the head of what follows it."""
    first, second, middle, fourth, fifth = sentences
    return Blank(f"rocstories {number}", f"{first} {second}", f" {middle}" if middle else "", f" {fourth} {fifth}")


def _cells(
    trial: Trial,
    blanks: list[Blank],
    hole: Hole | None = None,
    best_of: int = 1,
    note: str = "",
    length: Any = "oracle",
) -> list[Cell]:
    subject, steps = trial.subject, trial.steps or STEPS
    if subject.autoregressive:
        how = {"temperature": float(best_of > 1), "best_of": best_of} | ({"seed": trial.seed} if best_of > 1 else {})
    else:
        how = {"sampler": "confidence", "temperature": 0.0, "steps": steps}
    how |= {"hole": f"{hole.least} to {hole.longest} tokens"} if hole else {}

    def ask(group: list[Blank]) -> list[dict[str, Any]]:
        given = {"best_of": best_of, "steps": steps, "seed": trial.seed, "batch_size": trial.batch_size}
        return [vars(one) for one in answers(subject, group, hole=hole, **given)]

    name = f"rocstories of {subject.name}, {how}"
    found = [Answer(**one) for one in trial.journal.map(name, blanks, ask, together=4 if hole else 32)]
    scores = _rouge(blanks, found, sentence=hole is not None and subject.autoregressive)
    counts = missing(found)
    more = {
        "length": length,
        "note": note if any(scores.values()) else ", ".join(counts),
        "settings": how | cost(found),
        "counts": counts,
    }
    return [mean_cell("rocstories", metric, scores[name], **more) for metric, name in METRICS.items()]


def _rouge(blanks: list[Blank], found: list[Answer], sentence: bool) -> dict[str, list[float]]:
    """Each ROUGE of each story that was asked. sentence: of the first sentence of what came."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([*METRICS.values()])
    pairs = [(one.middle, answer.text) for one, answer in zip(blanks, found, strict=True) if answer.text is not None]
    each = [scorer.score(wanted, first_sentence(text) if sentence else text) for wanted, text in pairs]
    return {name: [one[name].fmeasure for one in each] for name in METRICS.values()}


def first_sentence(text: str) -> str:
    end = re.search(r"[.!?]+[\"')\]]*(?=\s|$)", text)
    return text[: end.end()] if end else text
