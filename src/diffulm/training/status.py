"""What a long command says while it works: a live bar in a terminal, plain lines elsewhere."""

import contextlib
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

NARROW = 60  # columns: below, there is room for the text alone
PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


class Status:
    """Writes to stderr only: stdout belongs to the result. Draws in place on a terminal that takes escape codes; what it
    cannot write it leaves out, for nobody looks and the run is worth more than the line."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.printed, self.narrow = 0.0, False

    def begin(self, total: float, completed: int = 0, *columns: ProgressColumn) -> None:
        """Draw the bar, where there is a terminal for it. columns: what stands behind the text."""
        console = self.console
        if not console.is_terminal or console.is_dumb_terminal or console.no_color:
            return
        text = TextColumn("{task.fields[text]}")
        self.narrow = console.width < NARROW
        whole = (TextColumn("{task.description}"), BarColumn(), text, *columns)
        self.bar = Progress(*((text,) if self.narrow else whole), console=console)
        self.task = self.bar.add_task(self.what, total=total, completed=completed, text="")
        self.bar.start()

    def moved(self, completed: float) -> None:
        """So much of the total is done; said by the bar alone."""
        if self.bar:
            self.bar.update(self.task, completed=completed)

    def show(self, wide: str, narrow: str, plain: str) -> None:
        """What goes on now: beside the bar, instead of it in a narrow terminal, or as a line every so often."""
        if self.bar:
            self.bar.update(self.task, text=narrow if self.narrow else wide)
        elif time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            self._print(plain)

    def say(self, text: str) -> None:
        """A line of its own, beside the bar if there is one."""
        if self.bar:
            with contextlib.suppress(OSError):
                self.bar.console.print(text, markup=False, highlight=False)
        else:
            self._print(text)

    def close(self) -> None:
        """Give the terminal back, cursor and all; however the work ended."""
        if self.bar:
            with contextlib.suppress(OSError):
                self.bar.stop()
            self.bar = None

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"{self.what}: {text}", file=self.console.file, flush=True)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
