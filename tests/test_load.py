"""Many clients on one server, and two servers behind nginx: every request has its reply, and the one it has alone.

The clients and requests are those of benchmarks/clients.py.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

pytest.importorskip("fastapi")

from diffulm.serving.settings import Settings
from servers import answers, serving

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def load():
    """benchmarks/clients.py"""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import clients

        yield clients
    sys.modules.pop("clients")


def check(load, crowd, requests, wanted):
    """None lost, none mixed up."""
    lost = [(one.status, one.problem, one.request) for one in crowd.replies if one.status != 200]
    assert not lost, f"{len(lost)} of {len(crowd.replies)}: {lost[:3]}"
    wrong = [(one.request, one.said) for one in load.differing(crowd, requests, wanted)]
    assert not wrong, f"{len(wrong)} of {len(crowd.replies)}: {wrong[:2]}"


def test_sixteen_clients_get_what_they_get_alone(load, server):
    requests = load.mixed(24, "pocket", 2, 12)
    kinds = {one.kind for one in requests}
    assert kinds == set(load.WEIGHTS), "this draw has requests of every kind"
    wanted = load.alone(server, requests)
    assert len({json.dumps(one) for one in wanted}) == len(wanted), (
        "no two replies are alike, or a mix-up were not seen"
    )
    crowd = load.asked(server, itertools.islice(load.repeated(requests), 60), 16)
    assert len(crowd.replies) == 60
    check(load, crowd, requests, wanted)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine takes minutes for what 200 have asked in 20 seconds
def test_two_hundred_clients(load, server):
    """With 256 places in the queue none of them is sent away."""
    requests = load.mixed(48, "pocket", 2, 24)
    wanted = load.alone(server, requests)
    crowd = load.asked(server, load.repeated(requests), 200, seconds=20)
    assert len(crowd.replies) >= 200
    check(load, crowd, requests, wanted)


@pytest.mark.slow
@pytest.mark.timeout(900)  # 2000 requests
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory of another process is read from /proc")
def test_memory_does_not_grow_with_requests(load):
    """The mean over the second 1000 requests beside that over the first.

    A reply that the front keeps is JSON of half a kilobyte, and as Python has it several: 1 MB is too much. The worker's memory
    comes and goes by 3 MB with what torch takes and gives back: 8 MB, which a canvas with its logits passes in a few requests.
    """
    with serving("pocket", "--workers", "1") as url:
        tasks = Path(f"/proc/{url.process.pid}/task")
        (worker,) = (one for task in tasks.iterdir() for one in (task / "children").read_text().split())
        requests, sizes = load.mixed(64, "pocket", 2, 6), {str(url.process.pid): [], worker: []}
        for _ in range(10):
            crowd = load.asked(url, itertools.islice(load.repeated(requests), 200), 16)
            assert len(crowd.good) == 200
            for pid, size in sizes.items():
                size.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    for (name, most), size in zip({"front": 1, "worker": 8}.items(), sizes.values(), strict=True):
        grown = statistics.mean(size[5:]) - statistics.mean(size[:5])
        assert grown < most, f"{name}: {grown:.1f} MB: {size}"


def test_what_is_deployed_fits_together():
    """Names, ports, limits and times that one file has from another."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    nginx, docker = (DEPLOY / "nginx.conf").read_text("utf-8"), (DEPLOY / "Dockerfile").read_text("utf-8")
    replicas = set(compose["services"]) - {"nginx"}
    port = re.search(r"^EXPOSE (\d+)$", docker, re.M)[1]
    assert port == str(Settings(model="pocket").port)
    assert set(re.findall(r"server (\w+):(\d+)", nginx)) == {(name, port) for name in replicas}
    assert len(replicas) == 2
    inside = re.search(r"listen (\d+);", nginx)[1]
    (published,) = compose["services"]["nginx"]["ports"]
    assert published.startswith("127.0.0.1:") and published.endswith(f":{inside}")
    settings = Settings(model="pocket")
    assert int(re.search(r"client_max_body_size (\d+)m", nginx)[1]) * 2**20 > settings.max_body
    assert int(re.search(r"proxy_read_timeout (\d+)s", nginx)[1]) > settings.timeout
    for name in replicas:
        one = compose["services"][name]
        assert int(one["stop_grace_period"].removesuffix("s")) > settings.grace
        assert (DEPLOY / one["build"]["context"] / one["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
        assert all(re.search(rf"^ARG {arg}=", docker, re.M) for arg in one["build"]["args"])
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", docker, re.M):
        for name in source.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}\n" in (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8"), name
    assert re.search(r"^USER [1-9]", docker, re.M), "not root"
    assert not re.search(r"(?i)(key|token|secret|password)\w*=", docker), "no secrets"


# ---- two replicas behind nginx


def free_ports(count):
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@contextlib.contextmanager
def behind_nginx(folder, ports):
    """The address of an nginx with deploy/nginx.conf before servers at these ports of this machine."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        pytest.skip("there is no nginx")
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    (front,) = free_ports(1)
    for old, new in {
        " /tmp/": f" {folder}/", "one:8000": f"127.0.0.1:{ports[0]}", "two:8000": f"127.0.0.1:{ports[1]}",
        "listen 8080": f"listen 127.0.0.1:{front}", "worker_processes auto": "worker_processes 1",
    }.items():  # fmt: skip
        assert old in text, old
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    command = [binary, "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{front}"
        finally:
            process.terminate()
            process.wait(30)


def served(url):
    """Texts that a replica has answered."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        found = re.findall(r'requests_total\{route="/v1/\w[^"]*",status="200"\} (\S+)', reply.read().decode())
    return sum(map(float, found))


def until(found, seconds=60.0):
    """Wait for it."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(address of nginx, its two replicas' ports, what starts a replica at a port)"""
    folder, ports = tmp_path_factory.mktemp("nginx"), free_ports(2)
    with behind_nginx(folder, ports) as url:
        yield url, ports


def at(port):
    return serving("pocket", "--workers", "1", port=port)


@pytest.mark.slow
@pytest.mark.timeout(900)  # four starts of a server
def test_two_replicas_behind_nginx(load, pair):
    """What a client sees: both at work; one killed, restarted, and one told to stop, while requests come.

    A reply that is not streamed is never lost: nginx asks the other replica. A stream that has begun when its replica is killed
    breaks off, without its [DONE]; one whose replica is told to stop ends as it should.
    """
    url, ports = pair
    requests = load.mixed(32, "pocket", 2, 12)
    whole = [one for one in requests if not one.body.get("stream")]
    with contextlib.ExitStack() as second, at(ports[1]) as two:
        one = second.enter_context(at(ports[0]))
        wanted = load.alone(one, requests)
        expected = dict(zip(map(id, requests), wanted, strict=True))
        before = [served(one), served(two)]
        crowd = load.asked(url, requests, 8)
        check(load, crowd, requests, wanted)
        each = [served(one) - before[0], served(two) - before[1]]
        assert sum(each) == len(requests)
        assert min(each) >= len(requests) / 4, "both have their part of the work"

        crowds = []
        asking = threading.Thread(
            target=lambda: crowds.append(load.asked(url, itertools.islice(load.repeated(requests), 64), 8))
        )
        asking.start()
        done = served(one)
        until(lambda: served(one) > done + 5)
        one.process.send_signal(signal.SIGKILL)
        asking.join()
        broken = [reply for reply in crowds[0].replies if reply.status != 200]
        assert all(reply.status == 0 and "stream" in reply.request.kind for reply in broken), broken[:2]
        assert len(broken) <= 8, "only what was in flight"
        assert not load.differing(crowds[0], requests, wanted)
        check(load, load.asked(url, whole, 4), whole, [expected[id(each)] for each in whole])

        second.close()  # it is dead; now another at the same port
        second.enter_context(at(ports[0]))
        back = f"http://127.0.0.1:{ports[0]}"

        def works():
            load.asked(url, whole[:4], 4)
            return served(back) > 0

        until(works)

        asking = threading.Thread(
            target=lambda: crowds.append(load.asked(url, itertools.islice(load.repeated(requests), 64), 8))
        )
        asking.start()
        done = served(two)
        until(lambda: served(two) > done + 5)
        two.process.send_signal(signal.SIGTERM)
        asking.join()
        check(load, crowds[1], requests, wanted)
        assert two.process.wait(60) == 0
        assert not answers(f"{two}/health")


@pytest.mark.slow
def test_a_stream_passes_nginx_as_it_comes(pair):
    url, ports = pair
    body = {"model": "pocket", "prompt": "def f(x):\n", "suffix": "\n", "max_tokens": 48, "min_tokens": 48, "seed": 0}
    body |= {"stream": True, "stream_options": {"canvas": True}}
    with at(ports[0]):
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        began, times = time.perf_counter(), []
        with urllib.request.urlopen(request, timeout=300) as reply:
            times += [time.perf_counter() - began for line in reply if line.startswith(b"data: ")]
    assert len(times) > 48, "a canvas each forward"
    assert times[0] < times[-1] / 4, f"the first of 48 forwards comes long before the last: {times[0]}, {times[-1]}"


@pytest.mark.slow
def test_no_replica_is_an_error_of_the_usual_form(pair):
    url, _ = pair
    request = urllib.request.Request(f"{url}/v1/completions", b"{}", {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    with refused.value as reply:
        assert reply.status == 503
        assert reply.headers["retry-after"] == "5"
        error = json.loads(reply.read())["error"]
    assert error["code"] == "no_replica" and error["type"] == "server_error" and error["param"] is None
