"""HumanEval infilling (Bavarian et al., 2022): one line of a function is missing; pass@1, each program run in a sandbox.

As the paper asks it: the hole has as many tokens as the line that stood there. The parent goes on from the text before the
hole, for as many tokens, cut after its first line; and, length free, until that line ends.
"""

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

from diffulm.canvas import Hole
from diffulm.errors import BadInput
from diffulm.evaluation import sandbox, tasks
from diffulm.evaluation.cells import Cell, absent, share_cell
from diffulm.evaluation.data import Row, Source
from diffulm.evaluation.infilling import Answer, Blank, answers, cost, missing
from diffulm.evaluation.trial import Trial

TITLE = "a missing line of a program"
FIELDS = ("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test")
SOURCE = Source("humaneval-infilling/single-line.jsonl", FIELDS)
STEPS = 64
LINE = Hole(1, 48)
"""A line of a parent that nobody told when to stop: of 900 that stood there one is longer."""


def document(row: Row) -> tasks.Document:
    for name in FIELDS:
        if not isinstance(row[name], str):
            raise TypeError(f"{name} is not text")
    return row


def run(trial: Trial) -> list[Cell]:
    subject = trial.subject
    problems = tasks.documents(sys.modules[__name__], trial.data, trial.limit)
    if subject.autoregressive:
        return [
            _cell(trial, problems, note="prefix only"),
            _cell(trial, problems, LINE, note="prefix only, until its line ends"),
        ]
    if not subject.lm.record.infills:
        return [absent("humaneval", "pass@1", "fills block by block: does not see the text behind a hole")]
    return [_cell(trial, problems)]


def _cell(trial: Trial, problems: list[tasks.Document], hole: Hole | None = None, note: str = "") -> Cell:
    subject, steps = trial.subject, trial.steps or STEPS
    how: dict[str, Any] = {"temperature": 0.0}
    how |= {} if subject.autoregressive else {"sampler": "confidence", "steps": steps}
    how |= {"most_tokens": hole.longest} if hole else {}

    def ask(group: list[Blank]) -> list[dict[str, Any]]:
        found = answers(subject, group, hole=hole, steps=steps, seed=trial.seed, batch_size=trial.batch_size)
        return [vars(one) for one in found]

    blanks = [blank(problem) for problem in problems]
    kept = trial.journal.map(f"humaneval of {subject.name}, {how}", blanks, ask, together=32)
    found = [Answer(**one) for one in kept]
    if subject.autoregressive:
        found = [one if one.text is None else replace(one, text=first_line(one.text)) for one in found]
    programs = [
        (one.before + answer.text + one.after, f"{problem['test']}\ncheck({problem['entry_point']})\n")
        for problem, one, answer in zip(problems, blanks, found, strict=True)
        if answer.text is not None
    ]
    limits = f"{sandbox.SECONDS} s, {sandbox.MEMORY} bytes"
    try:
        outcomes = trial.journal.map(f"programs, {limits}", programs, _tried, together=16)
    except BadInput as error:  # no sandbox on this system: nothing is run, and the cell says so
        return absent("humaneval", "pass@1", str(error))
    whys = Counter(why for why, _ in outcomes if why != "passed")
    more: dict[str, Any] = {
        "length": "free" if hole else "oracle",
        "note": note if outcomes else ", ".join(missing(found)),
        "settings": how
        | cost(found)
        | {"sandbox": "seccomp" if all(filtered for _, filtered in outcomes) else "no seccomp"},
        "counts": missing(found) | dict(sorted(whys.items())),
    }
    return share_cell("humaneval", "pass@1", [float(why == "passed") for why, _ in outcomes], None, **more)


def blank(problem: tasks.Document) -> Blank:
    return Blank(problem["task_id"], problem["prompt"], problem["canonical_solution"], problem["suffix"])


def _tried(programs: list[tuple[str, str]]) -> list[tuple[str, bool]]:
    found = [sandbox.run(program, test) for program, test in programs]
    return [(one.why, one.filtered) for one in found]


def first_line(text: str) -> str:
    """Up to its newline, that included."""
    head, newline, _ = text.partition("\n")
    return head + newline
