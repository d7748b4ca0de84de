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


def measured(asked: argparse.Namespace, bench: Bench) -> list[tuple[str, str, str]]:
    """Every job in order; returns those whose run is not there."""
    missing = []
    for part, name, kind in jobs():
        if name not in PARENTS.values() and not (bench.folder(name) / "report.json").exists():
            missing.append((part, name, kind))
        elif not asked.only or part in asked.only:
            bench.kept(name, part, lambda made=PARTS[part], name=name, kind=kind: made(bench, name, kind))
    return missing


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """(mean of the paired differences, half width of its 95% interval)."""
    middle, stderr = error([a - b for a, b in zip(ours, theirs, strict=True)])
    return middle, bounds.student(len(ours) - 1) * stderr


def compared(bench: Bench, kind: str) -> dict[str, Any]:
    """The mean losses of every model, and how they differ from its parent, the parent trained on, and another model."""
    models, parent = STORIES if kind == "stories" else POCKETS, PARENTS[kind]
    names = [parent, *([CONTROL] if kind == "stories" else []), *models]
    kept = {name: bench.kept(name, "losses", _absent) for name in names}
    found: dict[str, Any] = {}
    for name, loss in kept.items():
        found[name] = {reading: error(values) for reading, values in loss.items() if reading != "bound_stderr"}
        draws = [sigma**2 for sigma in loss.get("bound_stderr", [])]
        found[name]["draws"] = math.sqrt(sum(draws)) / len(draws) if draws else None
        readings = [reading for reading in ("autoregressive", "left_to_right", "bound") if reading in loss]
        for other in (parent, CONTROL):
            if other in kept and name != other:
                against = {reading: difference(loss[reading], kept[other]["autoregressive"]) for reading in readings}
                found[name][f"minus {other}"] = against
        other = models.get(name, (None, None))[1]
        if other:
            against = {reading: difference(loss[reading], kept[other][reading]) for reading in readings}
            found[name] |= {"against": other, "minus it": against}
    return found


def ordered(bench: Bench, name: str, kind: str) -> dict[str, Any]:
    """What the order costs: figures of the same blocks, nats a token."""
    rows, every = bench.kept(name, "orders", _absent), bench.kept(name, "losses", _absent)
    step, tokens = BLOCKS[kind] // ORDER_BLOCKS[kind], bench.blocks[kind].shape[1] - 1
    parent = bench.kept(PARENTS[kind], "losses", _absent)["autoregressive"][::step]
    random = torch.tensor([row[2:] for row in rows], dtype=torch.float64) * tokens
    several = ((math.log(RANDOM_ORDERS) - (-random).logsumexp(1)) / tokens).tolist()
    own = [row[0] for row in rows]
    whole = every["bound"][::step]
    return {
        "parent": error(parent),
        "left_to_right": error(own),
        "right_to_left": error([row[1] for row in rows]),
        "best": error([min(row) for row in rows]),
        "several": error(several),
        "bound": error(whole),
        "lost": difference(own, parent),
        "averaging": difference(whole, own),
    }


def filled(bench: Bench, name: str, kind: str) -> dict[str, Any]:
    """Tokens of holes that come back, and how many more than of the parent: greedy, and the best of as many as steps."""
    shares, parent = (bench.kept(one, "holes", _absent) for one in (name, PARENTS[kind]))
    found: dict[str, Any] = {steps: error(values) for steps, values in shares.items()}
    if name != PARENTS[kind]:
        most = str(HOLE_STEPS[-1])
        found["minus greedy"] = difference(shares[most], parent["1"])
        found["minus best"] = difference(shares[most], parent[most])
    return found


def along(folder: Path) -> list[dict[str, float]]:
    """The evaluations of a run: tokens and held-out losses."""
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    a_step = config["global_batch"] * config["length"]
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval_bound" in row or "eval_ar" in row]
    keys = ("bound", "left_to_right", "ar")
    return [
        {"tokens": row["step"] * a_step} | {key: row[f"eval_{key}"] for key in keys if f"eval_{key}" in row}
        for row in rows
    ]


def law_points(bench: Bench) -> list[dict[str, Any]]:
    """A point a child: parameters, tokens, and its gaps to its parent's AR loss on the same blocks."""
    found = []
    for size in scaling.SHAPES:
        parent = bench.kept(f"parent-{size}", "losses", _absent)["autoregressive"]
        control = bench.kept(f"control-{size}", "losses", _absent)["autoregressive"]
        for tokens in scaling.TOKENS:
            loss = bench.kept(f"child-{size}-{tokens}", "losses", _absent)
            parameters = bench.parameters(f"parent-{size}")
            found.append({"size": size, "parameters": parameters, "tokens": in_tokens(tokens)} | gaps(loss, parent))
            found[-1] |= {"parent": error(parent), "control": error(control)}
    return found


def gaps(loss: dict[str, list[float]], parent: list[float]) -> dict[str, Any]:
    of = {reading: [a - b for a, b in zip(loss[reading], parent, strict=True)] for reading in ("left_to_right", "bound")}
    return {reading: error(values) for reading, values in of.items()}


def _absent() -> None:
    raise SystemExit("something is missing that `measure` has just made; was a file deleted?")


def report(bench: Bench) -> dict[str, Any]:
    folders = {"adapted, tiny": "stories", "from scratch, tiny": "stories-scratch", "pocket-ar": "pocket-ar"}
    kinds = {name: "pocket" if name in (*POCKETS, PARENTS["pocket"]) else "stories" for name in (*PARENTS.values(), *ORDERED)}
    return conditions(torch.get_num_threads()) | {
        "blocks": BLOCKS, "draws": DRAWS, "order_blocks": ORDER_BLOCKS, "samples": SAMPLES, "holes": HOLES,
        "losses": {kind: compared(bench, kind) for kind in PARENTS},
        "along": {name: along(bench.runs / folder) for name, folder in (folders | {"pocket": "pocket"}).items()},
        "orders": {name: ordered(bench, name, kinds[name]) for name in ORDERED},
        "sampled": {name: bench.kept(name, "samples", _absent) for name in (*PARENTS.values(), *SAMPLED)},
        "filled": {name: filled(bench, name, kind) for name, kind in kinds.items()},
        "law": scaling.law(law_points(bench), checks(bench)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    for name in ("parent", "train", "held_out", "runs"):
        parser.add_argument(name)
    parser.add_argument("--only", nargs="+", choices=(*TRAIN, *PARTS), help="these runs or parts alone")
    asked = parser.parse_args()
    if asked.what == "measure":
        bench = Bench(asked)
        missing = measured(asked, bench)
        if missing or asked.only:
            print("".join(f"not trained: {name} ({part})\n" for part, name, _ in missing), end="", file=sys.stderr)
            return
        OUT.write_text(json.dumps(rounded(report(bench)), indent=1) + "\n")
        results_page.write(json.loads(OUT.read_text()))
        return
    for name, part in TRAIN.items():
        if not asked.only or name in asked.only:
            part(asked)


if __name__ == "__main__":
    main()
