"""The canvas while it fills, for people to look at: drawn in place on a terminal, one line a step anywhere else.

Both are callbacks for `lm.generate` and `lm.infill`, which hand every canvas to any callable:

    with watching(True, lm.tokenizer) as callback:
        lm.generate("class Stack:", callback=callback)

    frames = []
    lm.generate("class Stack:", callback=frames.append)  # a `samplers.Frame` before and after every forward
    print(picture(lm.tokenizer, frames[3].ids[0].tolist(), frames[3].masked[0].tolist()))
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffulm.samplers import Frame

Callback = Callable[["Frame"], Any]
Spell = Callable[[Sequence[int], Sequence[bool]], list[str | None]]

HALF = "\ufffd"  # how a decoder shows bytes that are not yet, or never become, a character
BYTES = 4  # of a character in UTF-8, at most; so many tokens may share it
# From unsure to sure: can be told apart by the colour-blind, and read on black and on white.
SHADES = ("#d55e00", "#b8860b", "#3f9a8c", "#2f86c9")
NEW = "bold underline"


def spelling(tokenizer: Any) -> Spell:
    """(ids, masked) -> the text that each token adds to those before it, None for a masked one.

    A character that several tokens share belongs to the last of them. Without a tokenizer the ids stand for themselves.
    What was decoded once is remembered, so keep the function for all the canvases of a text.
    """
    from diffulm import canvas

    @lru_cache(maxsize=2**16)
    def text(ids: tuple[int, ...]) -> str:
        return canvas.decode(tokenizer, ids) if ids else ""

    def spell(ids: Sequence[int], masked: Sequence[bool]) -> list[str | None]:
        out: list[str | None] = []
        kept: list[int] = []  # with a text; those from `before` on are decoded again with each new one,
        before = done = 0  # because a token may say less alone (a space); what is not `done` is half a character
        for i, (token, hidden) in enumerate(zip(ids, masked, strict=True)):
            out.append(None if hidden else "")
            if hidden:
                continue
            kept.append(token)
            head, whole = text(tuple(kept[before:done])), text(tuple(kept[before:]))
            new = whole[len(head) :] if whole.startswith(head) else text(tuple(kept[done:]))
            last = i + 1 == len(ids) or masked[i + 1] or len(kept) - done >= BYTES
            if not new:
                kept.pop()
            elif last or not new.endswith(HALF):
                out[i], before, done = new, done, len(kept)
        return out

    def numbers(ids: Sequence[int], masked: Sequence[bool]) -> list[str | None]:
        return [None if masked[i] else " " * bool(i and not masked[i - 1]) + str(token) for i, token in enumerate(ids)]

    return numbers if tokenizer is None else spell


def picture(tokenizer: Any, ids: list[int], masked: list[bool], hidden: str = "░") -> str:
    """The canvas as text, `hidden` for each token still masked. Without a tokenizer the ids stand for themselves."""
    return "".join(hidden if text is None else text for text in spelling(tokenizer)(ids, masked))


def escaped(text: str, keep: str = "") -> str:
    """What a terminal would obey, or not show, as Python writes it: control characters, odd spaces, marks of direction."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def confidences(frame: Frame) -> list[float | None]:
    """(L,) of the first text: the probability the model gave each token when it was revealed, None where unknown."""
    return [None if math.isnan(p) else p for p in frame.confidence[0].tolist()]


def shade(confidence: float | None) -> str:
    """The colour of a probability; none for what is not known, or given."""
    return "" if confidence is None else SHADES[min(int(confidence * len(SHADES)), len(SHADES) - 1)]


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
    spell = spelling(tokenizer)

    def line(frame: Frame) -> None:
        texts = spell(frame.ids[0].tolist(), frame.masked[0].tolist())
        drawn = "".join(hidden if text is None else escaped(text) for text in texts)
        step, left = int(frame.step[0]), int(frame.masked[0].sum())
        with contextlib.suppress(OSError):  # nobody looks any more, and the result is another stream
            print(f"step {step:3d}, {left:4d} masked | {drawn}", file=sys.stderr, flush=True)

    yield line


@contextlib.contextmanager
def _drawing(console: Any, tokenizer: Any, hidden: str) -> Iterator[Callback]:
    """Draws in place: colour says how sure the model was of a token, a line below it that it is new."""
    from rich.live import Live
    from rich.text import Text

    spell = spelling(tokenizer)
    top, before = 0, [False]

    # Transient: the result is printed right after, and nobody wants to read it twice.
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:

        def draw(frame: Frame) -> None:
            nonlocal top, before
            masked = frame.masked[0].tolist()
            was_masked = before if len(before) == len(masked) else [False] * len(masked)
            body, first = Text(), None  # where the first new token begins
            for text, was, sure in zip(
                spell(frame.ids[0].tolist(), masked), was_masked, confidences(frame), strict=True
            ):
                if text is None:
                    body.append(hidden, "dim")
                    continue
                first = len(body) if was and first is None else first
                body.append(escaped(text, keep="\n\t"), f"{NEW if was else ''} {shade(sure)}".strip())
            before = masked
            lines, above = (
                part.wrap(console, console.width, overflow="fold", tab_size=4) for part in (body, body[: first or 0])
            )
            height = max(1, console.height - 2)  # the line below, and the one that the cursor is in
            if first is not None and not top < len(above) <= top + height:
                top = len(above) - 1 - height // 3
            top = max(0, min(top, len(lines) - height))
            seen = Text("\n").join([*lines[top : top + height], _foot(frame, console.width, len(lines) > height)])
            with contextlib.suppress(OSError):
                live.update(seen, refresh=True)

        yield draw


def _foot(frame: Frame, width: int, clipped: bool) -> Any:
    from rich.text import Text

    foot = Text.assemble(
        (f"step {int(frame.step[0])}, {int(frame.masked[0].sum())} masked", "dim"),
        (" (a part of it is shown)" if clipped else "", "dim"),
        "  ",
        *((word, SHADES[i]) for i, word in ((0, "unsure "), (-1, "sure "))),
        ("new", NEW),
    )
    foot.truncate(width)
    return foot
