"""`diffulm generate MODEL --prompt "Once upon a time" --length 64 --steps 32`"""

from __future__ import annotations

import typer

from diffulm.cli import _common


def generate(
    model: str = _common.MODEL,
    prompt: str = typer.Option("", "--prompt", "--text", help="The text to go on from; - reads standard input."),
    length: int = typer.Option(64, "--length", help="Tokens to add after the prompt."),
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
    """Go on from a prompt.

    The whole text is printed, prompt included.
    """
    from diffulm.cli._fill import fill

    asked = {
        "length": length,
        "steps": steps,
        "sampler": sampler,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    fill("generate", model, prompt, asked, mask_token_id, dtype, watch, as_json)
