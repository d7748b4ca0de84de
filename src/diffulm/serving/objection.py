"""What pydantic objects to in a body, as one line and the field it is about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffulm.errors import BadInput, shown, unknown
from diffulm.options import WORDS
from diffulm.serving.bodies import HolePart, Message, StreamOptions, TextPart

# What a nested field's siblings are, by the name of what holds it.
_INSIDE = {"messages": Message, "content": TextPart, "parts": HolePart, "stream_options": StreamOptions}
_WORDS = WORDS | {
    "list_type": "should be a list",
    "too_short": "has too few values",
    "model_type": "should be an object",
    "model_attributes_type": "should be an object",
    "dict_type": "should be an object",
}


def objection(errors: Sequence[Any], body: Any, fields: Mapping[str, Any]) -> tuple[str | None, str]:
    """(field, one line) for what pydantic objects to in a body; a misspelt field comes first and names the nearest right one.

    errors: of one field at least, their `loc` within the body. fields: those of the body's model.
    """
    placed = [(one, *_place(one, body)) for one in errors]
    kind = any(one["type"] == "literal_error" and place[-1] == "type" for one, place, _ in placed)
    if not kind and (strange := [place for one, place, _ in placed if one["type"] == "extra_forbidden"]):
        *within, name = strange[0]
        holder = next((_INSIDE[part] for part in reversed(within) if part in _INSIDE), None)
        line = str(unknown("field", str(name), holder.model_fields if holder else fields))
        return _dotted(strange[0]), line
    # Of a field that may be of several kinds each kind has objected, in its own branch: the one that went furthest is meant.
    branches: dict[Any, Any] = {}
    for one, place, branch in placed:
        if one["loc"][:1] == placed[0][0]["loc"][:1]:
            branches.setdefault(branch, (one, place))
    first, place = max(branches.values(), key=_depth)
    param, cause = _dotted(place), first.get("ctx", {}).get("error")
    if isinstance(cause, BadInput):
        line = str(cause)
        if line.startswith("is "):
            return param, f"{param} {line}"
        return param or next((word for word in re.findall(r"\w+", line) if word in fields), None), line
    if first["type"] == "missing":
        return param, f"{param} is missing"
    kinds = [found[0] for found in branches.values() if _depth(found) == _depth((first, place))]
    words = [_WORDS.get(one["type"]) or one["msg"].removeprefix("Input ") for one in kinds]
    line = " or ".join(dict.fromkeys(words)).replace(" or should be ", " or ")
    return param, f"{param or 'the body'} {line}, not {shown(first['input'])}"


def _place(error: Any, body: Any) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    """(way to a value in the body, what else pydantic names on it: the kinds of a field of several)."""
    way, kinds = [], []
    for number, part in enumerate(error["loc"], 1):
        found = part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        if found or (error["type"] == "missing" and number == len(error["loc"])):
            way.append(part)
            body = body[part] if found else None
        else:
            kinds.append(part)
    return tuple(way), tuple(kinds)


def _depth(found: tuple[Any, Sequence[str | int]]) -> tuple[list[int], bool]:
    """How far into a list, and whether it is of the right kind."""
    error, place = found
    return [part for part in place if isinstance(part, int)], not error["type"].endswith("_type")


def _dotted(place: Sequence[str | int]) -> str | None:
    return shown(".".join(map(str, place)))[1:-1] or None
