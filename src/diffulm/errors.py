"""The one exception for input that cannot be used, and the "did you mean" that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 3


class BadInput(ValueError):
    """The user gave something that cannot be used.

    The message is one clear line: what is wrong, where, and what to do. The command line prints it and exits with 2.
    """


class Elsewhere(BadInput):
    """Another process of the same run could not go on. It has said why; only process 0 says it again."""


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option most like `word`, or None when nothing is near enough to be a misspelling of it."""
    names = {option.lower(): option for option in options}
    found = get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return names[found[0]] if found else None


def unknown(kind: str, word: str, options: Iterable[str]) -> BadInput:
    """A BadInput for a name that does not exist: names the nearest one, or all of them when none is near."""
    options = sorted(options)
    near = nearest(word, options)
    hint = f"did you mean {near!r}?" if near else f"there are: {', '.join(options)}"
    return BadInput(f"unknown {kind} {shown(word)}; {hint}")


def shown(value: object) -> str:
    """`repr` for an error: at most 100 characters, whatever somebody gave (a pasted file, a list within itself)."""
    try:
        text = _SHORT.repr(value)
        return text if len(text) <= 100 else text[:97] + "..."
    except ValueError:  # Python spells no number of more than 4,300 digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
