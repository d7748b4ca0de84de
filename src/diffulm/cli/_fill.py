"""`generate` and `infill` are one act: fill the free positions of a canvas. What differs is how the canvas is made."""

from __future__ import annotations

import math
from typing import Any

from diffulm import animation
from diffulm.cli._common import only_result, open_model, read_text, write_json
from diffulm.cli._editing import Editing
from diffulm.errors import BadInput
from diffulm.options import GenerateOptions, checked
from diffulm.watch import Callback, watching


def fill(
    verb: str,
    model: str,
    text: Any,
    *,
    mask_token_id: int | None,
    dtype: str | None,
    watch: bool,
    save_animation: str | None,
    as_json: bool,
    stream: bool = False,
    edit: Editing | None = None,
    more: dict[str, Any] | None = None,
    **asked: Any,
) -> None:
    """Run `lm.generate`, `lm.infill` or `lm.fill` and print the text, or a JSON document that also says how.

    `asked`: keys of `GenerateOptions`, which are checked before the model is opened, as is what else can be: a bad number
    should not cost a minute of loading. stream: print the text as far as it is final (`generate` alone). edit: `text` has
    holes that are not marked in it, or is a file's (`infill` alone). more: what else the method is given.
    """
    checked(GenerateOptions, **asked)
    clash = [flag for flag, given in (("--json", as_json), ("--n", asked["n"] > 1), ("--watch", watch)) if given]
    if stream and clash:
        raise BadInput(f"--stream prints one text as it comes and nothing else: leave out {' and '.join(clash)}")
    if save_animation is not None:
        animation.check(save_animation)
    text = read_text(text) if edit is None and isinstance(text, str) else text
    with only_result() as out:
        lm, frames = open_model(model, mask_token_id, dtype), []
        shown: list[str] = []

        def show(piece: str) -> None:
            print(*([] if shown else [text]), piece, sep="", end="", file=out, flush=True)
            shown.append(piece)

        with watching(watch, lm.tokenizer) as drawn:
            wanted = [drawn, frames.append if save_animation is not None else None]
            streamed = (more or {}) | ({"on_text": show} if stream else {})
            given = text if edit is None else edit.shortened(lm)
            result = getattr(lm, verb)(given, callback=_each(wanted), **streamed, **asked)
        result = result if edit is None else edit.whole(result)
        if edit is not None and edit.in_place:
            edit.save(text, result.text)
        if as_json:
            edits = {} if edit is None else edit.document(result)
            write_json(_document(result) | edits | {"model": model, "options": asked}, out)
        elif shown:
            print(file=out)
        elif asked["n"] > 1 and result.candidates:
            for number, one in enumerate(result.candidates, 1):
                nats = getattr(one, "score", math.nan)
                score = "" if math.isnan(nats) else f", {nats:.2f} nats"
                print(f"--- {number} of {len(result.candidates)}{score}\n{one.text}", file=out)
        elif edit is None or edit.path is None:
            print(result.text, file=out)
        elif not edit.in_place:
            print(result.text, end="", file=out)  # the whole file as it would be
        if save_animation is not None:
            page = animation.page(lm.tokenizer, frames, f"DiffuLM: {verb} with {model}", result.text)
            animation.save(save_animation, page)


def _each(wanted: list[Callback | None]) -> Callback | None:
    """One callback for several, or for none."""
    callbacks = [each for each in wanted if each]
    return (lambda frame: [each(frame) for each in callbacks]) if callbacks else None


def _document(generation: Any) -> dict[str, Any]:
    fields = ("text", "value", "completion", "fills", "ids", "forwards", "seconds")
    found = {name: getattr(generation, name) for name in fields if getattr(generation, name, None) is not None}
    candidates = [vars(one) for one in getattr(generation, "candidates", [])]
    return found | ({"candidates": candidates} if candidates else {})
