"""What the shell offers after a tab, by the name of a verb's parameter.

`attach` gives every verb its completions; a new verb has them when its parameters are called as the others' are. Nothing
here imports torch: the answer has to be there before the next key.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from glob import escape, glob
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.models import ParameterInfo


def attach(verb: Callable[..., Any]) -> None:
    """Give each parameter of a verb what completes it."""
    for name, parameter in inspect.signature(verb).parameters.items():
        if name in COMPLETIONS and isinstance(parameter.default, ParameterInfo):
            parameter.default.autocompletion = COMPLETIONS[name]


def models() -> list[str]:
    """The shipped models; where none fits, the shell goes on with files and folders."""
    from diffulm.checkpoint.files import SHIPPED

    return list(SHIPPED)


def presets(ctx: typer.Context) -> list[str]:
    from diffulm.recipes.config import preset_names

    return preset_names(ctx.info_name or "")


def template_names() -> list[str]:
    from diffulm.recipes.config import PRESETS

    return sorted(file.stem for file in (PRESETS / "templates").glob("*.jinja"))


def samplers() -> list[str]:
    from diffulm.options import sampler_names

    return sampler_names()


def dtypes() -> list[str]:
    from diffulm.cli._common import DTYPES

    return list(DTYPES)


def words(options: str, key: str) -> list[str]:
    """What a key of the options called so in `diffulm.options` is limited to."""
    from diffulm import options as all_options

    return list(get_args(getattr(all_options, options).model_fields[key].annotation))


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """`key=` for the keys of the verb's config; once one key is left, `key=value` too.

    Without those values most shells would put a space after the `=`. bash takes a word apart at its `=`: then the key is
    the last of the words before, and a bare value is asked for.
    """
    verb = ctx.info_name or ""
    config = getattr(import_module(f"diffulm.recipes.{verb}"), f"{verb.capitalize()}Config")
    key, equals, value = incomplete.partition("=")
    before = [word for word in ctx.params.get("settings") or [] if word != "="]
    if before and before[-1] in config.model_fields and not equals:
        return values(config, before[-1], None)
    keys = [name for name in config.model_fields if (name == key if equals else name.startswith(key))]
    only = [f"{keys[0]}={each}" for each in values(config, keys[0], value)] if len(keys) == 1 else []
    return [f"{name}=" for name in keys] + only


def values(config: Any, key: str, typed: str | None) -> list[str]:
    """What a key may be: the words it is limited to, or its default; for one that is a path, files that begin as typed.

    typed None: the shell looks for files itself.
    """
    field = config.model_fields[key]
    if get_origin(field.annotation) is Literal:
        return list(get_args(field.annotation))
    if field.annotation is bool:
        return ["false", "true"]
    if key == "tokens":
        return ["1M", "10M", "100M", "1B"]
    if key == "template":
        return ["auto", *template_names()]
    if isinstance(field.default, str | int | float) and key != "data":
        return [str(field.default)]
    if "str" not in str(field.annotation) and key != "data":
        return ["null"] if field.default is None else []
    paths = [] if typed is None else sorted(glob(escape(typed) + "*"))
    found = [path + "/" * Path(path).is_dir() for path in paths]
    return [*(models() if key == "model" else getattr(config, "made", ()) if key == "data" else ()), *found]


def methods(ctx: typer.Context) -> list[str]:
    from diffulm.options import ScoreOptions

    if ctx.info_name != "eval":
        return list(get_args(ScoreOptions.model_fields["method"].annotation))
    from diffulm.recipes.evaluate import METHODS

    return list(get_args(METHODS))


def parts(incomplete: str) -> list[str]:
    """Parts of the suite, after those that are there already: "lambada,ch" -> "lambada,choices"."""
    from diffulm.recipes.evaluate import parts, suites

    before = incomplete[: incomplete.rfind(",") + 1]
    return [before + name for name in ([] if before else [*suites()]) + parts() if name not in before.split(",")]


COMPLETIONS: dict[str, Callable[..., list[str]]] = {
    "model": models,
    "parent": models,
    "judge": models,
    "suite": parts,
    "preset": presets,
    "settings": settings,
    "sampler": samplers,
    "dtype": dtypes,
    "method": methods,
    "schedule": lambda: words("GenerateOptions", "schedule"),
    "cache": lambda: words("GenerateOptions", "cache"),
}
