"""`generate` and `infill` are one act: fill the free positions of a canvas. What differs is how the canvas is made."""

from __future__ import annotations

import contextlib
from typing import Any, TextIO

from diffulm.cli._common import only_result, open_model, read_text, write_json
from diffulm.errors import BadInput
from diffulm.options import GenerateOptions, checked
from diffulm.watch import watching


def fill(
    verb: str,
    model: str,
    text: str,
    *,
    mask_token_id: int | None,
    dtype: str | None,
    watch: bool,
    save_animation: str | None,
    as_json: bool,
    stream: bool = False,
    **asked: Any,
) -> None:
    """Run `lm.generate` or `lm.infill` on one text and print the text, or a JSON document that also says how.

    `asked`: keys of `GenerateOptions`, which are checked before the model is opened, as is what else can be: a bad number
    should not cost a minute of loading. stream: print the text as far as it is final (`generate` alone).
    """
    checked(GenerateOptions, **asked)
    if stream and (as_json or asked["n"] > 1):
        raise BadInput(f"--stream prints one text as it comes: leave out {'--json' if as_json else '--n'}")
    text = read_text(text)
    with only_result() as out:
        lm = open_model(model, mask_token_id, dtype)
        with watching(watch, lm.tokenizer) as callback:
            result = getattr(lm, verb)(text, callback=callback, **asked)
        if as_json:
            write_json(_document(result) | {"model": model, "options": asked}, out)
        else:
            print(result.text, file=out)


def _document(generation: Any) -> dict[str, Any]:
    fields = ("text", "completion", "fills", "ids", "forwards", "seconds")
    return {name: getattr(generation, name) for name in fields if getattr(generation, name, None) is not None}
