"""What the verbs share: reading a text, opening a model, writing a result."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

import typer

from diffulm.errors import BadInput, unknown

if TYPE_CHECKING:
    from diffulm import DiffusionLM

DTYPES = ("float32", "bfloat16", "float16")

MODEL = typer.Argument(
    ..., help="A folder, a hub id, or one of the shipped models: pocket, pocket-ar.", show_default=False
)
MASK_TOKEN_ID = typer.Option(None, "--mask-token-id", help="Overrides what the checkpoint says.", show_default=False)
DTYPE = typer.Option(None, "--dtype", help=f"One of {', '.join(DTYPES)}. On a CPU: float32.", show_default=False)
STEPS = typer.Option(None, "--steps", help="At most so many denoising steps.  [default: 32]", show_default=False)
SAMPLER = typer.Option(
    "confidence", "--sampler", help="The order in which tokens are revealed: confidence, random, ..."
)
TEMPERATURE = typer.Option(0.0, "--temperature", help="0 takes the likeliest token.")
TOP_P = typer.Option(1.0, "--top-p", help="Draw from the smallest set of tokens with so much probability.")
SEED = typer.Option(0, "--seed", help="The same seed gives the same result.")
WATCH = typer.Option(False, "--watch", help="Show the canvas on standard error while it fills.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


def read_text(value: str) -> str:
    """`value`, or for "-" all of standard input: as it is, a final newline included; no escape is interpreted."""
    try:
        if value == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return os.fsencode(value).decode("utf-8")  # the bytes that were given, whatever the locale made of them
    except UnicodeError:
        where = "on standard input" if value == "-" else "given"
        raise BadInput(f"the text {where} is not UTF-8; convert it") from None


def open_model(model: str, mask_token_id: int | None, dtype: str | None) -> DiffusionLM:
    """`diffulm.load` with the dtype by its name."""
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    import torch

    import diffulm

    return diffulm.load(model, mask_token_id=mask_token_id, dtype=None if dtype is None else getattr(torch, dtype))


def key_values(settings: list[str]) -> dict[str, str]:
    """["a=1", "a=2"] -> {"a": "2"}: of a repeated key the last wins. BadInput for anything else than key=value."""
    for setting in settings:
        if not setting.partition("=")[0].isidentifier() or "=" not in setting:
            raise BadInput(f"{setting!r} is not a setting; write key=value, for example tokens=4M")
    return {key: value for key, _, value in (setting.partition("=") for setting in settings)}


@contextlib.contextmanager
def only_result() -> Iterator[TextIO]:
    """Standard output for the result; whatever else is printed inside (by libraries, too) goes to standard error.

    Where nobody looks at that (no terminal), the Hugging Face libraries leave out their bars and retries, so that an
    error is the one line it should be. They read these variables when they are first imported.
    """
    out = sys.stdout
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    with contextlib.redirect_stdout(sys.stderr):
        yield out


def write_json(document: Any, out: TextIO) -> None:
    """One JSON document and a newline. JSON has no infinity and no NaN: null stands for them."""
    text = json.dumps(_plain(document), ensure_ascii=False, allow_nan=False, indent=2)
    print(
        text.encode("utf-8", "backslashreplace").decode(), file=out
    )  # a name of a file that is no text: as JSON escapes it


def write_facts(document: dict[str, Any], out: TextIO, indent: str = "") -> None:
    """`key: value` lines for people; a dict inside is indented."""
    for key, value in document.items():
        if isinstance(value, dict):
            print(f"{indent}{key}:", file=out)
            write_facts(value, out, indent + "  ")
        else:
            print(f"{indent}{key}: {'-' if value is None else value}", file=out)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
