"""A web page that replays how a canvas was filled: one file that asks no other host for anything.

frames = []
made = lm.generate("class Stack:", callback=frames.append)
save("stack.html", page(lm.tokenizer, frames, "A stack", made.text))
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffulm.errors import BadInput, shown
from diffulm.watch import confidences, escaped, spelling

if TYPE_CHECKING:
    from diffulm.samplers import Frame

Cell = tuple[str | None, float | None, int]
"""Text (None: masked), probability, and the frame it was revealed in (-1: given)."""


def check(path: str | Path) -> Path:
    """The path, if a new file can be made there; BadInput if not, so that it can be said before anything is computed."""
    file = Path(os.path.expanduser(path))
    if "\0" in str(path) or not file.name:
        raise BadInput(f"{shown(str(path))} is no name of a file; name a new one, such as fill.html")
    if os.path.lexists(file):
        raise BadInput(f"{path}: is there already; name a new file")
    if not os.access(file.parent, os.W_OK):
        why = "may not be written" if file.parent.is_dir() else "is no folder"
        raise BadInput(f"{path}: {file.parent} {why}; name a new file elsewhere")
    return file


def save(path: str | Path, text: str) -> None:
    """Write a new file; BadInput if there is one."""
    file = check(path)
    try:
        with file.open("x", encoding="utf-8", errors="backslashreplace") as out:  # text need not be all of Unicode
            out.write(text)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            file.unlink(missing_ok=True)  # no half of one
        raise BadInput(f"{path}: cannot be written ({error.strerror}); name a new file elsewhere") from None


def page(tokenizer: Any, frames: Sequence[Frame], title: str, text: str, hidden: str = "░") -> str:
    """The HTML of the first text in `frames`, all that a callback was given.

    text: what came of it, for readers without scripts. hidden: stands for a masked token. Whatever the tokens hold, no
    browser takes it for markup.
    """
    # JSON may write any character as an escape, and then nothing in it can end the element that it stands in.
    data = json.dumps({"hidden": hidden, "frames": [*_replay(tokenizer, frames)]}, separators=(",", ":"))
    data = re.sub("[<>&]", lambda c: f"\\u{ord(c[0]):04x}", data)
    values = {"TITLE": html.escape(title), "TEXT": html.escape(escaped(text, "\n\t")), "DATA": data}
    template = files("diffulm").joinpath("assets/animation.html").read_text("utf-8")
    return re.sub("@(TITLE|TEXT|DATA)@", lambda name: values[name[1]], template)  # in one pass: values are not searched


def _replay(tokenizer: Any, frames: Sequence[Frame]) -> Iterator[tuple[int, int, int, list[tuple[int, Any, Any, int]]]]:
    """(step, forwards, masked, what changed since the last one: (position, *Cell)) of each forward of the first text."""
    spell = spelling(tokenizer)
    cells: list[Cell] = []
    number, step, forwards = 0, -1, -1
    for frame in frames:
        if frame.rows[0] != 0:
            continue
        before, masked, sureness = cells, frame.masked[0].tolist(), confidences(frame)
        cells = []
        for i, text in enumerate(spell(frame.ids[0].tolist(), masked)):
            was = before[i] if i < len(before) else None
            since = -1 if was is None or masked[i] else number if was[0] is None else was[2]
            sure = sureness[i] if since >= 0 else None
            cells.append((None if text is None else escaped(text, "\n\t"), sure and round(sure, 4), since))
        cells += [("", None, -1)] * (len(before) - len(cells))  # a shorter canvas
        changed = [(i, *cell) for i, cell in enumerate(cells) if i >= len(before) or cell != before[i]]
        if changed or int(frame.step[0]) != step:  # else it waits for the others of its batch
            number, step, forwards = number + 1, int(frame.step[0]), forwards + (int(frame.step[0]) != step)
            yield step, forwards, sum(masked), changed
