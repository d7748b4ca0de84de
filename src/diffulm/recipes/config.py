"""From a preset name or a YAML file and key=value settings to a typed config, with errors that name the nearest right key."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator

from diffulm.errors import BadInput, shown, unknown
from diffulm.options import checked

PRESETS = Path(__file__).parents[1] / "presets"
MOST_TOKENS = 10**16  # far beyond what anybody trains on, and what a step counter can hold
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def tokens(value: Any) -> int:
    """1000, "600K", "4M", "1.5B" -> tokens. ValueError for anything else, and for what is not positive."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMBT]?)\s*", str(value).replace("_", ""), re.IGNORECASE)
    number = float(found[1]) * _UNITS[found[2].upper()] if found else 0
    if round(min(number, MOST_TOKENS)) < 1:
        raise ValueError("should be a number of tokens such as 1000, 600K, 4M or 1.5B")
    if number > MOST_TOKENS:
        raise ValueError(f"should be at most {MOST_TOKENS:,} tokens")
    return round(number)


def steps_or_share(value: Any) -> int | str:
    """2000 steps, or "5%" of the run."""
    text = str(value).strip()
    if re.fullmatch(r"\d{1,12}", text):
        return int(text)
    if re.fullmatch(r"\d+(\.\d+)?%", text) and float(text[:-1]) <= 100:
        return text
    raise ValueError("should be a number of steps such as 2000, or a share of the run such as 5%")


def every(value: Any) -> int | str:
    """A positive number of steps, or a positive share of the run."""
    found = steps_or_share(value)
    if float(str(found).rstrip("%")) == 0:
        raise ValueError("should be a number of steps such as 100, or a share of the run such as 5%, and more than 0")
    return found


def in_steps(value: int | str, total: int) -> int:
    """`steps_or_share` as a number of steps of a run of `total`."""
    return value if isinstance(value, int) else round(total * float(value[:-1]) / 100)


Tokens = Annotated[int, BeforeValidator(tokens)]
Steps = Annotated[int | str, BeforeValidator(steps_or_share)]
Every = Annotated[int | str, BeforeValidator(every)]
Config = TypeVar("Config", bound=BaseModel)


def preset_names(verb: str) -> list[str]:
    return sorted(file.stem for file in (PRESETS / verb).glob("*.yaml"))


def resolve(
    verb: str,
    model: type[Config],
    source: str | Path | None,
    settings: dict[str, Any],
    otherwise: dict[str, Any] | None = None,
) -> Config:
    """The config of `verb`: the preset or YAML file `source`, overridden by `settings` (strings as typed, or values).

    otherwise: values of what neither of them says.
    """
    values = {} if source is None else _read(verb, str(source))
    for key in values:
        if key not in model.model_fields:
            raise BadInput(f"{source}: {unknown('key', key, model.model_fields)}")
    return checked(model, **(otherwise or {}) | values | {key: _value(key, value) for key, value in settings.items()})


def _read(verb: str, source: str) -> dict[str, Any]:
    file = PRESETS / verb / f"{source}.yaml" if source in preset_names(verb) else _yaml_file(verb, source)
    try:
        found = _parse(file.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: is not UTF-8 text ({error.reason})") from None
    except _NotYaml as error:
        raise BadInput(f"{file}{error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BadInput(f"{file}: holds no mapping of keys to values; write lines such as tokens: 4M")
    return found


def _yaml_file(verb: str, source: str) -> Path:
    """The YAML file that is no preset of `verb`. BadInput where there is none."""
    file = Path(source).expanduser()
    if file.suffix in (".yaml", ".yml"):
        if not os.path.isfile(file):
            raise BadInput(f"{file}: {'is a folder' if os.path.isdir(file) else 'no such file'}; name a YAML file")
        return file
    others = [folder.name for folder in sorted(PRESETS.iterdir()) if source in preset_names(folder.name)]
    if others:
        raise BadInput(
            f"{source!r} is a preset of `{others[0]}`, not of `{verb}`, which has: {', '.join(preset_names(verb))}"
        )
    if os.path.isfile(file):
        raise BadInput(f"{source}: is no YAML file; a file of settings ends in .yaml")
    raise unknown("preset", source, preset_names(verb))


class _NotYaml(Exception):
    """What is wrong with a text, and in which line where that is known, to stand behind the name of its file."""


class _Loader(yaml.SafeLoader):
    """YAML's safe types. A key given twice is an error: YAML forbids it, PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {shown(key.value)} is given twice; keep one", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    """What a YAML text says; `_NotYaml` when it says nothing."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        what = error.context if str(error.problem).startswith("but ") else error.problem
        raise _NotYaml(f"{line}: is not valid YAML ({what})") from None
    except RecursionError:
        raise _NotYaml(": is not valid YAML for settings (nested too deeply)") from None
    except Exception as error:  # whatever its scalars make Python raise: a date of month 13, a number of 5,000 digits
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _NotYaml(f": is not valid YAML ({reason})") from None


def _value(key: str, value: Any) -> Any:
    """Text from the command line: `null` and [lists] are YAML, anything else stays text for pydantic to convert."""
    if isinstance(value, str) and (value == "null" or value.startswith("[")):
        try:
            return _parse(value)
        except _NotYaml:
            raise BadInput(f"{key}: {shown(value)} is not a valid list; write one such as [0.9, 0.95]") from None
    return str(value) if isinstance(value, Path) else value
