"""`diffulm generate MODEL --prompt "Once upon a time" --length 64 --steps 32`"""

from __future__ import annotations

from typing import Any

import typer

from diffulm.cli import _common


@_common.fills
def generate(
    model: str = _common.MODEL,
    prompt: str = typer.Option("", "--prompt", "--text", help="The text to go on from; - reads standard input."),
    length: int = typer.Option(64, "--length", help="Tokens to add after the prompt."),
    stream: bool = typer.Option(False, "--stream", help="Print the text as it comes, as far as it is final."),
    **shared: Any,
) -> None:
    """Go on from a prompt.

    The whole text is printed, prompt included.
    """
    from diffulm.cli._fill import fill

    fill("generate", model, prompt, length=length, stream=stream, **shared)
