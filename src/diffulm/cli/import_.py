"""`diffulm import SOURCE OUT`"""

from __future__ import annotations

import typer

from diffulm.cli import _common
from diffulm.cli._convert import show


def import_(
    source: str = typer.Argument(..., help="A released checkpoint: a folder or a hub id.", show_default=False),
    out: str = typer.Argument(..., help="The folder to make.", show_default=False),
    mask_token_id: int | None = typer.Option(
        None, "--mask-token-id", help="Overrides what tokenizer, vocabulary and family say.", show_default=False
    ),
    bos_token_id: int | None = typer.Option(
        None, "--bos-token-id", help="The token at position 0, if not the tokenizer's.", show_default=False
    ),
    block_size: int | None = typer.Option(
        None,
        "--block-size",
        help="Trained in blocks of so many tokens, where its config does not say.",
        show_default=False,
    ),
    as_json: bool = _common.JSON,
) -> None:
    """Make a folder of ours of a released DiffuGPT, DiffuLLaMA, Dream, LLaDA, A2D, SDAR, Fast-dLLM v2, MDLM or SEDD.

    Bit for bit, in the dtype it has. Every tensor that is missing, unexpected or misshapen is named.
    """
    with _common.only_result() as out_stream:
        from diffulm.checkpoint.released import Misfit
        from diffulm.recipes.convert import import_checkpoint

        try:
            report = import_checkpoint(source, out, mask_token_id, bos_token_id, block_size)
        except Misfit as error:
            if as_json:
                _common.write_json({"source": source, "error": "tensors do not fit", **error.tensors}, out_stream)
            raise
        show(report, as_json, out_stream)
