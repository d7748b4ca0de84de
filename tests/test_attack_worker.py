"""A worker that dies, hangs or runs out of memory; a server that is told to stop; more requests than there is room for."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from attacks import BASES, COMPLETE, LONG, PATIENCE, TROUBLE, Answer, ask, idle, measured, watched, worker, workers
from servers import Address, answers, serving

pytestmark = pytest.mark.slow  # each of these hurts a server, so it has one of its own
CANVAS = LONG | {"stream": True, "stream_options": {"canvas": True}}


@contextlib.contextmanager
def flying(server: str, *bodies: dict[str, Any]) -> Iterator[list[Future[Answer]]]:
    """Requests in flight, all of which the worker has begun or has in its queue."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        found = [pool.submit(ask, server, COMPLETE, body) for body in bodies]
        while measured(server, "running") + measured(server, "waiting") < len(bodies):
            assert not any(one.done() for one in found), [one.result() for one in found if one.done()]
            time.sleep(0.02)
        yield found


def until(true: Any, within: float = PATIENCE) -> float:
    """Seconds until it is."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within
        time.sleep(0.02)
    return time.monotonic() - began


def lost(answer: Answer, code: str, status: int = 503) -> bool:
    """Whether it says what happened: with its status, or, where a stream had begun, as its last event."""
    if answer.status == 200:
        error = json.loads(answer.raw.decode().split("\n\n")[-2].removeprefix("data: "))["error"]
    else:
        assert answer.status == status
        error = answer.error
    return error["code"] == code and error["type"] == "server_error"


def gone(process: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(process, 0)
        return subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True).stdout.startswith(b"Z")
    return True


@pytest.fixture(scope="module")
def mortal() -> Iterator[Address]:
    with serving("pocket", "--workers", "1", "--rows", "4") as url:
        yield url


def test_a_worker_that_is_killed(mortal):
    with watched(mortal):
        first = worker(mortal)
        with flying(mortal, *[LONG] * 12, *[CANVAS] * 4) as found:
            os.kill(first, signal.SIGKILL)
            until(lambda: not answers(f"{mortal}/ready"))
            assert all(lost(one.result(), "worker_died") for one in found)
        until(lambda: answers(f"{mortal}/ready"))
        assert worker(mortal) != first
        assert ask(mortal, COMPLETE, BASES[COMPLETE]).status == 200
        assert measured(mortal, "restarts_total") == 1
    assert "killed by SIGKILL" in mortal.log


def test_one_of_two_workers_is_killed():
    """What the other has to do is not touched, and it takes what comes."""
    with serving("pocket", "--workers", "2", "--rows", "4") as url, watched(url):
        until(lambda: "workers: 2" in url.log)
        first, other = workers(url)
        with flying(url, *[LONG] * 8) as found:
            os.kill(first, signal.SIGKILL)
            ended = [one.result() for one in found]
            assert sum(one.status == 200 for one in ended) == 4, "each had half of them"
            assert all(one.status == 200 or lost(one, "worker_died") for one in ended)
            assert answers(f"{url}/ready") and ask(url, COMPLETE, BASES[COMPLETE]).status == 200
        until(lambda: len(workers(url)) == 2)
        assert other in workers(url) and first not in workers(url)
        assert measured(url, "restarts_total") == 1


def test_a_worker_without_memory(mortal):
    """Whatever becomes of the requests, it is said, and the server goes on."""
    with watched(mortal):
        number = worker(mortal)
        used = int(Path(f"/proc/{number}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(number, resource.RLIMIT_AS, (used, used))
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda body: ask(mortal, COMPLETE, body), [LONG] * 8 + [CANVAS] * 4))
        assert all(one.status == 200 or one.error["code"] in ("worker_died", "out_of_memory") for one in found), found
        with contextlib.suppress(OSError):  # it may have died of it
            resource.prlimit(number, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: ask(mortal, COMPLETE, BASES[COMPLETE]).status == 200)


def test_a_worker_that_stands_still():
    """Requests end by their time; when it goes on, so does the server."""
    with serving("pocket", "--workers", "1", "--rows", "2", "--queue", "4", "--timeout", "2") as url, watched(url):
        number = worker(url)
        os.kill(number, signal.SIGSTOP)
        try:
            for _ in range(2):  # the places of the first are free for the second
                with flying(url, *[LONG] * 5, CANVAS) as found:
                    full = ask(url, COMPLETE, LONG)
                    assert full.status == 429 and int(full.headers["retry-after"]) > 0
                    assert all(lost(one.result(), "timeout", 504) for one in found)
                    assert all(one.result().status == 504 for one in found)
        finally:
            os.kill(number, signal.SIGCONT)
        until(lambda: ask(url, COMPLETE, BASES[COMPLETE]).status == 200)
        assert worker(url) == number


def test_a_worker_that_stands_still_for_long_is_replaced(mortal):
    idle(mortal)
    first = worker(mortal)
    with watched(mortal), flying(mortal, LONG) as found:
        os.kill(first, signal.SIGSTOP)
        assert lost(found[0].result(), "worker_died")
        until(lambda: answers(f"{mortal}/ready"))
        assert ask(mortal, COMPLETE, BASES[COMPLETE]).status == 200
    assert gone(first) and "silent for" in mortal.log


def test_a_server_that_is_told_to_stop_finishes_what_it_has():
    with serving("pocket", "--workers", "1", "--rows", "2", "--grace", "50") as url:
        number = worker(url)
        with flying(url, LONG, CANVAS, LONG) as found:
            url.process.send_signal(signal.SIGTERM)
            until(lambda: not answers(f"{url}/ready"))
            with contextlib.suppress(OSError):  # it may be gone already
                late = ask(url, COMPLETE, BASES[COMPLETE])
                assert late.status == 503 and late.error["code"] == "shutting_down"
            assert [one.result().status for one in found] == [200] * 3
            assert found[1].result().raw.endswith(b"data: [DONE]\n\n")
        assert url.process.wait(PATIENCE) == 0
        assert gone(number) and not TROUBLE.search(url.log), url.log


@pytest.mark.parametrize("twice", [True, False])
def test_a_server_that_has_no_time_to_finish(twice):
    """Its grace is over, or it is told for the second time."""
    grace = "300" if twice else "1"
    with serving("pocket", "--workers", "1", "--rows", "2", "--grace", grace) as url:
        number = worker(url)
        with flying(url, *[LONG] * 6, CANVAS) as found:
            os.kill(number, signal.SIGSTOP)  # so that nothing ends by itself
            url.process.send_signal(signal.SIGTERM)
            if twice:
                until(lambda: not answers(f"{url}/ready"))
                url.process.send_signal(signal.SIGTERM)
            assert url.process.wait(30) == 0
            until(lambda: gone(number), 5)
            for one in found:
                assert lost(one.result(), "shutting_down")
        assert not TROUBLE.search(url.log), url.log


def test_a_server_that_is_killed_leaves_no_worker():
    with serving("pocket", "--workers", "1") as url:
        number = worker(url)
        with flying(url, *[LONG] * 3) as found:
            url.process.kill()
            url.process.wait()
            assert until(lambda: gone(number)) < 30
            for one in found:
                with pytest.raises(OSError):
                    one.result()


def test_no_more_than_the_queue_holds(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    limits = ["--max-n", "2", "--max-prompts", "2", "--max-steps", "8", "--max-body", "2000"]
    with serving("pocket", "--workers", "1", "--rows", "1", "--queue", "2", "--api-keys", str(keys), *limits) as url:
        own = {"authorization": "Bearer second"}
        assert ask(url, "/health").status == ask(url, "/ready").status == 200
        for wrong in ({}, {"authorization": "Bearer third"}, {"authorization": "Bearer"}, {"authorization": "Basic first"},
                      {"authorization": "Bearer first second"}, {"authorization": "x" * 5000}):  # fmt: skip
            for path, body in (COMPLETE, BASES[COMPLETE]), (COMPLETE, b"{"), ("/v1/models", None), ("/metrics", None):
                answer = ask(url, path, body, **wrong)
                assert answer.status == 401 and answer.error["code"] == "invalid_api_key", answer
        assert ask(url, COMPLETE, BASES[COMPLETE], authorization="Bearer first").status == 200
        for more, status, param in (
            ({"n": 3, "temperature": 1}, 400, "n"), ({"prompt": ["a"] * 3}, 400, "prompt"), ({"steps": 9}, 400, "steps"),
            ({"n": 2, "prompt": ["a"] * 2}, 400, "n"), ({"prompt": "a" * 2000}, 413, None),
            ({"prompt": "a b " * 400}, 400, "prompt"),
        ):  # fmt: skip
            answer = ask(url, COMPLETE, BASES[COMPLETE] | more, **own)
            assert (answer.status, answer.error["param"]) == (status, param), answer
        with ThreadPoolExecutor(12) as pool:
            found = [pool.submit(ask, url, COMPLETE, LONG, **own) for _ in range(12)]
        answers_ = [one.result() for one in found]
        refused = [one for one in answers_ if one.status == 429]
        assert {one.status for one in answers_} == {200, 429} and len(refused) >= 4, answers_
        assert all(int(one.headers["retry-after"]) > 0 and one.error["type"] == "rate_limit_error" for one in refused)
        assert ask(url, COMPLETE, BASES[COMPLETE], **own).status == 200
