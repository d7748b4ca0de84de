"""`diffulm score MODEL --text "A sentence." --samples 64`"""

from __future__ import annotations

import typer

from diffulm.cli import _common


def score(
    model: str = _common.MODEL,
    text: str = typer.Option(..., "--text", help="The text to score; - reads standard input.", show_default=False),
    context: str = typer.Option("", "--context", help="Text before it that is given, not scored."),
    samples: int = typer.Option(64, "--samples", help="Monte-Carlo draws of the bound."),
    method: str = typer.Option(
        "bound", "--method", help="bound (any order, an upper bound on the nats) or left_to_right (exact)."
    ),
    seed: int = _common.SEED,
    mask_token_id: int | None = _common.MASK_TOKEN_ID,
    dtype: str | None = _common.DTYPE,
    as_json: bool = _common.JSON,
) -> None:
    """How many nats a text costs.

    In all and a token, with the standard error of the estimate.
    """
    from diffulm.errors import BadInput
    from diffulm.options import ScoreOptions, checked

    asked = {"samples": samples, "seed": seed, "method": method}
    checked(ScoreOptions, **asked)
    if text == context == "-":
        raise BadInput("--text and --context cannot both be -: standard input is one text; give the other one itself")
    text, context = _common.read_text(text), _common.read_text(context)
    with _common.only_result() as out:
        result = _common.open_model(model, mask_token_id, dtype).score(text, context=context, **asked)
        each = result.nats / result.tokens if result.tokens else 0.0
        if as_json:
            document = {"nats": result.nats, "stderr": result.stderr, "tokens": result.tokens, "nats_per_token": each}
            _common.write_json(document | {"model": model, "options": asked}, out)
        else:
            print(
                f"{result.nats:.4f} nats (+- {result.stderr:.4f}), {result.tokens} tokens, {each:.4f} a token", file=out
            )
