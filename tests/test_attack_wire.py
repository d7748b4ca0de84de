"""Bytes that are no HTTP, paths out of the page's folder, clients that are slow, stop, or go away: nobody else notices."""

import contextlib
import socket
import time

import pytest

pytest.importorskip("fastapi")

from attacks import (
    BASES,
    CHAT,
    COMPLETE,
    INFILL,
    LONG,
    answered,
    ask,
    idle,
    measured,
    opened,
    post,
    spoken,
    told,
    watched,
)  # fmt: skip

MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def calm(server):
    """/health answers through all of these, and nothing is left of them."""
    with watched(server, growth=512 * MIB):
        yield


CLOSE = b"\r\nhost: x\r\nconnection: close\r\n\r\n"
LINES = {
    "garbage": (b"\x00\xff\x16\x03\x01" * 100 + b"\r\n\r\n", 400),
    "no version": (b"GET /health\r\n\r\n", 400),
    "a version to come": (b"GET /health HTTP/9.9" + CLOSE, 200),  # taken for 1.1
    "no host": (b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
    "an old version": (b"GET /health HTTP/1.0\r\n\r\n", 200),
    "an odd method": (b"BREW /health HTTP/1.1" + CLOSE, 405),
    "a method without a route": (b"DELETE /v1/completions HTTP/1.1" + CLOSE, 405),
    "the body's own options": (b"OPTIONS * HTTP/1.1" + CLOSE, 404),
    "a long address": (b"GET /" + b"a" * 30_000 + b" HTTP/1.1" + CLOSE, 404),
    "a very long address": (b"GET /" + b"a" * MIB + b" HTTP/1.1" + CLOSE, 400),
    "a long header": (b"GET /health HTTP/1.1\r\nx: " + b"a" * MIB + CLOSE, 400),
    "many headers": (b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 200_000 + CLOSE[2:], 400),
    "a header without a name": (b"GET /health HTTP/1.1\r\n: y" + CLOSE, 400),
    "a header with NUL": (b"GET /health HTTP/1.1\r\nx: \x00" + CLOSE, 400),
    "two lengths": (post(COMPLETE, BASES[COMPLETE], "content-length: 3"), 400),
    "a length that is none": (post(COMPLETE, BASES[COMPLETE], "content-length: -3", length=-1), 400),
    "a length of many digits": (post(COMPLETE, BASES[COMPLETE], f"content-length: {'9' * 5000}", length=-1), 400),
    "a length and chunks": (post(COMPLETE, b"0\r\n\r\n", "transfer-encoding: chunked"), 400),
    "an unknown coding": (post(COMPLETE, BASES[COMPLETE], "transfer-encoding: gzip", length=-1), 400),
    "a chunk that is none": (post(COMPLETE, b"zz\r\n\r\n", "transfer-encoding: chunked", length=-1), 400),
    "a huge chunk": (post(COMPLETE, b"f" * 40 + b"\r\n", "transfer-encoding: chunked", length=-1), 400),
    "a websocket": (b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade, close\r\nhost: x\r\n\r\n", 200),
    "a proxy's": (b"GET http://other/health HTTP/1.1" + CLOSE, 404),
    "a key that is none": (b"GET /v1/models HTTP/1.1\r\nauthorization: \xff\xfe" + CLOSE, 200),
    "100 MB at once": (post(COMPLETE, b"", length=100_000_000), 413),
    "nothing for a body": (post(COMPLETE, b"", "content-length: 0", length=-1), 400),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_request_that_is_odd(server, name):
    said, status = LINES[name]
    with opened(server) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(said)
        answer = answered(line)
    assert answer.status == status, answer
    assert status == 200 or answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../app.py", "/assets/%2e%2e/%2e%2e/errors.py", "/assets/..%2f..%2ferrors.py", "/assets/..\\..\\errors.py",
        "/assets/..%5c..%5cerrors.py", "/assets//etc/passwd", "/assets/%2fetc%2fpasswd", "/assets/%00", "/assets/a%00.js",
        "/assets/" + "a" * 5000, "/assets/" + "a/" * 5000, "/assets/", "/assets", "/assets/%ff%fe", "/assets/con", "//health",
        "/v1/completions/../models", "/docs/", "/health?" + "a=" * 10_000 + "&%zz",
    ],
)  # fmt: skip
def test_a_path_out_of_the_folder(server, path):
    answer = ask(server, path)
    assert answer.status == (200 if path.startswith("/health?") else 404), answer
    assert answer.status == 200 or answer.error["type"] == "invalid_request_error"


def test_garbage_behind_a_request(server):
    for tail in (b"\x00\x00\r\n\r\n", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 500, b"a" * MIB):
        answer = spoken(server, post(COMPLETE, BASES[COMPLETE], close=False) + tail + b"\r\n\r\nx\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200") and b" 400 " in answer[-800:]
    # Behind an answer that came before the body did, what is not a chunk ends the connection.
    with opened(server) as line:
        line.sendall(post("/v1/nothing", b"5\r\nabcde\r\n", "transfer-encoding: chunked", length=-1, close=False))
        assert answered(line).status == 404
        line.sendall(b"zz\r\n\r\n")
        assert told(line) == b""


def test_a_body_of_chunks_that_does_not_end(server):
    said = post(COMPLETE, b"", "transfer-encoding: chunked", length=-1, close=False)
    with opened(server) as line:
        line.sendall(said)
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                line.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
        assert answered(line).status == 413


def test_a_hundred_megabytes_that_are_really_sent(server):
    """Nobody keeps them: the answer is there long before they are."""
    with watched(server, growth=64 * MIB), opened(server) as line:
        line.sendall(post(COMPLETE, b"", length=100 * MIB))
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                line.sendall(b" " * MIB)
        assert answered(line).status == 413


@pytest.mark.parametrize("path", BASES)
def test_a_client_that_goes_in_the_middle_of_its_request(server, path):
    said = post(path, BASES[path])
    for end in (5, 40, len(said) - 30, len(said) - 1):
        with opened(server) as line:
            line.sendall(said[:end])
    for end in (5, len(said) - 30):  # and not politely
        with opened(server) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            line.sendall(said[:end])
    idle(server)


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_clients_that_go_free_their_rows(server, stream):
    """Many long requests are dropped; a short one does not wait for any of them."""
    began = measured(server, "forwards_total")
    body = LONG | ({"stream": True, "stream_options": {"canvas": True}} if stream else {})
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(opened(server)) for _ in range(48)]
        for line in lines:
            line.sendall(post(COMPLETE, body))
        if stream:
            assert all(line.recv(20) for line in lines[:4])
        while measured(server, "forwards_total") - began < 4:
            time.sleep(0.02)
        assert measured(server, "waiting") > 0
    assert ask(server, COMPLETE, BASES[COMPLETE]).status == 200
    idle(server)
    time.sleep(1.5)  # a worker says once a second how many forwards there were
    # 120 is what one text takes. Two workers have 24 texts each and run 8 at a time: were all made, it would be 6 times that.
    assert measured(server, "forwards_total") - began < 240


def test_a_client_that_goes_in_the_middle_of_a_stream_of_canvases(server):
    body = LONG | {"stream": True, "stream_options": {"canvas": True}, "n": 4, "temperature": 1}
    for path, more in ((COMPLETE, {}), (INFILL, {"parts": ["a", {"length": 20}], "prompt": None, "max_tokens": None})):
        given = {name: value for name, value in (body | more).items() if value is not None}
        with opened(server) as line:
            line.sendall(post(path, given))
            assert b" 200 " in line.recv(2**10)
        idle(server)


def test_a_client_that_listens_but_sends_no_more(server):
    """A half-closed connection is one that has gone: nothing is left of it."""
    with opened(server) as line:
        line.sendall(post(CHAT, BASES[CHAT] | {"max_tokens": 100}))
        line.shutdown(socket.SHUT_WR)
        told(line)
    idle(server)


# -- slow ones, on a server with little patience


@pytest.fixture(scope="module")
def short():
    """A server whose requests may take 3 seconds."""
    from servers import serving

    with serving("pocket", "--workers", "1", "--timeout", "3", "--rows", "4", "--queue", "20", "--grace", "5") as url:
        yield url


def closed_after(line: socket.socket) -> float:
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while line.recv(2**16):
            pass
    return time.monotonic() - began


@pytest.mark.slow
def test_slow_senders_are_closed(short):
    """A head that never ends, one that comes a byte a second, a body that stops, one that goes on behind its answer."""
    with watched(short), contextlib.ExitStack() as stack:
        silent, stops, dribbles, late = (stack.enter_context(opened(short)) for _ in range(4))
        began = time.monotonic()
        stops.sendall(post(COMPLETE, BASES[COMPLETE])[:-3])
        late.sendall(post("/v1/nothing", b"a", length=1000))
        assert answered(late).status == 404
        assert answered(stops).status == 408
        assert 2.5 < time.monotonic() - began < 20
        dribbles.settimeout(0)
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /health HTTP/1.1\r\nx: " + b"a" * 60:
                dribbles.sendall(bytes([byte]))
                with contextlib.suppress(BlockingIOError):
                    if not dribbles.recv(10):
                        break
                time.sleep(1)
        assert 15 < time.monotonic() - began < 45  # 20 s for a head
        assert told(silent) == told(late) == b""
        assert time.monotonic() - began < 45


@pytest.mark.slow
def test_a_client_that_does_not_read(short):
    """Its text is computed, and its place is free; the connection goes when it has lain unread for a minute."""
    body = LONG | {"n": 16, "temperature": 1, "stream": True, "stream_options": {"canvas": True}}
    with watched(short), opened(short) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(post(COMPLETE, body))
        time.sleep(1)
        idle(short)
        assert ask(short, COMPLETE, BASES[COMPLETE]).status == 200


@pytest.mark.slow
def test_more_connections_than_there_are_places(short):
    """Those that say nothing make room; one that waits for its answer keeps its place."""
    with watched(short), contextlib.ExitStack() as stack:
        busy = stack.enter_context(opened(short))
        busy.sendall(post(COMPLETE, LONG | {"max_tokens": 50}))
        for number in range(900):
            line = stack.enter_context(opened(short))
            if number % 3:
                with contextlib.suppress(ConnectionError):
                    line.sendall(post(COMPLETE, BASES[COMPLETE])[: 30 * (number % 3)])
        assert ask(short, "/health").status == 200
        assert told(busy)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 504")  # three seconds may not be enough
        assert ask(short, COMPLETE, BASES[COMPLETE]).status == 200
