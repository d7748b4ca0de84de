"""What a part of a suite is given: a model to ask, the data, and how hard to try."""

from dataclasses import dataclass, field
from pathlib import Path

from diffulm.evaluation.journal import Journal
from diffulm.evaluation.subject import Subject
from diffulm.scoring import Method


@dataclass
class Trial:
    """One model taking one part of a suite.

    subject: whom to ask. parent: its AR parent, where one is given (the subject itself may be one). judge: the AR model that
    judges samples, by default the parent. data: the folder of files, None for the hub. limit: rows of each task, samples of
    each generative part; None: all. draws: of a bound. steps: forwards of a generated text, None: as the part says. method:
    how a diffusion model scores answers, None: as the part says.
    """

    subject: Subject
    parent: Subject | None = None
    judge: Subject | None = None
    data: Path | None = None
    limit: int | None = None
    seed: int = 0
    draws: int = 32
    steps: int | None = None
    shots: int | None = None
    method: Method | None = None
    batch_size: int = 16
    journal: Journal = field(default_factory=Journal)
