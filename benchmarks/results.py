"""Results at our own scale: every table and plot of docs/results.md, and the runs that they are made from.

    python benchmarks/results.py train PARENT TRAIN HELD_OUT RUNS [--only law stories pocket]
    python benchmarks/results.py measure PARENT TRAIN HELD_OUT RUNS [--only losses orders samples holes]

PARENT: the AR folder stories260k. TRAIN, HELD_OUT: its text. RUNS: where runs are and go to. `train` makes every run through
`diffulm.adapt`; `measure` writes what it finds of a model beside the runs, then OUT (JSON), the plots and the tables of
docs/results.md. Both resume: what is finished is not done again. `measure --only` measures these parts and writes nothing else,
so that several processes can share the work.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import scaling
import torch
from ablation import LONG, cell, longer
from adaptation import held_out
from curves import error, rounded
from pairs import conditions

from diffulm import bounds
from diffulm.checkpoint.load import load
from diffulm.checkpoint.opening import open_parent
from diffulm.data import stdlib
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.tile import tiled
from diffulm.evaluation import generation, infilling, likelihood
from diffulm.recipes import pocket

OUT = Path("benchmarks/results/2026-11-21-results.json")
AR = {"objective": "autoregressive", "annealing": "none"}


def untrained(source: str, folder: Path, width: int, layers: int) -> str:
    """A LLaMA of this shape without weights, beside the tokenizer of `source`."""
    from transformers import AutoConfig, AutoTokenizer

    if not (folder / "config.json").exists():
        heads = width // 16
        config = AutoConfig.from_pretrained(
            source, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
            head_dim=16, intermediate_size=-(-width // 3) * 8,
        )  # fmt: skip
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        config.save_pretrained(folder)
    return str(folder)


def law(asked: argparse.Namespace) -> None:
    """The scaling law: for each size a parent, a whole run for each number of tokens, and the parent trained on as it is."""
    for size, (width, layers) in scaling.SHAPES.items():
        root = Path(asked.runs) / "results"
        fresh = untrained(asked.parent, root / f"untrained-{size}", width, layers)
        common: dict[str, Any] = {"learning_rate": scaling.rate(width), "eval_every": "25%"}
        begun = {"model": fresh, "scratch": True, "tokens": scaling.PARENT_TOKENS}
        run(asked, f"results/parent-{size}", {**common, **AR, **begun})
        common["model"] = str(root / f"parent-{size}")
        for tokens in scaling.TOKENS:
            run(asked, f"results/child-{size}-{tokens}", {**common, "tokens": tokens})
        slower = {"learning_rate": scaling.rate(width) / 3, "tokens": scaling.CONTROL_TOKENS}
        run(asked, f"results/control-{size}", {**common, **AR, **slower})


def stories(asked: argparse.Namespace) -> None:
    """What benchmarks/ablation.py does not train: the same preset adapted and from scratch, and the parent trained on."""
    held_out = {"eval_data": asked.held_out, "eval_every": "10%"}
    run(asked, "stories", held_out)
    run(asked, "stories-scratch", {**held_out, "scratch": True})
    run(asked, "results/control-stories", {**AR, "learning_rate": 3e-4, "tokens": LONG})
    longer(argparse.Namespace(**{**vars(asked), "runs": str(Path(asked.runs) / "ablation"), "only": None}))


def pockets(asked: argparse.Namespace) -> None:
    """As `make pocket`, and `pocket-block`."""
    data = {"data": str(pocket_text() / "train.jsonl.gz"), "eval_data": str(pocket_text() / "heldout.jsonl.gz")}
    run(asked, "pocket-ar", {**data, "preset": "pocket-ar", "model": str(pocket_text() / "parent"), "eval_every": "5%"})
    for name in ("pocket", "pocket-block"):
        parent = str(Path(asked.runs) / "pocket-ar")
        run(asked, name, {**data, "preset": name, "model": parent, "eval_every": "10%"})


def pocket_text() -> Path:
    folder = Path("build/pocket")
    if not (folder / "heldout.jsonl.gz").exists():
        pocket.prepare(folder)
    return folder


def run(asked: argparse.Namespace, name: str, settings: dict[str, Any]) -> None:
    started = time.monotonic()
    report = cell(asked, name, settings)
    found = {key: report.get(key) for key in ("tokens", "bound", "left_to_right", "causal_view")}
    print(name, found, f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


TRAIN = {"law": law, "stories": stories, "pocket": pockets}


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
BLOCKS = {"stories": 64, "pocket": 24, "law": 32}
DRAWS = 48
ORDERED = ("adapted", "no shift", "AR term", "from scratch, tiny", "pocket")
ORDER_BLOCKS, RANDOM_ORDERS = {"stories": 16, "pocket": 8}, 4
SAMPLED = ("adapted", "AR term", "from scratch, tiny", "pocket")
SAMPLES, LENGTH, STEPS, SAMPLERS = 32, 128, (4, 8, 16, 32, 64, 127), ("confidence", "random", "left_to_right")
HOLES, HOLE, HOLE_STEPS, LONGEST = 128, 8, (1, 2, 4, 8), 96


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

    def kept(self, name: str, part: str, make: Callable[[], Any]) -> Any:
        """What `make` finds of model `name`, kept in a file."""
        file = self.runs / "results" / "measured" / f"{name.replace(', ', '-').replace(' ', '_')}.{part}.json"
        if not file.exists():
            began = time.monotonic()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rounded(make())))
            print(f"{time.monotonic() - began:6.0f} s: {part} of {name}", file=sys.stderr, flush=True)
        return json.loads(file.read_text())

    def text(self, kind: str, blocks: int) -> torch.Tensor:
        """So many held-out blocks, evenly over all."""
        every = self.blocks[kind]
        return every[torch.arange(blocks) * len(every) // blocks]

    def folder(self, name: str) -> Path:
        if name == PARENTS["stories"]:
            return Path(self.asked.parent)
        runs = {CONTROL: "results/control-stories", "pocket-ar": "pocket-ar"}
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


def orders(bench: Bench, name: str, kind: str) -> list[list[float]]:
    """Nats a token of some blocks in several orders, a row a block: left to right, right to left, random ones."""
    denoiser, found = load(str(bench.folder(name)))[0], []
    for n, ids in enumerate(bench.text(kind, ORDER_BLOCKS[kind])):
        free = torch.arange(len(ids)) > 0
        straight = torch.arange(len(ids) - 1)[None]
        rows = torch.cat([straight, straight.flip(1), bounds.random_orders(len(ids) - 1, RANDOM_ORDERS, 0, n)])
        nats = bounds.order_nats(tiled(denoiser), ids, free, denoiser.record.mask_token_id, rows)
        found.append((nats / (len(ids) - 1)).tolist())
    return found


def samples(bench: Bench, name: str, kind: str) -> list[dict[str, Any]]:
    """What samples at temperature 1 are like for each sampler and number of steps; of a parent its own and held-out text."""
    judge, found = bench.judge(kind), []
    if name in PARENTS.values():
        bos = int(bench.blocks[kind][0, 0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            start = torch.full((SAMPLES, 1), bos)
            ids = judge.generate(
                start, attention_mask=torch.ones_like(start), max_new_tokens=LENGTH - 1, min_new_tokens=LENGTH - 1,
                do_sample=True, top_k=0, top_p=1.0, pad_token_id=0,
            )  # fmt: skip
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


def jobs(bench: Bench) -> list[tuple[str, str, str]]:
    """(part, model, kind of text) of everything that is measured, as far as its run is finished."""

    def of(names: Iterable[str]) -> list[tuple[str, str]]:
        return [(name, "pocket" if name in POCKETS or name == "pocket-ar" else "stories") for name in names]

    parents = list(PARENTS.values())
    every = [("losses", *one) for one in of([*parents, CONTROL, *STORIES, *POCKETS])]
    every += [("losses", name, "law") for name in scaling.runs()]
    every += [("holes", *one) for one in of([*parents, *ORDERED])]
    every += [("orders", *one) for one in of(ORDERED)]
    every += [("samples", *one) for one in of([*parents, *SAMPLED])]
    return every


def measured(asked: argparse.Namespace, bench: Bench) -> None:
    """Every job whose run is there, in order."""
    for part, name, kind in jobs(bench):
        if asked.only and part not in asked.only:
            continue
        if name in PARENTS.values() or (bench.folder(name) / "report.json").exists():
            bench.kept(name, part, lambda made=PARTS[part], name=name, kind=kind: made(bench, name, kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    for name in ("parent", "train", "held_out", "runs"):
        parser.add_argument(name)
    parser.add_argument("--only", nargs="+", choices=(*TRAIN, *PARTS), help="these runs or parts alone")
    asked = parser.parse_args()
    if asked.what == "measure":
        measured(asked, Bench(asked))
        return
    for name, part in TRAIN.items():
        if not asked.only or name in asked.only:
            part(asked)


if __name__ == "__main__":
    main()
