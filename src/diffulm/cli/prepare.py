"""`diffulm prepare model=gpt2 data=corpus.jsonl out=runs/corpus`: text to packed blocks, by settings or a preset."""

from __future__ import annotations

import typer

from diffulm.cli import _common, _process


def prepare(
    preset: str = typer.Argument(None, help="A preset (diffullama-7b), a YAML file, or none.", show_default=False),
    settings: list[str] = typer.Argument(None, metavar="key=value...", help="Over the preset; the last of a key wins."),
    as_json: bool = _common.JSON,
) -> None:
    """Pack much text into blocks, once.

    What `adapt` takes as `data`: memory-mapped, mixed by weight, made by all cores. The same command, given again, keeps what
    is packed and goes on.
    """
    given = [*([preset] if preset and "=" in preset else []), *(settings or [])]
    overrides = _common.key_values(given)
    _process.when_stopped("the same command keeps what is packed and goes on")
    with _common.only_result() as out:
        from diffulm.recipes.prepare import run

        report = run(None if preset is None or "=" in preset else preset, overrides)
        (_common.write_json if as_json else _common.write_facts)(report, out)
