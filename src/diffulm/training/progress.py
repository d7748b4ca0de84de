"""A line of progress: loss, tokens a second, utilisation, time left; a live bar in a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState

NARROW = 60  # columns: below, there is room for the step and the loss alone
PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


class ProgressLine(TrainerCallback):
    """Writes to stderr only: stdout belongs to the result. Draws in place on a terminal that takes escape codes; what it
    cannot write it leaves out, for nobody looks and the run is worth more than the line.

    fastest: tokens a second at the devices' peak, where known. look: called after each evaluation; what looks wrong by the
    name of what found it. Each is said once."""

    def __init__(
        self,
        what: str,
        tokens_a_step: int,
        fastest: float | None = None,
        look: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.what, self.tokens_a_step, self.fastest, self.look = what, tokens_a_step, fastest, look
        self.said: set[str] = set()
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.printed, self.narrow = 0.0, False
        self.step, self.since = 0, time.monotonic()
        self.ended = self.since

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step, self.since = state.global_step, time.monotonic()
        console = self.console
        if not state.is_world_process_zero or not console.is_terminal or console.is_dumb_terminal or console.no_color:
            return
        text = TextColumn("{task.fields[text]}")
        self.narrow = console.width < NARROW
        whole = (TextColumn("{task.description}"), BarColumn(), text, TimeRemainingColumn())
        self.bar = Progress(*((text,) if self.narrow else whole), console=console)
        self.task = self.bar.add_task(self.what, total=state.max_steps, completed=state.global_step, text="")
        self.bar.start()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ended = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

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
        self._show(state, f"loss {logs['loss']:.3f}", f", {rate:,.0f} tokens/s{used}", f", {_clock(left)} left")

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

    def say(self, text: str) -> None:
        """A line of its own, beside the bar if there is one."""
        if self.bar:
            with contextlib.suppress(OSError):
                self.bar.console.print(text, markup=False, highlight=False)
        else:
            self._print(text)

    def close(self) -> None:
        """Give the terminal back, cursor and all; however training ended."""
        if self.bar:
            with contextlib.suppress(OSError):
                self.bar.stop()
            self.bar = None

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"{self.what}: {text}", file=self.console.file, flush=True)

    def _show(self, state: TrainerState, loss: str, rate: str, left: str) -> None:
        if not state.is_world_process_zero:
            return
        seen = f"{state.global_step * self.tokens_a_step / 1e6:.2f}M tokens"
        if self.bar:
            short = f"{state.global_step}/{state.max_steps} {loss}"
            self.bar.update(self.task, text=short if self.narrow else f"{seen}, {loss}{rate}")
        elif time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            at = f"step {state.global_step}/{state.max_steps}, {seen}"
            self._print(f"{at}, {loss}{rate}{left}")


def held_out(metrics: Mapping[str, float]) -> str:
    """The losses among the figures of an evaluation, with their errors."""
    shown = []
    for name in ("ar", "bound", "left_to_right"):
        if (value := metrics.get(f"eval_{name}")) is not None:
            error = metrics.get(f"eval_{name}_stderr")
            shown.append(f"{name.replace('_', ' ')} {value:.3f}" + (f" +- {error:.3f}" if error else ""))
    return ", ".join(shown)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
