"""The process that a command runs in: signals that end it, standard streams that are closed or cannot take text.

Ctrl-C and SIGTERM raise KeyboardInterrupt once, so that what is begun is cleared away; the next one ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
UNREAD = 128 + signal.SIGPIPE  # the reader of standard output has gone: `| head`
_came: list[int] = []  # the signals so far
_advice: list[str] = []


def begin() -> None:
    """Make this process ours. Not for `main` called from Python: signals and streams are then the caller's."""
    _open_streams()
    if os.environ.get("NO_COLOR"):
        # rich leaves out colours only; who wants none is not served with bold and cursors either
        os.environ["TERM"] = "dumb"
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a background job of a shell is not to hear Ctrl-C
            signal.signal(number, _stop)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable


def when_stopped(*advice: str) -> None:
    """What to say besides to somebody who stops the command from here on."""
    _advice[:] = advice


def stopped() -> int | None:
    """The exit code of a process that was told to stop."""
    return 128 + _came[0] if _came else None


def words() -> str:
    """What to say of a command that was stopped; nothing for any but the first of several processes."""
    word = "terminated" if stopped() == TERMINATED else "interrupted"
    return "; ".join([word, *_advice]) if os.environ.get("RANK", "0") == "0" else ""


def takes_results() -> bool:
    """Whether standard output can be written; `leave` says so where it cannot."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def leave(code: int) -> NoReturn:
    """End with this code; with another where that was 0 and standard output does not take the result. Python would have
    codes and words of its own for a stream that cannot be flushed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and code == 0:
                code = UNREAD
                if not isinstance(error, BrokenPipeError):
                    code = 2
                    print(f"diffulm: error: standard output: cannot be written ({error.strerror})", file=sys.stderr)
    if stopped():
        os._exit(code)  # at once, before one more Ctrl-C
    if sys.excepthook is _uncaught:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is _stop:
                signal.signal(number, lambda *_: os._exit(code))  # done, and said so: what is left is tidying up
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    if _came:
        _end()
    _came.append(number)
    raise KeyboardInterrupt


def _end() -> NoReturn:
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    cursor = "\r\x1b[K\x1b[?25h" if terminal else ""  # a live bar has hidden it
    line = words() and f"{cursor}diffulm: {words()}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())  # not print: this may be in the middle of one
    os._exit(stopped() or INTERRUPTED)


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _end()
    sys.__excepthook__(kind, error, trace)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    if isinstance(found.exc_value, KeyboardInterrupt):  # it fell into a destructor, which cannot pass it on
        _end()
    sys.__unraisablehook__(found)


def _open_streams() -> None:
    """Something in the place of closed streams, or the next file opened would get what is printed. Results are UTF-8 whatever
    the locale says, and names that are no text come out as the bytes they are."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
