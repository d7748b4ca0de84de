"""`diffulm infill MODEL --text "The cat <hole:3> on the mat."`"""

from __future__ import annotations

from typing import Any

import typer

from diffulm.cli import _common


@_common.fills
def infill(
    model: str = _common.MODEL,
    text: str = typer.Option(
        ..., "--text", help="A text with holes, <hole:3> for three tokens; - reads standard input.", show_default=False
    ),
    **shared: Any,
) -> None:
    """Fill the holes in a text.

    The text around them stays as it is, byte for byte.
    """
    from diffulm.cli._fill import fill

    fill("infill", model, text, **shared)
