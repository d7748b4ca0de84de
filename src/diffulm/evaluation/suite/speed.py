"""Decoding time against length, one text at a time: the paper's 256 steps at 512, 1024 and 2048 positions, and an AR model's
`generate` with its cache of keys and values.

A model of a smaller context has lengths of its own, with as many steps as go with its longest one as 256 go with 2048. The
text does not matter, so EOS ends none.
"""

import statistics
import time
import warnings
from functools import partial

import torch

from diffulm.canvas import Canvas
from diffulm.denoiser.denoiser import evaluating
from diffulm.evaluation.cells import Cell, absent
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.trial import Trial
from diffulm.filling import fill
from diffulm.options import GenerateOptions

TITLE = "decoding time against length"
NAME = "decoding time"
LENGTHS, STEPS = (512, 1024, 2048), 256
LIMITED = 256  # the longest with --limit
REPEATS, SHARE = 3, LENGTHS[-1] // STEPS


def run(trial: Trial) -> list[Cell]:
    subject = trial.subject
    cells = []
    for length, steps in lengths(subject.context, trial.limit is not None):
        task, metric = f"{NAME}, {length} positions", "seconds a text"
        how = {"positions": length, "texts_at_once": 1, "repeats": REPEATS, "figure": "median"}
        if not subject.autoregressive:
            how |= {"steps": trial.steps or steps, "sampler": "confidence", "temperature": 0}
        if length > subject.context:
            note = f"beyond the context of {subject.context}"
            cells.append(absent(task, metric, note, better="lower", settings=how))
            continue
        found = trial.journal.map(f"{task} of {subject.name}", [how], partial(timed, subject))
        cells.append(Cell(task, metric, found[0], None, 1, better="lower", settings=how))
    return cells


def lengths(context: int, limited: bool) -> list[tuple[int, int]]:
    """(positions, steps) of each text. The paper's, and in a context with no room for its shortest, or with --limit, a
    quarter, a half and the whole of what there is."""
    longest = min(context, LIMITED) if limited or context < LENGTHS[0] else 0
    own = [(longest // part, max(1, longest // SHARE)) for part in (4, 2, 1)] if longest else []
    paper = [(length, STEPS) for length in LENGTHS if not limited or length > context]
    return [one for one in own if one[0] > 1] + paper


def timed(subject: Subject, settings: list[dict]) -> list[float]:
    """Seconds a text, the median of some after one that does not count, for each of the settings."""
    once = generated if subject.autoregressive else filled
    medians = []
    for how in settings:
        readings = []
        for _ in range(how["repeats"] + 1):
            began = time.perf_counter()
            once(subject, how)
            readings.append(time.perf_counter() - began)
        medians.append(statistics.median(readings[1:]))
    return medians


def filled(subject: Subject, how: dict) -> list[int]:
    """Ids of a text by diffusion."""
    length, bos = how["positions"], subject.bos
    ids = torch.full((length,), bos[0] if bos else 0)
    canvas = Canvas(ids, torch.arange(length) < len(bos), (), None)
    options = GenerateOptions(steps=how["steps"], sampler=how["sampler"], temperature=how["temperature"])
    return fill(subject.denoiser, [canvas], options, subject.lm.forbidden)[0].ids


def generated(subject: Subject, how: dict) -> list[int]:
    """Ids of a text of an AR model, greedy."""
    ids = torch.tensor([subject.bos], device=subject.denoiser.device)
    new = how["positions"] - ids.shape[1]
    end = subject.tokenizer.eos_token_id
    with evaluating(subject.lm.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generate warns of settings in a model's own file
        out = subject.lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1, min_new_tokens=new, max_new_tokens=new,
            pad_token_id=0 if end is None else end,
        )  # fmt: skip
    return out[0].tolist()
