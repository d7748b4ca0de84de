"""JSON schema -> the gaps of a form: what is given is text, what is open is a `Blank`, a regular expression.

The expressions of strings, their formats, integers and single values are those of outlines-core. What no expression here can
hold is refused, never half obeyed.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffulm.errors import BadInput, shown

FORMATS = {"date": 10, "time": 9, "date-time": 30, "uuid": 36, "email": None, "uri": None}
"""Formats of strings, and how many characters these have at most, where there is a limit."""
_UNQUOTED = ("date", "date-time", "uuid")  # the other formats allow what would end the string
_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?"  # outlines-core has exponents too, and so what Python reads as infinity
_DIGITS = 8  # tokens of a number at most
_COUNTED = 32  # characters or items that an expression counts: it has a state for each
_LISTED = 1000  # numbers of a range that become choices

_NOTES = {
    *(
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$comment",
        "$schema",
        "$id",
    ),
    *("$defs", "definitions", "type"),
}
_KEYS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_DOLLAR = r"\$"
SCALAR = {"anyOf": [{"type": name} for name in ("string", "number", "boolean", "null")]}
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Blank:
    """A gap, at least one token long.

    pattern: what its text matches, whole. longest: tokens at most; None: whatever is allowed. exact: no fewer either.
    """

    pattern: str
    longest: int | None = None
    exact: bool = False
    within: bool = False
    """Its text is part of a JSON string, escapes and all; otherwise a JSON value."""
    plain: bool = False
    """It stands in text that is no JSON, and so its text is itself."""
    simple: bool = False
    """No quotes, backslashes and control characters, whatever `pattern` allows."""
    characters: int | None = None
    """At most so many, where `pattern` does not count them."""
    options: tuple[str, ...] = ()
    """All its texts, where they can be listed."""

    def value(self, text: str) -> Any:
        """What its text stands for."""
        if self.plain:
            return text
        return json.loads(f'"{text}"' if self.within else text)


Part = str | Blank


def parts(schema: Any, where: str = "", root: Any = None) -> Iterator[Part]:
    """Text and blanks for a schema; what it leaves no choice about is text. where: the field, for errors."""
    root = schema if root is None else root
    found = _resolved(schema, where, root)
    if found.get("type") == "object":
        yield "{"
        for number, (key, each) in enumerate(_properties(found, where).items()):
            yield ", " * bool(number) + dumped(key) + ": "
            yield from parts(each, f"{where}.{key}".lstrip("."), root)
        yield "}"
    elif (items := _items(found)) is not None:
        yield "["
        for number, each in enumerate(items):
            yield ", " * bool(number)
            yield from parts(each, f"{where}[{number}]", root)
        yield "]"
    else:
        yield from quoted(blank(found, where, root))


def quoted(gap: Blank) -> list[Part]:
    """The gap with the quotes around it that it needs as a value of its own."""
    return ['"', gap, '"'] if gap.within else [gap]


def blank(schema: Any, where: str = "", root: Any = None) -> Blank:
    """One gap for all that a schema allows."""
    root = schema if root is None else root
    found = _resolved(schema, where, root)
    options = _options(found, where)
    if options is not None:
        texts = [dumped(one) for one in options]
        within = all(isinstance(one, str) for one in options)
        texts = [text[1:-1] for text in texts] if within else texts
        if not texts or not all(texts):
            raise _bad(where, "a choice is one of some texts, and none of them is empty")
        return Blank("|".join(map(re.escape, texts)), within=within, options=tuple(texts))
    if found.get("type") != "string":
        longest = _DIGITS if found.get("type") in ("integer", "number") else None
        return Blank(_expression(found, where, root), longest)
    simple, most = bool({"pattern", "format"} & {*found}), found.get("maxLength")
    wanted = {"minLength": 1, **found} if not simple and not found.get("minLength") else found
    pattern = _string(wanted, where)
    longest = FORMATS.get(found.get("format", ""))
    return Blank(pattern, longest, within=True, simple=simple, characters=most if most and most > _COUNTED else None)


def dumped(value: Any) -> str:
    """JSON. BadInput for what is none: NaN, infinity, an object."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise BadInput(f"{shown(value)} is nothing that JSON can say") from None


def _bad(where: str, what: str) -> BadInput:
    return BadInput(f"{where or 'the template'}: {what}")


def _resolved(schema: Any, where: str, root: Schema, seen: tuple[str, ...] = ()) -> Schema:
    """The schema itself, references followed. BadInput for what no regular expression here can hold."""
    if not isinstance(schema, Mapping):
        raise _bad(where, f"{shown(schema)} is no JSON schema, which is an object")
    if (name := schema.get("$ref")) is not None:
        at: Any = root
        for step in str(name).removeprefix("#/").split("/"):
            at = at.get(step) if isinstance(at, Mapping) else None
        if name in seen or at is None:
            raise _bad(where, f"the schema refers to {shown(name)}, which is not in it, or refers to itself")
        return _resolved(at, where, root, (*seen, name))
    kind = schema.get("type")
    if isinstance(kind, list):
        return {"anyOf": [{**schema, "type": one} for one in kind]}
    if kind is not None and kind not in _KEYS:
        raise _bad(where, f"the schema has the type {shown(kind)}; there are {', '.join(_KEYS)}")
    one_of_these = next(({name} for name in ("const", "enum", "anyOf") if name in schema), None)
    if strange := sorted({*schema} - (one_of_these or _KEYS.get(kind or "", set())) - _NOTES):
        raise _bad(where, f"the schema has {strange[0]!r}, which no regular expression here can hold: leave it out")
    return schema if kind or one_of_these else SCALAR


def _properties(schema: Schema, where: str) -> dict[str, Any]:
    found = schema.get("properties")
    if not isinstance(found, Mapping) or not found:
        raise _bad(where, "the schema has an object without properties, and a form knows its keys: name them")
    return dict(found)


def _items(schema: Schema) -> list[Any] | None:
    """The schema of each item, where their number is known and not large."""
    if schema.get("type") != "array":
        return None
    least, most, first = schema.get("minItems", 0), schema.get("maxItems"), schema.get("prefixItems", [])
    if first:
        return list(first) if len(first) == least == most else None
    return [schema.get("items", {})] * least if least == most and 0 < least <= _COUNTED else None


def _options(schema: Schema, where: str) -> list[Any] | None:
    """All values, where they can be listed."""
    if "const" in schema or "enum" in schema:
        return [schema["const"]] if "const" in schema else list(schema["enum"])
    if schema.get("type") == "integer":
        least, most = _range(schema)
        if least is not None and most is not None and 0 <= most - least < _LISTED:
            return list(range(least, most + 1))
        if most is not None or least not in (None, 0, 1):
            raise _bad(where, f"a range of whole numbers has two ends, at most {_LISTED} apart, or begins with 0 or 1")
    return {"boolean": [False, True], "null": [None]}.get(schema.get("type", ""))


def _range(schema: Schema) -> tuple[int | None, int | None]:
    least = [math.ceil(schema["minimum"])] if "minimum" in schema else []
    least += [math.floor(schema["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in schema else []
    most = [math.floor(schema["maximum"])] if "maximum" in schema else []
    most += [math.ceil(schema["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in schema else []
    return max(least, default=None), min(most, default=None)


def _expression(schema: Any, where: str, root: Schema) -> str:
    """What JSON the schema allows, as a regular expression without anchors."""
    found = _resolved(schema, where, root)
    options, kind = _options(found, where), found.get("type")
    if options is not None:
        return f"(?:{'|'.join(re.escape(dumped(one)) for one in options)})"
    if "anyOf" in found:
        return f"(?:{'|'.join(_expression(one, where, root) for one in found['anyOf'])})"
    if kind == "string":
        if "pattern" in found or found.get("format", "date") not in _UNQUOTED:
            raise _bad(
                where, "a pattern or format is for a field of its own, not for what may be a list or something else"
            )
        return f'"{_string(found, where)}"'
    if kind == "integer":
        return {None: "-?(0|[1-9][0-9]*)", 0: "(0|[1-9][0-9]*)", 1: "[1-9][0-9]*"}[_range(found)[0]]
    if kind == "number":
        return _NUMBER
    if kind == "object":
        pairs = (
            f"{re.escape(dumped(key))}: {_expression(each, f'{where}.{key}', root)}"
            for key, each in _properties(found, where).items()
        )
        return rf"\{{{', '.join(pairs)}\}}"
    if (items := _items(found)) is not None:
        return rf"\[{', '.join(_expression(one, where, root) for one in items)}\]"
    least, most = found.get("minItems", 0), found.get("maxItems")
    if "prefixItems" in found or max(least, most or 0) > _COUNTED or (most is not None and most < max(least, 1)):
        raise _bad(where, f"a list has items of one kind, and counts at most {_COUNTED} of them")
    item = _expression(found.get("items", {}), f"{where}[]", root)
    some = rf"{item}(, {item}){{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    return rf"\[{some if least else f'({some})?'}\]"


def _string(schema: Schema, where: str) -> str:
    """What stands between the quotes."""
    sizes = {name: schema[name] for name in ("minLength", "maxLength") if name in schema}
    if sizes.get("minLength", 0) > _COUNTED:
        raise _bad(where, f"minLength counts at most {_COUNTED} characters")
    if sizes.get("maxLength", 0) > _COUNTED:
        del sizes["maxLength"]  # `Blank.characters`
    if {"pattern", "format"} & {*schema} and len({*schema} & _KEYS["string"] - {"minLength"}) > 1:
        raise _bad(where, "a string has a pattern, a format or a length, one of them")
    if "pattern" in schema:
        pattern = str(schema["pattern"]).removeprefix("^")
        return f"(?:{pattern.removesuffix('$') if not pattern.endswith(_DOLLAR) else pattern})"
    if schema.get("format", "date") not in FORMATS:
        raise _bad(where, f"the format {shown(schema['format'])} is not known; there are {', '.join(FORMATS)}")
    return _library({"type": "string", **({"format": schema["format"]} if "format" in schema else sizes)}, where)[1:-1]


def _library(schema: Schema, where: str) -> str:
    try:
        from outlines_core.json_schema import build_regex_from_schema  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadInput("a form needs outlines-core, which is not installed: pip install outlines-core") from None
    try:
        # its digits are those of all scripts
        return build_regex_from_schema(json.dumps(schema)).replace(r"\d{", "[0-9]{")
    except (ValueError, TypeError) as error:
        raise _bad(where, f"the schema {shown(schema)} cannot be used: {str(error).splitlines()[0]}") from None
