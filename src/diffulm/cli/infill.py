"""`diffulm infill MODEL --text "The cat <hole:3> on the mat."`"""

from __future__ import annotations

from typing import Any

import typer

from diffulm.cli import _common
from diffulm.errors import BadInput


@_common.fills
def infill(
    model: str = _common.MODEL,
    file: str | None = typer.Argument(
        None, help="A text file with holes, given by --hole or marked.", show_default=False
    ),
    text: str | None = typer.Option(
        None,
        "--text",
        help="A text with holes: <hole:3> has three tokens, <hole:1-24> and <hole> (1 to 16) as many as the model picks; - "
        "reads standard input.",
        show_default=False,
    ),
    hole: list[str] = typer.Option(
        [],
        "--hole",
        metavar="LINE:COL-LINE:COL",
        help="What to replace, up to but not including the second place; LINE:COL alone inserts. Lines and columns "
        "(characters) count from 1. May be given again.",
        show_default=False,
    ),
    length: str | None = typer.Option(
        None, "--length", help="Tokens of each --hole and <hole>: 3, or 1-24.  [default: 1-16]", show_default=False
    ),
    choices: str | None = typer.Option(
        None, "--choices", help="Each --hole and <hole> is one of these: a,b,c.", show_default=False
    ),
    pattern: str | None = typer.Option(
        None, "--pattern", help="A regular expression that each --hole and <hole> matches.", show_default=False
    ),
    length_method: str = typer.Option(
        "rank", "--length-method", help="How a length is chosen: rank tries all, grow a few from the middle on."
    ),
    in_place: bool = typer.Option(False, "--in-place", help="Write the file instead of printing what it would be."),
    **shared: Any,
) -> None:
    """Fill the holes in a text or a file.

    The text around them stays as it is, byte for byte. Of a file that is longer than the model's context the model is shown
    the lines around the holes.
    """
    from diffulm.cli._editing import editing, hole_of, read_file
    from diffulm.cli._fill import fill

    if file is None and text is None:
        raise BadInput(
            "Missing option '--text'. For example: diffulm infill pocket --text 'x = <hole>', or diffulm infill pocket FILE "
            "--hole 3:12-3:20"
        )
    if file is not None and text is not None:
        raise BadInput("a file and --text are two texts: give one of them")
    if in_place and (file is None or shared["n"] > 1):
        raise BadInput("--in-place writes one text to one file: " + ("name it" if file is None else "leave out --n"))
    template = hole_of(length, choices, pattern)
    shared["length_method"] = length_method
    if text is not None and not hole and length is None and choices is None and pattern is None:
        fill("infill", model, text, **shared)
        return
    given = _common.read_text(text) if text is not None else read_file(file or "")
    fill("infill", model, given, edit=editing(file, given, hole, template, in_place), **shared)
