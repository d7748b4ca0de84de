"""Text from nothing by steps: perplexity under an AR judge, and beside it what gives away a text that repeats itself.

A low perplexity alone is easy to have, by saying the same again and again. So entropy, distinct n-grams and repeated 4-grams
stand beside it, and the same figures of the parent's own samples and of real text. Order, temperature and top-p are those of
the published runs, for all models.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffulm import randomness, scoring
from diffulm.canvas import encode
from diffulm.errors import BadInput
from diffulm.evaluation import generation, tasks
from diffulm.evaluation.cells import Cell, absent, mean_cell
from diffulm.evaluation.data import NoData, why
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.trial import Trial

TITLE = "text from nothing, by steps"
NAME = "generation"
STEPS = (8, 16, 32, 64, 128, 256, 512, 1024)
SAMPLES, LENGTH = 64, 1024
LIMITED_STEPS, LIMITED_LENGTH = 64, 128  # with --limit
HOW = {"temperature": 0.98, "top_p": 0.9}
GROUP = 8  # samples a line of the journal, and at once where an AR model draws them
REAL = ("wikitext2", "tinystories")


@dataclass(frozen=True)
class Judged:
    """One text. nats: all it costs the judge. tokens: the judge's, of which that is the sum."""

    nats: float
    tokens: int


def run(trial: Trial) -> list[Cell]:
    judge = trial.judge or trial.parent
    if judge is None:
        return [absent(NAME, "perplexity", "no judge: name one, or a parent", better="lower")]
    subject = trial.subject
    length = min(LENGTH if trial.limit is None else LIMITED_LENGTH, subject.context, judge.context)
    common = {"judge": judge.name, "samples": count(trial), "seed": trial.seed, **HOW}
    cells = []
    for steps in sweep(trial, length):
        task = f"{NAME}, left to right" if steps is None else f"{NAME}, {steps} steps"
        how = common if steps is None else {**common, "steps": steps, "sampler": "random"}
        cells += figures(trial, judge, task, samples(trial, length, steps), how | {"positions": length})
    for name in REAL:
        task = f"{NAME}, text of {name}"
        try:
            texts = real(trial, name, length)
        except (NoData, BadInput) as error:
            cells.append(absent(task, "perplexity", why(error), better="lower"))
            continue
        cells += figures(trial, judge, task, texts, {"judge": judge.name, "positions": length})
    return cells


def sweep(trial: Trial, length: int) -> list[int | None]:
    """The numbers of steps; None for a model that reads from left to right."""
    if trial.subject.autoregressive:
        return [None]
    most = length if trial.limit is None else min(length, LIMITED_STEPS)
    return [trial.steps] if trial.steps else [steps for steps in STEPS if steps <= most]


def count(trial: Trial) -> int:
    """Texts of each kind."""
    return SAMPLES if trial.limit is None else min(trial.limit, SAMPLES)


def samples(trial: Trial, length: int, steps: int | None) -> list[list[int]]:
    """Texts of `length` positions, without BOS. steps None: the model's own, left to right."""
    subject, bos = trial.subject, len(trial.subject.bos)

    def draw(group: list[int]) -> list[list[int]]:
        seeds = [randomness.key(trial.seed, f"{NAME} {row}") for row in group]
        where = {"denoiser": subject.denoiser, "length": length, "forbidden": subject.lm.forbidden, **HOW}
        if steps is None:
            found = generation.ancestral(seeds=seeds, **where)
        else:
            more = {"steps": steps, "sampler": "random", "batch_size": trial.batch_size}
            found = generation.unconditional(count=len(group), seed=seeds, **where, **more)
        return found[:, bos:].tolist()

    way = "left to right" if steps is None else f"{steps} steps, random"
    name = f"samples of {subject.name}, {way}, {length} positions, {HOW}, seed {trial.seed}"
    return trial.journal.map(name, range(count(trial)), draw, GROUP)


def real(trial: Trial, name: str, length: int) -> list[list[int]]:
    """The first texts of a task that are long enough, cut to as many tokens as a sample has. NoData as `tasks.documents`."""
    subject = trial.subject
    size, found = length - len(subject.bos), []
    for one in tasks.documents(tasks.load(name), trial.data, None):
        ids = encode(subject.tokenizer, one["text"])
        found += [ids[:size]] if len(ids) >= size else []
        if len(found) == count(trial):
            break
    return found


def figures(trial: Trial, judge: Subject, task: str, texts: Sequence[list[int]], how: dict[str, Any]) -> list[Cell]:
    """Perplexity and what goes with it. The perplexity is exp of the mean nats a token of all texts; its error is that of the
    ratio of two sums over texts, by linearisation."""
    if not texts:
        return [absent(task, "perplexity", "no text is long enough", better="lower", settings=how)]
    same = alike(judge, trial.subject, texts)
    note = "" if same else "decoded, and encoded again for the judge; nats a token of the judge's"
    found = [one for one in judged(trial, judge, task, texts, same) if one.tokens]
    if not found:
        return [absent(task, "perplexity", "samples without text", better="lower", settings=how)]
    value, error = perplexity(found)
    items = tuple(one.nats / one.tokens for one in found)
    more: dict[str, Any] = {"settings": how, "better": "lower", "normalisation": "token"}
    empty = {"samples without text": len(texts) - len(found)} if len(found) < len(texts) else {}
    first = Cell(task, "perplexity", value, error, len(found), note=note, counts=empty, items=items, **more)
    rows = [torch.tensor([[0, *one]]) for one in texts]  # what stands first does not count there
    more = {"settings": how, "better": "neither"}
    entropy = mean_cell(task, "entropy in nats", [generation.entropy(row) for row in rows], **more)
    distinct = [
        mean_cell(task, f"distinct-{n}", [1 - generation.repeated(row, n) for row in rows], **more) for n in (1, 2, 3)
    ]
    again = mean_cell(
        task, "repeated 4-grams", [generation.repeated(row, 4) for row in rows], **more | {"better": "lower"}
    )
    return [first, entropy, *distinct, again]


def perplexity(found: Sequence[Judged]) -> tuple[float, float | None]:
    """(exp of all nats over all tokens, its standard error over texts; None for one text)."""
    nats, tokens, texts = sum(one.nats for one in found), sum(one.tokens for one in found), len(found)
    mean = nats / tokens
    if texts < 2:
        return math.exp(mean), None
    spread = statistics.fmean((one.nats - mean * one.tokens) ** 2 for one in found) * texts / (texts - 1)
    return math.exp(mean), math.exp(mean) * math.sqrt(texts * spread) / tokens


def alike(judge: Subject, subject: Subject, texts: Sequence[list[int]]) -> bool:
    """Whether every token that occurs is the same to both tokenizers."""
    used = sorted({token for one in texts for token in one})
    size = min(len(judge.tokenizer), len(subject.tokenizer))
    name, other = judge.tokenizer.convert_ids_to_tokens, subject.tokenizer.convert_ids_to_tokens
    return all(token < size and name(token) == other(token) for token in used)


def judged(trial: Trial, judge: Subject, task: str, texts: Sequence[list[int]], same: bool) -> list[Judged]:
    """Each text under the judge, its BOS in front; what does not fit into its context is cut off at the end."""

    def ask(group: list[list[int]]) -> list[tuple[float, int]]:
        requests = []
        for ids in group:
            if not same:
                ids = encode(judge.tokenizer, trial.subject.tokenizer.decode(ids, skip_special_tokens=True))
            whole = (*judge.bos, *ids)[: judge.context]
            requests.append(scoring.Request(whole, max(1, len(judge.bos)), len(whole)))
        asked = [one for one in requests if one.tokens > 0]
        found = iter(scoring.scores(judge.denoiser, asked, "autoregressive"))
        return [(next(found).nats, one.tokens) if one.tokens > 0 else (0.0, 0) for one in requests]

    return [
        Judged(*one) for one in trial.journal.map(f"{task}: judged by {judge.name}, same: {same}", texts, ask, GROUP)
    ]
