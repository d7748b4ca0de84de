"""An answer in a terminal while it is written: what is final plain, what may still change dim.

Lines that are final go out as they are, and scroll like anything else. What comes after them is drawn in place, no higher
than the terminal. Without a terminal that can do this (TERM=dumb, NO_COLOR) text goes out as it becomes final.
"""

from __future__ import annotations

import contextlib
import os
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from diffulm.watch import escaped

if TYPE_CHECKING:
    from diffulm.dialogue import Run

# Beside what is printable, a terminal is sent these: line ends, tabs, the blanks of French and Chinese, joiners of letters.
KEPT = "\n\t\u00a0\u202f\u3000\u200c\u200d"
DIM, PLAIN, HIDE, SHOW, CLEAR = "\x1b[2m", "\x1b[22m", "\x1b[?25l", "\x1b[?25h", "\r\x1b[J"


class Answer:
    """One answer on `out`. Hand `draw` to `Dialogue` as `watch`, `add` as `on_text`; `end` says what it has come to."""

    def __init__(self, out: TextIO, live: bool) -> None:
        self.out, self.live = out, live
        self.sent = ""  # of the answer, for good
        self.drawn: list[str] = []  # rows below that
        self.hidden = False  # the cursor

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.hidden:
            self._write(self._erased() + SHOW)

    def draw(self, runs: list[Run]) -> None:
        if not self.live:
            return
        runs = [(escaped(text, KEPT), still) for text, still in runs]
        plain = runs[0][0] if runs and not runs[0][1] else ""
        begin = self._erased()
        if plain.startswith(self.sent):
            new = plain[len(self.sent) : plain.rfind("\n") + 1]
            begin, self.sent = begin + new, self.sent + new
        self.hidden = True
        self._write(HIDE + begin + self._picture(runs))

    def add(self, piece: str) -> None:
        if not self.live:
            self.sent += escaped(piece, KEPT)
            self._write(escaped(piece, KEPT))

    def end(self, text: str) -> None:
        """The answer as it is in the end, and a new line."""
        text = escaped(text, KEPT)
        begin = self._erased() if self.live else ""
        rest = text[len(self.sent) :] if text.startswith(self.sent) else f"\n{text}"
        self.hidden = False
        self._write(begin + rest + ("" if text.endswith("\n") else "\n") + (SHOW if self.live else ""))

    def _erased(self) -> str:
        """What takes away the rows drawn last; in a terminal that was made narrower each may have become several."""
        from rich.cells import cell_len

        columns, lines = self._size()
        rows = sum(max(1, -(-cell_len(row) // columns)) for row in self.drawn)
        self.drawn = []
        up = min(rows, lines) - 1
        return (f"\x1b[{up}A" if up > 0 else "") + CLEAR

    def _picture(self, runs: list[Run]) -> str:
        """The rows below what was sent, as many as fit, where the answer begins to be open."""
        from rich.cells import chop_cells

        columns, lines = self._size()
        text = "".join(text for text, _ in runs)[len(self.sent) :]
        still = [open for text, open in runs for _ in text][len(self.sent) :]
        rows: list[tuple[str, list[bool]]] = []
        for line in text.split("\n"):
            # a column is left free: not every terminal is as wide a character as another
            for row in chop_cells(line.replace("\t", " "), max(2, columns - 1)) or [""]:
                rows.append((row, still[: len(row)]))
                still = still[len(row) :]
            still = still[1:]
        first = next((n for n, (_, open) in enumerate(rows) if any(open)), len(rows) - 1)
        height = max(1, lines - 1)
        top = max(0, min(first - height // 2, len(rows) - height))
        seen = rows[top : top + height]
        self.drawn = [row for row, _ in seen]
        return "\n".join(map(_dimmed, seen))

    def _size(self) -> tuple[int, int]:
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(self.out.fileno())
            if columns and lines:
                return columns, lines
        return 80, 24

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def _dimmed(row: tuple[str, list[bool]]) -> str:
    pieces = groupby(zip(*row, strict=True), key=lambda one: one[1])
    return "".join(
        f"{DIM}{text}{PLAIN}" if open else text for open, text in ((o, "".join(c for c, _ in g)) for o, g in pieces)
    )
