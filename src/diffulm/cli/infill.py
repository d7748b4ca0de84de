"""`diffulm infill MODEL --text "The cat <hole:3> on the mat."`"""

from __future__ import annotations

import typer

from diffulm.cli import _common


def infill(
    model: str = _common.MODEL,
    text: str = typer.Option(
        ..., "--text", help="A text with holes, <hole:3> for three tokens; - reads standard input.", show_default=False
    ),
    steps: int | None = _common.STEPS,
    sampler: str = _common.SAMPLER,
    temperature: float = _common.TEMPERATURE,
    top_p: float = _common.TOP_P,
    seed: int = _common.SEED,
    mask_token_id: int | None = _common.MASK_TOKEN_ID,
    dtype: str | None = _common.DTYPE,
    watch: bool = _common.WATCH,
    as_json: bool = _common.JSON,
) -> None:
    """Fill the holes in a text.

    The text around them stays as it is, byte for byte.
    """
    from diffulm.cli._fill import fill

    asked = {"steps": steps, "sampler": sampler, "temperature": temperature, "top_p": top_p, "seed": seed}
    fill("infill", model, text, asked, mask_token_id, dtype, watch, as_json)
