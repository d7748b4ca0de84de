"""`diffulm inspect MODEL`"""

from __future__ import annotations

import typer

from diffulm.cli import _common


def inspect(
    model: str = _common.MODEL,
    mask_token: str = typer.Option(
        "auto", "--mask-token", help="auto, new, or a token (id or text) to use as the mask."
    ),
    as_json: bool = _common.JSON,
) -> None:
    """What a model is, and if it can be adapted.

    Attention probe, identity check, size, cost. Exit code 2 when it cannot be adapted.
    """
    from diffulm.errors import BadInput
    from diffulm.recipes.inspect import inspect as look

    with _common.only_result() as out:
        found = look(model, mask_token=mask_token)
        facts = found.as_dict()
        if as_json:
            _common.write_json(facts, out)
        elif found.adoptable:
            _common.write_facts({key: value for key, value in facts.items() if value is not None}, out)
    if not found.adoptable:
        reason = found.reason or "the probe failed"
        raise BadInput(reason if model in reason else f"{model} cannot be adapted: {reason}")
