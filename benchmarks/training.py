"""What a step of adaptation costs beside a step of ordinary AR training, in time and in memory.

    python benchmarks/training.py --json          # the headline pairs, under ten minutes on two cores
    python benchmarks/training.py --all --json    # annealing, blocks, AR term, checkpointing, compile, the whole Trainer

GPT-2-small geometry with random weights, 4 x 512 tokens, bfloat16 autocast, AdamW, dropout 0. A pair is one step of each
side, one after the other, the side that begins alternating; the figure is the median of the paired ratios with its
distribution-free interval. Memory: what a step takes above weights, gradients and moments, from one fresh process a side.
The AR side is `model(ids, labels=ids)` of transformers, as anybody would write it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from pairs import conditions, median, now
from transformers import GPT2Config, GPT2LMHeadModel

import diffulm
from diffulm.data import stdlib
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.layers import recompute
from diffulm.recipes import pocket, train
from diffulm.training.curriculum import Curriculum
from diffulm.training.pace import Pace
from diffulm.training.step import loss_of, prepared
from diffulm.training.trainer import DiffusionTrainer

PAIRS = 11
THREADS, BATCH, LENGTH = 2, 4, 512
LEARNING_RATE = 1e-4
# step of the run: with annealing over 10 steps, step 4 has half of the future open
SIDES: dict[str, dict[str, Any]] = {
    "full": {},
    "annealing": {"anneal_steps": 10},
    "blocks of 32": {"stages": ((0, 32),), "noise": "count"},
    "AR term": {"ar_weight": 0.5},
}
HEADLINE = ("full", "annealing")
STEP = 4


class Side:
    """One way of training a model of its own: `backward()` is a step without its optimizer."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.model = GPT2LMHeadModel(GPT2Config(**drop)).to(device).train()
        self.ids = torch.randint(0, 50257, (BATCH, LENGTH), device=device)
        self.name, self.device, self.number = name, device, 0
        kind = name.split(", ")[0]
        if kind != "ar":
            denoiser, _ = adopt(self.model, mask_token="10541")
            denoiser.model.train()
            self.denoiser = denoiser.quick() if device == "cuda" else denoiser  # as `recipes.train.make_quick`
            self.curriculum = Curriculum(10541, 0, BATCH, **SIDES[kind])
        if "checkpointing" in name:
            recompute(self.model)
        if "compile" in name:
            for layer in self.model.transformer.h:
                layer.compile()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, fused=True)

    def backward(self) -> None:
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.model(self.ids, labels=self.ids).loss if self.name.startswith("ar") else self._diffusion()
        loss.backward()

    def _diffusion(self) -> torch.Tensor:
        rows = torch.arange(BATCH, device=self.device)
        fixed = torch.zeros_like(self.ids, dtype=torch.bool)
        batch = {"ids": self.ids, "fixed": fixed, "row": rows, "step": torch.full_like(rows, STEP + 10 * self.number)}
        self.number += self.curriculum.anneal_steps == 0  # other tokens are hidden each time; annealing stays half way
        [inputs] = prepared(self.curriculum, [batch], 1, lambda total: total)
        return loss_of(self.denoiser, self.curriculum, inputs, 1)

    def step(self) -> dict[str, float]:
        """Seconds of one step by part."""
        begun = now(self.device)
        self.backward()
        between = now(self.device)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": between - begun, "optimizer": now(self.device) - between}


def compared(ours: str, theirs: str = "ar", pairs: int = PAIRS) -> dict[str, Any]:
    """Ratio of a step's seconds, ours to theirs: median of the pairs and its interval."""
    sides = [Side(ours), Side(theirs)]
    for side in sides:
        for _ in range(2):
            side.step()
    seconds: list[dict[str, dict[str, float]]] = []
    for number in range(pairs):
        order = sides if number % 2 else sides[::-1]
        seconds.append({side.name: side.step() for side in order})
    whole = {name: [sum(pair[name].values()) for pair in seconds] for name in (ours, theirs)}
    return {
        **median([a / b for a, b in zip(whole[ours], whole[theirs], strict=True)]),
        "seconds": {name: statistics.median(values) for name, values in whole.items()},
        "optimizer_seconds": {
            name: statistics.median(p[name]["optimizer"] for p in seconds) for name in (ours, theirs)
        },
    }


def bytes_of_a_step(name: str) -> int:
    """Peak of a step above weights, gradients and moments, in this process, which should be a fresh one."""
    torch.set_num_threads(THREADS)
    side = Side(name)
    side.step()  # the moments exist now; gradients do not
    gradients = sum(4 * p.numel() for p in side.model.parameters())
    if side.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side.backward()
        return torch.cuda.max_memory_allocated() - before - gradients
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    side.backward()
    return resident("VmHWM") - before - gradients


def resident(what: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what + ":"))


def memory(names: list[str]) -> dict[str, int]:
    # every tensor of more than 64 KiB is given back to the system when it is freed
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--memory-of", name]
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found[name] = int(out.splitlines()[-1])
    return found


class Enough(Exception):
    """Ends the run that `overhead` watches, before its final evaluation."""


def overhead(steps: int = 10) -> dict[str, float]:
    """Share of a step of `diffulm adapt`, logged every time, that is neither loss, backward nor optimizer: data and logging.

    Both are read off one run, so that they meet the same weather.
    """
    inside, ends = [0.0], []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            out = function(*args, **options)
            inside[0] += time.perf_counter() - begun
            return out

        return run

    def ended(pace: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        written(pace, args, state, control, **options)  # the row of the step before has been written by now
        ends.append((time.perf_counter(), inside[0]))
        if len(ends) > steps:
            raise Enough

    written = Pace.on_step_end
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        parent, text = f"{folder}/parent", f"{folder}/text.txt"
        source = "".join(source for _, source in islice(stdlib.modules("train"), 60))
        Path(text).write_text(source)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(parent)
        pocket.tokenizer([source], 2048).save_pretrained(parent)
        for owner, name, value in (
            (DiffusionTrainer, "training_step", timed(DiffusionTrainer.training_step)),
            (torch.optim.AdamW, "step", timed(torch.optim.AdamW.step)),
            (Pace, "on_step_end", ended),
            (train, "first_look", lambda *_: {}),
        ):
            patches.enter_context(mock.patch.object(owner, name, value))
        patches.enter_context(suppress(Enough))
        diffulm.adapt(
            "tiny", model=parent, data=text, out=f"{folder}/out", length=LENGTH, global_batch=BATCH, micro_batch=BATCH,
            tokens=100 * BATCH * LENGTH, precision="bf16", logging_steps=1, save_seconds=1e9, eval_every="100%", device="cpu",
        )  # fmt: skip
    whole, taken = ends[-1][0] - ends[0][0], ends[-1][1] - ends[0][1]
    return {"share": 1 - taken / whole, "seconds_a_step": whole / steps, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if asked.memory_of:
        print(bytes_of_a_step(asked.memory_of))
        return
    torch.set_num_threads(THREADS)
    report: dict[str, Any] = conditions(THREADS) | {"shape": [BATCH, LENGTH]}
    steps = {name: compared(name, pairs=asked.pairs) for name in (SIDES if asked.all else HEADLINE)}
    report |= {
        "step_ratio": steps["full"]["ratio"],
        "annealing_step_ratio": steps["annealing"]["ratio"],
        "steps": steps,
    }
    names = ["ar", "full", "full, checkpointing"]
    if asked.all:
        names += ["ar, checkpointing", "annealing", "blocks of 32", "AR term"]
        steps["full, compile"] = compared("full, compile", "full", asked.pairs)
        report["overhead"] = overhead()
    held = memory(names)
    report |= {
        "memory_ratio": held["full"] / held["ar"],
        "checkpointing_memory_ratio": held["full, checkpointing"] / held["ar"],
        "bytes": held,
        "peak_of_this_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(report, indent=2) if asked.json else "\n".join(f"{key}: {value}" for key, value in report.items()))


if __name__ == "__main__":
    main()
