"""Clients of a server, many at once: requests of all kinds, and replies in a form that can be compared.

Threads and http.client, for clients share the machine with the server, and this takes little of it.
"""

import itertools
import json
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 330.0
"""Seconds without a byte after which a reply is lost; a server gives up a request after 300."""
NEVER_SAME = ("id", "created")
WEIGHTS = {"completion": 30, "stream": 30, "infill": 20, "chat": 5, "chat stream": 5, "score": 10}


@dataclass(frozen=True)
class Request:
    kind: str
    path: str
    body: dict[str, Any]


@dataclass
class Reply:
    """said: what the reply says, whether it was streamed or not; None where it is lost. Times are seconds since `ask`."""

    request: Request
    status: int = 0
    said: Any = None
    end: float = 0.0
    first: float | None = None
    """Until the first text, of a stream."""
    pieces: int = 0
    """Of a stream: chunks with text."""
    problem: str = ""

    @property
    def tokens(self) -> int:
        return self.said["usage"]["completion_tokens"] if self.status == 200 else 0


class Client:
    """One connection, kept. with Client(url) as client: client.ask(request)"""

    def __init__(self, url: str) -> None:
        self.connection = HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, request: Request) -> Reply:
        """Never raises for what the server does: the reply says what went wrong."""
        reply, began = Reply(request), time.perf_counter()
        try:
            self.connection.request(
                "POST", request.path, json.dumps(request.body), {"content-type": "application/json"}
            )
            response = self.connection.getresponse()
            reply.status = response.status
            if response.status == 200 and request.body.get("stream"):
                reply.said = _joined(response, reply, began)
            else:
                said = json.loads(response.read())
                reply.said = {name: value for name, value in said.items() if name not in NEVER_SAME}
                reply.problem = "" if response.status == 200 else str(said)
        except (OSError, HTTPException, ValueError) as error:
            reply.status, reply.said, reply.problem = 0, None, f"{type(error).__name__}: {error}"
            self.connection.close()
        reply.end = time.perf_counter() - began
        return reply


def _joined(lines: Iterable[bytes], reply: Reply, began: float) -> dict[str, Any]:
    """What the same reply says that is not streamed. ValueError for a stream without its end."""
    chunks = []
    for line in lines:
        if not line.strip():
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            break
        chunks.append(json.loads(data))
        if "error" in chunks[-1]:
            raise ValueError(str(chunks[-1]["error"]))
        if any(_piece(choice) for choice in chunks[-1]["choices"]):
            reply.pieces += 1
            reply.first = time.perf_counter() - began if reply.first is None else reply.first
    else:
        raise ValueError("the stream has no end")
    for _ in lines:  # the connection is free for the next request when nothing is left
        pass
    choices = [one["choices"][0] for one in chunks if one["choices"]]
    text, last = "".join(map(_piece, choices)), choices[-1]
    chat = "delta" in last
    said = {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
    whole = {name: last[name] for name in ("index", "logprobs", "finish_reason")} | said
    kind = chunks[-1]["object"].removesuffix(".chunk")
    return {"object": kind, "choices": [whole]} | {name: chunks[-1][name] for name in ("model", "seed", "usage")}


def _piece(choice: dict[str, Any]) -> str:
    return choice["delta"].get("content", "") if "delta" in choice else choice["text"]


def plain(request: Request) -> Request:
    """The same, not streamed."""
    streaming = ("stream", "stream_options")
    body = {name: value for name, value in request.body.items() if name not in streaming}
    return Request(request.kind, request.path, body)


def sources() -> list[str]:
    """Beginnings of Python source, at most 180 characters each."""
    lines = Path(json.decoder.__file__).read_text("utf-8").splitlines()
    places = [i for i, line in enumerate(lines) if re.match(r" *(def|if|for|while|return|class) ", line)]
    return ["\n".join(lines[i : i + 4])[: 60 + 30 * (i % 5)] for i in places]


def completions(count: int, model: str, shortest: int = 16, longest: int = 64) -> list[Request]:
    """Completions of lengths from the shortest to the longest, drawn, each of its own seed."""
    draw, prompts = random.Random(count), sources()
    return [
        Request("completion", "/v1/completions", _settings(model, seed) | {
            "prompt": draw.choice(prompts), "max_tokens": draw.randint(shortest, longest)
        })
        for seed in range(count)
    ]  # fmt: skip


def mixed(count: int, model: str, shortest: int = 4, longest: int = 48) -> list[Request]:
    """Requests of all kinds, samplers and step counts; each of its own seed."""
    draw, prompts = random.Random(count), sources()

    def one(seed: int) -> Request:
        kind = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        prompt, length = draw.choice(prompts), draw.randint(shortest, longest)
        body = _settings(model, seed) | {"sampler": draw.choice(["confidence", "random"])}
        body |= draw.choice([{}, {"steps": max(1, length // 2)}, {"top_p": 0.9}])
        if "stream" in kind:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if kind == "score":
            body = {"model": model, "seed": seed, "text": prompt, "samples": draw.choice([2, 4, 8])}
            return Request(kind, "/v1/score", body)
        if kind == "infill":
            half = len(prompt) // 2
            return Request(kind, "/v1/infill", body | {"parts": [prompt[:half], {"length": length}, prompt[half:]]})
        if kind.startswith("chat"):
            said = [{"role": "user", "content": prompt}]
            return Request(kind, "/v1/chat/completions", body | {"messages": said, "max_tokens": length})
        return Request(kind, "/v1/completions", body | {"prompt": prompt, "max_tokens": length})

    return [one(seed) for seed in range(count)]


def _settings(model: str, seed: int) -> dict[str, Any]:
    return {"model": model, "seed": seed, "temperature": 1.0}


@dataclass
class Crowd:
    """What many clients got. seconds: from the first request to the last reply."""

    replies: list[Reply] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> list[Reply]:
        return [one for one in self.replies if one.status == 200]


def asked(url: str, requests: Iterable[Request], clients: int, seconds: float = float("inf")) -> Crowd:
    """Each request once, by so many clients, each of which asks for the next when it has its reply; no new one after
    `seconds`."""
    crowd, left, lock = Crowd(), iter(requests), threading.Lock()
    began = time.perf_counter()

    def following() -> Iterator[Request]:
        while time.perf_counter() - began < seconds:
            with lock:
                request = next(left, None)
            if request is None:
                return
            yield request

    def live() -> None:
        with Client(url) as client:
            for request in following():
                crowd.replies.append(client.ask(request))

    threads = [threading.Thread(target=live, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crowd.seconds = time.perf_counter() - began
    return crowd


def alone(url: str, requests: list[Request]) -> list[Any]:
    """What each of these says when nobody else asks, not streamed. AssertionError where one is not answered."""
    with Client(url) as client:
        replies = [client.ask(plain(one)) for one in requests]
    for reply in replies:
        assert reply.status == 200, f"{reply.request}: {reply.status} {reply.problem}"
    return [reply.said for reply in replies]


def differing(crowd: Crowd, requests: list[Request], wanted: list[Any]) -> list[Reply]:
    """Replies that are there and do not say what is wanted of their request."""
    known = {id(request): said for request, said in zip(requests, wanted, strict=True)}
    return [one for one in crowd.good if one.said != known[id(one.request)]]


def repeated(requests: list[Request], seed: int = 0) -> Iterator[Request]:
    """Without end: all of them in an order that is drawn anew each time."""
    draw = random.Random(seed)
    return itertools.chain.from_iterable(draw.sample(requests, len(requests)) for _ in itertools.count())
