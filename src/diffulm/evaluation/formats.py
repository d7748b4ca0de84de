"""Whether a text has the form that a prompt asks for: what code can decide from the prompt's own words. No torch in here.

    FORMS[81, 2](text)   # MT-bench, prompt 81, second turn: "Start every sentence with the letter A."

`FORMS` ask for something to be made, so that a text which ignores them fails; `LIMITS` forbid, and a short text keeps to them
without meaning to. Whether a form holds what it should is another matter: a JSON object of nonsense is a JSON object. An empty
text has no form.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Check = Callable[[str], bool]

_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+")
_FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_WORD = re.compile(r"\w[\w'’-]*")


def sentences(text: str) -> list[str]:
    """What ends in . ! or ? (and quotes or brackets behind them), or with the text; what has no word in it is none."""
    return [one for one in _SENTENCE.split(text.strip()) if words(one)]


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> int:
    return len([part for part in re.split(r"\n\s*\n", text) if part.strip()])


def block(text: str) -> str:
    """What stands in the only fence of a text, else the text."""
    found = _FENCE.findall(text)
    return (found[0] if len(found) == 1 else text).strip()


def parsed(text: str) -> Any:
    """The JSON value that a text, or its only fence, is; None for what is no object or array."""
    try:
        value = json.loads(block(text))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def fewer_words(limit: int) -> Check:
    return lambda text: len(words(text)) < limit


def initials(*letters: str) -> Check:
    """One letter: every sentence begins with it. Several: each sentence with the next of them."""

    def check(text: str) -> bool:
        first = [words(one)[0][0].upper() for one in sentences(text)]
        wanted = list(letters) if len(letters) > 1 else list(letters) * len(first)
        return 0 < len(first) <= len(wanted) and first == wanted[: len(first)]

    return check


def four_words(text: str) -> bool:
    found = sentences(text)
    return bool(found) and all(len(words(one)) == 4 for one in found)


def begins_with(start: str) -> Check:
    return lambda text: text.lstrip("\"'“‘ \n").startswith(start)


def bullets(count: int) -> Check:
    """Exactly so many lines that begin with a bullet."""
    return lambda text: sum(bool(re.match(r"[-*•]\s*\w", line)) for line in lines(text)) == count


def without(*banned: str) -> Check:
    return lambda text: not set(banned) & {word.lower() for word in words(text)}


def integers(text: str) -> bool:
    """A JSON array of integers."""
    value = parsed(text)
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def rounded(text: str) -> bool:
    """JSON in which every number is an integer, and there is one."""
    found = [one for one in _leaves(parsed(text)) if isinstance(one, int | float) and not isinstance(one, bool)]
    return bool(found) and all(isinstance(one, int) for one in found)


def numbers_by_name(text: str) -> bool:
    """A JSON object with a number for each name."""
    value = parsed(text)
    return isinstance(value, dict) and bool(value) and all(type(one) in (int, float) for one in value.values())


def groups(text: str) -> bool:
    """A JSON object of three lists of texts."""
    value = parsed(text)
    return isinstance(value, dict) and len(value) == 3 and all(_texts(one) for one in value.values())


def a_line_each(fields: int, last: str) -> Check:
    """Every line has so many fields between commas, the last of them as the pattern says."""

    def check(text: str) -> bool:
        rows = [[field.strip() for field in line.split(",")] for line in lines(block(text))]
        return bool(rows) and all(len(row) == fields and all(row) and re.fullmatch(last, row[-1]) for row in rows)

    return check


def counted(text: str) -> bool:
    """Three lines of a word and a number, in the order of the numbers."""
    rows = [line.rpartition(",")[::2] for line in lines(block(text))]
    if len(rows) != 3 or not all(words(word) and number.strip().isdecimal() for word, number in rows):
        return False
    values = [int(number) for _, number in rows]
    return values in (sorted(values), sorted(values, reverse=True))


def table(text: str) -> bool:
    """CSV of at least three lines with as many fields each, three or more."""
    rows = list(csv.reader(lines(block(text))))
    return len(rows) >= 3 and len(rows[0]) >= 3 and len({len(row) for row in rows}) == 1


def is_json(text: str) -> bool:
    return parsed(text) is not None


def one_line_of_json(text: str) -> bool:
    return is_json(text) and len(lines(block(text))) == 1


def is_yaml(text: str) -> bool:
    """YAML that is a mapping or a list and not written as JSON."""
    try:
        value = yaml.safe_load(block(text))
    except (yaml.YAMLError, RecursionError, ValueError):
        return False
    return isinstance(value, dict | list) and bool(value) and not is_json(text)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    else:
        yield value


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


HOUSE = "The old abandoned house at the end of the street held a secret that no one had ever discovered."
GENDERED = ("he", "him", "his", "himself", "she", "her", "hers", "herself", "he's", "she's", "he’s", "she’s")

# By number and turn of an MT-bench prompt.
FORMS: dict[tuple[int, int], Check] = {
    (81, 2): initials("A"),
    (86, 2): initials(*"BCDEFGHIJKLMNOPQRSTUVWXYZ"),
    (87, 1): begins_with(HOUSE),
    (87, 2): four_words,
    (88, 2): bullets(3),
    (89, 2): lambda text: "FlexPower" in text,
    (131, 1): integers,
    (131, 2): is_json,
    (133, 1): a_line_each(4, r"\D*\d{4}\D*"),
    (133, 2): is_json,
    (135, 1): is_json,
    (135, 2): is_yaml,
    (136, 1): counted,
    (136, 2): counted,
    (137, 1): groups,
    (137, 2): one_line_of_json,
    (138, 1): numbers_by_name,
    (140, 1): table,
    (140, 2): rounded,
}
LIMITS: dict[tuple[int, int], Check] = {
    (83, 1): fewer_words(200),
    (85, 1): lambda text: paragraphs(text) < 2,
    (86, 1): lambda text: paragraphs(text) < 2,
    (88, 1): lambda text: paragraphs(text) < 2,
    (90, 2): without(*GENDERED),
    (92, 1): lambda text: not text.lstrip().startswith("As Sheldon"),
    (99, 1): lambda text: len(lines(text)) < 10,
    (99, 2): lambda text: len(lines(text)) < 10,
}


def kept(checks: dict[tuple[int, int], Check], prompt: int, turn: int, text: str) -> bool:
    """Whether an answer has the form that its prompt asks for."""
    return bool(text.strip()) and checks[prompt, turn](text)
