"""Quality against speed: what it costs to reveal several tokens a forward, for every order and every commit rule.

    python benchmarks/curves.py OUT.json NAME=MODEL,PARENT[,HELD_OUT] ... [--plot PICTURE.png] [--only samples holes ...]

MODEL: a diffusion model, by name or folder; PARENT: the AR model that judges its samples; HELD_OUT: text files, or left out
where the text is Python: then the held-out modules of the standard library, and what is filled is parsed as well. Without any
model OUT.json is only read: plotted and printed as tables.

(a) `samples` (temperature 1) and `cooler` (0.7, top-p 0.9): unconditional texts: nats a token under the parent AND the
entropy of the tokens a text uses, beside the parent's own samples and held-out text. (b) `holes`: tokens that come back in
held-out holes at temperature 0, for models that see both sides. (c) `cache`, `cached holes`: the same two beside the positions
that a forward runs, for the caches of full attention.
Tokens a forward are counted. Each point is written as soon as it is there, and one that is in OUT.json is not run again.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from adaptation import held_out
from pairs import conditions

from diffulm.canvas import Canvas
from diffulm.checkpoint.load import load
from diffulm.checkpoint.opening import open_parent
from diffulm.data import stdlib
from diffulm.denoiser.cache import Windows
from diffulm.denoiser.quiet import quietly
from diffulm.denoiser.tile import bucket
from diffulm.evaluation import generation, infilling
from diffulm.filling import Filled, fill
from diffulm.options import GenerateOptions
from diffulm.recipes.demo import write_text

Options = dict[str, Any]
# Samples and positions of one, BOS included: half a minute a point on one core with models of about this size.
SAMPLES = {"text": (16, 128), "python": (32, 64)}
HOLES, HOLE, LONGEST = 96, 12, 96
CACHED_SAMPLES, CACHED_LENGTH, WINDOW = 16, 128, 32
ORDERS = ("confidence", "entropy", "left_to_right", "random")
TOGETHER = (1, 2, 4, 8, 16)
ADAPTIVE = {
    "threshold": ("confidence", (0.95, 0.9, 0.7, 0.5, 0.3)),
    "entropy_bound": ("entropy", (0.05, 0.2, 0.5, 1.0, 2.0)),
    "factor": ("confidence", (0.5, 1.0, 2.0, 4.0)),
}
COOLER = {"temperature": 0.7, "top_p": 0.9}


def at_once(free: int, sampler: str, count: int, **more: Any) -> Options:
    """Options that reveal `count` of the `free` tokens a forward."""
    return {"sampler": sampler, "steps": math.ceil(free / count)} | more


def sweep(free: int, most: int) -> Iterator[Options]:
    """Every order with fixed steps, the adaptive rules each in its own order, and some combinations."""
    for count in (count for count in TOGETHER if count <= most):
        for order in ORDERS:
            yield at_once(free, order, count)
    for rule, (order, limits) in ADAPTIVE.items():
        for limit in limits:
            yield {"sampler": order, rule: limit}
    yield {"sampler": "first_hitting"}
    yield at_once(free, "margin", 1)
    yield at_once(free, "margin", 4)
    for count in (2, 4, 8):
        if count <= most:
            yield at_once(free, "confidence", count, schedule="cosine")
    for sampler, limit in (("left_to_right", 0.2), ("left_to_right", 1.0), ("confidence", 1.0)):
        yield {"sampler": sampler, "entropy_bound": limit}


def cooler(free: int, most: int) -> Iterator[Options]:
    """The few of them that are run at a lower temperature too."""
    for count in (1, 2, 4, 8):
        for order in ("confidence", "entropy", "left_to_right", "random"):
            yield at_once(free, order, count) | COOLER
    for limit in (0.2, 1.0):
        yield {"sampler": "entropy", "entropy_bound": limit} | COOLER
    for limit in (0.9, 0.7):
        yield {"sampler": "confidence", "threshold": limit} | COOLER


def caches() -> Iterator[Options]:
    yield {}
    yield {"block": WINDOW}
    for cache in ("prefix", "dual"):
        for refresh in (None, 4, 2, 1):
            yield {"block": WINDOW, "cache": cache, "refresh": refresh}


class Model:
    """A model, its judge, and held-out text."""

    def __init__(self, folder: str, parent: str, text: str | None = None) -> None:
        self.denoiser, self.tokenizer = load(folder)
        with quietly():
            self.judge, _, _ = open_parent(parent, None, None)
        self.judge.eval()
        self.python = text is None
        self.samples, self.length = SAMPLES["python" if self.python else "text"]
        self.most = self.denoiser.record.block_size or max(TOGETHER)
        with tempfile.TemporaryDirectory() as spare:
            file = Path(spare) / "heldout.jsonl.gz"
            if text is None:
                write_text(file, "heldout")
            self.blocks = held_out(self.denoiser, self.tokenizer, text or str(file))

    @cached_property
    def tasks(self) -> list[infilling.Task]:
        if not self.python:
            return infilling.tasks_from_blocks(self.blocks[:HOLES], HOLE)
        sources, bos = (source for _, source in stdlib.modules("heldout")), self.denoiser.record.bos_token_id
        assert bos is not None
        return infilling.tasks_from_code(self.tokenizer, bos, sources, HOLE, HOLES, LONGEST)

    def kinds(self) -> dict[str, list[Options]]:
        """What is to be run."""
        free, record = self.length - 1, self.denoiser.record
        hot = [options | {"temperature": 1.0} for options in sweep(free, self.most)]
        runs = {"samples": hot, "cooler": list(cooler(free, self.most))}
        if record.infills:
            runs["holes"] = list(sweep(HOLE, max(TOGETHER)))
        if record.attention == "full" and self.python:
            runs["cache"] = [at_once(CACHED_LENGTH - 1, "confidence", 2, temperature=1.0) | one for one in caches()]
            runs["cached holes"] = [at_once(HOLE, "confidence", 2) | one for one in caches()]
        return runs

    def run(self, kind: str, options: Options) -> Options:
        if kind in ("samples", "cooler"):
            return self.judged(self.drawn(self.samples, self.length, options))
        if kind == "holes":
            return self.refilled(self.filled(options))
        seen: list[int] = []
        ask = Windows._windows

        def counted(*asked: Any) -> Any:
            windows = ask(*asked)
            seen.append(sum(end - start for start, end in windows.values()))
            return windows

        with mock.patch.object(Windows, "_windows", counted):
            done = self.drawn(CACHED_SAMPLES, CACHED_LENGTH, options) if kind == "cache" else self.filled(options)
        every = sum(one.forwards * bucket(len(one.ids), self.denoiser.context) for one in done)
        positions = (sum(seen) or every) / sum(one.forwards for one in done)
        return (self.judged(done) if kind == "cache" else self.refilled(done)) | {"positions": positions}

    def drawn(self, count: int, length: int, options: Options) -> list[Filled]:
        """As `generation.unconditional`, with what it took."""
        bos = self.denoiser.record.bos_token_id
        assert bos is not None
        ids, fixed = torch.full((length,), bos), torch.arange(length) < 1
        return fill(self.denoiser, [Canvas(ids, fixed, (), None)] * count, GenerateOptions(**options))

    def filled(self, options: Options) -> list[Filled]:
        made = []
        for task in self.tasks:
            position = torch.arange(len(task.ids))
            made.append(Canvas(torch.tensor(task.ids), (position < task.start) | (position >= task.stop), (), None))
        return fill(self.denoiser.seeing_everything(), made, GenerateOptions(**options), [self.tokenizer.eos_token_id])

    def judged(self, done: list[Filled]) -> Options:
        ids = torch.tensor([one.ids for one in done])
        return speed(done) | self.quality(ids)

    def quality(self, ids: torch.Tensor) -> Options:
        each = [generation.quality(self.judge, row[None]) for row in ids]
        nats, entropy = [math.log(one.perplexity) for one in each], [one.entropy for one in each]
        return {"nats": error(nats), "entropy": error(entropy), "samples": len(each)}

    def refilled(self, done: list[Filled] | infilling.Filled) -> Options:
        tasks = self.tasks
        rows = done if isinstance(done, infilling.Filled) else infilling.Filled([tuple(one.ids) for one in done], 0.0)
        found = {"accuracy": infilling.token_accuracy(tasks, rows)}
        found["right"] = [
            sum(a == b for a, b in zip(ids[task.start : task.stop], task.hidden, strict=True))
            for ids, task in zip(rows.ids, tasks, strict=True)
        ]
        if self.python:
            found["parses"] = infilling.parses(self.tokenizer, rows)
        return found | (speed(done) if isinstance(done, list) else {})

    def references(self) -> Iterator[tuple[str, Options]]:
        """The parent's own samples, held-out text, and the parent's greedy continuations of what is left of a hole."""
        yield "held-out text", self.quality(self.blocks[: 2 * self.samples, : self.length])
        for name, drawing in {"parent": {"temperature": 1.0}, "parent, cooler": COOLER}.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                start = torch.full((2 * self.samples, 1), self.denoiser.record.bos_token_id)
                ids = self.judge.generate(
                    start, attention_mask=torch.ones_like(start), max_new_tokens=self.length - 1,
                    min_new_tokens=self.length - 1, do_sample=True, pad_token_id=0, top_k=0, **drawing,
                )  # fmt: skip
            yield name, self.quality(ids)
        yield "parent, left side of the holes", self.refilled(infilling.continue_left(self.judge, self.tasks))


def error(values: list[float]) -> tuple[float, float]:
    """(mean, its standard error)."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def speed(done: list[Filled]) -> Options:
    forwards = sum(one.forwards for one in done)
    return {"tokens_per_forward": sum(int((~one.canvas.fixed).sum()) for one in done) / forwards}


def written(file: Path, key: list[Any], found: Options) -> None:
    """Add a point, one a line; read again, as somebody else may have added some."""
    report = read(file)
    report["points"].append({"model": key[0], "kind": key[1], "options": key[2]} | rounded(found))
    head = {key: value for key, value in report.items() if key != "points"}
    lines = ",\n".join(json.dumps(point) for point in report["points"])
    spare = file.with_suffix(".part")
    spare.write_text(f'{json.dumps(head)[:-1]}, "points": [\n{lines}\n]}}\n')
    spare.replace(file)


def rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [rounded(value) for value in found]
    return round(found, 4) if isinstance(found, float) else found


def read(file: Path) -> dict[str, Any]:
    if file.exists():
        return json.loads(file.read_text())
    return conditions(torch.get_num_threads()) | {"holes": HOLES, "hole": HOLE, "points": []}


def family(point: Options) -> str:
    """What a curve joins: an order with fixed steps, or a rule."""
    options = point["options"]
    rule = next((name for name in ADAPTIVE if name in options), options.get("schedule", ""))
    plain = rule in ADAPTIVE and options["sampler"] == ADAPTIVE[rule][0]
    order = options["sampler"].replace("_", " ")
    return rule.replace("_", " ") if plain else f"{order}, {rule.replace('_', ' ')}" if rule else order


def families(report: Options, model: str, kind: str) -> dict[str, list[Options]]:
    """Curve -> its points, slowest first."""
    found: dict[str, list[Options]] = {}
    for point in report["points"]:
        if (point["model"], point["kind"]) == (model, kind):
            found.setdefault(family(point), []).append(point)
    return {name: sorted(points, key=lambda one: one["tokens_per_forward"]) for name, points in found.items()}


def differences(point: Options, slow: Options) -> dict[str, tuple[float, float]]:
    """Figure -> (difference to one at a time, its standard error); holes are paired."""
    if "right" in point:
        return {"accuracy": error([(a - b) / HOLE for a, b in zip(point["right"], slow["right"], strict=True)])}
    return {key: (point[key][0] - slow[key][0], math.hypot(point[key][1], slow[key][1])) for key in ("nats", "entropy")}


def falls(points: list[Options], slow: Options) -> str:
    """The slowest point that differs from one at a time by more than two standard errors, and in what."""
    for point in points:
        far = {key: value for key, (value, sigma) in differences(point, slow).items() if abs(value) > 2 * sigma > 0}
        if far:
            what = ", ".join(f"{key} {value:+.2f}" for key, value in far.items())
            return f"{point['tokens_per_forward']:.1f} ({what})"
    return f"not up to {points[-1]['tokens_per_forward']:.1f}"


def told(point: Options) -> str:
    if "accuracy" in point:
        parses = f", {point['parses']:.0%}" if "parses" in point else ""
        return f"{point['accuracy'][0]:.1%}{parses}"
    return f"{point['nats'][0]:.2f} / {point['entropy'][0]:.2f}"


def tables(report: Options) -> str:
    """Every curve as a line of Markdown: tokens a forward: figures, and where it leaves one at a time."""
    lines = []
    for model in dict.fromkeys(point["model"] for point in report["points"]):
        mine = [point for point in report["points"] if point["model"] == model]
        lines += [f"{model}, {one['options']['name']}: {told(one)}" for one in mine if one["kind"] == "reference"]
        for kind in ("samples", "cooler", "holes"):
            curves = families(report, model, kind)
            lines += [
                "",
                f"| {model}, {kind} | tokens a forward: figures | differs from one at a time |",
                "|---|---|---|",
            ]
            for name, points in curves.items():
                slow = curves.get(points[0]["options"]["sampler"].replace("_", " "), points)[0]
                cells = "; ".join(f"{one['tokens_per_forward']:.1f}: {told(one)}" for one in points)
                lines.append(f"| {name} | {cells} | {falls(points, slow)} |")
        for point in (one for one in mine if "positions" in one):
            options = {key: point["options"].get(key) for key in ("block", "cache", "refresh")}
            lines.append(f"{model}, {point['kind']} {options}: {point['positions']:.1f} positions, {told(point)}")
    return "\n".join(lines)


STYLES = {
    "confidence": ("tab:blue", "o-"), "entropy": ("tab:cyan", "o-"), "left to right": ("tab:green", "o-"),
    "random": ("tab:gray", "o-"), "threshold": ("tab:red", "s--"), "entropy bound": ("tab:orange", "s--"),
    "factor": ("tab:purple", "s--"),
}  # fmt: skip


def plot(report: Options, file: str) -> None:
    """Nats and entropy of samples at temperature 1, accuracy in holes: a column a model, a row a figure."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(point["model"] for point in report["points"]))
    rows = {
        "nats": "nats under the parent",
        "entropy": "entropy of a sample",
        "accuracy": "tokens that come back",
    }
    figure = Figure(figsize=(3.1 * len(models), 7.2), layout="constrained")
    grid = figure.subplots(len(rows), len(models), squeeze=False, sharex=True)
    for column, model in enumerate(models):
        references = {
            one["options"]["name"]: one
            for one in report["points"]
            if (one["model"], one["kind"]) == (model, "reference")
        }
        for axes, (key, label) in zip(grid[:, column], rows.items(), strict=True):
            curves = families(report, model, "holes" if key == "accuracy" else "samples")
            for name, (colour, line) in STYLES.items():
                points = curves.get(name, [])
                along = [one["tokens_per_forward"] for one in points]
                values, errors = ([one[key][i] for one in points] for i in (0, 1))
                axes.errorbar(along, values, errors, fmt=line, color=colour, label=name, ms=3, lw=1.2, elinewidth=0.7)
            mark = references["parent" if key != "accuracy" else "parent, left side of the holes"]
            if curves:
                axes.axhline(mark[key][0], color="black", lw=1, ls=":", label="the AR parent")
            else:
                axes.set_axis_off()
            axes.set_xscale("log", base=2)
            axes.set_xticks(TOGETHER, [str(count) for count in TOGETHER])
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
        grid[0, column].set_title(model)
        lowest = max((axes for axes in grid[:, column] if axes.axison), key=grid[:, column].tolist().index)
        lowest.set_xlabel("tokens a forward")
        lowest.tick_params(labelbottom=True)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    figure.savefig(file, dpi=90, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--only", nargs="+", help="samples, cooler, holes, cache, cached holes")
    parser.add_argument("--plot")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for name, _, what in (one.partition("=") for one in asked.models):
        model = Model(*what.split(","))
        done = [[point["model"], point["kind"], point["options"]] for point in read(asked.out)["points"]]
        if not any(key[:2] == [name, "reference"] for key in done):
            for label, found in model.references():
                written(asked.out, [name, "reference", {"name": label}], found)
        for kind, every in model.kinds().items():
            for options in every if not asked.only or kind in asked.only else ():
                if [name, kind, options] in done:
                    continue
                begun = time.process_time()
                written(asked.out, [name, kind, options], model.run(kind, options))
                print(f"{time.process_time() - begun:6.1f} s {name} {kind} {options}", file=sys.stderr, flush=True)
    report = read(asked.out)
    if asked.plot:
        plot(report, asked.plot)
    print(tables(report))


if __name__ == "__main__":
    main()
