"""A line of progress: loss, tokens a second, utilisation, time left."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.progress import TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState

from diffulm.training.status import Status, clock

SHARES = ("exact", "empty", "ended")  # of replies


class ProgressLine(Status, TrainerCallback):
    """fastest: tokens a second at the devices' peak, where known. look: called after each evaluation; what looks wrong by the
    name of what found it. Each is said once."""

    def __init__(
        self,
        what: str,
        tokens_a_step: int,
        fastest: float | None = None,
        look: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        super().__init__(what)
        self.tokens_a_step, self.fastest, self.look = tokens_a_step, fastest, look
        self.said: set[str] = set()
        self.step, self.since = 0, time.monotonic()
        self.ended = self.since

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step, self.since = state.global_step, time.monotonic()
        if state.is_world_process_zero:
            self.begin(state.max_steps, state.global_step, TimeRemainingColumn())

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ended = time.monotonic()
        self.moved(state.global_step)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        self.since, self.ended = self.since + now - self.ended, now  # what is no training is not in its rate

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now = time.monotonic()
        rate = (state.global_step - self.step) * self.tokens_a_step / max(now - self.since, 1e-9)
        self.step, self.since = state.global_step, now
        left = (state.max_steps - state.global_step) * self.tokens_a_step / max(rate, 1e-9)
        used = f" ({rate / self.fastest:.0%} of the peak)" if self.fastest else ""
        self._show(state, f"loss {logs['loss']:.3f}", f", {rate:,.0f} tokens/s{used}", f", {clock(left)} left")

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        self.on_save(args, state, control)
        if not state.is_world_process_zero:
            return
        self.say(f"step {state.global_step}: held-out {held_out(metrics or {})}")
        for name, warning in self.look().items():
            if name not in self.said:
                self.said.add(name)
                self.say(f"step {state.global_step}: looks wrong: {warning}")

    def _show(self, state: TrainerState, loss: str, rate: str, left: str) -> None:
        if not state.is_world_process_zero:
            return
        seen = f"{state.global_step * self.tokens_a_step / 1e6:.2f}M tokens"
        at = f"{state.global_step}/{state.max_steps}"
        self.show(f"{seen}, {loss}{rate}", f"{at} {loss}", f"step {at}, {seen}, {loss}{rate}{left}")


def held_out(metrics: Mapping[str, float]) -> str:
    """The losses among the figures of an evaluation, with their errors, and what became of replies."""
    shown = []
    for name in ("ar", "bound", "left_to_right"):
        if (value := metrics.get(f"eval_{name}")) is not None:
            error = metrics.get(f"eval_{name}_stderr")
            shown.append(f"{name.replace('_', ' ')} {value:.3f}" + (f" +- {error:.3f}" if error else ""))
    shares = [f"{metrics[f'eval_{name}']:.0%} {name}" for name in SHARES if f"eval_{name}" in metrics]
    return ", ".join(shown) + (f"; of replies {', '.join(shares)}" if shares else "")
