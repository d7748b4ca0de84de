"""What the front and the worker tell each other: a job there, events back. No torch in here."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

Event = dict[str, Any]
"""`event` is text, canvas, done or error; see `jobs.py` for what comes with each."""


@dataclass(frozen=True)
class Job:
    """One text to make or to score. options: what was given of `GenerateOptions` (kind score: of `ScoreOptions`)."""

    kind: Literal["complete", "chat", "infill", "score"]
    model: str
    input: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    text: bool = False
    """Every finished prefix is wanted as an event."""
    canvas: bool = False
    """Every canvas is."""
    logprobs: int | None = None
    """The log-probability of each new token, and so many of the likeliest ones beside it."""


def failed(status: int, message: str, code: str | None, param: str | None = None) -> Event:
    """The last event of a job that could not be done."""
    return {"event": "error", "status": status, "message": message, "param": param, "code": code}


def say(line: str) -> None:
    """To standard error, if anybody is there to read it."""
    with contextlib.suppress(OSError):
        print("diffulm:", line, file=sys.stderr, flush=True)


class Refused(Exception):
    """A job that is not taken, or could not be finished: what HTTP says of it."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after
