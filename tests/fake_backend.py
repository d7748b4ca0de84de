"""A backend that is made up, and a client that calls the app over it without a socket."""

import asyncio
import json
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any

from diffulm.serving.app import application
from diffulm.serving.job import Job, Refused
from diffulm.serving.settings import Settings

MODELS = [{"id": "tiny", "context": 64, "infills": True}]


class Made:
    """The face of `Backend`: a text of as many words as were asked for, in pieces of one word."""

    def __init__(self, **kept: Any) -> None:
        self.ready, self.models, self.waiting, self.running = True, MODELS, 0, 0
        self.stats = {"forwards": 7, "rows": 21, "tokens": 3, "restarts": 1}
        self.jobs: list[Job] = []
        self.closed = 0
        self.__dict__ |= kept

    refused: Refused | None = None
    error: dict[str, Any] | None = None
    """An event that comes after the first text."""
    hold: asyncio.Event | None = None
    """What the end of each job waits for."""

    async def run(self, jobs: list[Job]) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
        if self.refused:
            raise self.refused
        self.jobs = jobs
        try:
            for number, job in enumerate(jobs):
                words = [f" w{number}.{i}" for i in range(job.options.get("length") or 3)]
                for step, word in enumerate(words):
                    if job.canvas:
                        yield number, {"event": "canvas", "step": step, "masked": 1, "tokens": [[word, 0.5, True]]}
                    if job.text and step < len(words) - 1:  # the last word comes with the end
                        yield number, {"event": "text", "text": word}
                if self.error:
                    yield number, {"event": "error", **self.error}
                    return
                if self.hold:
                    await self.hold.wait()
                yield number, {"event": "done", "result": self.result(job, words)}
        finally:
            self.closed += 1

    def result(self, job: Job, words: list[str]) -> dict[str, Any]:
        spent = {"prompt_tokens": 5, "completion_tokens": len(words), "forwards": 2, "seconds": 0.1}
        if job.kind == "score":
            return {"nats": float("inf"), "stderr": 0.5, "tokens": 4, "forwards": 8, "seconds": 0.1}
        if job.kind == "infill":
            ways = [{"text": "a b c", "fills": ["b"], "score": float("nan")}]
            return {"text": "a b c", "fills": ["b"], "candidates": ways, **spent}
        top = [[" w", -1.0], [" x", float("-inf")]][: job.logprobs]
        tokens = [{"token": word, "logprob": -1.5, "top": top} for word in words]
        detail = {"logprobs": None if job.logprobs is None else tokens}
        return {"text": "".join(words), "ids": [1, 2], "finish_reason": "length", **detail, **spent}


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str | None, str]:
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
        return self.status, error["param"], error["message"]

    @property
    def chunks(self) -> list[Any]:
        """The events of a stream; what ends it is there as it is."""
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
        return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


async def asked(
    app: Any, path: str, body: Any = None, *, gone: asyncio.Event | None = None, reads: int = 10**9, **headers: str
) -> Answer:
    """One request to an ASGI app: POST where there is a body. gone: when the client goes away. reads: so many messages."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http",
        "method": "GET" if body is None else "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("test", 1), "server": ("test", 80),
    }  # fmt: skip
    parts = [{"type": "http.request", "body": raw, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if parts:
            return parts.pop()
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > reads:
            await asyncio.Event().wait()

    await app(scope, receive, send)
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], fields, b"".join(one["body"] for one in sent[1:]))


def ask(path: str, body: Any = None, backend: Made | None = None, settings: Any = None, **headers: str) -> Answer:
    """`asked` of an app of its own where there is a backend, else of one that such calls share."""
    if backend is None:
        app = _shared(tuple(sorted((settings or {}).items())))
    else:
        app = application(Settings(model="tiny", **settings or {}), backend)
    return asyncio.run(asked(app, path, body, **headers))


@cache
def _shared(settings: tuple[Any, ...]) -> Any:
    return application(Settings(model="tiny", **dict(settings)), Made())


COMPLETE, CHAT, INFILL, SCORE = "/v1/completions", "/v1/chat/completions", "/v1/infill", "/v1/score"
PROMPT = {"model": "tiny", "prompt": "a"}
TALK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
HOLES = {"model": "tiny", "text": "a <hole:1> c"}
TEXT = {"model": "tiny", "text": "a"}
