"""`diffulm serve`: what it is told, and how it begins and ends."""

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from servers import answers, serving

pytest.importorskip("fastapi")


def test_the_process_in_front_has_no_torch():
    code = (
        "import sys, diffulm.serving.server; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "256.0.0.1"], "cannot listen at 256.0.0.1"),
        (["--dtype", "float31"], "did you mean 'float32'?"),
        (["--api-keys", "empty"], "empty: has no key"),
        (["--api-keys", "none"], "none"),
        (["--api-keys", "spaced"], "ASCII"),
        (["--api-keys", "binary"], "not UTF-8"),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, list) else "",
)
def test_what_cannot_be_is_one_line(arguments, words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty": b"\n \n", "spaced": b"a b\n", "binary": b"\xff\n"}.items():
        (tmp_path / name).write_bytes(content)
    code, out, err = run("serve", "pocket", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err


def test_a_port_that_is_taken_is_one_line(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = run("serve", "pocket", "--port", port)
    assert (
        (code, out, err.count("\n")) == (2, "", 1) and f"cannot listen at 127.0.0.1:{port}" in err and "in use" in err
    )


def test_keys_come_from_a_file_and_the_environment(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sys.modules["diffulm.cli.serve"], "run", lambda **given: asked.append(given))
    (tmp_path / "keys").write_text("one\n\n two \n")
    monkeypatch.setenv("DIFFULM_API_KEYS", "three, four,")
    assert run("serve", "pocket", "--api-keys", str(tmp_path / "keys"), "--cors", "https://a.example")[0] == 0
    monkeypatch.delenv("DIFFULM_API_KEYS")
    assert run("serve", "pocket", "--max-n", "3")[0] == 0
    assert asked[0]["keys"] == ("one", "two", "three", "four") and asked[0]["cors"] == ("https://a.example",)
    assert asked[1]["keys"] == () and asked[1]["max_n"] == 3


@pytest.mark.slow
def test_a_model_that_cannot_be_served_ends_it(tmp_path):
    for model, words in ((str(tmp_path), "config.json"), ("pocket-ar", "diffulm adapt")):
        command = [sys.executable, "-m", "diffulm", "serve", model, "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        *_, line = done.stderr.splitlines()
        assert done.returncode == 2 and done.stdout == "" and line.startswith("diffulm: error: ") and words in line


@pytest.mark.slow
def test_what_is_in_flight_is_finished_when_it_is_told_to_stop():
    body = b'{"model": "pocket", "prompt": "import ", "max_tokens": 100}'
    kind = {"Content-Type": "application/json"}

    def ask() -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, kind)) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    with serving("pocket", "--workers", "1", "--grace", "120") as url:  # which looks at the exit code
        found: list[int] = []
        asked = threading.Thread(target=lambda: found.append(ask()))
        asked.start()
        time.sleep(0.3)
        url.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert ask() == 503 and not answers(f"{url}/ready") and answers(f"{url}/health")
        asked.join()
        assert found == [200] and url.process.wait(30) == 0


@pytest.mark.parametrize(
    ("told", "parameters", "device", "cores", "expected"),
    [
        ({}, 10**6, "cpu", 2, (2, 1)),
        ({}, 10**6, "cpu", 64, (4, 1)),
        ({}, 10**9, "cpu", 8, (1, 8)),
        ({}, 10**6, "cuda", 8, (1, 8)),
        ({"workers": 1}, 10**6, "cpu", 8, (1, 1)),
        ({"workers": 3}, 10**9, "cpu", 8, (3, 2)),
        ({"workers": 9}, 10**9, "cpu", 8, (9, 1)),
        ({"threads": 3}, 10**6, "cpu", 2, (2, 3)),
    ],
)
def test_a_machine_is_shared_among_its_workers(told, parameters, device, cores, expected, monkeypatch):
    from diffulm.serving import worker
    from diffulm.serving.settings import Settings

    monkeypatch.setattr(worker, "cores", lambda: cores)
    monkeypatch.setattr("torch.get_num_threads", lambda: cores)
    denoiser = SimpleNamespace(device=SimpleNamespace(type=device), parameters=parameters)
    models = {"tiny": SimpleNamespace(denoiser=SimpleNamespace(device=denoiser.device, parameters=10)),
              "one": SimpleNamespace(denoiser=denoiser)}  # fmt: skip
    assert worker.shares(Settings(model="one", **told), models) == expected
