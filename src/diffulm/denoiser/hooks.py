"""Hooks on the output embedding: of all rows of a forward only those that somebody asked for are handed over, and what is
done with them may be more than a product.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffulm.denoiser import head as heads


@dataclass
class Request:
    """What the output embedding does in the forward that is running in this thread."""

    rows: Tensor  # (n,) rows whose hidden state is handed over, counted through the whole batch
    project: heads.Project  # (output embedding, hidden (n, d)) -> what stands in for its output
    hidden: Tensor | None = None


# A context variable, not an attribute: two threads may run the same model at once.
_request: ContextVar[Request | None] = ContextVar("diffulm_request", default=None)
_registering = threading.Lock()


def _select_rows(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    request = _request.get()
    if request is None:
        return None
    hidden: Tensor = args[0].flatten(0, 1)[request.rows.to(args[0].device)]  # the head may be on another device
    request.hidden = hidden
    return (hidden[:0], *args[1:])


def _project_rows(head: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    request = _request.get()
    if request is None or request.hidden is None:
        return None
    hidden, request.hidden = request.hidden, None
    token = _request.set(None)  # `project` calls the head again, and this time it shall do what it always does
    try:
        return request.project(head, hidden)
    finally:
        _request.reset(token)


@contextmanager
def asking(head: nn.Module, request: Request) -> Iterator[None]:
    with _registering:  # looked up on the module itself, so that a deep copy of a hooked model is not hooked twice
        if _select_rows not in head._forward_pre_hooks.values():
            head.register_forward_pre_hook(_select_rows)
            head.register_forward_hook(_project_rows)
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)
