"""When a run evaluates and saves, what it writes to metrics.jsonl, and how fast its device could go at most."""

import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from diffulm.costs import CARDS
from diffulm.training.curriculum import Curriculum
from diffulm.training.run_folder import RunFolder

# What `torch.cuda.get_device_name` says of the cards of `costs.CARDS`: all of these words.
NAMES = {"RTX 4090": ("RTX", "4090"), "A100 80GB": ("A100", "80GB"), "H100 SXM": ("H100", "HBM3"), "H200": ("H200",)}
SIDE, TIMES = 512, 5  # of the product that measures a CPU: its caches hold it, and it takes milliseconds


def peak(device: str, bf16: bool) -> float | None:
    """FLOP/s that this device has at most: of a known GPU in bfloat16 by its data sheet, of a CPU as a product of matrices
    measures it here and now; None where that is not known."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    if device == "cuda":
        words = torch.cuda.get_device_name().replace("-", " ").split()
        known = (card for card, wanted in NAMES.items() if set(wanted) <= set(words))
        card = next(known, None)
        return CARDS[card].peak if card and bf16 else None
    if device != "cpu":
        return None
    matrix = torch.ones(SIDE, SIDE, dtype=dtype)
    torch.mm(matrix, matrix)
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        taken.append(time.perf_counter() - started)
    return 2 * SIDE**3 / max(min(taken), 1e-9)


class Pace(TrainerCallback):
    """When to evaluate and save, and what goes to metrics.jsonl.

    Saves fall on logging boundaries only: the running loss is not part of a checkpoint, and is zero there. fastest: tokens
    a second at the devices' peak, None where that is not known.
    """

    def __init__(
        self,
        run: RunFolder,
        curriculum: Curriculum,
        tokens_a_step: int,
        eval_every: int,
        save_seconds: float,
        fastest: float | None = None,
    ) -> None:
        self.run, self.curriculum, self.tokens_a_step, self.fastest = run, curriculum, tokens_a_step, fastest
        self.eval_every, self.save_seconds = eval_every, save_seconds
        self.started = self.saved = self.logged = self.ended = time.monotonic()
        self.logged_step = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.started = self.saved = self.logged = self.ended = time.monotonic()
        self.logged_step = state.global_step

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        boundary = state.global_step % args.logging_steps == 0 or last
        control.should_log = boundary
        left = state.max_steps - state.global_step  # just before the end it would be done twice
        control.should_evaluate = last or (state.global_step % self.eval_every == 0 and 2 * left >= self.eval_every)
        if last or (boundary and time.monotonic() - self.saved >= self.save_seconds):
            control.should_save = True
        self.ended = time.monotonic()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        self.logged, self.ended = self.logged + now - self.ended, now  # what is no training is not in its rate

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.on_evaluate(args, state, control)
        self.saved = self.ended

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        now, steps = time.monotonic(), state.global_step - self.logged_step
        rate = steps * self.tokens_a_step / max(now - self.logged, 1e-9)
        left = (state.max_steps - state.global_step) * self.tokens_a_step
        kept = {k: logs[k] for k in ("loss", "grad_norm", "learning_rate") if k in logs}
        row = {
            "step": state.global_step,
            **kept,
            "tokens": state.global_step * self.tokens_a_step,
            "anneal_ratio": self.curriculum.anneal_ratio(state.global_step - 1),
            "seconds": round(now - self.started, 3),
            "tokens_per_second": round(rate, 1),
            "time_to_go": round(left / max(rate, 1e-9), 1),
        }
        stages = self.curriculum.stages
        if len(stages) > 1:
            row["stages_left"] = sum(first >= state.global_step for first, _ in stages)
        if self.fastest:
            row["utilisation"] = round(rate / self.fastest, 4)
        self.run.log(row)
        self.logged, self.logged_step = now, state.global_step
