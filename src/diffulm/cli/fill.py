"""`diffulm fill MODEL --text '{"name": "<hole>", "age": <hole:int>}' --prompt "Ann is ten."`"""

from __future__ import annotations

from typing import Any

import typer

from diffulm.cli import _common
from diffulm.errors import BadInput


@_common.fills
def fill(
    model: str = _common.MODEL,
    template: str | None = typer.Option(
        None, "--template", help="A file with the template; - reads standard input.", show_default=False
    ),
    text: str | None = typer.Option(
        None,
        "--text",
        help='The template itself. In JSON <hole> is any value, "<hole>" a text or part of one, <hole:int>, <hole:number>, '
        "<hole:bool>, <hole:date> a value of that kind, <hole:yes|no> one of these; <hole:8> has eight tokens, <hole:1-8> at "
        "most.",
        show_default=False,
    ),
    schema: str | None = typer.Option(
        None, "--schema", help="A file with a JSON schema, which is filled instead of a template.", show_default=False
    ),
    prompt: str | None = typer.Option(None, "--prompt", help="Text to stand before the form.", show_default=False),
    message: str | None = typer.Option(
        None, "--message", help="What the form answers, laid out by the model's chat template.", show_default=False
    ),
    length: int = typer.Option(16, "--length", help="Tokens at most of a hole that does not say how many."),
    **shared: Any,
) -> None:
    """Fill the holes of a form together.

    What is fixed stays as it is, byte for byte, and JSON comes out as JSON.
    """
    from diffulm.cli._editing import read_file
    from diffulm.cli._fill import fill

    given = {"--template": template, "--text": text, "--schema": schema}
    named = [flag for flag, one in given.items() if one is not None]
    if len(named) != 1:
        raise BadInput(
            (f"{' and '.join(named)} are two forms" if named else "Missing option '--text'")
            + ': give one of --text, --template and --schema, for example: diffulm fill pocket --text \'{"name": "<hole>"}\''
        )
    if prompt is not None and message is not None:
        raise BadInput(
            "--prompt stands before the form as it is, --message is laid out as a question: give one of them"
        )
    from diffulm.skeleton import from_schema, skeleton

    source = given[named[0]] or ""
    source = source if text is not None else _common.read_text("-") if source == "-" else read_file(source)
    before = _common.read_text(prompt) if prompt is not None else message and [{"role": "user", "content": message}]
    form = from_schema(source) if schema is not None else skeleton(source)
    fill("fill", model, form, more={"prompt": before}, length=length, **shared)
