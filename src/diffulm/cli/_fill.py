"""`generate` and `infill` are one act: fill the free positions of a canvas. What differs is how the canvas is made."""

from __future__ import annotations

from typing import Any

from diffulm.cli._common import only_result, open_model, read_text, write_json
from diffulm.options import GenerateOptions, checked
from diffulm.watch import watching


def fill(
    verb: str,
    model: str,
    text: str,
    asked: dict[str, Any],
    mask_token_id: int | None,
    dtype: str | None,
    watch: bool,
    as_json: bool,
) -> None:
    """Run `lm.generate` or `lm.infill` on one text and print the text, or a JSON document that also says how.

    `asked` is checked before the model is opened: a bad number should not cost a minute of loading.
    """
    checked(GenerateOptions, **asked)
    text = read_text(text)
    with only_result() as out:
        lm = open_model(model, mask_token_id, dtype)
        with watching(watch, lm.tokenizer) as callback:
            generation = getattr(lm, verb)(text, callback=callback, **asked)
        if as_json:
            write_json(_document(generation) | {"model": model, "options": asked}, out)
        else:
            print(generation.text, file=out)


def _document(generation: Any) -> dict[str, Any]:
    fields = ("text", "completion", "fills", "ids", "forwards", "seconds")
    return {name: getattr(generation, name) for name in fields if getattr(generation, name, None) is not None}
