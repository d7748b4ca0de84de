"""When a run evaluates and saves, and what it writes to metrics.jsonl."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from diffulm.training.curriculum import Curriculum
from diffulm.training.run_folder import RunFolder


class Pace(TrainerCallback):
    """When to evaluate and save, and what goes to metrics.jsonl.

    Saves fall on logging boundaries only: the running loss is not part of a checkpoint, and is zero there.
    """

    def __init__(
        self, run: RunFolder, curriculum: Curriculum, tokens_a_step: int, eval_every: int, save_seconds: float
    ) -> None:
        self.run, self.curriculum, self.tokens_a_step = run, curriculum, tokens_a_step
        self.eval_every, self.save_seconds = eval_every, save_seconds
        self.started = self.saved = self.logged = time.monotonic()
        self.logged_step = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.started = self.saved = self.logged = time.monotonic()
        self.logged_step = state.global_step

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        boundary = state.global_step % args.logging_steps == 0 or last
        control.should_log = boundary
        control.should_evaluate = last or state.global_step % self.eval_every == 0
        if last or (boundary and time.monotonic() - self.saved >= self.save_seconds):
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.monotonic()

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
        self.run.log(row)
        self.logged, self.logged_step = now, state.global_step
