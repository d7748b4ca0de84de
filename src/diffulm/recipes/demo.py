"""`diffulm demo`: the whole story on this machine, without a download.

Inspect the AR parent `pocket-ar`, adapt it for about three minutes on the source of Python's standard library, fill holes
in modules that neither has seen, and compare with the parent and with the shipped `pocket`.
"""

import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from diffulm.canvas import Hole
from diffulm.checkpoint.opening import open_parent
from diffulm.data import stdlib
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.quiet import quietly
from diffulm.evaluation import infilling
from diffulm.evaluation.infilling import Filled, Task
from diffulm.lm import DiffusionLM, load
from diffulm.recipes.adapt import AdaptConfig, carry_out
from diffulm.recipes.config import resolve
from diffulm.recipes.inspect import inspect
from diffulm.training.report import table, write_report
from diffulm.training.run_folder import read_metrics
from diffulm.watch import watching

ADAPT_SECONDS = 165.0
HOLE, HOLES, LONGEST = 6, 96, 160  # tokens a hole, holes, tokens of a function with its hole
STEPS = HOLE  # one token a forward
ROWS = ("parent, left context only", "this run", "shipped pocket")


def run(root: str | Path = "runs", seconds: float = ADAPT_SECONDS) -> dict[str, Any]:
    """Run the demo in a folder of its own under `root`; returns the figures of the table it prints."""
    say("1. The parent", "an AR model of Python source: it reads left to right")
    print_parent()
    folder, config = prepare(Path(root), seconds)
    say("2. Adapting", f"{config.tokens / 1e6:.2f}M tokens of diffusion training in {folder}")
    carry_out(config)
    bounds = [(row["step"], row["eval_bound"]) for row in read_metrics(folder / "metrics.jsonl") if "eval_bound" in row]
    print("held-out bound, nats a token: " + " -> ".join(f"{nats:.2f}" for _, nats in bounds))
    say("3. Filling holes", "in a module that no model here has seen; ░ is a masked token")
    mine, shipped = load(folder), load("pocket")
    tasks = held_out_tasks(mine)
    show_one(mine, tasks)
    say("4. The figures", f"{len(tasks)} holes of {HOLE} tokens in held-out functions")
    figures = compare(tasks, mine, shipped)
    print_table(figures)
    rows = [[name, *figures[name].values()] for name in ROWS]
    head = ["", *figures[ROWS[0]]]
    page = write_report(folder, "DiffuLM demo", {"held-out bound": bounds[-1][1]}, table(head, rows))
    print(f"\nrun folder: {folder}\nreport:     {page}")
    return {"folder": str(folder), "report": str(page), "rows": figures}


def say(title: str, what: str) -> None:
    print(f"\n{title}: {what}", flush=True)


def print_parent() -> None:
    found = inspect("pocket-ar")
    assert found.probe is not None
    print(
        f"pocket-ar: {found.architecture}, {found.parameters:,} parameters, context {found.context}, {found.tokenizer}"
    )
    looks, identity = found.probe["full"], found.probe["identity"]
    print(f"mask token: {found.mask_token}; looks right when asked to: {looks}; identity with itself: {identity:.1e}")


def prepare(root: Path, seconds: float) -> tuple[Path, AdaptConfig]:
    """The run's folder and config: one that was interrupted goes on, otherwise the next free name."""
    number = 1
    while (folder := root / f"demo-{number}").exists() and (folder / "report.json").exists():
        number += 1
    text = root / "stdlib"
    for split in ("train", "heldout"):
        write_text(text / f"{split}.jsonl.gz", split)
    saved = folder / "config.yaml"
    if saved.exists():
        return folder, resolve("adapt", AdaptConfig, saved, {})
    settings = {"data": str(text / "train.jsonl.gz"), "eval_data": str(text / "heldout.jsonl.gz"), "out": str(folder)}
    config = resolve("adapt", AdaptConfig, "demo", settings)
    return folder, resolve("adapt", AdaptConfig, "demo", settings | affordable(config, seconds))


def write_text(file: Path, split: Any) -> None:
    """The standard library's modules as .jsonl.gz; the same bytes each time, left alone when they are there."""
    lines = "".join(json.dumps({"text": source, "path": path}) + "\n" for path, source in stdlib.modules(split))
    content = gzip.compress(lines.encode(), mtime=0)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_bytes() != content:
        file.write_bytes(content)


def affordable(config: AdaptConfig, seconds: float) -> dict[str, Any]:
    """The faster precision of this machine (bfloat16 is slow where the processor has no instructions for it) and the
    tokens it trains on in about `seconds`, measured on a throw-away copy."""
    denoiser, _ = adopt(config.model)
    ids = torch.full((8, config.length), 5)
    where = denoiser.predictable(ids) & (torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5)

    def step_seconds(bf16: bool) -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            denoiser.cross_entropy(ids, ids[where], where).mean().backward()
        return time.perf_counter() - started

    times = {name: min(step_seconds(name == "bf16") for _ in range(4)) for name in ("bf16", "float32")}
    precision = min(times, key=lambda name: times[name])
    # a best of four is optimistic, and evaluations, checkpoints and the optimizer take their share: two thirds are left
    batch = config.global_batch * config.length
    steps = max(20, round(0.67 * seconds * ids.numel() / times[precision] / batch))
    return {"precision": precision, "tokens": steps * batch}


def held_out_tasks(lm: DiffusionLM) -> list[Task]:
    sources = (source for _, source in stdlib.modules("heldout"))
    assert lm.record.bos_token_id is not None
    return infilling.tasks_from_code(lm.tokenizer, lm.record.bos_token_id, sources, HOLE, HOLES, LONGEST)


def show_one(lm: DiffusionLM, tasks: list[Task]) -> None:
    """The canvas of a few holes as it fills."""
    for task in tasks[:: max(1, len(tasks) // 2)][:2]:
        left = lm.tokenizer.decode(task.ids[1 : task.start])
        right = lm.tokenizer.decode(task.ids[task.stop :])
        with watching(True, lm.tokenizer) as callback:
            made = lm.infill([left, Hole(HOLE), right], steps=STEPS, callback=callback)
        print(f"{left}[{made.fills[0]}]{right}".rstrip())
        print(f"--- filled: {made.fills[0]!r}, it was: {lm.tokenizer.decode(task.hidden)!r}\n")


def compare(tasks: list[Task], mine: DiffusionLM, shipped: DiffusionLM) -> dict[str, dict[str, float]]:
    """One row a model: token accuracy in the holes (and its standard error), share that parses, tokens a second."""
    with quietly():
        parent, _, _ = open_parent("pocket-ar", None, None)
    filled = (
        infilling.continue_left(parent, tasks),
        infilling.fill(mine.denoiser, tasks, STEPS),
        infilling.fill(shipped.denoiser, tasks, STEPS),
    )
    return {name: _figures(mine.tokenizer, tasks, one) for name, one in zip(ROWS, filled, strict=True)}


def _figures(tokenizer: Any, tasks: list[Task], filled: Filled) -> dict[str, float]:
    accuracy, error = infilling.token_accuracy(tasks, filled)
    return {
        "token accuracy": accuracy,
        "+-": error,
        "parses": infilling.parses(tokenizer, filled),
        "tokens/s": infilling.tokens_per_second(tasks, filled),
    }


def print_table(figures: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(*["", *figures[ROWS[0]]])
    for name, row in figures.items():
        shown.add_row(
            name, f"{row['token accuracy']:.1%}", f"{row['+-']:.1%}", f"{row['parses']:.1%}", f"{row['tokens/s']:.0f}"
        )
    Console(file=sys.stdout).print(shown)
