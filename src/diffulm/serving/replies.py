"""Shapes of what is answered: OpenAI's, and ours beside them. No torch in here.

The models say it in the schema and the functions build it: from the results of jobs, or from their events as they come.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from diffulm.serving.bodies import NAMES, Asked, ChatBody, CompletionBody
from diffulm.serving.job import Event, Refused

Events = AsyncGenerator[tuple[int, Event]]
NEVER = -9999.0
"""OpenAI's log-probability of what has none."""


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    error: Problem


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    forwards: int
    tokens_per_forward: float


class Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Choice(BaseModel):
    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    seed: int
    usage: Usage


class TopToken(BaseModel):
    token: str
    bytes: list[int]
    logprob: float


class ChatToken(TopToken):
    top_logprobs: list[TopToken]


class ChatLogprobs(BaseModel):
    content: list[ChatToken]
    refusal: None


class Said(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    seed: int
    usage: Usage


class Filled(BaseModel):
    text: str
    fills: list[str]
    score: float | None


class Infilled(BaseModel):
    id: str
    object: Literal["infill"]
    created: int
    model: str
    text: str
    fills: list[str]
    candidates: list[Filled]
    seed: int
    usage: Usage


class Scored(BaseModel):
    nats: float | None
    stderr: float | None
    tokens: int


class ScoreList(BaseModel):
    object: Literal["score"]
    model: str
    data: list[Scored]
    usage: Usage


class Served(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int | None = None
    parameters: int | None = None
    infills: bool | None = None
    chat: bool | None = None
    autoregressive: bool | None = None
    attention: str | None = None
    block_size: int | None = None
    reply_length: int | None = None
    vocabulary: int | None = None
    mask_token_id: int | None = None


class Models(BaseModel):
    object: Literal["list"]
    data: list[Served]


def error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's form of it."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass
class Reply:
    """One request's answer: what all its chunks say of it, and how far it has come."""

    body: Asked
    seed: int
    kind: str = "infill"
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    tokens: int = 0
    first: float | None = None
    """When its first text was there, by `time.perf_counter`."""

    def __post_init__(self) -> None:
        prefix = {"text_completion": "cmpl", "chat.completion": "chatcmpl"}.get(self.kind, "infill")
        self.head = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": self.kind, "created": int(time.time())}
        self.head |= {"model": self.body.model}

    async def events(self, events: Events) -> Events:
        """The events but for the last of each job, which is kept; Refused for a job that could not be finished."""
        async with aclosing(events):
            async for number, event in events:
                if event["event"] == "error":
                    raise Refused(
                        event["status"], event["message"], param=self._field(event.get("param")), code=event.get("code")
                    )
                if event["event"] == "done":
                    self.results[number] = event["result"]
                    self.tokens += event["result"].get("completion_tokens", 0)
                if event["event"] != "canvas" and self.first is None:
                    self.first = time.perf_counter()
                yield number, event

    def _field(self, param: str | None) -> str | None:
        """What the library speaks of, as this body calls it."""
        ours = {theirs: ours for ours, theirs in NAMES.items()} | {"length": "max_tokens"}
        param = ours.get(param or "", param)
        if param == "logprobs" and isinstance(self.body, ChatBody):
            return "top_logprobs"
        if param == "parts" and getattr(self.body, "parts", None) is None:
            return "prompt" if isinstance(self.body, CompletionBody) else "text"
        return param

    def usage(self) -> dict[str, Any]:
        """Of all jobs; the prompt of several choices counts once."""
        found = [self.results[number] for number in sorted(self.results)]
        return usage(found, found[:: self.body.choices])

    def whole(self) -> dict[str, Any]:
        """The answer that is given at once."""
        rest = {"seed": self.seed, "usage": self.usage()}
        if self.kind == "infill":
            found = self.results[0]
            candidates = [one | {"score": finite(one["score"])} for one in found["candidates"]]
            return self.head | {"text": found["text"], "fills": found["fills"], "candidates": candidates} | rest
        return self.head | {"choices": [self._choice(number) for number in range(len(self.results))]} | rest

    async def chunks(self, events: Events) -> AsyncGenerator[dict[str, Any]]:
        """The answer bit by bit; the texts of a choice, joined, are that of the whole answer."""
        said: dict[int, str] = {}
        async with aclosing(self.events(events)) as events:
            async for number, event in events:
                if event["event"] == "canvas":
                    canvas = {name: event[name] for name in ("step", "masked", "tokens")}
                    yield self._chunk() | {"canvas": {"index": number} | canvas}
                    continue
                if self.kind == "infill":
                    continue
                if number not in said:
                    said[number] = ""
                    if opening := self._opening(number):
                        yield self._chunk(opening)
                new = event["text"] if event["event"] == "text" else self._text(number)[len(said[number]) :]
                if new:
                    said[number] += new
                    yield self._chunk(self._piece(number, new))
                if event["event"] == "done":
                    yield self._chunk(self._last(number))
        if self.kind == "infill":
            yield self.whole()
        elif self.body.usage:
            yield self._chunk() | {"usage": self.usage()}

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        usage = {"usage": None} if self.body.usage else {}
        return self.head | {"object": kind, "choices": list(choices), "seed": self.seed} | usage

    def _opening(self, number: int) -> dict[str, Any] | None:
        """What comes before the text of a choice."""
        if isinstance(self.body, CompletionBody):
            return self._piece(number, self._prompt(number)) if self._prompt(number) else None
        opening = {"role": "assistant", "content": "", "refusal": None}
        return {"index": number, "delta": opening, "logprobs": None, "finish_reason": None}

    def _piece(self, number: int, new: str) -> dict[str, Any]:
        said = {"text": new} if self.kind == "text_completion" else {"delta": {"content": new}}
        return {"index": number, **said, "logprobs": None, "finish_reason": None}

    def _last(self, number: int) -> dict[str, Any]:
        choice = self._choice(number)
        said = {"text": ""} if self.kind == "text_completion" else {"delta": {}}
        return {"index": number, **said, "logprobs": choice["logprobs"], "finish_reason": choice["finish_reason"]}

    def _prompt(self, number: int) -> str:
        """What the text of a choice begins with that is not new."""
        body = self.body
        return body.prompts[number // body.choices] if isinstance(body, CompletionBody) and body.echo else ""

    def _text(self, number: int) -> str:
        found = self.results[number]
        return found["fills"][0] if isinstance(self.body, CompletionBody) and self.body.suffix else found["text"]

    def _choice(self, number: int) -> dict[str, Any]:
        found = self.results[number]
        tokens, end = found.get("logprobs"), found.get("finish_reason", "stop")
        if self.kind == "chat.completion":
            said = {"role": "assistant", "content": found["text"], "refusal": None}
            detail = None if tokens is None else {"content": [_chat_token(one) for one in tokens], "refusal": None}
            return {"index": number, "message": said, "logprobs": detail, "finish_reason": end}
        detail = None if tokens is None else _logprobs(tokens)
        text = self._prompt(number) + self._text(number)
        return {"text": text, "index": number, "logprobs": detail, "finish_reason": end}


def begun(body: Asked, seed: int) -> Reply:
    kinds = {CompletionBody: "text_completion", ChatBody: "chat.completion"}
    return Reply(body, seed, kinds.get(type(body), "infill"))


def scores(model: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    data = [{"nats": finite(one["nats"]), "stderr": finite(one["stderr"]), "tokens": one["tokens"]} for one in results]
    counted = [{"prompt_tokens": one["tokens"], "forwards": one["forwards"]} for one in results]
    return {"object": "score", "model": model, "data": data, "usage": usage(counted, counted)}


def usage(results: Sequence[dict[str, Any]], prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    given = sum(one["prompt_tokens"] for one in prompts)
    new = sum(one.get("completion_tokens", 0) for one in results)
    forwards = sum(one["forwards"] for one in results)
    rate = round(new / forwards, 4) if forwards else 0.0
    counts = {"prompt_tokens": given, "completion_tokens": new, "total_tokens": given + new}
    return counts | {"forwards": forwards, "tokens_per_forward": rate}


def finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN: null stands for them."""
    return value if value is not None and math.isfinite(value) else None


def _logprobs(tokens: Sequence[dict[str, Any]]) -> dict[str, Any]:
    offsets = [0]
    for one in tokens:
        offsets.append(offsets[-1] + len(one["token"]))
    top = [{name: max(value, NEVER) for name, value in [*one["top"], (one["token"], one["logprob"])]} for one in tokens]
    return {
        "tokens": [one["token"] for one in tokens],
        "token_logprobs": [max(one["logprob"], NEVER) for one in tokens],
        "top_logprobs": top if any(one["top"] for one in tokens) else None,
        "text_offset": offsets[:-1],
    }


def _chat_token(one: dict[str, Any]) -> dict[str, Any]:
    def token(text: str, value: float, raw: list[int] | None = None) -> dict[str, Any]:
        return {"token": text, "bytes": list(text.encode()) if raw is None else raw, "logprob": max(value, NEVER)}

    return token(one["token"], one["logprob"], one.get("bytes")) | {
        "top_logprobs": [token(*each) for each in one["top"]]
    }
