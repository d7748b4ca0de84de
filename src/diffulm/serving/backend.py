"""The front's side of the workers: lets jobs in or refuses them, and hands each to the worker that has least to do.

backend = Backend(settings)
await backend.open()
await backend.loaded()
async for number, event in backend.run([Job("complete", "pocket", {"prompt": "import "})]):
    ...
await backend.close()
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from diffulm.serving.job import Event, Job, Refused, say
from diffulm.serving.keeper import Keeper, Waiting
from diffulm.serving.settings import Settings

SOON = 2
"""Seconds after which to ask again, where nothing better is known."""


class Backend:
    """Starts one worker; once it is ready, as many more as it says this machine has use for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._keepers: list[Keeper] = []
        self._numbers = itertools.count()
        self._closing = False
        self._seconds = 0.0

    @property
    def ready(self) -> bool:
        return any(keeper.ready for keeper in self._keepers)

    @property
    def models(self) -> list[dict[str, Any]]:
        return self._keepers[0].facts.get("models", []) if self._keepers else []

    @property
    def stats(self) -> dict[str, int]:
        """Totals: see `Keeper.stats`."""
        total: Counter[str] = Counter()
        for keeper in self._keepers:
            total.update(keeper.stats)
        return dict(total)

    @property
    def rows(self) -> int:
        """Texts that are computed at once."""
        return self.settings.rows * max(1, sum(keeper.ready for keeper in self._keepers))

    @property
    def running(self) -> int:
        return sum(min(len(keeper.jobs), self.settings.rows) for keeper in self._keepers)

    @property
    def waiting(self) -> int:
        return sum(len(keeper.jobs) for keeper in self._keepers) - self.running

    async def open(self) -> None:
        """Start the first worker; `loaded` waits for it."""
        self._keepers.append(Keeper(self.settings))

    async def loaded(self) -> None:
        """Wait until the models are there. BadInput where they cannot be opened."""
        await self._keepers[0].loaded()

    async def complete(self) -> tuple[int, int]:
        """Start the other workers and wait for them: (workers, threads of each)."""
        facts = self._keepers[0].facts
        if not self._closing:
            self._keepers += [Keeper(self.settings) for _ in range(facts["workers"] - len(self._keepers))]
        ended = await asyncio.gather(*(keeper.loaded() for keeper in self._keepers), return_exceptions=True)
        failed = [keeper for keeper, error in zip(self._keepers, ended, strict=True) if error is not None]
        self._keepers = [keeper for keeper in self._keepers if keeper not in failed]
        for error in filter(None, ended):
            say(str(error))
        return len(self._keepers), facts["threads"]

    async def close(self, grace: float = 0.0) -> None:
        """Take nothing new, let what runs end within `grace` seconds, and stop the workers."""
        self._closing = True
        until = time.monotonic() + grace
        while self.running and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for keeper in self._keepers:
            keeper.fail("the server is going down; ask again when it is back", "shutting_down")
        await asyncio.gather(*(keeper.close() for keeper in self._keepers))

    def run(self, jobs: list[Job]) -> AsyncGenerator[tuple[int, Event]]:
        """(number of the job, event) as they come, until all have ended; closing the generator cancels what still runs.

        Raises Refused at once where the server is not ready, is going down, or has no room for so many.
        """
        if self._closing:
            raise Refused(503, "the server is going down; ask again when it is back", code="shutting_down")
        if not self.ready:
            raise Refused(503, "the model is being loaded; ask again soon", code="not_ready", retry_after=SOON)
        if len(jobs) > self.settings.rows * self._keepers[0].facts["workers"] + self.settings.queue:
            message = f"these are {len(jobs)} texts, more than the queue holds: ask for fewer in a request"
            raise Refused(400, message, param="text" if jobs[0].kind == "score" else "n")
        room = self.rows + self.settings.queue - self.running - self.waiting
        if len(jobs) > room:
            wait = max(SOON, round(self._seconds * self.waiting / self.rows))
            raise Refused(
                429,
                f"{self.waiting} texts are waiting, and the queue holds {self.settings.queue}: ask again in {wait} s",
                code="queue_full",
                retry_after=wait,
            )
        waiting: Waiting = asyncio.Queue()
        seats: list[tuple[Keeper, str]] = []
        for number, job in enumerate(jobs):
            keeper = min((one for one in self._keepers if one.ready), key=lambda one: len(one.jobs))
            key = str(next(self._numbers))
            keeper.start(key, job, number, waiting)
            seats.append((keeper, key))
        return self._events(seats, waiting)

    async def _events(self, seats: list[tuple[Keeper, str]], waiting: Waiting) -> AsyncGenerator[tuple[int, Event]]:
        began, left = time.monotonic(), len(seats)
        try:
            while left:
                rest = self.settings.timeout - (time.monotonic() - began)
                try:
                    async with asyncio.timeout(max(0.0, rest)):
                        number, event = await waiting.get()
                except TimeoutError:
                    message = f"not done within {self.settings.timeout:g} s; ask for less, or with fewer steps"
                    raise Refused(504, message, code="timeout") from None
                left -= event["event"] in ("done", "error")
                yield number, event
            self._seconds = 0.9 * self._seconds + 0.1 * (time.monotonic() - began)
        finally:
            for keeper, key in seats:
                keeper.cancel(key)
