"""One run in several processes, as `torchrun` starts them: process 0 writes and speaks, the others wait for it.

The launcher says in the environment who a process is (RANK); without one there is one process, number 0.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from diffulm.errors import BadInput, Elsewhere

Value = TypeVar("Value")
RESUMES = "the same command goes on from the last checkpoint"
WAIT = timedelta(days=30)  # packing much text takes hours, and process 0 may not be given up meanwhile
_waiting: list[Any] = []  # the group in which they wait: gloo, where a wait ends when the other side dies


def index() -> int:
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(cpu: bool) -> None:
    """Join the other processes of this run, where a launcher started several; on GPUs each takes its own."""
    if int(os.environ.get("LOCAL_RANK", "-1")) < 0 or _waiting:
        return
    from accelerate import PartialState

    PartialState(cpu=cpu)
    _waiting.append(dist.new_group(backend="gloo", timeout=WAIT))


def group() -> Any:
    """Of all processes, on the CPU; None where there is one alone."""
    return _waiting[0] if _waiting else None


def from_first(work: Callable[[], Value]) -> Value:
    """What `work` returns on process 0, on every process. Where it fails there, the others raise Elsewhere."""
    if not _waiting:
        return work()
    if index() > 0:
        return _told(None, None)
    try:
        value = work()
    except Exception as error:
        _told(None, str(error))
        raise
    return _told(value, None)


def first_then_all(work: Callable[[], Value]) -> Value:
    """`work` on process 0 and, once it went well there, on the others: downloads, caches and errors come once."""
    mine: list[Value] = []
    from_first(lambda: mine.append(work()))
    return mine[0] if mine else work()


def in_turn(work: Callable[[], Value]) -> Value:
    """`work` on process 0 and, once it went well there, on the others, those of a machine one after the other: its memory
    need not hold what all of them take at once."""
    mine: list[Value] = []
    from_first(lambda: mine.append(work()))
    place = int(os.environ.get("LOCAL_RANK", "0"))
    for turn in range(max(all_of(place)) + 1):
        if turn == place and not mine:
            mine.append(work())
        all_of(None)
    return mine[0]


def all_of(value: Any) -> list[Any]:
    """The value of every process, by its index."""
    if not _waiting:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_waiting[0])
    return values


def said_once(message: str) -> BadInput:
    """The error to raise for what all processes have found: the first says it, the others keep silent."""
    return BadInput(message) if index() == 0 else Elsewhere(message)


@contextmanager
def saying_once() -> Iterator[None]:
    """For work that fails on all processes if it fails on one."""
    try:
        yield
    except BadInput as error:
        raise said_once(str(error)) from None


@contextmanager
def together() -> Iterator[None]:
    """Turn a connection that breaks inside into Elsewhere: the process at its other end has died."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            # process 0 may be the one that died: the next one speaks as well
            kind = BadInput if index() < 2 else Elsewhere
            raise kind(f"another process of this run has died; what it wrote says why; {RESUMES}") from None
        raise


def _told(value: Any, failure: str | None) -> Any:
    said = [value, failure]
    with together():
        dist.broadcast_object_list(said, src=0, group=_waiting[0])
    if index() > 0 and said[1] is not None:
        raise Elsewhere(said[1])
    return said[0]
