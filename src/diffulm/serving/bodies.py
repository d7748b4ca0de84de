"""What a request says. Ranges, defaults and words of the diffusion settings are those of `options`; no torch in here.

A body is checked in full before a job is made of it: unknown fields, other JSON types than the field's and OpenAI's fields that
a diffusion model cannot serve are errors; `objection.py` says in one line which field and why.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Optional, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    create_model,
    model_validator,
)

from diffulm.errors import BadInput
from diffulm.markup import Hole, parse
from diffulm.options import Count, GenerateOptions, Sampling, ScoreOptions, Scoring, Seed, checked, sampler_names
from diffulm.serving.job import Job

# A field of ours, and the key of `GenerateOptions` that it is.
NAMES = {
    **{name: name for name in "steps sampler schedule threshold entropy_bound factor temperature top_p top_k".split()},
    **{name: name for name in "min_p remask cache refresh draft length_method".split()},
    "block_size": "block",
}

UNSUPPORTED = "Not supported: nothing else is taken."
LISTED = 1024
"""Values of a list, at most, but for ids: checking one that is wrong takes a tenth of a millisecond."""
_SOME = Field(min_length=1, max_length=LISTED, fail_fast=True)
Text = Annotated[str, StringConstraints(min_length=1)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], _SOME]


def _documented(source: type) -> dict[str, str]:
    """Attribute -> the docstring below it, on one line."""
    body = ast.parse(inspect.getsource(source)).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    return {
        ast.unparse(one.target): " ".join(str(ast.literal_eval(below.value)).split())
        for one, below in pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def _taken(source: type[BaseModel], docs: type, names: Mapping[str, str]) -> dict[str, Any]:
    """{our name: field} with the types, ranges and defaults of `source`; null is what is not given."""
    words, found = _documented(docs), {}
    for ours, theirs in names.items():
        info = source.model_fields[theirs]
        extra: Any = {"enum": [*sampler_names(), None]} if theirs == "sampler" else None
        kind = Optional[Annotated[info.annotation, *info.metadata]] if info.metadata else Optional[info.annotation]  # noqa: UP045
        found[ours] = (kind, Field(info.default, description=words.get(theirs), json_schema_extra=extra))
    return found


def _neutral(**fields: tuple[Any, ...]) -> dict[str, Any]:
    """Fields of OpenAI's that may have nothing but these values, with which they say nothing."""

    def one(values: tuple[Any, ...]) -> Any:
        def check(value: Any) -> Any:
            if not any(value == same and isinstance(value, bool) == isinstance(same, bool) for same in values):
                raise BadInput("is not supported by this server: leave it out")
            return value

        schema: dict[str, Any] = {"enum": list(values), "description": UNSUPPORTED}
        return Annotated[Any, AfterValidator(check), WithJsonSchema(schema)], None

    return {name: one((None, *values)) for name, values in fields.items()}


class Body(BaseModel):
    """JSON types as they are (no "3" for 3), no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


Filling = create_model("Filling", __base__=Body, **_taken(GenerateOptions, Sampling, NAMES), **_neutral(store=(False,)))
_PENALTIES = {"frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},)}
_COMPLETION = {"best_of": (1,), **_PENALTIES}
_CHAT = {
    **_PENALTIES,
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "service_tier": ("auto", "default"),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
# What the client's own messages carry that come back in the next request.
_MESSAGE = {"name": (), "refusal": (), "annotations": ([],), "audio": (), "function_call": (), "tool_calls": ([],)}


class StreamOptions(create_model("_Stream", __base__=Body, **_neutral(include_obfuscation=(False,)))):
    include_usage: bool | None = Field(False, description="A last chunk with the usage.")
    canvas: bool | None = Field(False, description="A chunk for every canvas, with `canvas` and without choices.")


class Asked(Filling):
    """What all bodies share that fill a canvas."""

    model: str = Field(description="One of /v1/models.")
    n: Count | None = Field(1, description="So many choices; they differ at a temperature.")
    stop: Text | Annotated[list[Text], Field(max_length=16, fail_fast=True)] | None = Field(
        None, description="A text ends before the first of these."
    )
    seed: Seed | None = Field(None, description="The same seed gives the same text. Drawn, and told, if not given.")
    stream: bool | None = Field(False, description="Server-sent events: finished text as it comes, then [DONE].")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Has no effect.")
    metadata: dict[str, str] | None = Field(None, description="Has no effect.")
    prompt_cache_key: str | None = Field(None, description="Has no effect.")
    safety_identifier: str | None = Field(None, description="Has no effect.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise BadInput("stream_options is for stream=true: leave it out")
        checked(GenerateOptions, **self.options(0))
        return self

    def options(self, seed: int) -> dict[str, Any]:
        """What was given of `GenerateOptions`, but for `length` and n."""
        given = {theirs: getattr(self, ours) for ours, theirs in NAMES.items() if ours in self.model_fields_set}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        given |= {"stop": stop or None, "seed": seed}
        return {name: value for name, value in given.items() if value is not None}

    def jobs(self, seed: int) -> list[Job]:
        raise NotImplementedError

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def canvas(self) -> bool:
        return bool(self.stream_options and self.stream_options.canvas)

    @property
    def usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionBody(create_model("_Completion", __base__=Asked, **_neutral(**_COMPLETION))):
    """Go on from a prompt, or fill what is between it and `suffix`."""

    prompt: str | Texts | Ids | Annotated[list[Ids], _SOME] = Field(
        description="A text, a list of texts, the ids of one, or a list of such."
    )
    suffix: str | None = Field(None, description="What stands behind the new text: it is filled in between.")
    max_tokens: Count | None = Field(16, description="New tokens, at most.")
    min_tokens: Count | None = Field(
        None, description="With suffix, which alone has it: new tokens, at least; 1 if not given."
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(
        None, description="The log-probability of each new token, and of so many of the likeliest beside it."
    )
    echo: bool | None = Field(False, description="Begin the text with the prompt.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_tokens and not self.suffix:
            raise BadInput("min_tokens is for a text with a suffix: leave it out")
        if self.min_tokens and self.min_tokens > self.length:
            raise BadInput(f"min_tokens is {self.min_tokens}, more than the {self.length} of max_tokens: give less")
        if self.suffix and not all(isinstance(one, str) for one in self.prompts):
            raise BadInput("suffix needs the prompt as text, not as ids")
        if self.suffix and self.logprobs is not None:
            raise BadInput("logprobs are of a text that goes on from a prompt: leave them out, or the suffix")
        if self.echo and not all(isinstance(one, str) for one in self.prompts):
            raise BadInput("echo needs the prompt as text, not as ids")
        if self.echo and self.logprobs is not None:
            raise BadInput("logprobs are of the new tokens alone: leave out echo; /v1/score scores a text")
        return self

    @property
    def length(self) -> int:
        return self.max_tokens or 16

    @property
    def prompts(self) -> Sequence[Any]:
        return self.prompt if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int) else [self.prompt]

    def jobs(self, seed: int) -> list[Job]:
        """A job for each choice, prompt by prompt."""
        options, hole = self.options(seed), {"length": self.min_tokens or 1, "most": self.length}
        wants = {"canvas": self.canvas, "logprobs": self.logprobs, "text": bool(self.stream and not self.suffix)}
        return [
            Job("infill", self.model, {"parts": [prompt, hole, self.suffix], "draw": draw}, options, **wants)
            if self.suffix
            else Job(
                "complete", self.model, {"prompt": prompt, "draw": draw}, options | {"length": self.length}, **wants
            )
            for prompt in self.prompts
            for draw in range(self.choices)
        ]


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(create_model("_Message", __base__=Body, **_neutral(**_MESSAGE))):
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="developer is another word for system."
    )
    content: str | Annotated[list[TextPart], _SOME]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(create_model("_Chat", __base__=Asked, **_neutral(**_CHAT))):
    """The assistant's next reply."""

    messages: Annotated[list[Message], _SOME]
    max_tokens: Count | None = Field(None, description="Of the reply; what it was tuned on, if not given.")
    max_completion_tokens: Count | None = Field(None, description="Another name for max_tokens.")
    logprobs: bool | None = Field(False, description="The log-probability of each token of the reply.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="With logprobs: of so many of the likeliest beside it."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise BadInput("max_tokens and max_completion_tokens are one and the same: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise BadInput("top_logprobs needs logprobs=true")
        return self

    def jobs(self, seed: int) -> list[Job]:
        """A job for each choice."""
        said = {
            "messages": [one.plain() for one in self.messages],
            "length": self.max_tokens or self.max_completion_tokens,
        }
        wants = {
            "text": bool(self.stream),
            "canvas": self.canvas,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }
        options = self.options(seed)
        return [Job("chat", self.model, said | {"draw": draw}, options, **wants) for draw in range(self.choices)]


class HolePart(Body):
    """A hole of so many tokens; {}: of 1 to 16."""

    length: Count | None = Field(None, description="Tokens; with most: at least.")
    most: Count | None = Field(None, description="Tokens, at most.")
    choices: Annotated[list[Text], _SOME] | None = Field(None, description="Its text is one of these.")
    pattern: Annotated[str, Field(min_length=1, max_length=LISTED)] | None = Field(
        None, description="A regular expression that its text matches."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _ = Hole(**self.model_dump())
        return self


class InfillBody(Asked):
    """Fill the holes of a text."""

    text: Text | None = Field(None, description="A text with holes: <hole:3>, <hole:1-24>, <hole>.")
    parts: Annotated[list[str | HolePart], _SOME] | None = Field(
        None, description="Or its parts, for a text that holds such marks, and for holes with choices or a pattern."
    )
    stream: bool | None = Field(
        False, description="Server-sent events: the canvases, if stream_options asks for them, then the whole reply."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.text is None and self.parts is None:
            raise BadInput("text is missing: give text with holes, or parts")
        if self.text is not None and self.parts is not None:
            raise BadInput("text and parts are two ways to say one thing: give one of them")
        if self.text is not None and self.text.count("<hole") > LISTED:
            raise BadInput(f"text has more than {LISTED} holes: give fewer")
        if all(isinstance(part, str) for part in self.given):
            raise BadInput(
                f"{'parts' if self.text is None else 'text'} has no hole: write <hole:3>, or {{}} for a part"
            )
        return self

    @property
    def given(self) -> list[str | dict[str, Any]]:
        """Texts and holes as a job has them."""
        if self.text is not None:
            parts = [part if isinstance(part, str) else vars(part) for part in parse(self.text)]
        else:
            parts = [part if isinstance(part, str) else part.model_dump() for part in self.parts or []]
        return [part if isinstance(part, str) else {k: v for k, v in part.items() if v is not None} for part in parts]

    def jobs(self, seed: int) -> list[Job]:
        """One: n is for it."""
        options = self.options(seed) | {"n": self.choices}
        return [Job("infill", self.model, {"parts": self.given}, options, canvas=self.canvas)]


_Scoring = create_model(
    "_Scoring", __base__=Body, **_taken(ScoreOptions, Scoring, {name: name for name in ScoreOptions.model_fields})
)


class ScoreBody(_Scoring):
    """How many nats a text costs."""

    model: str = Field(description="One of /v1/models.")
    text: Text | Annotated[list[Text], _SOME] = Field(description="A text, or a list of them.")
    context: str | None = Field("", description="Text before it that is given, not scored.")

    @property
    def texts(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else self.text

    def jobs(self) -> list[Job]:
        """A job for each text."""
        given = {name: getattr(self, name) for name in ScoreOptions.model_fields}
        options = {name: value for name, value in given.items() if value is not None}
        return [Job("score", self.model, {"text": one, "context": self.context or ""}, options) for one in self.texts]
