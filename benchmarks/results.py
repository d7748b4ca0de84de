"""Results at our own scale: every table and plot of docs/results.md, and the runs that they are made from.

    python benchmarks/results.py train PARENT TRAIN HELD_OUT RUNS [--only law stories pocket]
    python benchmarks/results.py measure PARENT TRAIN HELD_OUT RUNS [--only losses orders samples holes]

PARENT: the AR folder stories260k. TRAIN, HELD_OUT: its text. RUNS: where runs are and go to. `train` makes every run through
`diffulm.adapt`; `measure` writes what it finds of a model beside the runs, then the JSON, the plots and the tables of
docs/results.md. Both resume: what is finished is not done again. `measure --only` measures these parts and writes nothing else,
so that two processes can share the work.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import results_page
import scaling
import torch
import yaml
from ablation import ARMS, FIRST, LONG, SEEDS, cell, longer, one
from curves import error, rounded
from pairs import conditions
from results_measure import (
    BLOCKS,
    CHECKS,
    CONTROL,
    DRAWS,
    HOLE_STEPS,
    HOLES,
    ORDER_BLOCKS,
    ORDERED,
    PARENTS,
    PARTS,
    POCKETS,
    SAMPLED,
    SAMPLES,
    STORIES,
    Bench,
    jobs,
    pocket_text,
)  # fmt: skip
from transformers import AutoConfig, AutoTokenizer

from diffulm import bounds
from diffulm.recipes import pocket
from diffulm.recipes.config import tokens as in_tokens
from diffulm.training.run_folder import read_metrics

AR = {"objective": "autoregressive", "annealing": "none"}


def untrained(source: str, folder: Path, width: int, layers: int) -> str:
    """A LLaMA of this shape without weights, beside the tokenizer of `source`."""
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
    root = Path(asked.runs) / "results"
    for size, (width, layers) in scaling.SHAPES.items():
        fresh = untrained(asked.parent, root / f"untrained-{size}", width, layers)
        common: dict[str, Any] = {"learning_rate": scaling.rate(width), "eval_every": "25%"}
        begun = {**common, **AR, "model": fresh, "scratch": True}
        run(asked, f"results/parent-{size}", {**begun, "tokens": scaling.PARENT_TOKENS})
        common["model"] = str(root / f"parent-{size}")
        for tokens in scaling.TOKENS:
            run(asked, f"results/child-{size}-{tokens}", {**common, "tokens": tokens})
        slower = {"learning_rate": scaling.rate(width) / 3, "tokens": scaling.CONTROL_TOKENS}
        run(asked, f"results/control-{size}", {**common, **AR, **slower})
        if size == scaling.LONG_PARENT:
            run(asked, f"results/long-parent-{size}", {**begun, "tokens": scaling.LONG_TOKENS})
            longer_trained = {**common, "model": str(root / f"long-parent-{size}"), "tokens": scaling.LONG_CHILD}
            run(asked, f"results/long-child-{size}", longer_trained)


def stories(asked: argparse.Namespace) -> None:
    """What benchmarks/ablation.py does not train: the same preset adapted and from scratch, and the parent trained on."""
    held_out = {"eval_data": asked.held_out, "eval_every": "10%"}
    run(asked, "stories", held_out)
    run(asked, "stories-scratch", {**held_out, "scratch": True})
    run(asked, "results/control-stories", {**AR, "learning_rate": 3e-4, "tokens": LONG})
    ablation = argparse.Namespace(**{**vars(asked), "runs": str(Path(asked.runs) / "ablation"), "only": None})
    longer(ablation)
    one(ablation, FIRST, ARMS[FIRST], 3e-3, SEEDS[0])  # of its grid the one that the law is held against


def pockets(asked: argparse.Namespace) -> None:
    """As `make pocket`, and `pocket-block`."""
    data = {"data": str(pocket_text() / "train.jsonl.gz"), "eval_data": str(pocket_text() / "heldout.jsonl.gz")}
    run(asked, "pocket-ar", {**data, "preset": "pocket-ar", "model": str(pocket_text() / "parent"), "eval_every": "5%"})
    for name in ("pocket", "pocket-block"):
        parent = str(Path(asked.runs) / "pocket-ar")
        run(asked, name, {**data, "preset": name, "model": parent, "eval_every": "10%"})


def run(asked: argparse.Namespace, name: str, settings: dict[str, Any]) -> None:
    started = time.monotonic()
    report = cell(asked, name, settings)
    found = {key: report.get(key) for key in ("tokens", "bound", "left_to_right", "causal_view")}
    print(name, found, f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


TRAIN = {"law": law, "stories": stories, "pocket": pockets}


def measured(asked: argparse.Namespace, bench: Bench) -> list[tuple[str, str, str]]:
    """Every job in order; returns those whose run is not there."""
    missing = []
    for part, name, kind in jobs():
        if name not in PARENTS.values() and not (bench.folder(name) / "report.json").exists():
            missing.append((part, name, kind))
        elif not asked.only or part in asked.only:
            bench.measure(part, name, kind)
    return missing


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """(mean of the paired differences, half width of its 95% interval)."""
    middle, stderr = error([a - b for a, b in zip(ours, theirs, strict=True)])
    return middle, bounds.student(len(ours) - 1) * stderr


def compared(bench: Bench, kind: str) -> dict[str, Any]:
    """The mean losses of every model, and how they differ from its parent, the parent trained on, and another model."""
    models, parent = STORIES if kind == "stories" else POCKETS, PARENTS[kind]
    names = [parent, *([CONTROL] if kind == "stories" else []), *models]
    kept = {name: bench.found(name, "losses") for name in names}
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
    """What the order costs: each reading of the same blocks, and what of the gap is which."""
    found = bench.found(name, "orders")
    parent = bench.found(PARENTS[kind], "losses")["autoregressive"][:: BLOCKS[kind] // ORDER_BLOCKS[kind]]
    own = found["left to right"]
    return {"parent AR": error(parent)} | {reading: error(values) for reading, values in found.items()} | {
        "lost": difference(own, parent), "averaging": difference(found["any-order bound"], own)
    }  # fmt: skip


def filled(bench: Bench, name: str, kind: str) -> dict[str, Any]:
    """Tokens of holes that come back, and how many more than of the parent: greedy, and the best of as many as steps."""
    shares, parent = (bench.found(one, "holes") for one in (name, PARENTS[kind]))
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
        parent, control = (bench.found(f"{one}-{size}", "losses")["autoregressive"] for one in ("parent", "control"))
        about = {"size": size, "parameters": number(bench, f"parent-{size}")}
        about |= {"parent": error(parent), "control": error(control)}
        for tokens in scaling.TOKENS:
            loss = bench.found(f"child-{size}-{tokens}", "losses")
            found.append({**about, "tokens": in_tokens(tokens)} | gaps(loss, parent))
    return found


def checks(bench: Bench) -> list[dict[str, Any]]:
    """The same of models that the law was not fitted to."""
    step = BLOCKS["stories"] // BLOCKS["law"]
    found = []
    for name, (parent, tokens) in CHECKS.items():
        loss, own = bench.found(name, "losses"), bench.found(parent, "losses")["autoregressive"]
        own = own if len(own) == len(loss["bound"]) else own[::step]
        found.append({"name": name, "parameters": number(bench, parent), "tokens": in_tokens(tokens)} | gaps(loss, own))
    return found


def number(bench: Bench, name: str) -> int:
    return pocket.parameters(AutoConfig.from_pretrained(bench.folder(name)))


def gaps(loss: dict[str, list[float]], parent: list[float]) -> dict[str, Any]:
    between = {
        "left_to_right": ("left_to_right", None),
        "bound": ("bound", None),
        "averaging": ("bound", "left_to_right"),
    }
    return {
        name: error([a - b for a, b in zip(loss[upper], loss[lower] if lower else parent, strict=True)])
        for name, (upper, lower) in between.items()
    }


def report(bench: Bench) -> dict[str, Any]:
    folders = {"adapted, tiny": "stories", "from scratch, tiny": "stories-scratch", "pocket-ar": "pocket-ar"}
    kinds = {
        name: "pocket" if name in (*POCKETS, PARENTS["pocket"]) else "stories" for name in (*PARENTS.values(), *ORDERED)
    }
    return conditions(torch.get_num_threads()) | {
        "blocks": BLOCKS, "draws": DRAWS, "order_blocks": ORDER_BLOCKS, "samples": SAMPLES, "holes": HOLES,
        "losses": {kind: compared(bench, kind) for kind in PARENTS},
        "along": {name: along(bench.runs / folder) for name, folder in (folders | {"pocket": "pocket"}).items()},
        "orders": {name: ordered(bench, name, kinds[name]) for name in ORDERED},
        "sampled": {name: bench.found(name, "samples") for name in (*PARENTS.values(), *SAMPLED)},
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
        results_page.OUT.write_text(json.dumps(rounded(report(bench)), indent=1) + "\n")
        results_page.write(json.loads(results_page.OUT.read_text()))
        return
    for name, part in TRAIN.items():
        if not asked.only or name in asked.only:
            part(asked)


if __name__ == "__main__":
    main()
