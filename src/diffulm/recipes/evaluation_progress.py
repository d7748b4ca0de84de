"""How far an evaluation is: what goes on now, and how long all of it will still take."""

import time
from types import TracebackType

from diffulm.training.status import Status, clock


class Overall:
    """A bar, or lines, over all units (a part of the suite for one model each). The time left supposes that units take
    alike; what a journal knew already is in neither the time nor the rate.

    A unit asks an unknown number of questions one after the other; each is taken to be half of what is left of it.
    """

    def __init__(self, units: list[str]) -> None:
        self.units, self.status = units, Status("evaluating")
        self.number, self.share, self.fresh = 0, 0.0, False
        self.asked: dict[str, float] = {}
        self.spent, self.done = 0.0, 0.0
        self.since = time.monotonic()

    def __enter__(self) -> "Overall":
        self.status.begin(len(self.units))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status.close()

    def next(self, number: int) -> None:
        """Unit `number` begins; those before it are done."""
        if self.fresh:
            self.spent, self.done = self.spent + time.monotonic() - self.since, self.done + 1
        self.number, self.share, self.fresh, self.asked = number, 0.0, False, {}
        self.since = time.monotonic()
        self.status.moved(number)

    def told(self, what: str, done: int, of: int) -> None:
        """A journal tells that `done` of `of` items are done."""
        self.fresh = self.fresh or done < of
        self.asked[what] = done / of
        self.share = 1.0
        for each in self.asked.values():
            self.share *= 1 - each / 2
        self.share = 1 - self.share
        unit = self.units[self.number]
        left = f", {clock(seconds)} left" if (seconds := self.left()) is not None else ""
        at = f"{self.number + 1}/{len(self.units)} {unit}"
        self.status.moved(self.number + self.share)
        self.status.show(f"{at}: {done}/{of}{left}", f"{at}{left}", f"{at}: {done}/{of}{left}")

    def left(self) -> float | None:
        """Seconds; None before anything is known."""
        done = self.done + self.share
        spent = self.spent + time.monotonic() - self.since
        rest = len(self.units) - self.number - self.share
        return spent / done * rest if self.fresh and done > 0 else None
