"""`diffulm export MODEL OUT --format dream`"""

from __future__ import annotations

import typer

from diffulm.cli import _common
from diffulm.cli._convert import show


def export(
    model: str = _common.MODEL,
    out: str = typer.Argument(..., help="The folder to make.", show_default=False),
    layout: str | None = typer.Option(
        None,
        "--layout",
        "--format",
        help="diffugpt, diffullama (plain), denoise-model (what derives from it), dream or llada.  [default: by family]",
        show_default=False,
    ),
    as_json: bool = _common.JSON,
) -> None:
    """Write a model as the published code of DiffuGPT, DiffuLLaMA, Dream or LLaDA reads it, and so llama.cpp.

    Bit for bit. What that code would do otherwise than DiffuLM is refused, or noted.
    """
    with _common.only_result() as out_stream:
        from diffulm.recipes.convert import export as run

        show(run(model, out, layout), as_json, out_stream)
