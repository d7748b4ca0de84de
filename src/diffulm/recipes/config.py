"""From a preset name or a YAML file and key=value settings to a typed config, with errors that name the nearest right key."""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator

from diffulm.errors import BadInput, unknown
from diffulm.options import checked

PRESETS = Path(__file__).parents[1] / "presets"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def tokens(value: Any) -> int:
    """1000, "600K", "4M", "1.5B" -> tokens. ValueError for anything else, and for what is not positive."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMBT]?)\s*", str(value).replace("_", ""), re.IGNORECASE)
    number = round(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if number < 1:
        raise ValueError("should be a number of tokens such as 1000, 600K, 4M or 1.5B")
    return number


def steps_or_share(value: Any) -> int | str:
    """2000 steps, or "5%" of the run."""
    text = str(value).strip()
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d+(\.\d+)?%", text) and float(text[:-1]) <= 100:
        return text
    raise ValueError("should be a number of steps such as 2000, or a share of the run such as 5%")


def in_steps(value: int | str, total: int) -> int:
    """`steps_or_share` as a number of steps of a run of `total`."""
    return value if isinstance(value, int) else round(total * float(value[:-1]) / 100)


Tokens = Annotated[int, BeforeValidator(tokens)]
Steps = Annotated[int | str, BeforeValidator(steps_or_share)]
Config = TypeVar("Config", bound=BaseModel)


def preset_names(verb: str) -> list[str]:
    return sorted(file.stem for file in (PRESETS / verb).glob("*.yaml"))


def resolve(verb: str, model: type[Config], source: str | Path, settings: dict[str, Any]) -> Config:
    """The config of `verb`: the preset or YAML file `source`, overridden by `settings` (strings as typed, or values)."""
    values = {**_read(verb, str(source)), **{key: _value(value) for key, value in settings.items()}}
    return checked(model, **values)


def _read(verb: str, source: str) -> dict[str, Any]:
    file = PRESETS / verb / f"{source}.yaml"
    if not file.is_file() or "/" in source:
        file = Path(source)
        if file.suffix not in (".yaml", ".yml"):
            others = [p.parent.name for p in PRESETS.glob(f"*/{source}.yaml")]
            if others:
                raise BadInput(f"{source!r} is a preset of `{others[0]}`, not of `{verb}`")
            raise unknown("preset", source, preset_names(verb))
        if not file.is_file():
            raise BadInput(f"{file}: no such file")
    try:
        found = yaml.safe_load(file.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: is not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BadInput(f"{file}: holds no mapping of keys to values")
    return found


def _value(value: Any) -> Any:
    """Text from the command line: `null` and [lists] are YAML, anything else stays text for pydantic to convert."""
    if isinstance(value, str) and (value == "null" or value.startswith("[")):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadInput(f"{value!r}: is not a valid list") from None
    return str(value) if isinstance(value, Path) else value
