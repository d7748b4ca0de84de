"""The front's side of the worker: starts it, hands it jobs, and starts another when it dies.

backend = Backend(settings)
await backend.open()
await backend.loaded()
async for number, event in backend.run([Job("complete", "pocket", {"prompt": "import "})]):
    ...
await backend.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from diffulm.errors import BadInput
from diffulm.serving.job import Event, Job, Refused
from diffulm.serving.settings import Settings

LINE = 2**27
"""Bytes of an event, at most."""
PAUSES = (0.0, 0.0, 1.0, 5.0, 30.0)
"""Seconds before a worker is started that follows so many that died before they were ready."""
SILENT = 30.0
"""Seconds without a word after which a worker that was ready is taken for hung; it speaks every second."""
SOON = 2
"""Seconds after which to ask again, where nothing better is known."""

_Waiting = asyncio.Queue[tuple[int, Event]]


class Backend:
    """One worker process at a time. `models`: what it has, `stats`: totals over all workers so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ready = False
        self.models: list[dict[str, Any]] = []
        self.restarts = 0
        self._totals: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._jobs: dict[str, tuple[int, _Waiting]] = {}
        self._numbers = itertools.count()
        self._process: asyncio.subprocess.Process | None = None
        self._closing = False
        self._seconds = 0.0
        self._loaded: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        return min(len(self._jobs), self.settings.rows)

    @property
    def waiting(self) -> int:
        return len(self._jobs) - self.running

    @property
    def stats(self) -> dict[str, int]:
        """forwards, rows (that took part in them), reused (columns of prompts), restarts."""
        names = ("forwards", "rows", "reused")
        return {name: self._totals.get(name, 0) + self._now.get(name, 0) for name in names} | {
            "restarts": self.restarts
        }

    async def open(self) -> None:
        """Start the worker; `loaded` waits for it."""
        self._loaded = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise())

    async def loaded(self) -> None:
        """Wait until the models are there. BadInput where they cannot be opened."""
        assert self._loaded is not None
        await asyncio.shield(self._loaded)

    async def close(self, grace: float = 0.0) -> None:
        """Take nothing new, let what runs end within `grace` seconds, and stop the worker."""
        self._closing = True
        until = time.monotonic() + grace
        while self._jobs and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self._fail("the server is going down; ask again when it is back", "shutting_down")
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, BadInput):
                await self._task

    def run(self, jobs: list[Job]) -> AsyncGenerator[tuple[int, Event]]:
        """(number of the job, event) as they come, until all have ended; closing the generator cancels what still runs.

        Raises Refused at once where the server is not ready, is going down, or has no room for so many.
        """
        if self._closing:
            raise Refused(503, "the server is going down; ask again when it is back", code="shutting_down")
        if not self.ready:
            raise Refused(503, "the model is being loaded; ask again soon", code="not_ready", retry_after=SOON)
        room = self.settings.rows + self.settings.queue - len(self._jobs)
        if len(jobs) > room:
            wait = max(SOON, round(self._seconds * self.waiting / self.settings.rows))
            raise Refused(
                429,
                f"{self.waiting} texts are waiting, and the queue holds {self.settings.queue}: ask again in {wait} s",
                code="queue_full",
                retry_after=wait,
            )
        waiting: _Waiting = asyncio.Queue()
        keys = [str(next(self._numbers)) for _ in jobs]
        for number, (key, job) in enumerate(zip(keys, jobs, strict=True)):
            self._jobs[key] = number, waiting
            self._tell({"op": "start", "id": key, "job": asdict(job)})
        return self._events(keys, waiting)

    async def _events(self, keys: list[str], waiting: _Waiting) -> AsyncGenerator[tuple[int, Event]]:
        began, left = time.monotonic(), len(keys)
        try:
            while left:
                rest = self.settings.timeout - (time.monotonic() - began)
                try:
                    number, event = await asyncio.wait_for(waiting.get(), max(0.0, rest))
                except TimeoutError:
                    message = f"not done within {self.settings.timeout:g} s; ask for less, or with fewer steps"
                    raise Refused(504, message, code="timeout") from None
                left -= event["event"] in ("done", "error")
                yield number, event
            self._seconds = 0.9 * self._seconds + 0.1 * (time.monotonic() - began)
        finally:
            for key in keys:
                if self._jobs.pop(key, None) is not None:
                    self._tell({"op": "cancel", "id": key})

    def _tell(self, order: dict[str, Any]) -> None:
        pipe = self._process.stdin if self._process else None
        if pipe is not None and not pipe.is_closing():
            pipe.write(json.dumps(order).encode() + b"\n")

    def _fail(self, message: str, code: str) -> None:
        """Every job in flight ends with this error."""
        event = {"event": "error", "status": 503, "message": message, "param": None, "code": code}
        jobs, self._jobs = self._jobs, {}
        for number, waiting in jobs.values():
            waiting.put_nowait((number, event))

    async def _supervise(self) -> None:
        assert self._loaded is not None
        deaths = 0
        while True:
            await asyncio.sleep(PAUSES[min(deaths, len(PAUSES) - 1)])
            how = await self._worker()
            deaths = 0 if self.ready else deaths + 1
            self.ready = False
            self._totals = {name: self._totals.get(name, 0) + n for name, n in self._now.items()}
            self._now = {}
            self._fail(f"the process with the model died ({how}) and is started again; ask again soon", "worker_died")
            self.restarts += 1
            if self._loaded.done() and self._loaded.exception() is not None:
                return
            print(
                f"diffulm serve: the process with the model died ({how}); starting another", file=sys.stderr, flush=True
            )

    async def _worker(self) -> str:
        """Run one worker to its end; how it ended."""
        command = [sys.executable, "-m", "diffulm.serving.worker"]
        pipe = asyncio.subprocess.PIPE
        # a group of its own: Ctrl-C in a terminal is for the server to hear, which lets the worker end what it does
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, limit=LINE, start_new_session=True
        )
        self._process = process
        assert process.stdout is not None
        self._tell_settings()
        try:
            async with asyncio.timeout(None) as silence:
                async for line in process.stdout:
                    self._hear(json.loads(line))
                    if self.ready:
                        silence.reschedule(asyncio.get_running_loop().time() + SILENT)
            code = await process.wait()
        except ValueError:  # a line that is none
            code = None
        except TimeoutError:
            return f"silent for {SILENT:g} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"

    def _tell_settings(self) -> None:
        self._tell(self.settings.model_dump(exclude={"keys"}))

    def _hear(self, event: Event) -> None:
        kind = event["event"]
        if kind == "ready":
            self.models, self.ready = event["models"], True
            if self._loaded is not None and not self._loaded.done():
                self._loaded.set_result(None)
        elif kind == "failed":
            if self._loaded is not None and not self._loaded.done():
                self._loaded.set_exception(BadInput(event["message"]))
        elif kind == "stats":
            self._now = {name: event[name] for name in ("forwards", "rows", "reused")}
        elif (key := event.pop("id")) in self._jobs:
            number, waiting = self._jobs[key]
            if kind in ("done", "error"):
                del self._jobs[key]
            waiting.put_nowait((number, event))
