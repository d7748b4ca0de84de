"""Held-out holes: how much of what was in them comes back, and against what.

The diffusion model sees both sides. The parent, as an AR model, reads the left side only: its greedy continuation, or the
best of k continuations ranked by its own likelihood of the whole text, which costs it k forwards of the full length, the
same as k denoising steps.
"""

import ast
import re
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from diffulm import canvas, filling
from diffulm.canvas import Canvas, Hole
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.probe import evaluating
from diffulm.evaluation.subject import Subject
from diffulm.options import GenerateOptions
from diffulm.randomness import key, uniform
from diffulm.shapes import Int

_HOLE, _LENGTH = key("infilling hole"), key("infilling length")
BATCH = 16


@dataclass(frozen=True)
class Task:
    """A text with one hole: ids with BOS in front, the hole at start..stop, what stood there included."""

    ids: tuple[int, ...]
    start: int
    stop: int

    @property
    def hidden(self) -> tuple[int, ...]:
        return self.ids[self.start : self.stop]


@dataclass(frozen=True)
class Filled:
    """What came back: whole texts as ids, and the seconds it took."""

    ids: list[tuple[int, ...]]
    seconds: float


def tasks_from_blocks(blocks: Int[Tensor, "n l"], hole: int, margin: int = 16, seed: int = 0) -> list[Task]:
    """One hole of `hole` tokens a block, evenly anywhere that leaves `margin` tokens on either side."""
    return [_task(tuple(ids.tolist()), hole, margin, seed, index) for index, ids in enumerate(blocks)]


def tasks_from_code(
    tokenizer: Any, bos: int, sources: Iterable[str], hole: int, count: int, longest: int, seed: int = 0
) -> list[Task]:
    """One hole of `hole` tokens in each of `count` functions of at most `longest` tokens, evenly over those found."""
    margin = 6
    found = []
    for text in _functions(sources):
        ids = (bos, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if hole + 4 * margin <= len(ids) <= longest:
            found.append(ids)
    chosen = [found[i * len(found) // count] for i in range(min(count, len(found)))] if len(found) > count else found
    return [_task(ids, hole, margin, seed, index) for index, ids in enumerate(chosen)]


def _task(ids: tuple[int, ...], hole: int, margin: int, seed: int, index: int) -> Task:
    room = len(ids) - hole - 2 * margin + 1
    start = margin + int(uniform(seed, _HOLE, index) * room)
    return Task(ids, start, start + hole)


def shortened(tasks: list[Task], seed: int = 0) -> list[Task]:
    """The same texts, each hole ended early: its length is even over 1 to what it was."""
    sizes = [1 + int(uniform(seed, _LENGTH, n) * (task.stop - task.start)) for n, task in enumerate(tasks)]
    return [Task(task.ids, task.start, task.start + size) for task, size in zip(tasks, sizes, strict=True)]


def around(tokenizer: Any, task: Task) -> tuple[str, str, str]:
    """(text before the hole, what was in it, text after it)."""
    before, end = (tokenizer.decode(list(task.ids[1:stop])) for stop in (task.start, task.stop))
    whole = tokenizer.decode(list(task.ids[1:]))
    return before, end[len(before) :], whole[len(end) :]


def broken_words(texts: Iterable[tuple[str, str, str]], seed: int = 0) -> list[tuple[str, str, str]]:
    """The same holes, each moved to the left into the last word of four letters or more before it: it begins within that
    word and ends where the word does. Texts without such a word are left out."""
    found = []
    for n, (before, hidden, after) in enumerate(texts):
        words = list(re.finditer(r"[A-Za-z]{4,}", before))
        if words:
            word = words[-1]
            cut = word.start() + 1 + int(uniform(seed, _LENGTH, n) * (len(word[0]) - 1))
            found.append((before[:cut], before[cut : word.end()], before[word.end() :] + hidden + after))
    return found


def edit_similarity(found: str, wanted: str) -> float:
    """Twice the characters in matching runs over the characters of both (Ratcliff and Obershelp, `difflib`): 1 is equal."""
    return SequenceMatcher(None, found, wanted, autojunk=False).ratio()


def _functions(sources: Iterable[str]) -> Iterator[str]:
    """The functions and methods of Python modules, dedented."""
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            segment = ast.get_source_segment(source, node, padded=True) if isinstance(node, ast.FunctionDef) else None
            if segment:
                yield textwrap.dedent(segment) + "\n"


def fill(
    denoiser: Denoiser, tasks: list[Task], steps: int, sampler: str = "confidence", temperature: float = 0.0
) -> Filled:
    """Each hole by diffusion, both sides in sight; row i has the stream (0, i)."""
    made = [_canvas(task) for task in tasks]
    options = GenerateOptions(steps=steps, sampler=sampler, temperature=temperature, batch_size=BATCH)
    started = time.perf_counter()
    done = [tuple(one.ids) for one in filling.fill(denoiser, made, options)]
    return Filled(done, time.perf_counter() - started)


def _canvas(task: Task) -> Canvas:
    at = torch.arange(len(task.ids))
    return Canvas(torch.tensor(task.ids), (at < task.start) | (at >= task.stop), (), None)


def continue_left(
    parent: Any, tasks: list[Task], best_of: int = 1, seed: int = 0, seeds: Sequence[int] | None = None
) -> Filled:
    """Each hole by the AR parent: its greedy continuation of the left side; with best_of > 1 the best of that many draws
    at temperature 1, by the parent's likelihood of the whole text with the right side in place. seeds: one for each hole,
    so that its draws do not depend on the others."""
    started, done = time.perf_counter(), []
    with _drawing(parent, seed):
        for number, task in enumerate(tasks):
            if seeds is not None:
                torch.manual_seed(seeds[number])
            out = _continued(parent, task, task.stop - task.start, best_of)
            whole = _with_right(task, out)
            best = int(_nats(parent, whole).argmin()) if best_of > 1 else 0
            done.append(tuple(whole[best].tolist()))
    return Filled(done, time.perf_counter() - started)


def continue_left_freely(parent: Any, tasks: list[Task], longest: int, best_of: int, seed: int = 0) -> Filled:
    """The same when nobody says how long the hole is: greedy and `best_of` draws of `longest` tokens, each ended after 1,
    2, ... of them: the best by the parent's likelihood of the whole text."""
    started, done = time.perf_counter(), []
    with _drawing(parent, seed):
        for task in tasks:
            drawn = torch.cat([_continued(parent, task, longest, n) for n in (1, best_of)])
            found: list[tuple[float, tuple[int, ...]]] = []
            for size in range(1, longest + 1):
                whole = _with_right(task, drawn[:, : task.start + size].unique(dim=0))
                found += zip(_nats(parent, whole).tolist(), map(tuple, whole.tolist()), strict=True)
            done.append(min(found)[1])
    return Filled(done, time.perf_counter() - started)


@contextmanager
def _drawing(parent: Any, seed: int) -> Iterator[None]:
    with evaluating(parent), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generate warns of a pad token it does not need here
        torch.manual_seed(seed)
        yield


def _continued(parent: Any, task: Task, size: int, draws: int) -> Tensor:
    """(draws, start + size): the left side and what the parent goes on with; one draw is greedy."""
    left = torch.tensor([task.ids[: task.start]], device=parent.device)
    drawing = {"do_sample": True, "num_return_sequences": draws, "top_k": 0} if draws > 1 else {"do_sample": False}
    return parent.generate(
        left,
        attention_mask=torch.ones_like(left),
        max_new_tokens=size,
        min_new_tokens=size,
        pad_token_id=0,
        **drawing,
    )


def _with_right(task: Task, left: Tensor) -> Tensor:
    """Rows (B, l) with what stands to the right of the hole behind each."""
    right = torch.tensor([task.ids[task.stop :]], dtype=torch.int64, device=left.device)
    return torch.cat([left, right.expand(len(left), -1)], 1)


def _nats(parent: Any, rows: Tensor) -> Tensor:
    """-log p (B,) of whole rows (B, L) under the AR parent, BOS given."""
    logp = parent(input_ids=rows).logits[:, :-1].float().log_softmax(-1)
    return -logp.gather(2, rows[:, 1:, None]).sum((1, 2))


def token_accuracy(tasks: list[Task], filled: Filled) -> tuple[float, float]:
    """(share of hidden tokens that came back, its standard error over tasks: tokens of one hole are not independent)."""
    shares = torch.tensor(
        [
            sum(a == b for a, b in zip(ids[task.start : task.stop], task.hidden, strict=True)) / len(task.hidden)
            for task, ids in zip(tasks, filled.ids, strict=True)
        ]
    )
    return float(shares.mean()), float(shares.std() / len(tasks) ** 0.5) if len(tasks) > 1 else float("inf")


def parses(tokenizer: Any, filled: Filled) -> float:
    """Share of the filled texts that are valid Python."""
    good = 0
    for ids in filled.ids:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an invalid escape in a filled string is a SyntaxWarning
                ast.parse(tokenizer.decode(ids[1:]))
            good += 1
        except (SyntaxError, ValueError):
            continue
    return good / max(1, len(filled.ids))


def tokens_per_second(tasks: list[Task], filled: Filled) -> float:
    return sum(task.stop - task.start for task in tasks) / max(filled.seconds, 1e-9)


@dataclass(frozen=True)
class Blank:
    """A text with one hole, as text. What stands between two parts (a space, a newline) is part of one of them. key: names
    it for its random numbers."""

    key: str
    before: str
    middle: str
    after: str


@dataclass(frozen=True)
class Answer:
    """What a model put into a blank; None where it could not be asked, for the reason `why`."""

    text: str | None
    why: str = ""
    forwards: int = 0
    """Of a diffusion model."""


def hidden(subject: Subject, blank: Blank) -> Task:
    """A blank as ids: each part encoded as it stands there, BOS in front of the whole and nowhere else."""
    lm, record = subject.lm, subject.lm.record
    middle = canvas.encode(lm.tokenizer, blank.middle, inside=bool(blank.before))
    parts = [blank.before, *([Hole(len(middle))] if middle else []), blank.after]
    made = canvas.template(lm.tokenizer, record.bos_token_id, record.mask_token_id, parts)
    start = next((span.start for span in made.spans if span.text is None), 0)
    ids = made.ids.tolist()
    return Task((*ids[:start], *middle, *ids[start + len(middle) :]), start, start + len(middle))


def answers(
    subject: Subject,
    blanks: Sequence[Blank],
    *,
    hole: Hole | None = None,
    best_of: int = 1,
    steps: int = 64,
    seed: int = 0,
    batch_size: int = BATCH,
) -> list[Answer]:
    """Every blank filled: by a diffusion model, both sides in sight, in at most `steps` forwards, confidence order, the
    likeliest token; by an AR model as in `continue_left`.

    hole: of unknown length, at most so long (an AR model continues by as much); default as long as what stood there. A blank
    in which nothing stood, or too long for the model, has no answer.
    """
    found = [hidden(subject, blank) for blank in blanks]
    sizes = [_needed(task, hole, subject.autoregressive) for task in found]
    whys = [
        "empty" if not task.hidden else "beyond the context" if size > subject.context else ""
        for task, size in zip(found, sizes, strict=True)
    ]
    asked = [(blank, task) for blank, task, why in zip(blanks, found, whys, strict=True) if not why]
    seeds = [key(seed, blank.key) for blank, _ in asked]
    if subject.autoregressive:
        given = iter(_continuations(subject, [task for _, task in asked], hole, best_of, seeds))
    else:
        texts = [[one.before, hole or Hole(len(task.hidden)), one.after] for one, task in asked]
        how: Any = {"seed": seeds, "steps": steps, "length_method": "grow", "batch_size": batch_size}
        made = subject.lm.infill(texts, **how) if texts else []
        given = iter([Answer(one.fills[0], "", one.forwards) for one in made])
    return [Answer(None, why) if why else next(given) for why in whys]


def _needed(task: Task, hole: Hole | None, one_sided: bool) -> int:
    """Positions, the right side's included even where nobody looks at it: so that child and parent are asked the same."""
    if hole is None:
        return len(task.ids)
    return max(len(task.ids), (task.start if one_sided else len(task.ids) - len(task.hidden)) + hole.longest)


def _continuations(
    subject: Subject, tasks: list[Task], hole: Hole | None, best_of: int, seeds: list[int]
) -> list[Answer]:
    if hole:
        tasks = [
            Task((*one.ids[: one.start], *[0] * hole.longest), one.start, one.start + hole.longest) for one in tasks
        ]
    filled = continue_left(subject.lm.model, tasks, best_of, seeds=seeds)
    first = len(subject.bos)
    return [
        Answer(canvas.continuation(subject.tokenizer, ids[first : task.start], ids[task.start : task.stop]))
        for task, ids in zip(tasks, filled.ids, strict=True)
    ]


def missing(found: Sequence[Answer]) -> dict[str, int]:
    """How many were not asked, by why."""
    return dict(sorted(Counter(one.why for one in found if one.why).items()))


def cost(found: Sequence[Answer]) -> dict[str, float]:
    """Forwards that a blank took, for the settings of a cell."""
    each = [one.forwards for one in found if one.forwards]
    return {"forwards_each": round(fmean(each), 1)} if each else {}
