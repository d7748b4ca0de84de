"""Ranges of what a caller may ask for, in one place for the library, the command line and the server.

The models refuse unknown keys, NaN and infinity; `checked` turns what pydantic finds into one line. No torch in here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from diffulm.errors import BadInput, shown, unknown

Count = Annotated[int, Field(ge=1, lt=2**31)]
Draws = Annotated[int, Field(ge=1, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def sampler_names() -> list[str]:
    """Every public module in `diffulm.samplers`, by file name, so that nothing has to be imported to know them."""
    return sorted(path.stem for path in Path(__file__).with_name("samplers").glob("[!_]*.py"))


class Options(BaseModel):
    """What all options share: unknown keys and NaN are errors, and a checked value stays checked."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class GenerateOptions(Options):
    """How to fill a canvas. `length`: free tokens after the prompt; None elsewhere: the library chooses.

    `sampler` names the order; how many tokens are committed at once is one of `steps` (with its `schedule`), `threshold`,
    `entropy_bound` and `factor`.
    """

    length: Count = 64
    sampler: str = "confidence"
    steps: Count | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    entropy_bound: Annotated[float, Field(ge=0)] | None = None
    factor: Annotated[float, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    remask: Annotated[float, Field(ge=0, lt=1)] = 0.0
    block: Count | None = None
    cache: Literal["auto", "none", "prefix", "dual"] = "auto"
    refresh: Count | None = None
    draft: Count = 4
    stop: list[Annotated[str, Field(min_length=1)]] = []
    n: Count = 1
    length_method: Literal["rank", "grow"] = "rank"
    seed: Seed | list[Seed] = 0
    batch_size: Count = 16

    @field_validator("sampler")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in sampler_names():
            raise unknown("sampler", name, sampler_names())
        return name

    @model_validator(mode="after")
    def _one_rule(self) -> GenerateOptions:
        rules = {
            "steps": self.steps,
            "threshold": self.threshold,
            "entropy_bound": self.entropy_bound,
            "factor": self.factor,
        }
        asked = [name for name, value in rules.items() if value is not None]
        if len(asked) > 1:
            raise BadInput(f"{' and '.join(asked)} each say how many tokens to commit at once: give one of them")
        return self


class ScoreOptions(Options):
    """How to score a text. `samples`: Monte-Carlo draws of the bound; `left_to_right` is exact and needs none."""

    method: Literal["bound", "left_to_right"] = "bound"
    samples: Draws = 64
    seed: Seed = 0


class Sampling(TypedDict, total=False):
    """How a canvas is filled: the keys of `GenerateOptions`, for type checkers and readers."""

    sampler: str
    """The order, any public module name in `diffulm.samplers`."""
    steps: int | None
    """Upper limit to the forwards of a text; default, and most with our own samplers: one for each free token."""
    schedule: Literal["linear", "cosine"]
    """How the steps share the tokens."""
    threshold: float | None
    """Instead of steps: what is at least so probable is revealed at once."""
    entropy_bound: float | None
    """Instead of steps: the largest set, most certain first, whose entropies sum to so many nats without the largest."""
    factor: float | None
    """Instead of steps: the largest n whose least probable token c has (n + 1)(1 - c) below this."""
    temperature: float
    """0: the likeliest token."""
    top_p: float
    """Draw from the likeliest tokens that have this share of the probability."""
    top_k: int | None
    """Draw from so many of the likeliest tokens."""
    min_p: float
    """Draw from tokens with at least this share of the likeliest one's probability."""
    remask: float
    """The probability, at most, that a step masks a revealed token again."""
    block: int | None
    """Fill blocks of so many positions from left to right."""
    cache: Literal["auto", "none", "prefix", "dual"]
    """`auto` is exact; `prefix` and `dual` are approximate, for models with full attention."""
    refresh: int | None
    """Steps after which a prefix or dual cache is computed anew."""
    draft: int
    """Tokens that sampler `verified` drafts at once."""
    stop: list[str]
    """A completion, or what is in a hole, ends before the first of these."""
    n: int
    """Results for each text, in `Generation.candidates`."""
    length_method: Literal["rank", "grow"]
    """`infill`: how the length of a hole is found that may have several."""
    seed: int | list[int]
    """An int gives text i the stream (seed, i); a list gives each text the stream it would have alone."""
    batch_size: int
    """Texts at a time. Changes memory, not results."""


class Scoring(TypedDict, total=False):
    """How a text is scored; the ranges and defaults are those of `diffulm.options.ScoreOptions`."""

    method: str
    """`bound`: the any-order bound, estimated; `left_to_right`: exact, one forward a token."""
    samples: int
    """Draws of the bound."""
    seed: int
    key: int | str
    """Texts scored under one key share their random numbers, so that the noise cancels in differences. Default: the
    context."""


Model = TypeVar("Model", bound=BaseModel)

# Where pydantic's own words speak of its types, or of its limits.
WORDS = {
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list such as [0.9, 0.95]",
    "too_long": "has too many values",
    "string_type": "should be text",
    "string_too_short": "should not be empty",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_parsing_size": "is too large",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
}


def checked(model: type[Model], /, **values: Any) -> Model:
    """`model(**values)`, with everything pydantic objects to as one line of BadInput (the first objection)."""
    try:
        return model(**values)
    except ValidationError as error:
        raise BadInput(one_line(error, model)) from None


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first objection of a pydantic error as one line; a misspelt key comes first and names the nearest."""
    # The key that a misspelling was meant for may be reported as missing as well.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"][:1])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, BadInput):
        return str(cause)
    if first["type"] == "extra_forbidden":
        return str(unknown("key", key, model.model_fields))
    if first["type"] == "missing":
        return f"{key} is missing" if len(first["loc"]) == 1 else f"{key} has too few values"
    message = WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{key} {message}, not {shown(first['input'])}"
