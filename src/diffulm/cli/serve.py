"""`diffulm serve MODEL --port 8000`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from diffulm.cli import _common
from diffulm.errors import BadInput, unknown

KEYS = "DIFFULM_API_KEYS"


def serve(
    model: str = _common.MODEL,
    parent: str | None = typer.Option(
        None, "--parent", help="A second model, read from left to right, to compare with.", show_default=False
    ),
    host: str = typer.Option("127.0.0.1", "--host", help="Where to listen; 0.0.0.0: on every address of this machine."),
    port: int = typer.Option(8000, "--port", help="0: one that is free."),
    rows: int = typer.Option(16, "--rows", help="Texts that a worker computes together; on a CPU at most 8."),
    queue: int = typer.Option(256, "--queue", help="Texts that may wait beyond those; then comes 429."),
    timeout: float = typer.Option(300.0, "--timeout", help="Seconds a request may take."),
    grace: float = typer.Option(30.0, "--grace", help="Seconds for what is in flight when the server is told to stop."),
    max_body: int = typer.Option(2**20, "--max-body", help="Bytes of a request."),
    max_n: int = typer.Option(16, "--max-n", help="Choices of a prompt."),
    max_prompts: int = typer.Option(32, "--max-prompts", help="Prompts, or texts to score, in a request."),
    max_steps: int = typer.Option(4096, "--max-steps", help="Denoising steps of a text."),
    api_keys: Path | None = typer.Option(
        None,
        "--api-keys",
        help=f"A file with keys, one a line, of which a request needs one; {KEYS} may hold more, with commas between.",
        show_default=False,
    ),
    cors: list[str] = typer.Option(
        [], "--cors", metavar="<origin>", help="Let pages of this origin ask; may be given again.", show_default=False
    ),
    log_prompts: bool = typer.Option(False, "--log-prompts", help="Log what requests say, too."),
    workers: int | None = typer.Option(
        None,
        "--workers",
        help="Processes with the model.  [default: 1; for a small model on a CPU one per core, at most 4]",
        show_default=False,
    ),
    threads: int | None = typer.Option(
        None,
        "--threads",
        help="Threads of a forward.  [default: 1 for a small model, else torch's own number divided by the workers]",
        show_default=False,
    ),
    mask_token_id: int | None = _common.MASK_TOKEN_ID,
    dtype: str | None = _common.DTYPE,
) -> None:
    """Serve a model: an API that OpenAI's clients speak, and a page to play with.

    http://127.0.0.1:8000/ is the page, /docs says what there is to ask for. Ctrl-C or SIGTERM ends it: what is in flight is
    finished first.
    """
    asked = {name: value for name, value in locals().items() if name not in ("api_keys", "cors")}
    if dtype is not None and dtype not in _common.DTYPES:
        raise unknown("dtype", dtype, _common.DTYPES)
    run(**asked, keys=_keys(api_keys), cors=tuple(cors))


def run(**asked: Any) -> None:
    """Check what was asked for, then serve."""
    from diffulm.options import checked
    from diffulm.serving.settings import Settings

    settings = checked(Settings, **asked)
    try:
        from diffulm.serving.server import serve
    except ImportError as error:
        raise BadInput(f"{error.name} is not installed, and a server needs it; pip install 'diffulm[serve]'") from None
    serve(settings)


def _keys(file: Path | None) -> tuple[str, ...]:
    """From a file and the environment. BadInput for a file without keys: nobody is to think it protects anything."""
    try:
        lines = file.read_text("utf-8").splitlines() if file else []
    except UnicodeDecodeError:
        raise BadInput(f"{file}: is not UTF-8 text; write one key a line") from None
    keys = [line.strip() for line in lines if line.strip()]
    if file and not keys:
        raise BadInput(f"{file}: has no key; write one a line")
    keys += [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    if bad := [key for key in keys if not key.isascii() or not key.isprintable() or " " in key]:
        raise BadInput(
            f"a key is made of ASCII letters, digits and signs, and one of them has others ({len(bad[0])} long)"
        )
    return tuple(keys)
