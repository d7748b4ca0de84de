"""What a server is told when it starts: one typed config for the front, the worker and the command line. No torch in here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from diffulm.options import Count, Options

Seconds = Annotated[float, Field(gt=0, le=10**6)]


MOST = 4
"""Workers that nobody asked for: each takes half a gigabyte, most of it libraries, and has a copy of the model."""


class Settings(Options):
    """model, parent: what to serve, as `diffulm.load` takes it; the parent is read from left to right."""

    model: str
    parent: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: the system picks one."""
    mask_token_id: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    dtype: str | None = None
    workers: Count | None = None
    """Processes with the model; None: a small one on a CPU has one per core, at most MOST, any other has one."""
    threads: Count | None = None
    """Of a forward; None: one where the model is small, else torch's own number divided by the workers."""
    rows: Count = 16
    """Canvases a round of a worker's engine takes one step further; on a CPU eight at most."""
    queue: Annotated[int, Field(ge=0, lt=2**31)] = 256
    """Texts that may wait beyond those."""
    timeout: Seconds = 300.0
    """Of one request, once its body is there; the body may take as long."""
    grace: Seconds = 30.0
    """For requests in flight when the server is told to stop."""
    max_body: Count = 2**20
    """Bytes of a request."""
    max_n: Count = 16
    """Choices of a prompt."""
    max_prompts: Count = 32
    """Prompts, or texts to score, in one request."""
    max_steps: Count = 4096
    """Denoising steps of a text."""
    keys: tuple[str, ...] = ()
    """One of these has to come with a request; none: nobody is asked."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask; none: only the server's own."""
    log_prompts: bool = False
