"""For all tests: no network, one thread, shapes checked on every call of layers 0 to 3, the folder of shared data."""

import os
import signal
from pathlib import Path

# Before anything imports a Hugging Face library: they read these once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import pytest
import torch
from jaxtyping import install_import_hook

# A shell that starts this in the background has Ctrl-C ignored, here and in every process of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The models are tiny: a second thread costs more than it brings, and much more where the machine is busy.
torch.set_num_threads(1)

CHECKED = (
    *("randomness", "visibility", "schedule", "noise", "objective", "bounds"),
    *("denoiser", "checkpoint", "families"),
    *("canvas", "samplers", "data"),
    "lm",
)
install_import_hook([f"diffulm.{name}" for name in CHECKED], "beartype.beartype")


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A tiny AR parent with a tokenizer, and text: made here, nothing downloaded."""
    from runs import make_home

    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def forks(home, tmp_path_factory):
    """A helper that starts commands fast; `forks.whole` is the folder of a finished `runs.short`."""
    from forks import Forks

    with Forks(tmp_path_factory.mktemp("forks"), home) as started:
        yield started


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with fixtures and data that tests may read; `DIFFULM_SHARED` names it."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("DIFFULM_SHARED", root.parent / "shared"))
    if not (folder / "fixtures").is_dir():
        pytest.skip(f"no shared data at {folder} (DIFFULM_SHARED names the folder)")
    return folder


@pytest.fixture
def run(capsys):
    """The command line, called: arguments -> (exit code, standard output, standard error)."""
    from diffulm.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def child():
    """The shipped diffusion model, to be asked."""
    from diffulm.evaluation.subject import opened

    return opened("pocket")


@pytest.fixture(scope="session")
def parent():
    """Its parent, read from left to right."""
    from diffulm.evaluation.subject import opened

    return opened("pocket-ar", parent=True)


@pytest.fixture(scope="session")
def server():
    """The base URL of `diffulm serve` with the shipped model and its parent, which all tests share."""
    from servers import serving

    with serving("pocket", "--parent", "pocket-ar", "--workers", "2") as url:
        yield url
