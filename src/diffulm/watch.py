"""The canvas while it fills, for people to look at: drawn in place on a terminal, one line a step anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffulm.samplers import Frame

Callback = Callable[["Frame"], None]


def picture(tokenizer: Any, ids: list[int], masked: list[bool], hidden: str = "░") -> str:
    """The canvas as text, `hidden` for each token still masked. Without a tokenizer the ids stand for themselves."""
    parts = []
    for is_masked, group in groupby(zip(ids, masked, strict=True), key=lambda pair: pair[1]):
        run = [token for token, _ in group]
        if is_masked:
            parts.append(hidden * len(run))
        elif tokenizer is None:
            parts.append(" ".join(str(token) for token in run))
        else:
            parts.append(tokenizer.decode(run, skip_special_tokens=True))
    return "".join(parts)


@contextlib.contextmanager
def watching(wanted: bool, tokenizer: Any) -> Iterator[Callback | None]:
    """The callback to hand to a sampler, or None. It draws the first text of a batch."""
    if not wanted:
        yield None
        return
    from rich.console import Console

    console = Console(file=sys.stderr)
    hidden = "░" if "utf" in (sys.stderr.encoding or "").lower() else "_"
    if console.is_terminal and not console.is_dumb_terminal:
        with _drawing(console, tokenizer, hidden) as draw:
            yield draw
        return

    def line(frame: Frame) -> None:
        drawn = picture(tokenizer, frame.ids[0].tolist(), frame.masked[0].tolist(), hidden)
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in drawn)
        step, left = int(frame.step[0]), int(frame.masked[0].sum())
        with contextlib.suppress(OSError):  # nobody looks any more, and the result is another stream
            print(f"step {step:3d}, {left:4d} masked | {text}", file=sys.stderr, flush=True)

    yield line


@contextlib.contextmanager
def _drawing(console: Any, tokenizer: Any, hidden: str) -> Iterator[Callback]:
    from rich.live import Live
    from rich.text import Text

    # Transient: the result is printed right after, and nobody wants to read it twice.
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:

        def draw(frame: Frame) -> None:
            body = Text(picture(tokenizer, frame.ids[0].tolist(), frame.masked[0].tolist(), hidden))
            body.highlight_regex(hidden + "+", "yellow")
            foot = Text(f"\nstep {int(frame.step[0])}, {int(frame.masked[0].sum())} masked", style="dim")
            live.update(body + foot, refresh=True)

        yield draw
