"""What is opened: names, the hub that may not answer, weights that are no numbers."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch

from diffulm.checkpoint import files
from diffulm.checkpoint.files import absent, hub_answers, locate
from diffulm.checkpoint.opening import first_line, not_finite
from diffulm.denoiser.quiet import quietly
from models import bad, build, tokenizer


class Nothing(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """Sets where the hub is."""
    from huggingface_hub import constants, utils

    def at(address: str) -> None:
        files._hub_answers.cache_clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(files, "HUB_SECONDS", 0.5)

    yield at
    files._hub_answers.cache_clear()
    utils.close_session()


def test_a_hub_that_answers(hub):
    with HTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        assert hub_answers()
    assert hub_answers()  # and is not asked again at once


def test_a_hub_that_is_not_there(hub):
    hub("http://127.0.0.1:9")
    assert not hub_answers()


def test_a_hub_that_says_nothing(hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert not hub_answers()
        assert time.monotonic() - began < 5  # half a second, and whatever else the machine does


def test_a_name_server_that_says_nothing(hub, monkeypatch):
    hub("http://hub")
    asked = threading.Event()
    slow = SimpleNamespace(head=lambda *_, **__: asked.wait(60))
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: slow)
    began = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - began < 5
    asked.set()


def test_offline_is_asked_for(hub, monkeypatch):
    from huggingface_hub import constants

    hub("http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils.get_session", pytest.fail)
    assert not hub_answers()


def test_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert locate("~/mine") == tmp_path / "mine"
    assert locate("gpt2") == "gpt2" and locate("openai-community/gpt2") == "openai-community/gpt2"
    for wrong in ("a b", "a/b/c", "../x", "/x", "-x", "a\0", "", "a" * 5000 + "/"):
        with bad("no such folder"):
            locate(wrong)
    assert str(absent("poket-ar")) == "poket-ar: no such folder; did you mean 'pocket-ar'?"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_found(dtype, value):
    model = build("llama").to(dtype)
    assert not_finite(model) is None
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.finfo(dtype).max)  # their sum is none, they are
    assert not_finite(model) is None
    with torch.no_grad():
        model.model.norm.weight[5] = value
    assert "model.norm.weight has 1 of 32 numbers NaN or infinite" in str(not_finite(model))


def test_what_is_quantised_or_elsewhere_is_not_looked_at():
    model = torch.nn.Module()
    model.packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    model.eight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float8_e4m3fn), requires_grad=False)
    model.empty = torch.nn.Parameter(torch.zeros(0))
    model.elsewhere = torch.nn.Parameter(torch.zeros(4, device="meta"))
    assert not_finite(model) is None


def test_the_first_line_of_what_a_library_says():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("\n class validation failed:\n  heads do not divide\nmore")) == (
        "class validation failed: heads do not divide"
    )
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 999))) == 200


# -- no network


@pytest.fixture
def dead_hub():
    """The port of a hub that closes every connection, or with `silent` leaves it open; `calls` counts them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = SimpleNamespace(port=server.getsockname()[1], silent=False, calls=0, open=[])

        def listen() -> None:
            with contextlib.suppress(OSError):  # the test is over
                while True:
                    connection, _ = server.accept()
                    found.calls += 1
                    found.open.append(connection) if found.silent else connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield found
    for connection in found.open:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "generate no/such",
        "inspect no/such",
        "adapt tiny model=no/such data=a.txt out=o length=16",
        "adapt tiny model=plain data=no/such out=o length=16",
    ],
)
@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(arguments, silent, dead_hub, tmp_path):
    """Without the variables that keep the libraries of the hub offline: they would try for half a minute."""
    (tmp_path / "a.txt").write_text("w5 w6")
    with quietly():
        build("llama").save_pretrained(tmp_path / "plain")
        tokenizer().save_pretrained(tmp_path / "plain")
    dead_hub.silent = silent
    online = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    online |= {"HF_ENDPOINT": f"http://127.0.0.1:{dead_hub.port}", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "diffulm", *arguments.split()]
    done = subprocess.run(command, env=online, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "no/such: no such" in done.stderr and "hub" in done.stderr
    assert dead_hub.calls <= 3  # seven and more where the libraries try again
    assert not (tmp_path / "o").exists()
