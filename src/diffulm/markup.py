"""Holes, and the marks for them in a text: `<hole:3>`. No torch in here: the server reads them before a model does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from diffulm.errors import BadInput, shown

_MARK = re.compile(r"<hole(:[^<>]*)?>")
LONGEST = 16  # tokens of a hole that names no length, at most


@dataclass(frozen=True)
class Hole:
    """A gap: Hole(3) has three tokens, Hole(1, 24) as many as the model picks within 1 to 24, Hole() within 1 to 16.

    choices: its text is one of these, and no length is given. pattern: a regular expression that its whole text matches
    (needs the extra `pattern`). BadInput for lengths below 1 or out of order, and for two conditions at once.
    """

    length: int | None = None
    most: int | None = None
    choices: Any = None  # texts; they are a tuple from then on
    pattern: str | None = None

    def __post_init__(self) -> None:
        for number in (self.length, self.most):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise BadInput(f"a hole is at least one token long, not {shown(number)}; write <hole:3> or Hole(3)")
        if self.least > self.longest:
            raise BadInput(
                f"a hole of {self.least} to {self.longest} tokens has no length; write <hole:1-24> or Hole(1, 24)"
            )
        if self.choices is None:
            return
        choices = () if isinstance(self.choices, str) else tuple(dict.fromkeys(self.choices))
        if not choices or not all(isinstance(one, str) for one in choices):
            raise BadInput('choices are a list of texts: Hole(choices=["yes", "no"])')
        if self.length or self.most or self.pattern is not None:
            raise BadInput("a hole with choices has neither a length nor a pattern: leave those out")
        object.__setattr__(self, "choices", choices)

    @property
    def least(self) -> int:
        return 1 if self.length is None else self.length

    @property
    def longest(self) -> int:
        if self.most is None:
            return LONGEST if self.length is None else self.length
        return self.most

    @property
    def settled(self) -> bool:
        """Whether it is nothing but a number of tokens."""
        return self.least == self.longest and self.choices is None and self.pattern is None


def parse(markup: str) -> list[str | Hole]:
    """`"The <hole:3> sat"` -> ["The ", Hole(3), " sat"]; `<hole:1-24>` is Hole(1, 24), `<hole>` Hole(). "" -> [""].

    BadInput for a mark that is none of these (`<hole:0>`, `<hole:x>`); text without marks comes back whole.
    """
    parts: list[str | Hole] = []
    end = 0
    for mark in _MARK.finditer(markup):
        parts += [markup[end : mark.start()], _hole(mark)]
        end = mark.end()
    parts.append(markup[end:])
    return [part for part in parts if part != ""] or [""]


def _hole(mark: re.Match[str]) -> Hole:
    if mark[1] is None:
        return Hole()
    numbers = re.fullmatch(r":0*([1-9][0-9]{0,8})(?:-0*([1-9][0-9]{0,8}))?", mark[1])
    if not numbers or int(numbers[2] or numbers[1]) < int(numbers[1]):
        raise BadInput(
            f"{shown(mark[0])} is not a hole: write <hole:3> for three tokens, <hole:1-24> or <hole> for as many as fit "
            "(text that contains such marks can be given in Python as a list with diffulm.Hole)"
        )
    return Hole(int(numbers[1]), int(numbers[2]) if numbers[2] else None)
