"""A terminal as small as the tests need: what is on its screen, and what is dim, after the bytes it was sent."""

import re

from rich.cells import cell_len

CODE = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|\x1b[=>]|.", re.DOTALL)


class Screen:
    """A screen of some size. Rows that leave it at the top are kept: `text` has them, too.

    It wraps a line as terminals do: a character that does not fit goes to the next row, which begins only then.
    """

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.columns, self.lines = columns, lines
        self.rows: list[list[tuple[str, bool]]] = [[]]  # of cells; a wide character has a second one, empty
        self.row = self.column = 0
        self.dim, self.cursor = False, True

    def send(self, text: str) -> "Screen":
        for found in CODE.finditer(text):
            number, code = found[1], found[2]
            if code:
                self._obey(number, code)
            elif len(found[0]) == 1:
                self._put(found[0])
        return self

    def resize(self, columns: int) -> None:
        """Rows that are now too long become several, and the cursor is behind the last; as most terminals do it."""
        rows, self.rows = self.rows, []
        for row in rows:
            while len(row) > columns:
                at = columns if row[columns][0] else columns - 1  # no character is cut
                self.rows.append(row[:at])
                row = row[at:]
            self.rows.append(row)
        self.columns, self.row, self.column = columns, len(self.rows) - 1, len(self.rows[-1])

    def _obey(self, number: str, code: str) -> None:
        if code == "A":
            top = max(0, len(self.rows) - self.lines)
            self.row = max(top, self.row - int(number or 1))
        elif code in "CG":
            self.column = self.column + int(number or 1) if code == "C" else int(number or 1) - 1
        elif code == "J":
            assert self.column == 0, "it should be at the beginning of a row"
            self.rows[self.row :] = [[]]
        elif code == "K":
            self._fill()
            del self.rows[self.row][self.column :]
        elif code == "m":
            self.dim = number == "2"
        elif code in "hl":
            if number == "25":
                self.cursor = code == "h"
        else:
            raise AssertionError(f"unknown: {number}{code}")

    def _put(self, character: str) -> None:
        if character == "\n":
            self.row, self.column = self.row + 1, 0
        elif character == "\r":
            self.column = 0
        elif character == "\b":
            self.column -= 1
        elif character != "\a":
            wide = cell_len(character)
            if self.column + wide > self.columns:
                self.row, self.column = self.row + 1, 0
            self._fill()
            row = self.rows[self.row]
            if wide or not row:
                row[self.column : self.column + wide] = [(character, self.dim), ("", self.dim)][: max(wide, 1)]
            else:  # it joins what stands before it
                row[-1] = (row[-1][0] + character, self.dim)
            self.column += wide
        self._fill()

    def _fill(self) -> None:
        while len(self.rows) <= self.row:
            self.rows.append([])

    @property
    def text(self) -> str:
        return "\n".join("".join(character for character, _ in row) for row in self.rows)

    @property
    def faint(self) -> str:
        return "".join(character for row in self.rows for character, dim in row if dim)
