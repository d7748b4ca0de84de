"""The process behind the server that has the model: python -m diffulm.serving.worker

JSON lines. On standard input first the `Settings`, then {"op": "start", "id": ..., "job": {...}} and {"op": "cancel",
"id": ...}; on standard output {"event": "ready", "models": [...], "workers": ..., "threads": ...} or {"event": "failed",
"message": ...}, then the events of jobs, each with its id, and now and then {"event": "stats", ...}. It ends when its
standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from diffulm.serving.job import say
from diffulm.serving.settings import MOST

STATS = 1.0
"""Seconds between two events of that name."""
SMALL = 2**24
"""Parameters up to which a second core does more as a worker of its own than as a second thread (measured with 3 million, see
docs/experiments.md)."""


class Voice:
    """Standard output for one JSON line at a time; whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self.out: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self.lock = threading.Lock()

    def say(self, event: dict[str, Any]) -> None:
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        try:
            with self.lock:
                self.out.write(line)
                self.out.flush()
        except BrokenPipeError:  # the server has died, and so do we
            os._exit(1)


def serve(settings: Any, voice: Voice, lines: BinaryIO) -> None:
    """Load, say so, and do what is asked until `lines` end."""
    from functools import partial
    from weakref import WeakValueDictionary

    import torch

    from diffulm.serving import jobs
    from diffulm.serving.engine import Engine, Seat
    from diffulm.serving.job import Job

    models = opened(settings)
    workers, threads = shares(settings, models)
    torch.set_num_threads(threads)
    for lm in models.values():
        lm.generate("a", length=1)  # what is made at the first call
        if lm.record.infills:
            _ = lm._token_texts  # else each job would make them for itself
    engine = Engine(settings.rows)
    seats: WeakValueDictionary[str, Seat] = WeakValueDictionary()  # the engine holds them until they end
    said = [facts(name, lm) for name, lm in models.items()]
    voice.say({"event": "ready", "models": said, "workers": workers, "threads": threads})

    def tell_stats() -> None:
        pause = threading.Event()
        while not pause.wait(STATS):
            now = {"forwards": engine.forwards, "rows": engine.ran, "reused": engine.reused}
            _ = engine.running  # which takes the engine's lock: no word from us where it is never let go
            voice.say({"event": "stats", **now})  # also when nothing has changed: it says that we live

    threading.Thread(target=tell_stats, daemon=True).start()

    def live(seat: Seat, key: str, lm: Any, job: Job) -> None:
        jobs.run(lm, job, seat, lambda event: voice.say({"id": key, **event}))

    for line in lines:
        told = json.loads(line)
        if told["op"] == "start":
            job, key = Job(**told["job"]), told["id"]
            lm = models[job.model]
            seats[key] = engine.submit(jobs.expected(job, lm.reply_length), partial(live, key=key, lm=lm, job=job))
        elif seat := seats.get(told["id"]):
            seat.cancel()
    engine.close()


def opened(settings: Any) -> dict[str, Any]:
    """The models by name. BadInput for what cannot be opened."""
    import torch

    from diffulm import lm as language_model
    from diffulm.errors import BadInput

    dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
    models = {name_of(settings.model): language_model.load(settings.model, settings.mask_token_id, dtype)}
    if settings.parent is not None:
        name = name_of(settings.parent)
        if name in models:
            raise BadInput(f"--parent {settings.parent}: is called {name}, as the model is; rename one of the folders")
        models[name] = parent(settings.parent, dtype)
    for lm in models.values():
        lm._check_tokenizer()
    return models


def shares(settings: Any, models: dict[str, Any]) -> tuple[int, int]:
    """(workers, threads of each) that this machine has use for, unless the settings say it."""
    import torch

    small = all(lm.denoiser.device.type == "cpu" and lm.denoiser.parameters <= SMALL for lm in models.values())
    workers = settings.workers or (min(cores(), MOST) if small else 1)
    return workers, settings.threads or (1 if small else max(1, torch.get_num_threads() // workers))


def cores() -> int:
    """Of this machine, those that we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parent(source: str, dtype: Any) -> Any:
    """An AR model as a diffusion model whose blocks have one token: the same distribution, in the same rounds."""
    from dataclasses import replace

    from diffulm import lm as language_model

    lm = language_model.adopt(source, dtype=dtype)
    lm.denoiser.record = replace(lm.record, attention="block", block_size=1)
    lm.denoiser.model.eval()
    return lm


def name_of(model: str) -> str:
    """What clients call it: the last part of a path."""
    return Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model


def facts(name: str, lm: Any) -> dict[str, Any]:
    """What clients may want to know of a model."""
    record = lm.record
    return {
        "id": name,
        "context": lm.denoiser.context,
        "parameters": lm.denoiser.parameters,
        "vocabulary": lm.denoiser.vocabulary,
        "mask_token_id": record.mask_token_id,
        "infills": record.infills,
        "attention": record.attention,
        "block_size": record.block_size,
        "autoregressive": record.attention == "block" and record.block_size == 1,
        "chat": "sft" in record.notes,
        "reply_length": lm.reply_length,
    }


def main() -> int:
    voice = Voice()
    threading.excepthook = lambda told: _end(told.exc_value)  # else jobs would wait for ever for what it had to do
    from diffulm.errors import BadInput
    from diffulm.serving.settings import Settings

    try:
        serve(Settings.model_validate_json(sys.stdin.buffer.readline()), voice, sys.stdin.buffer)
    except BadInput as error:
        voice.say({"event": "failed", "message": str(error)})
        return 2
    except Exception as error:
        _end(error)
    return 0


def _end(error: BaseException | None) -> None:
    """Say why, and leave: the server starts another of us."""
    try:
        if os.environ.get("DIFFULM_DEBUG"):
            traceback.print_exception(error)
        say(f"{type(error).__name__}: {error}; the process with the model ends")
    finally:
        os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # jobs may still stand in their threads, and nobody waits for them
