"""What of adaptation matters at this size: parent or scratch, shift, annealing; then longer runs of what is left.

    python benchmarks/ablation.py grid PARENT TRAIN HELD_OUT RUNS       # 8 arms: 3 learning rates, then 3 seeds of the best
    python benchmarks/ablation.py long PARENT TRAIN HELD_OUT RUNS       # 4M tokens: finalists, block-causal, AR term, adapter
    python benchmarks/ablation.py measure PARENT TRAIN HELD_OUT RUNS [--json]

Every cell is a run of `diffulm adapt`, so it resumes, and what is finished is not run again. Learning rates are chosen on
blocks kept out of TRAIN, figures come from HELD_OUT. One process, two cells never share anything but the parent.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from adaptation import held_out

import diffulm
from diffulm.checkpoint.load import load
from diffulm.denoiser.adopt import adopt
from diffulm.evaluation import likelihood

SEEDS = (0, 1, 2)
RATES = {"arm": (1e-3, 3e-3, 8e-3), "control": (3e-4, 1e-3, 3e-3)}
SHORT, LONG = "1M", "4M"
DRAWS, LEFT_TO_RIGHT_BLOCKS = 16, 32  # the bound's Monte-Carlo error is shared by all models: equal draws
T_95 = 4.303  # two-sided 95% of Student's t with two degrees of freedom: three seeds

ARMS = {
    f"{start}, {'shift' if shift else 'no shift'}, {'annealing' if annealing else 'none'}": {
        "scratch": start == "scratch",
        "shift": shift,
        "annealing": "bernoulli" if annealing else "none",
    }
    for start, shift, annealing in itertools.product(("adapted", "scratch"), (True, False), (True, False))
}
CONTROL = {"objective": "autoregressive", "annealing": "none"}
FIRST = "adapted, shift, annealing"
# The two arms of the lowest bound at their learning rate in the grid, and one of them with what else there is.
LONGER = {
    "shift, annealing": {"learning_rate": 3e-3},
    "no shift, annealing": {"shift": False, "learning_rate": 3e-3},
    "AR term": {"ar_weight": 0.5, "learning_rate": 3e-3},
    "block-causal": {"preset": "tiny-block"},
    "adapter": {"preset": "adapter"},
}


def cell(asked: argparse.Namespace, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    out = Path(asked.runs) / name.replace(", ", "-").replace(": ", "-").replace(" ", "_")
    if (out / "report.json").exists():  # even a finished run would be checked, file by file
        return json.loads((out / "report.json").read_text())
    settings = {"model": asked.parent, "data": asked.train, "eval_every": "100%", "save_seconds": 60, **settings}
    return diffulm.adapt(settings.pop("preset", "tiny"), out=str(out), **settings)


def chosen(asked: argparse.Namespace, name: str, arm: dict[str, Any]) -> float:
    """The learning rate of the lowest held-out loss, of seed 0."""
    key = "causal_view" if "objective" in arm else "bound"
    rates = RATES["control" if "objective" in arm else "arm"]
    found = {rate: one(asked, name, arm, rate, SEEDS[0])[key] for rate in rates}
    print(name, found, file=sys.stderr, flush=True)
    return min(found, key=found.__getitem__)


def one(asked: argparse.Namespace, name: str, arm: dict[str, Any], rate: float, seed: int) -> dict[str, Any]:
    return cell(asked, f"{name}, {rate:g}, seed {seed}", {**arm, "tokens": SHORT, "learning_rate": rate, "seed": seed})


def grid(asked: argparse.Namespace) -> None:
    for name, arm in {**ARMS, "control": CONTROL}.items():
        rate = chosen(asked, name, arm)
        for seed in SEEDS[1:]:
            one(asked, name, arm, rate, seed)


def longer(asked: argparse.Namespace) -> None:
    for name, settings in LONGER.items():
        if asked.only in (None, name):
            cell(asked, f"long, {name}", {**settings, "tokens": LONG})


def losses(folder: Path, blocks: torch.Tensor) -> dict[str, float]:
    """Both losses of a run, kept beside it; the same draws for every model, so that differences are paired."""
    kept = folder / "ablation.json"
    if not kept.exists():
        config = json.loads((folder / "config.json").read_text())
        if "diffulm" not in config:
            denoiser, _ = adopt(str(folder))
            found = {"autoregressive": likelihood.autoregressive(denoiser, blocks).nats}
        else:
            denoiser, _ = load(str(folder))
            few = blocks[:: max(1, len(blocks) // LEFT_TO_RIGHT_BLOCKS)][:LEFT_TO_RIGHT_BLOCKS]
            found = {
                "bound": likelihood.bound(denoiser, blocks, DRAWS).nats,
                "left_to_right": likelihood.left_to_right(denoiser, few).nats,
                "causal_view": likelihood.autoregressive(denoiser, blocks).nats,
            }
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width of its 95% interval over seeds)."""
    return statistics.mean(values), T_95 * statistics.stdev(values) / math.sqrt(len(values))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    parent, tokenizer = adopt(asked.parent)
    blocks = held_out(parent, tokenizer, asked.held_out)
    few = blocks[:: max(1, len(blocks) // LEFT_TO_RIGHT_BLOCKS)][:LEFT_TO_RIGHT_BLOCKS]
    report: dict[str, Any] = {
        "parent": likelihood.autoregressive(parent, blocks).nats,
        "parent_on_left_to_right_blocks": likelihood.autoregressive(parent, few).nats,
        "arms": {},
        "long": {},
    }
    root = Path(asked.runs)
    for name, arm in {**ARMS, "control": CONTROL}.items():
        rate = chosen(asked, name, arm)
        folders = [root / f"{name}, {rate:g}, seed {s}".replace(", ", "-").replace(" ", "_") for s in SEEDS]
        seeds = [losses(folder, blocks) for folder in folders]
        report["arms"][name] = {"learning_rate": rate} | {key: [s[key] for s in seeds] for key in seeds[0]}
    first = report["arms"][FIRST]
    for arm in report["arms"].values():
        for key in ("bound", "left_to_right") if "bound" in arm else ():
            pairs = [a - b for a, b in zip(arm[key], first[key], strict=True)]
            arm[f"{key}_minus_first"] = interval(pairs)
    for name in LONGER:
        folder = root / f"long, {name}".replace(", ", "-").replace(": ", "-").replace(" ", "_")
        if (folder / "report.json").exists():
            report["long"][name] = losses(folder, blocks)
    return report


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: mean over seeds, and the paired difference to the first arm with its 95% interval."""

    def told(arm: dict[str, Any], key: str) -> str:
        if key not in arm:
            return "| "
        values, (middle, half) = arm[key], arm[f"{key}_minus_first"]
        beside = "" if middle == half == 0 else f" ({middle:+.3f} ± {half:.3f})"
        return f"| {statistics.mean(values):.3f}{beside} "

    lines = [
        "| arm | learning rate | bound (difference) | left to right (difference) | AR reading |",
        "|---|---|---|---|---|",
    ]
    for name, arm in report["arms"].items():
        reading = statistics.mean(arm.get("causal_view") or arm["autoregressive"])
        cells = told(arm, "bound") + told(arm, "left_to_right")
        lines.append(f"| {name} | {arm['learning_rate']:g} {cells}| {reading:.3f} |")
    lines += ["", f"| {LONG} tokens, seed 0 | bound | left to right | AR reading |", "|---|---|---|---|"]
    for name, found in report["long"].items():
        lines.append(
            f"| {name} | " + " | ".join(f"{found[k]:.3f}" for k in ("bound", "left_to_right", "causal_view")) + " |"
        )
    return "\n".join(lines)


def plot(report: dict[str, Any], file: str) -> None:
    """Every seed of every arm as a point, both losses, the parent as a line."""
    from matplotlib.figure import Figure

    arms = [name for name in report["arms"] if "bound" in report["arms"][name]][::-1]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, colour in (("left_to_right", "tab:blue"), ("bound", "tab:orange")):
        for height, name in enumerate(arms):
            values = report["arms"][name][key]
            label = key.replace("_", " ") if height == 0 else None
            axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.7, label=label)
    axes.axvline(report["parent"], linestyle="--", color="#444", label="AR parent")
    axes.set(
        yticks=range(len(arms)), yticklabels=arms, xlabel=f"nats a token on held-out text, {SHORT} tokens, 3 seeds"
    )
    axes.legend(loc="upper right")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("grid", "long", "measure"))
    for name in ("parent", "train", "held_out", "runs"):
        parser.add_argument(name)
    parser.add_argument("--only", choices=LONGER, help="of `long`: this run alone")
    parser.add_argument("--plot", help="of `measure`: a picture of the grid")
    parser.add_argument("--from-json", help="of `measure`: take the figures from here instead")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.what != "measure":
        (grid if asked.what == "grid" else longer)(asked)
        return
    report = json.loads(Path(asked.from_json).read_text()) if asked.from_json else measure(asked)
    if asked.plot:
        plot(report, asked.plot)
    print(json.dumps(report, indent=2) if asked.json else table(report))


if __name__ == "__main__":
    main()
