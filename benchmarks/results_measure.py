"""What benchmarks/results.py measures of a model, a function a part, and where it is kept."""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import scaling
import torch
from adaptation import held_out, own_samples
from curves import error, rounded

from diffulm import lm
from diffulm.checkpoint.load import load
from diffulm.checkpoint.opening import open_parent
from diffulm.data import stdlib
from diffulm.denoiser.adopt import adopt
from diffulm.evaluation import generation, infilling, likelihood
from diffulm.evaluation.order_gap import FEW, order_gap
from diffulm.evaluation.subject import Subject
from diffulm.recipes import pocket
from diffulm.scoring import Request

# Each model: its run, and the one that its losses are compared with, block by block.
STORIES = {
    "adapted": ("ablation/long-shift-annealing", None),
    "no shift": ("ablation/long-no_shift-annealing", "adapted"),
    "AR term": ("ablation/long-AR_term", "adapted"),
    "block-causal": ("ablation/long-block-causal", "adapted"),
    "adapter": ("ablation/long-adapter", "adapted"),
    "adapted, tiny": ("stories", None),
    "from scratch, tiny": ("stories-scratch", "adapted, tiny"),
}
POCKETS = {"pocket": ("pocket", None), "pocket-block": ("pocket-block", "pocket")}
PARENTS = {"stories": "parent", "pocket": "pocket-ar"}
CONTROL = "parent, trained on"
# Models that the law is held against: their parent and tokens.
CHECKS = {
    "adapted, 1M": ("parent", "1M"),
    "adapted": ("parent", "4M"),
    "adapted, tiny": ("parent", "4M"),
    f"long-child-{scaling.LONG_PARENT}": (f"long-parent-{scaling.LONG_PARENT}", scaling.LONG_CHILD),
    "pocket": ("pocket-ar", "8M"),
}
BLOCKS = {"stories": 64, "pocket": 24, "law": 32}
DRAWS = 48
ORDERED = ("adapted", "no shift", "AR term", "from scratch, tiny", "pocket")
ORDER_BLOCKS = {"stories": 16, "pocket": 6}
SAMPLED = ("adapted", "from scratch, tiny", "pocket")
SAMPLES, LENGTH, STEPS, SAMPLERS = 16, 128, (4, 8, 16, 32, 64, 127), ("confidence", "random", "left_to_right")
HOLES, HOLE, HOLE_STEPS, LONGEST = 128, 8, (1, 2, 4, 8), 96


def pocket_text() -> Path:
    folder = Path("build/pocket")
    if not (folder / "heldout.jsonl.gz").exists():
        pocket.prepare(folder)
    return folder


class Bench:
    """The models and texts that are measured, and where the figures are kept."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.runs = asked, Path(asked.runs)
        self.words, self.blocks = {}, {}
        text = {"stories": asked.held_out, "pocket": str(pocket_text() / "heldout.jsonl.gz")}
        for kind, length in (("stories", LENGTH), ("pocket", pocket.CONTEXT)):
            parent, self.words[kind] = adopt(str(self.folder(PARENTS[kind])))
            self.blocks[kind] = held_out(parent, self.words[kind], text[kind], length)
        self.blocks["law"] = self.blocks["stories"]

    def measure(self, part: str, name: str, kind: str) -> None:
        """One job, unless it is done."""
        file = self.file(name, part)
        if not file.exists():
            began = time.monotonic()
            found = PARTS[part](self, name, kind)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rounded(found)))
            print(f"{time.monotonic() - began:6.0f} s: {part} of {name}", file=sys.stderr, flush=True)

    def found(self, name: str, part: str) -> Any:
        """What a job has found."""
        return json.loads(self.file(name, part).read_text())

    def file(self, name: str, part: str) -> Path:
        return self.runs / "results" / "measured" / f"{name.replace(', ', '-').replace(' ', '_')}.{part}.json"

    def text(self, kind: str, blocks: int) -> torch.Tensor:
        """So many held-out blocks, evenly over all."""
        every = self.blocks[kind]
        return every[torch.arange(blocks) * len(every) // blocks]

    def folder(self, name: str) -> Path:
        if name == PARENTS["stories"]:
            return Path(self.asked.parent)
        runs = {CONTROL: "results/control-stories", "pocket-ar": "pocket-ar"}
        runs["adapted, 1M"] = "ablation/adapted-shift-annealing-0.003-seed_0"
        runs |= {model: run for model, (run, _) in (STORIES | POCKETS).items()}
        return self.runs / runs.get(name, f"results/{name}")

    def judge(self, kind: str) -> Any:
        return open_parent(str(self.folder(PARENTS[kind])), None, None)[0].eval()


def losses(bench: Bench, name: str, kind: str) -> dict[str, list[float]]:
    """Nats a token of every block under each reading of the model; the draws of a block are the same for all models."""
    folder, blocks = bench.folder(name), bench.text(kind, BLOCKS[kind])
    adapted = "diffulm" in json.loads((folder / "config.json").read_text())
    denoiser = (load if adapted else adopt)(str(folder))[0]
    found = {"autoregressive": [likelihood.autoregressive(denoiser, one[None]).nats for one in blocks]}
    if adapted:
        found["left_to_right"] = [likelihood.left_to_right(denoiser, one[None]).nats for one in blocks]
        whole = [likelihood.bound(denoiser, one[None], DRAWS, seed=n) for n, one in enumerate(blocks)]
        found |= {"bound": [one.nats for one in whole], "bound_stderr": [one.stderr for one in whole]}
    return found


def orders(bench: Bench, name: str, kind: str) -> dict[str, list[float]]:
    """Nats a token of some blocks by each reading of `order_gap`."""
    subject = Subject(name, lm.load(bench.folder(name)))
    asked = [Request(tuple(ids.tolist()), 1, len(ids), n) for n, ids in enumerate(bench.text(kind, ORDER_BLOCKS[kind]))]
    found = order_gap(subject, asked, DRAWS, FEW)
    return {reading: [one.nats / one.tokens for one in scored] for reading, scored in found.items()}


def samples(bench: Bench, name: str, kind: str) -> list[dict[str, Any]]:
    """What samples at temperature 1 are like for each sampler and number of steps; of a parent its own and held-out text."""
    judge, found = bench.judge(kind), []
    if name in PARENTS.values():
        bos = int(bench.blocks[kind][0, 0])
        ids = own_samples(judge, bos, SAMPLES, LENGTH)
        return [
            {"sampler": "its own"} | quality(judge, ids),
            {"sampler": "held-out text"} | quality(judge, bench.blocks[kind][:SAMPLES, :LENGTH]),
        ]
    denoiser = load(str(bench.folder(name)))[0]
    for sampler in SAMPLERS:
        for steps in STEPS:
            options = {"sampler": sampler, "steps": steps, "temperature": 1.0}
            ids = generation.unconditional(denoiser, SAMPLES, LENGTH, **options)
            found.append({"sampler": sampler, "steps": steps} | quality(judge, ids))
    return found


def quality(judge: Any, ids: torch.Tensor) -> dict[str, tuple[float, float]]:
    each = [(generation.quality(judge, row[None]), row[None]) for row in ids]
    return {
        "nats": error([math.log(one.perplexity) for one, _ in each]),
        "entropy": error([one.entropy for one, _ in each]),
        "distinct_2": error([1 - generation.repeated(row, 2) for _, row in each]),
        "repeated_4": error([generation.repeated(row, 4) for _, row in each]),
    }


def holes(bench: Bench, name: str, kind: str) -> dict[str, list[float]]:
    """Share of each hole's tokens that come back, in so many steps; of a parent the greedy one, and the best of so many."""
    if kind == "pocket":
        sources, bos = (source for _, source in stdlib.modules("heldout")), int(bench.blocks[kind][0, 0])
        tasks = infilling.tasks_from_code(bench.words[kind], bos, sources, HOLE, HOLES, LONGEST)
    else:
        tasks = infilling.tasks_from_blocks(bench.blocks[kind][:HOLES], HOLE)
    if name in PARENTS.values():
        judge = bench.judge(kind)
        made = {steps: infilling.continue_left(judge, tasks, best_of=steps) for steps in HOLE_STEPS}
    else:
        denoiser = load(str(bench.folder(name)))[0]
        made = {steps: infilling.fill(denoiser, tasks, steps) for steps in HOLE_STEPS}
    return {
        str(steps): [
            infilling.token_accuracy([task], infilling.Filled([ids], 0.0))[0]
            for task, ids in zip(tasks, filled.ids, strict=True)
        ]
        for steps, filled in made.items()
    }


PARTS = {"losses": losses, "orders": orders, "samples": samples, "holes": holes}


def jobs() -> list[tuple[str, str, str]]:
    """(part, model, kind of text) of everything that is measured, as far as its run is finished."""

    def of(names: Iterable[str]) -> list[tuple[str, str]]:
        return [(name, "pocket" if name in POCKETS or name == "pocket-ar" else "stories") for name in names]

    parents = list(PARENTS.values())
    every = [("losses", *one) for one in of([*parents, CONTROL, *STORIES, *POCKETS])]
    every += [("losses", name, "law") for name in ("adapted, 1M", *scaling.runs())]
    every += [("holes", *one) for one in of([*parents, *ORDERED])]
    every += [("orders", *one) for one in of(ORDERED)]
    every += [("samples", *one) for one in of([*parents, *SAMPLED])]
    return every
