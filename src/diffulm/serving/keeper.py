"""Keeps one process with the model alive: starts it, hands it jobs, hears it, and starts another when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

from diffulm.errors import BadInput
from diffulm.serving.job import Event, Job, failed, say
from diffulm.serving.settings import Settings

LINE = 2**27
"""Bytes of an event, at most."""
PAUSES = (0.0, 0.0, 1.0, 5.0, 30.0)
"""Seconds before a worker is started that follows so many that died before they were ready."""
SILENT = 30
"""Seconds without a word after which a worker that was ready is taken for hung; it speaks every second."""
LEAN = {"MALLOC_ARENA_MAX": "2"}
"""glibc gives each thread a heap of its own, and each job is a thread: a fifth more memory without this."""
UNREAD = 1000
"""Canvases that may wait for who asked for them."""
COUNTED: tuple[str, ...] = ("forwards", "rows", "reused")

Waiting = asyncio.Queue[tuple[int, Event]]


class Keeper:
    """One worker process at a time. `facts`: what it said when it was ready, `jobs`: what it has to do."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ready = False
        self.facts: dict[str, Any] = {}
        self.jobs: dict[str, tuple[int, Waiting]] = {}
        self.restarts = 0
        self._totals = dict.fromkeys(COUNTED, 0)
        self._now = dict.fromkeys(COUNTED, 0)
        self._quiet = 0
        """Seconds since the worker said anything, once it was ready."""
        self._process: asyncio.subprocess.Process | None = None
        self._loaded = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise())

    @property
    def stats(self) -> dict[str, int]:
        """Totals over all workers so far: forwards, rows (that took part in them), reused (columns of prompts), restarts."""
        return {name: self._totals[name] + self._now[name] for name in COUNTED} | {"restarts": self.restarts}

    async def loaded(self) -> None:
        """Wait until the first worker is ready. BadInput where it cannot be."""
        await asyncio.shield(self._loaded)

    def start(self, key: str, job: Job, number: int, waiting: Waiting) -> None:
        """Its events go to `waiting`, with the number."""
        self.jobs[key] = number, waiting
        self._tell({"op": "start", "id": key, "job": asdict(job)})

    def cancel(self, key: str) -> None:
        """Unless it has ended."""
        if self.jobs.pop(key, None) is not None:
            self._tell({"op": "cancel", "id": key})

    def fail(self, message: str, code: str) -> None:
        """Every job in flight ends with this error."""
        jobs, self.jobs = self.jobs, {}
        for number, waiting in jobs.values():
            waiting.put_nowait((number, failed(503, message, code)))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _tell(self, order: dict[str, Any]) -> None:
        pipe = self._process.stdin if self._process else None
        if pipe is not None and not pipe.is_closing():
            pipe.write(json.dumps(order).encode() + b"\n")

    async def _supervise(self) -> None:
        deaths = 0
        while True:
            await asyncio.sleep(PAUSES[min(deaths, len(PAUSES) - 1)])
            try:
                how = await self._worker()
            except OSError as error:  # the system has no more memory or processes to give
                how = f"could not be started: {error.strerror or error}"
            deaths = 0 if self.ready else deaths + 1
            self.ready = False
            self._totals = {name: self._totals[name] + n for name, n in self._now.items()}
            self._now = dict.fromkeys(COUNTED, 0)
            self.fail(f"the process with the model died ({how}) and is started again; ask again soon", "worker_died")
            if self._loaded.done() and self._loaded.exception() is not None:
                return
            self.restarts += 1
            say(f"the process with the model died ({how}); starting another")

    async def _worker(self) -> str:
        """Run one worker to its end; how it ended."""
        command = [sys.executable, "-P", "-m", "diffulm.serving.worker"]  # no module from the folder we stand in
        pipe = asyncio.subprocess.PIPE
        # a group of its own: Ctrl-C in a terminal is for the server to hear, which lets the worker end what it does
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, limit=LINE, start_new_session=True, env=LEAN | os.environ
        )
        self._process = process
        assert process.stdout is not None
        self._tell(self.settings.model_dump(exclude={"keys"}))
        self._quiet = 0
        watch = asyncio.create_task(self._watch(process))
        try:
            async for line in process.stdout:
                self._quiet = 0
                self._hear(json.loads(line))
            code = await process.wait()
        except ValueError:  # a line that is none
            code = None
        finally:
            watch.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._quiet >= SILENT:
            return f"silent for {SILENT} s"
        return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill a worker that says nothing; counted in seconds of our own, which stand still when we do."""
        while self._quiet < SILENT:
            await asyncio.sleep(1)
            self._quiet += self.ready
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    def _hear(self, event: Event) -> None:
        kind = event["event"]
        if kind == "ready":
            self.facts, self.ready = event, True
            if not self._loaded.done():
                self._loaded.set_result(None)
        elif kind == "failed":
            if not self._loaded.done():
                self._loaded.set_exception(BadInput(event["message"]))
            else:  # it could be opened once
                say(event["message"])
        elif kind == "stats":
            self._now = {name: event[name] for name in COUNTED}
        elif (key := event.pop("id")) in self.jobs:
            number, waiting = self.jobs[key]
            if kind == "canvas" and waiting.qsize() > UNREAD:
                self.cancel(key)
                event = failed(503, "the canvases are not being read", "unread")
            elif kind in ("done", "error"):
                del self.jobs[key]
            waiting.put_nowait((number, event))
