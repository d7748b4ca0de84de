"""Holes in a file, for editors: LINE:COL-LINE:COL to offsets and back to the whole file."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffulm.errors import BadInput, shown

if TYPE_CHECKING:
    from diffulm import DiffusionLM, Generation, Hole

_RANGE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})(?:-([0-9]{1,9}):([0-9]{1,9}))?")
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_file(path: str) -> str:
    """The text of a file, byte for byte. BadInput for what is no file of UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{path}: is not UTF-8; convert it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no name of a file"
        raise BadInput(f"{path}: cannot be read ({why}); name a text file") from None


def offsets(text: str, holes: list[str]) -> list[tuple[int, int]]:
    """(start, end) of each LINE:COL-LINE:COL in characters of the text, sorted; LINE:COL alone is an empty range.

    Lines and columns count from 1, columns in characters; a range ends before its second place. Lines end with LF, CRLF or
    CR, and a byte order mark is no column. BadInput for what is no range, lies outside the text or overlaps another.
    """
    ends = [(end.start(), end.end()) for end in _LINE_END.finditer(text)]
    lines = list(zip([0, *(after for _, after in ends)], [*(at for at, _ in ends), len(text)], strict=True))
    if text.startswith("\ufeff"):
        lines[0] = (1, lines[0][1])

    def place(hole: str, line: str, column: str) -> int:
        if not 1 <= int(line) <= len(lines):
            raise BadInput(f"--hole {hole}: there is no line {line}; the text has {len(lines)}, counted from 1")
        start, end = lines[int(line) - 1]
        if not 1 <= int(column) <= end - start + 1:
            raise BadInput(
                f"--hole {hole}: there is no column {column} in line {line}: it has {end - start} characters, counted from "
                f"1, and {end - start + 1} is its end"
            )
        return start + int(column) - 1

    found = []
    for hole in holes:
        match = _RANGE.fullmatch(hole)
        if not match:
            raise BadInput(f"--hole {shown(hole)} is no range: write LINE:COL-LINE:COL, for example 3:12-3:20")
        start = place(hole, match[1], match[2])
        end = place(hole, match[3], match[4]) if match[3] else start
        if end < start:
            raise BadInput(f"--hole {hole}: ends before it begins; write the earlier place first")
        found.append((start, end))
    found.sort()
    for (_, end), (start, _) in pairwise(found):
        if start < end:
            raise BadInput("two of the --hole ranges overlap: give them as one")
    return found


def hole_of(length: str | None, choices: str | None, pattern: str | None) -> Hole:
    """The flags --length N or N-M, --choices a,b,c and --pattern as a Hole."""
    from diffulm import Hole

    if length is None:
        numbers = ()
    elif match := re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", length):
        numbers = tuple(int(number) for number in match.groups() if number)
    else:
        raise BadInput(f"--length {shown(length)} is no number of tokens: write 3, or 1-24 to leave it to the model")
    return Hole(*numbers, choices=None if choices is None else choices.split(","), pattern=pattern)


@dataclass
class Editing:
    """What `diffulm infill` was given, and what becomes of it."""

    parts: list[str | Hole]
    path: str | None = None
    in_place: bool = False
    ranges: list[tuple[int, int]] = field(default_factory=list)
    before: str = ""
    after: str = ""

    def text(self) -> str:
        """The text that was read, if its holes were given by --hole."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def shortened(self, lm: DiffusionLM) -> list[str | Hole]:
        """What the model is given: of a file that is too long for it, the lines around the holes."""
        if self.path is None or lm.tokenizer is None:
            return self.parts
        from diffulm.infilling import nearest

        self.before, parts, self.after = nearest(lm.tokenizer, self.parts, lm.denoiser.context)
        return parts

    def whole(self, result: Generation) -> Generation:
        """The result with what the model was not given around it."""
        candidates = [
            replace(one, text=self.before + one.text + self.after) for one in getattr(result, "candidates", [])
        ]
        return replace(result, text=self.before + result.text + self.after, candidates=candidates)

    def document(self, result: Generation) -> dict[str, Any]:
        """The edits: offsets are characters of the text that was given."""
        pairs = zip(self.ranges, result.fills, strict=True) if self.ranges else ()
        return {"edits": [{"start": start, "end": end, "text": fill} for (start, end), fill in pairs]}

    def save(self, given: str, text: str) -> None:
        """Put the new text in the file's place at one stroke. BadInput if it is another file by now, or may not be written."""
        assert self.path is not None
        file = Path(self.path).resolve()  # of a link, what it leads to
        if read_file(self.path) != given:
            raise BadInput(f"{self.path}: was changed in the meantime and is left as it is; run this again")
        try:
            descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:100]}.")
            try:
                with os.fdopen(descriptor, "wb") as out:
                    out.write(text.encode("utf-8", "surrogatepass"))
                    out.flush()
                    os.fsync(out.fileno())
                os.chmod(name, file.stat().st_mode)
                os.replace(name, file)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written ({error.strerror}) and is left as it is") from None


def editing(
    path: str | None,
    text: str,
    ranges: list[str],
    hole: Hole,
    in_place: bool,
) -> Editing:
    """The text cut at its holes: those of --hole, or else the marks in it, where <hole> is as `hole` says."""
    from diffulm import Hole
    from diffulm.canvas import parse

    if not ranges:
        parts = [hole if part == Hole() else part for part in parse(text)]
        return Editing(parts, path, in_place)
    places = offsets(text, ranges)
    parts: list[str | Hole] = []
    end = 0
    for start, stop in places:
        parts += [text[end:start], hole]
        end = stop
    return Editing([*parts, text[end:]], path, in_place, places)
