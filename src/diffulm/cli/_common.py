"""What the verbs share: reading a text, opening a model, writing a result."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
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
SEED = typer.Option(0, "--seed", help="The same seed gives the same result.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


def _filling(
    sampler: str = typer.Option(
        "confidence", "--sampler", help="The order in which tokens are revealed: confidence, random, ..."
    ),
    steps: int | None = typer.Option(
        None, "--steps", help="At most so many denoising steps.  [default: one a token]", show_default=False
    ),
    schedule: str = typer.Option(
        "linear", "--schedule", help="How the steps share the tokens: linear, or cosine: few at first."
    ),
    threshold: float | None = typer.Option(
        None,
        "--threshold",
        help="Instead of steps: reveal all tokens that are at least so probable.",
        show_default=False,
    ),
    entropy_bound: float | None = typer.Option(
        None,
        "--entropy-bound",
        help="Instead of steps: reveal so many nats of uncertainty at once.",
        show_default=False,
    ),
    factor: float | None = typer.Option(
        None, "--factor", help="Instead of steps: the more probable the tokens, the more at once.", show_default=False
    ),
    temperature: float = typer.Option(0.0, "--temperature", help="0 takes the likeliest token."),
    top_p: float = typer.Option(1.0, "--top-p", help="Draw from the smallest set of tokens with so much probability."),
    top_k: int | None = typer.Option(None, "--top-k", help="Draw from so many of the likeliest.", show_default=False),
    min_p: float = typer.Option(
        0.0, "--min-p", help="Draw from tokens with this share of the likeliest's probability."
    ),
    remask: float = typer.Option(
        0.0, "--remask", help="Mask revealed tokens again, in a step at most with this probability."
    ),
    block: int | None = typer.Option(
        None, "--block", help="Fill blocks of so many tokens from left to right.", show_default=False
    ),
    cache: str = typer.Option("auto", "--cache", help="What is not computed again: auto (exact), none, prefix, dual."),
    refresh: int | None = typer.Option(
        None, "--refresh", help="Compute prefix and dual caches anew after so many steps.", show_default=False
    ),
    draft: int = typer.Option(4, "--draft", help="Tokens that sampler verified drafts at once."),
    stop: list[str] = typer.Option(
        [], "--stop", metavar="<str>", help="End the text before this one; may be given again.", show_default=False
    ),
    n: int = typer.Option(1, "--n", "-n", help="So many results; they differ at a temperature."),
    seed: int = SEED,
    batch_size: int = typer.Option(16, "--batch-size", help="Texts at a time. Changes memory, not results."),
    mask_token_id: int | None = MASK_TOKEN_ID,
    dtype: str | None = DTYPE,
    watch: bool = typer.Option(
        False, "--watch", help="Show the canvas on standard error while it fills, coloured by the model's confidence."
    ),
    save_animation: str | None = typer.Option(
        None, "--save-animation", help="A new file: a web page that shows how the text was filled.", show_default=False
    ),
    as_json: bool = JSON,
) -> None:
    """The options of every verb that fills a canvas: the keys of `GenerateOptions`, which has their ranges, and how to
    show what comes of them."""


def fills(verb: Callable[..., None], without: Sequence[str] = ()) -> Callable[..., None]:
    """Give a verb the options of `_filling` but for some; it takes them as **shared and hands them on to `_fill.fill`."""
    own, shared = (inspect.signature(each, eval_str=True).parameters for each in (verb, _filling))
    merged = {name: one for name, one in own.items() if one.kind is not one.VAR_KEYWORD}
    merged |= {name: one for name, one in shared.items() if name not in without}
    # typer reads both
    verb.__annotations__ = {name: one.annotation for name, one in merged.items()}
    verb.__signature__ = inspect.Signature(list(merged.values()))  # pyright: ignore[reportFunctionMemberAccess]
    return verb


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
    from diffulm.evaluation.document import plain

    text = json.dumps(plain(document), ensure_ascii=False, allow_nan=False, indent=2)
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
