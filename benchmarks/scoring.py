"""What it costs to answer questions with choices: the published procedure against ours, one gain after the other.

    python benchmarks/scoring.py DATA MODEL ... --json [--gpt2 TOKENIZER]    # DATA: the folder of task files

published: 32 noise levels, each a forward of one canvas with all its logits (the paper's estimator). Then, each with the ones
before: batched (the same canvases, many a forward), projected (logits of the hidden answer tokens alone), fewer draws (the
count estimator of the bound, as many draws as have the published error), left to right (no error at all, a forward a token of
the answer), and what `diffulm eval` does: the cheaper of the last two, the bound with a sequential test.

Equal error: the root mean square, over pairs of choices, of the standard error of the difference in nats a token, which is what
decides an answer. Sides run in alternation; a figure is the median over pairs of seconds(published) / seconds(side).
"""

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pairs import alternated, conditions, median
from torch.nn import functional

from diffulm import bounds, randomness, scoring
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import evaluating
from diffulm.evaluation import choices, tasks
from diffulm.evaluation.subject import Subject, opened
from diffulm.evaluation.suite.choices import TASKS, question
from diffulm.lm import DiffusionLM
from diffulm.scoring import Request

LEVELS = 32
DRAWS = (8, 16, 24, 32, 40, 48, 64)


def encoded(subject: Subject, questions: list[choices.Question]) -> list[list[Request]]:
    """The choices of each question that can be asked."""
    found = []
    for one in questions:
        made = [
            scoring.encoded(subject.tokenizer, subject.bos, *texts, limit=subject.context)[0] for texts in one.texts
        ]
        if all(made):
            found.append([replace(each, key=randomness.key(one.key)) for each in made])
    return found


def published(subject: Subject, requests: list[Request], rows: int) -> list[float]:
    """The paper's estimator as its code runs it, all logits, `rows` canvases of one request a forward."""
    found, mask = [], subject.lm.mask_token_id
    with evaluating(subject.denoiser.model):
        for request in requests:
            ids, free = torch.tensor(request.ids), torch.arange(request.start, request.stop)
            level = torch.arange(1, LEVELS + 1) / LEVELS
            drawn = randomness.uniform(0, request.key, torch.arange(LEVELS)[:, None], free[None]) < level[:, None]
            hidden = torch.zeros(LEVELS, len(ids), dtype=torch.bool)
            hidden[:, free] = drawn
            total = 0.0
            for masked in hidden.split(rows):
                canvas = ids.masked_fill(masked, mask)
                where = subject.denoiser.predictable(canvas)
                logits = subject.denoiser(canvas, where=where).view(len(canvas), -1, subject.denoiser.vocabulary)
                first = len(ids) - logits.shape[1]
                nats = functional.cross_entropy(
                    logits.flatten(0, 1).float(), ids[first:].repeat(len(canvas)), reduction="none"
                ).view(len(canvas), -1)
                asked = masked[:, first:]
                total += float((nats.masked_fill(~asked, 0).sum(1) / asked.sum(1).clamp(min=1)).sum())
            found.append(total / LEVELS)
    return found


def error(subject: Subject, questions: list[list[Request]], method: str, draws: int) -> float:
    flat = [request for one in questions for request in one]
    found = iter(scoring.scores(subject.denoiser, flat, method, draws))
    squares = []
    for one in questions:
        values = [torch.tensor(next(found).values, dtype=torch.float64) / request.tokens for request in one]
        squares += [bounds.spread(a - b)[0] ** 2 for a, b in itertools.combinations(values, 2)]
    return math.sqrt(statistics.fmean(squares))


def measured(subject: Subject, documents: list[dict], name: str, pairs: int, random: bool) -> dict[str, Any]:
    """random: weights that mean nothing; what error they have is not asked, and the bound takes as many draws as levels."""
    questions = [question(name, number, one) for number, one in enumerate(documents)]
    asked = encoded(subject, questions)
    flat = [request for one in asked for request in one]
    wanted = None if random else error(subject, asked, "published", LEVELS)
    enough = (
        LEVELS if wanted is None else next((n for n in DRAWS if error(subject, asked, "bound", n) <= wanted), DRAWS[-1])
    )
    texts = [choice for one in questions for _, choice, _ in one.texts]
    method = choices.method_for(subject, texts, LEVELS)
    sides: dict[str, Callable[[], Any]] = {
        "published": lambda: published(subject, flat, 1),
        "batched": lambda: published(subject, flat, 2048 // 64),
        "projected": lambda: scoring.scores(subject.denoiser, flat, "published", LEVELS),
        "fewer draws": lambda: scoring.scores(subject.denoiser, flat, "bound", enough),
        "left to right": lambda: scoring.scores(subject.denoiser, flat, "left_to_right"),
        "eval": lambda: choices.answers(subject, questions, method, LEVELS, normalisation="token"),
    }
    seconds, results = alternated(sides, pairs, warm=False)
    forwards = {
        name: sum(one.forwards for one in results[name])
        for name in ("projected", "fewer draws", "left to right", "eval")
    }
    return {
        "questions": len(asked),
        "choices": len(flat),
        "tokens_a_choice": statistics.fmean(request.tokens for request in flat),
        "error_published": wanted,
        "draws_of_equal_error": enough,
        "method_of_eval": method,
        "forwards": {"published": LEVELS * len(flat), **forwards},
        "seconds": seconds,
        "ratios": {
            name: median([a / b for a, b in zip(seconds["published"], seconds[name], strict=True)])
            for name in sides
            if name != "published"
        },
    }


def together(found: dict[str, dict]) -> dict[str, Any]:
    """All tasks as one: the ratio of their summed seconds, pair by pair."""
    sides = next(iter(found.values()))["seconds"]
    total = {
        name: [sum(each) for each in zip(*(one["seconds"][name] for one in found.values()), strict=True)]
        for name in sides
    }
    return {
        name: median([a / b for a, b in zip(total["published"], total[name], strict=True)])
        for name in sides
        if name != "published"
    }


def gpt2(tokenizer: str) -> Subject:
    """GPT-2-small, its weights drawn at random: speed only."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config())
    return Subject("gpt2-small, random weights", DiffusionLM(*adopt(model, AutoTokenizer.from_pretrained(tokenizer))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--gpt2", metavar="TOKENIZER", help="a folder with GPT-2's tokenizer")
    parser.add_argument("--questions", type=int, default=4, help="of each task; a quarter of it for GPT-2")
    parser.add_argument("--pairs", type=int, default=3, help="for GPT-2 one")
    parser.add_argument("--out", type=Path, help="a file that holds what is done so far")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    subjects: list[tuple[Callable[[], Subject], int, int, bool]] = [
        (lambda name=name: opened(name), asked.questions, asked.pairs, False) for name in asked.models
    ]
    if asked.gpt2:
        subjects.append((lambda: gpt2(asked.gpt2), max(1, asked.questions // 4), 1, True))
    report: dict[str, Any] = {"conditions": conditions(asked.threads), "models": {}}
    for make, count, pairs, random in subjects:
        subject = make()
        found = {}
        for name in TASKS:
            documents = tasks.documents(tasks.load(name), asked.data, count)
            found[name] = measured(subject, documents, name, pairs, random)
            said = {side: round(one["ratio"], 2) for side, one in found[name]["ratios"].items()}
            print(subject.name, name, said, file=sys.stderr, flush=True)
        report["models"][subject.name] = {"tasks": found, "together": together(found)}
        if asked.out:
            asked.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2) if asked.json else report)


if __name__ == "__main__":
    main()
