"""Numbers and settings that cannot be: every numeric option of every verb, every key of `adapt`; new ones are found here."""

import inspect
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from broken import one_error
from diffulm.cli import verbs
from diffulm.denoiser.quiet import quietly
from diffulm.errors import BadInput
from diffulm.recipes.adapt import AdaptConfig
from diffulm.recipes.config import resolve
from diffulm.recipes.sft import SftConfig
from models import build, tokenizer

HUGE = str(10**30)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A tiny AR model."""
    folder = tmp_path_factory.mktemp("plain")
    with quietly():
        build("llama").save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


# -- every numeric option of every verb

BASE = {
    "generate": "pocket --length 1", "infill": "pocket --text a<hole:1>", "score": "pocket --text a",
    "inspect": "pocket-ar --no-probe", "import": "plain out --mask-token-id 63", "export": "pocket out",
    "adapt": "tiny --plan model=gpt2", "eval": "pocket --suite lambada --data-dir .", "chat": "pocket",
    "fill": "pocket --text a<hole:1>", "serve": "pocket",
}  # fmt: skip
NEVER = ("-1", "0", "nan", "inf", "-inf", "1e400", HUGE, "x")
# An id 0 is a token, a seed 0 is a seed; a very high temperature is the uniform distribution.
ALLOWED = {
    ("--temperature", "0"),
    ("--temperature", HUGE),
    ("--entropy-bound", "0"),
    ("--entropy-bound", HUGE),
    ("--factor", HUGE),
    ("--min-p", "0"),
    ("--remask", "0"),
    ("--seed", "0"),
    ("--port", "0"),
    ("--queue", "0"),
    ("--mask-token-id", "0"),
    ("--bos-token-id", "0"),
    ("--shots", "0"),
}


def numeric_options() -> Iterator[tuple[str, str]]:
    """(verb, flag) of every option that takes a number, from the signatures of the verbs."""
    for verb, module in verbs().items():
        function = getattr(import_module(module), module.rpartition(".")[2])
        for one in inspect.signature(function, eval_str=True).parameters.values():
            if {int, float} & {one.annotation, *get_args(one.annotation)}:
                yield verb, one.default.param_decls[0]


NUMERIC = sorted(numeric_options())


def test_the_numeric_options_are_found():
    assert {("generate", "--length"), ("infill", "--top-p"), ("score", "--samples")} <= set(NUMERIC)
    assert ("generate", "--prompt") not in NUMERIC


@pytest.mark.parametrize(("verb", "flag"), NUMERIC, ids=lambda word: str(word).strip("-"))
def test_a_number_out_of_range_is_one_line(verb, flag, plain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink(plain, "plain")
    for value in NEVER:
        if (flag, value) not in ALLOWED:
            line = one_error([verb, *BASE[verb].split(), flag, value], capsys)
            assert flag.strip("-").replace("-", "_") in line.replace("-", "_") or "positions" in line, (value, line)
    assert os.listdir(tmp_path) == ["plain"]


# -- every setting of `adapt` and `sft`

HOSTILE = ("", "nan", "inf", "-1", "1e400", HUGE, "9" * 5000, "[1, [2]]", "[", "null", "maybe", "a\0b", "{}")
# What is no bound to anything: a checkpoint after 10^30 seconds is none, gradients are then not clipped.
UNBOUNDED = {"save_seconds", "max_grad_norm"}


def kinds_of(annotation: Any) -> set[Any]:
    return {annotation}.union(*map(kinds_of, get_args(annotation)))


SETTINGS = [("adapt", AdaptConfig, key) for key in AdaptConfig.model_fields]
SETTINGS += [("sft", SftConfig, key) for key in SftConfig.model_fields if key not in AdaptConfig.model_fields]
SETTINGS += [("sft", SftConfig, "tokens")]


@pytest.mark.parametrize(("verb", "model", "key"), SETTINGS, ids=lambda word: word if isinstance(word, str) else "")
def test_a_setting_of_a_wrong_kind_is_one_line(verb, model, key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    field = model.model_fields[key]
    needed = {"model": "pocket-ar", "data": "a.txt", "out": "out"}
    refused = []
    for value in HOSTILE:
        try:
            config = resolve(verb, model, "tiny", needed | {key: value})
        except BadInput as error:
            line = str(error)
            assert line.isprintable() and len(line) < 500
            assert key in line or f"unknown {key.removeprefix('noise_')}" in line
            refused.append(value)
        else:  # somebody may mean it
            assert value == "null" or str(getattr(config, key)) in (value, str(float(HUGE)))
    numeric = bool({int, float} & kinds_of(field.annotation))
    fine = {HUGE} & ({HUGE} if key in UNBOUNDED else set()) | ({"null"} if field.default is None else set())
    assert set(refused) >= (set(HOSTILE) - fine if numeric else {"[1, [2]]", "["})
    settings = [f"{name}={value}" for name, value in (needed | {key: refused[0]}).items()]
    assert key.removeprefix("noise_") in one_error([verb, "tiny", *settings], capsys)
    assert os.listdir(tmp_path) == []
