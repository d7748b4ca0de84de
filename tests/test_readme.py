"""The README keeps its word: every command in it parses, and those that can run here do run.

In a block fenced as ```bash or ```sh every line is a command; in ```console those after "$ ". A second word on the
fence says more: `quick` runs in `make test`; `download` (network, a GPU or hours needed) is never run here; anything
else runs under the slow marker. They run in one folder, in the order of the page. A ```text right after a quick block is
what it prints.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from diffulm.cli import application
from diffulm.cli.adapt import key_values
from diffulm.options import GenerateOptions, ScoreOptions, checked

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# Set-up, which the test has behind it, and what would call this test again.
NOT_HERE = ("git", "cd", "make", "pip", "source", "export")


class Block(NamedTuple):
    line: int
    language: str
    mark: str
    commands: list[str]
    printed: str | None


def blocks(text: str) -> list[Block]:
    """The shell blocks of a Markdown text."""
    found = []
    for match in re.finditer(
        r"^```(bash|sh|console)[ \t]*(\w*)[^\n]*\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", text, re.M | re.S
    ):
        language, mark, body, printed = match.groups()
        if language == "console":
            body = "\n".join(line[2:] for line in body.splitlines() if line.startswith("$ "))
        lines = body.replace("\\\n", " ").splitlines()
        commands = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        found.append(Block(text[: match.start()].count("\n") + 1, language, mark, commands, printed))
    return found


def pieces(command: str) -> list[list[str]]:
    """The words of each simple command in a line: pipes and the like part them, NAME=value in front is dropped."""
    lexer = shlex.shlex(command.replace("$'", "'"), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            found.append([])
        else:
            found[-1].append(word)
    for piece in found:
        while piece and re.fullmatch(r"[A-Za-z_]\w*=.*", piece[0]):
            piece.pop(0)
    return [piece for piece in found if piece]


def arguments(piece: list[str]) -> list[str] | None:
    """What diffulm is given, or None when the command is another; redirections are the shell's."""
    if any(word.startswith((">", "<")) for word in piece):
        piece = piece[: next(i for i, word in enumerate(piece) if word.startswith((">", "<")))]
    if Path(piece[0]).name == "diffulm":
        return piece[1:]
    if "-m" in piece and piece[piece.index("-m") + 1 :][:1] == ["diffulm"]:
        return piece[piece.index("-m") + 2 :]
    return None


def parse(words: list[str]) -> None:
    """Parse a command as `diffulm` does, and check its values as the verb does, without running it."""
    group = typer.main.get_command(application())
    if not words or words[0].startswith("--"):
        assert words in ([], ["--help"], ["--version"])
        return
    if "--help" in words:
        words = words[: words.index("--help")]
        assert words[0] in group.commands
        return
    name, verb, rest = group.resolve_command(group.make_context("diffulm", list(words)), list(words))
    given = verb.make_context(name, list(rest)).params
    options = {"generate": GenerateOptions, "infill": GenerateOptions, "score": ScoreOptions}.get(name)
    if options:
        checked(
            options, **{key: value for key, value in given.items() if key in options.model_fields and value is not None}
        )
    if name == "adapt":
        from diffulm.recipes.adapt import AdaptConfig

        assert set(key_values(given["settings"] or [])) <= set(AdaptConfig.model_fields)


BLOCKS = blocks(README.read_text("utf-8")) if README.exists() else []
COMMANDS = [
    pytest.param(found, id=f"line-{block.line}-{i}")
    for block in BLOCKS
    for i, command in enumerate(block.commands)
    for piece in pieces(command)
    if (found := arguments(piece)) is not None
]


def script(block: Block) -> str:
    """The lines of a block that can run in a test."""
    commands = ["diffulm demo" if command.strip() == "make demo" else command for command in block.commands]
    return "\n".join(command for command in commands if pieces(command)[0][0] not in NOT_HERE)


def marks(block: Block) -> list[pytest.MarkDecorator]:
    return [] if block.mark == "quick" else [pytest.mark.slow, pytest.mark.timeout(1200)]


RUNNABLE = [
    pytest.param(block, id=f"line-{block.line}", marks=marks(block))
    for block in BLOCKS
    if block.mark != "download" and script(block)
]


def test_the_first_two_commands_are_there():
    commands = [command.strip() for block in BLOCKS for command in block.commands]
    assert {"make demo", "make test"} <= set(commands)
    assert any(block.mark == "quick" and block.printed for block in BLOCKS)
    assert {"generate", "infill", "score", "adapt", "inspect"} <= {words.values[0][0] for words in COMMANDS}


def test_every_make_target_exists():
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    asked = {piece[1] for block in BLOCKS for line in block.commands for piece in pieces(line) if piece[0] == "make"}
    assert asked <= set(rules)
    assert {"setup", "demo", "test", "test-all", "lint", "pocket"} <= set(rules)


@pytest.mark.parametrize("block", [pytest.param(block, id=f"line-{block.line}") for block in BLOCKS])
def test_the_shell_understands_it(block):
    done = subprocess.run(["bash", "-n"], input="\n".join(block.commands), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


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
    ],
)
def test_a_wrong_command_does_not_parse(line):
    words = [found for piece in pieces(line) if (found := arguments(piece)) is not None]
    assert len(words) == 1
    with pytest.raises(Exception, match=r"No such|Missing|top_p|assert"):
        parse(words[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("block", RUNNABLE)
def test_it_runs(block, folder, request):
    text = script(block)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if "DIFFULM_SHARED" in text:
        environment["DIFFULM_SHARED"] = str(request.getfixturevalue("shared"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if block.mark == "quick" and block.printed is not None:
        assert done.stdout == block.printed
