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
        self.rows: list[list[tuple[str, bool]]] = [[]]
        self.row = self.column = 0  # column in cells
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
        found: list[list[tuple[str, bool]]] = []
        for row in self.rows:
            found.append([])
            for one in row:
                if self.width([*found[-1], one]) > columns:
                    found.append([])
                found[-1].append(one)
        self.columns, self.rows, self.row = columns, found, len(found) - 1
        self.column = self.width(found[-1])

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
            del self.rows[self.row][self._index() :]
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
            at = self._index()
            if wide or not at:
                self.rows[self.row][at : at + 1] = [(character, self.dim)]
            else:  # it joins what stands before it
                self.rows[self.row][at - 1] = (self.rows[self.row][at - 1][0] + character, self.dim)
            self.column += wide
        self._fill()

    def _fill(self) -> None:
        while len(self.rows) <= self.row:
            self.rows.append([])

    def _index(self) -> int:
        """Of the character at the cursor."""
        cells = 0
        for index, (character, _) in enumerate(self.rows[self.row]):
            if cells >= self.column:
                return index
            cells += cell_len(character)
        return len(self.rows[self.row])

    @staticmethod
    def width(row: list[tuple[str, bool]]) -> int:
        return cell_len("".join(character for character, _ in row))

    @property
    def text(self) -> str:
        return "\n".join("".join(character for character, _ in row) for row in self.rows)

    @property
    def faint(self) -> str:
        return "".join(character for row in self.rows for character, dim in row if dim)
