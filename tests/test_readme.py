"""The README keeps its word: every command in it parses, and those that can run here do run (marks: tests/pages.py)."""

import re

import pytest

from pages import (
    ROOT,
    SERVER,
    SHELLS,
    WHY,
    arguments,
    blocks,
    check,
    every_piece,
    parse,
    pieces,
    run_python,
    run_shell,
    script,
)

README = ROOT / "README.md"
WRITTEN = blocks(README.read_text("utf-8")) if README.exists() else []
BLOCKS = [block for block in WRITTEN if block.language in SHELLS]
PYTHON = [block for block in WRITTEN if block.language == "python"]
COMMANDS = [
    pytest.param(found, id=f"line-{block.line}-{i}")
    for block in BLOCKS
    for i, piece in enumerate(every_piece(block))
    if (found := arguments(piece)) is not None
]


def marks(block):
    return [] if block.mark == "quick" else [pytest.mark.slow, pytest.mark.timeout(1200)]


RUNNABLE = [
    pytest.param(block, id=f"line-{block.line}", marks=marks(block))
    for block in BLOCKS
    if block.mark not in WHY and script(block)
]


def test_the_first_two_commands_are_there():
    commands = [command.strip() for block in BLOCKS for command in block.commands]
    assert {"make demo", "make test"} <= set(commands)
    assert any(block.mark == "quick" and block.printed for block in BLOCKS)
    assert {"generate", "infill", "score", "adapt", "inspect"} <= {words.values[0][0] for words in COMMANDS}


def test_every_make_target_exists():
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    asked = {piece[1] for block in BLOCKS for piece in every_piece(block) if piece[0] == "make"}
    assert asked <= set(rules)
    assert {"setup", "demo", "test", "test-all", "lint", "pocket"} <= set(rules)


@pytest.mark.parametrize("block", [pytest.param(block, id=f"line-{block.line}") for block in BLOCKS])
def test_the_shell_understands_it(block):
    check(block)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_parses(words):
    parse(words)


@pytest.mark.parametrize(
    "line",
    [
        "diffulm generat pocket",
        "diffulm generate pocket --lenght 3",
        "cat x | diffulm generate pocket --prompt - --top-p 2",
        "python -m diffulm score pocket",
        "torchrun --nproc-per-node 2 -m diffulm adapt tiny token=4M",
        "diffulm adapt mine.yaml token=4M",
        "diffulm adapt small tokens=4M",
        "diffulm sft instruct model=pocket epoch=3",
        "diffulm adapt tiny noise=binary",
        "diffulm prepare model=gpt2 data=x out=y length=1",
    ],
)
def test_a_wrong_command_does_not_parse(line):
    words = [found for piece in pieces(line) if (found := arguments(piece)) is not None]
    assert len(words) == 1
    with pytest.raises(Exception, match=r"No such|Missing|top_p|unknown|noise should|length should"):
        parse(words[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("block", RUNNABLE)
def test_it_runs(block, folder, request):
    text = script(block)
    printed = run_shell(text, folder, request.getfixturevalue("shared") if "DIFFULM_SHARED" in text else None)
    if block.mark == "quick" and block.printed is not None:
        assert printed == block.printed


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=f"line-{block.line}", marks=marks(block)) for block in PYTHON]
)
def test_python_runs(block, folder, request):
    code = block.code.replace(SERVER, request.getfixturevalue("server")) if SERVER in block.code else block.code
    printed = run_python(code, str(README), block.line, {}, folder)
    assert printed == (block.printed or "")
