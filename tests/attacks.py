"""What an unkind client does to a server, over plain sockets, and what the server has to keep up all the while."""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

COMPLETE, CHAT, INFILL, SCORE = "/v1/completions", "/v1/chat/completions", "/v1/infill", "/v1/score"
BASES: dict[str, dict[str, Any]] = {
    COMPLETE: {"model": "pocket", "prompt": "import ", "max_tokens": 1},
    CHAT: {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    INFILL: {"model": "pocket", "parts": ["import ", {"length": 1}]},
    SCORE: {"model": "pocket", "text": "import os", "samples": 1},
}
LONG = {"model": "pocket", "prompt": "import ", "max_tokens": 120}
PATIENCE = (
    60.0  # seconds that any request may take: a machine that is busy with other tests takes many times its own time
)
PROMPT = 5.0  # seconds for /health: one on a quiet machine; what this is to find blocks it for tens
TROUBLE = re.compile(r"Traceback|Exception in|Task exception|Fatal error|never retrieved", re.IGNORECASE)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def error(self) -> dict[str, Any]:
        """What is wrong, in OpenAI's form."""
        found = json.loads(self.raw)
        assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}, found
        assert found["error"]["message"] and "\n" not in found["error"]["message"], found
        return found["error"]


def ask(url: str, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> Answer:
    """One request; `body`: bytes as they are, None for a GET, else what JSON is made of."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, raw, named)
        reply = connection.getresponse()
        return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())


def opened(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=PATIENCE)


def told(line: socket.socket) -> bytes:
    """All that comes until the other end is closed."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := line.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def answered(line: socket.socket) -> Answer:
    """One answer, of a length that it says."""
    reply = http.client.HTTPResponse(line)
    reply.begin()
    raw = reply.read(int(reply.headers.get("content-length", 0)))
    return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, raw)


def spoken(url: str, said: bytes) -> bytes:
    """What is answered to these bytes, after which the client has nothing more to say but listens."""
    with opened(url) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(said)
        return told(line)


def post(path: str, body: Any, *more: str, length: int | None = None, close: bool = True) -> bytes:
    """A request as bytes. length: what it says of itself."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    ends = ["connection: close"] if close else []
    size = [] if length == -1 else [f"content-length: {len(raw) if length is None else length}"]
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *size, *ends, *more]
    return "\r\n".join([*lines, "", ""]).encode() + raw


def measured(url: str, name: str) -> float:
    found = re.search(rf"^diffulm_{name} (\S+)$", ask(url, "/metrics").raw.decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def idle(url: str, within: float = PATIENCE) -> None:
    """Wait until nothing runs and nothing waits."""
    end = time.monotonic() + within
    while measured(url, "running") + measured(url, "waiting"):
        assert time.monotonic() < end, f"{measured(url, 'running')} still run, {measured(url, 'waiting')} wait"
        time.sleep(0.05)


def workers(server: Any) -> list[int]:
    """The processes that have the model."""
    found = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def worker(server: Any) -> int:
    """The only one."""
    (number,) = workers(server)
    return number


def size(process: int) -> int:
    """Bytes of memory that a process has now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


@contextlib.contextmanager
def watched(server: Any, growth: int | None = None) -> Iterator[None]:
    """Inside, /health answers all the time; afterwards no place is taken any more and nothing was said of a mistake.

    growth: bytes that the front and each worker may take more at the end.
    """
    done, slowest, before = threading.Event(), 0.0, len(server.log)
    processes = [server.process.pid, *workers(server)] if growth is not None else []
    sizes = [size(one) for one in processes]
    trouble: list[Any] = []

    def look() -> None:
        nonlocal slowest
        while not done.wait(0.1):
            began = time.monotonic()
            try:
                answer = ask(server, "/health")
                if answer.status != 200:
                    trouble.append(answer)
            except OSError as error:
                trouble.append(error)
            slowest = max(slowest, time.monotonic() - began)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not trouble, trouble
    assert slowest < PROMPT, f"/health took {slowest:.1f} s"
    idle(server)
    assert not TROUBLE.search(server.log[before:]), server.log[before:]
    for process, was in zip(processes, sizes, strict=True):
        assert size(process) < was + (growth or 0)
