"""Templates of forms: what is fixed is text, what is open a `Blank`.

skeleton({"name": str, "mood": Literal["happy", "sad"], "tags": ["new", str]})
skeleton('{"name": "<hole>", "age": <hole:int>, "mood": "<hole:happy|sad>"}')
skeleton(Person)  # a pydantic model
skeleton("# <hole>\\n\\nDear <hole:1-4>,")  # text that does not begin as JSON does
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import GenericAlias, UnionType
from typing import Any, get_origin

from diffulm import schema
from diffulm.canvas import Hole
from diffulm.errors import BadInput, nearest, shown
from diffulm.schema import FORMATS, SCALAR, Blank, Part, dumped

TYPES = {
    "str": "string", "string": "string", "int": "integer", "integer": "integer", "float": "number", "number": "number",
    "bool": "boolean", "boolean": "boolean", "null": "null",
}  # fmt: skip
_MARK = re.compile(r"<hole(?::([^<>]*))?>")
_STRING_OR_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|<hole(?::[^<>]*)?>', re.DOTALL)
_LINE, _LINES = r"[^\x00-\x08\n\r]+", r"[^\x00-\x08]+"
_IS_SCHEMA = {"type", "properties", "anyOf", "enum", "const", "$ref", "$schema"}


@dataclass(frozen=True)
class Skeleton:
    parts: list[Part]
    """By turns, texts and blanks."""
    json: bool


def skeleton(template: Any) -> Skeleton:
    """A template as texts and blanks.

    template: text that begins as JSON does is JSON with marks, other text is plain; a pydantic model, or any type that
    pydantic has a schema for; what JSON can say, with types and `Hole`s in it; without any, a JSON schema. BadInput for what
    is none of these.
    """
    if isinstance(template, str) and template.lstrip()[:1] not in ("{", "["):
        return Skeleton(_whole(_plain(template)), json=False)
    if isinstance(template, str) and _MARK.search(template):
        return Skeleton(_whole(_marked(template)), json=True)
    value = _parsed(template) if isinstance(template, str) else template
    parts = list(_written(value, ""))
    if all(isinstance(part, str) for part in parts) and isinstance(value, Mapping) and _IS_SCHEMA & {*value}:
        parts = list(schema.parts(value))
    return Skeleton(_whole(parts), json=True)


def from_schema(text: str) -> Skeleton:
    """A JSON schema as a skeleton. BadInput where no regular expression holds what it asks for."""
    return Skeleton(_whole(schema.parts(_parsed(text))), json=True)


def _whole(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts as one. BadInput where there is no blank, or nothing between two."""
    out: list[Part] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        elif isinstance(part, Blank) and out and isinstance(out[-1], Blank):
            raise BadInput("two holes stand side by side: put text between them, or make them one")
        elif part != "":
            out.append(part)
    if not any(isinstance(part, Blank) for part in out):
        raise BadInput(
            "there is no hole in the template: write <hole> where something is missing, or in Python a type: str"
        )
    return out


def _plain(text: str) -> Iterator[Part]:
    end = 0
    for mark in _MARK.finditer(text):
        yield text[end : mark.start()]
        yield replace(_mark(mark, within=True, plain=True), within=False, plain=True)
        end = mark.end()
    yield text[end:]


def _marked(text: str) -> Iterator[Part]:
    """JSON with marks in it, all else as it stands."""
    _parsed(_STRING_OR_MARK.sub(lambda found: "null" if found[0].startswith("<") else found[0], text))
    end = 0
    for found in _STRING_OR_MARK.finditer(text):
        yield text[end : found.start()]
        end = found.start()
        bare = _MARK.fullmatch(text, found.start(), found.end())
        for mark in [bare] if bare else _MARK.finditer(text, found.start(), found.end()):
            yield text[end : mark.start()]
            blank = _mark(mark, within=bare is None)
            yield from schema.quoted(blank) if bare else [blank]
            end = mark.end()
    yield text[end:]


def _mark(mark: re.Match[str], within: bool, plain: bool = False) -> Blank:
    """What <hole>, <hole:int>, <hole:a|b>, <hole:8> and <hole:1-8> are, within a string or text, or as a value.

    In plain text a hole stays within its line, unless it has the line for itself.
    """
    asked = (mark[1] or "").strip()
    alone = mark.string[: mark.start()][-1:] in ("", "\n") and mark.string[mark.end() :][:1] in ("", "\n", "\r")
    text = Blank(_LINES if alone else _LINE) if plain else schema.blank({"type": "string"})
    if numbers := re.fullmatch(r"(1-)?0*([1-9][0-9]{0,8})", asked):
        return replace(text, longest=int(numbers[2]), exact=numbers[1] is None)
    if "|" in asked:
        options = asked.split("|")
        if plain:
            return Blank("|".join(map(re.escape, options)), options=tuple(options))
        return schema.blank({"enum": options if within else [_parsed(option) for option in options]})
    if not asked:
        return text if within else schema.blank(SCALAR)
    if asked not in TYPES and asked not in FORMATS:
        near = nearest(asked, [*TYPES, *FORMATS])
        hint = (
            f"did you mean <hole:{near}>?"
            if near
            else "write <hole>, <hole:int>, <hole:yes|no>, or <hole:1-8> for tokens"
        )
        raise BadInput(f"{shown(mark[0])} is not a hole: {hint}")
    if plain and TYPES.get(asked) == "string":
        return text
    found = schema.blank({"type": "string", "format": asked} if asked in FORMATS else {"type": TYPES[asked]})
    return replace(found, within=found.within or within)


def _parsed(text: str) -> Any:
    """JSON, strictly: no NaN, no key twice or with a hole in it."""

    def refuse(name: str) -> Any:
        raise BadInput(f"the template has {name}, which is no JSON: write null, or a hole")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        for number, (key, _) in enumerate(found):
            if _MARK.search(key):
                raise BadInput(f"a hole stands in the key {shown(key)}: keys are fixed; put it in a value")
            if key in (other for other, _ in found[:number]):
                raise BadInput(f"the template has the key {shown(key)} twice: leave one out")
        return dict(found)

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise BadInput(f"this is no JSON: {error}; check its quotes, commas and brackets") from None
    except RecursionError:
        raise BadInput("the template has too many brackets within brackets") from None


def _written(value: Any, where: str) -> Iterator[Part]:
    """What JSON can say, with types and holes in it."""
    if isinstance(value, Hole):
        yield from schema.quoted(_hole(value, where))
    elif isinstance(value, Mapping):
        yield "{"
        for number, (key, each) in enumerate(value.items()):
            if not isinstance(key, str):
                raise BadInput(f"{where or 'the template'} has the key {shown(key)}: keys are text, and fixed")
            yield ", " * bool(number) + dumped(key) + ": "
            yield from _written(each, f"{where}.{key}".lstrip("."))
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for number, each in enumerate(value):
            yield ", " * bool(number)
            yield from _written(each, f"{where}[{number}]")
        yield "]"
    elif value is None or isinstance(value, str | int | float):
        yield dumped(value)
    else:
        yield from schema.parts(_schema_of(value, where), where)


def _schema_of(value: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type, as pydantic has it."""
    from pydantic import TypeAdapter

    is_type = isinstance(value, type | UnionType | GenericAlias) or get_origin(value) is not None or value is Any
    if not is_type:
        raise BadInput(
            f"{where or 'the template'}: {shown(value)} is neither a type nor what JSON can say; write str, int, list[str], "
            "Literal['yes', 'no'], diffulm.Hole()"
        )
    try:
        known: Any = value
        return TypeAdapter(known).json_schema()
    except Exception as error:  # whatever a type makes pydantic raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{where or 'the template'}: {shown(value)} has no JSON schema: {reason}") from None


def _hole(hole: Hole, where: str) -> Blank:
    """A part of a string."""
    if hole.choices is not None:
        return schema.blank({"enum": list(hole.choices)}, where)
    if 1 < hole.least < hole.longest:
        raise BadInput(
            f"{where}: in a form a hole has exactly so many tokens, or 1 to so many; write Hole(1, {hole.longest})"
        )
    found = schema.blank({"type": "string"} | ({} if hole.pattern is None else {"pattern": hole.pattern}), where)
    return replace(found, longest=None if hole.length is None else hole.longest, exact=hole.length == hole.longest)
