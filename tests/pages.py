"""The code in Markdown pages: found, parsed, run. For tests/test_readme.py and tests/test_docs.py.

A fence says its language, which is one of `LANGUAGES`, and then perhaps one mark:

    quick       it runs in `make test`; if a ```text block is next, that is what it prints
    (no mark)   it runs in `make test-all`
    short       likewise, each training in it cut to `SHORT`
    WHY         it never runs here, for the reason given there; it is only parsed

Commands of the shell run in one folder a page, in the order of the page, and so does Python, in one namespace.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import typer
import yaml

import diffulm
from diffulm.cli import application
from diffulm.cli.adapt import key_values
from diffulm.errors import unknown
from diffulm.options import GenerateOptions, ScoreOptions, checked
from diffulm.recipes.adapt import AdaptConfig
from diffulm.recipes.config import resolve
from diffulm.recipes.prepare import PrepareConfig
from diffulm.recipes.sft import SftConfig

ROOT = Path(__file__).parents[1]
SHELLS = ("bash", "sh", "console")
LANGUAGES = (*SHELLS, "python", "yaml", "json", "text")
"""`text` is what is no code: what a command prints, a drawing."""
WHY = {
    "download": "wants the hub, a GPU or more than minutes",
    "long": "trains or measures for a quarter of an hour and more, some on data that does not come along",
    "devices": "wants several devices or nodes",
    "yours": "names files that only the reader has",
    "stays": "does not end by itself",
    "root": "wants Docker, or rights that a test does not have",
}
SHORT = {
    "adapt": "tokens=6K eval_every=100% save_seconds=600 eval_samples=2 eval_blocks=4",
    "sft": "tokens=6K eval_every=100% save_seconds=600 eval_samples=2 eval_rows=4 eval_answers=2",
}
# Set-up, which the test has behind it, and what would call this test again.
NOT_HERE = ("git", "cd", "make", "pip", "source", "export")
CONFIGS = {"adapt": AdaptConfig, "sft": SftConfig, "prepare": PrepareConfig}
SERVER = "http://127.0.0.1:8000"
"""What a page calls the server; a test puts the address of its own in the place."""


class Block(NamedTuple):
    line: int
    language: str
    mark: str
    code: str
    printed: str | None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block; those of a `console` after "$ "."""
        lines = self.code.splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        joined = "\n".join(lines).replace("\\\n", " ").splitlines()
        return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


def blocks(text: str) -> list[Block]:
    """Every fenced block of a Markdown text."""
    found = re.finditer(r"^```(\w*)[ \t]*([^\n]*)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", text, re.M | re.S)
    every = [(text[: match.start()].count("\n") + 1, *match.groups()) for match in found]
    return [Block(line, language, mark.strip(), code, printed) for line, language, mark, code, printed in every]


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
        while piece and re.fullmatch(r"[A-Za-z_]\w*=.*", piece[0], re.S):
            piece.pop(0)
    return [piece for piece in found if piece]


def every_piece(block: Block) -> list[list[str]]:
    """The simple commands of a shell block, the variables that it sets put in their places."""
    text = "\n".join(block.commands)
    for name, value in re.findall(r"(?:^| )([A-Z]\w*)=(\"[^\"]*\"|\S+)", text):
        text = re.sub(rf"\${name}\b", lambda _, value=value: value.strip('"'), text)
    return [piece for line in text.splitlines() for piece in pieces(line)]


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
    if name in CONFIGS:
        _check_settings(name, given)


def _check_settings(verb: str, given: dict[str, Any]) -> None:
    """Each key of `diffulm adapt tiny key=value ...` is a setting; with a preset each value is one that it may have."""
    settings, preset = list(given["settings"] or []), given["preset"]
    if preset and "=" in preset:  # `prepare` takes settings alone
        settings, preset = [preset, *settings], None
    settings, config = key_values(settings), CONFIGS[verb]
    other = {"tokens": "epochs", "epochs": "tokens"}
    if verb == "sft":  # where each takes the place of the other in a preset
        settings = {other[key]: "null" for key in other if key in settings} | settings
    otherwise = dict.fromkeys(("model", "data", "out"), "x")
    if preset is None or not preset.endswith(".yaml"):
        resolve(verb, config, preset, {key: value for key, value in settings.items() if value != "..."}, otherwise)
    elif wrong := set(settings) - set(config.model_fields):
        raise unknown("key", wrong.pop(), config.model_fields)


def check(block: Block) -> None:
    """What can be known of a block without running it. AssertionError, SyntaxError or BadInput where it cannot be right."""
    if block.language in SHELLS:
        done = subprocess.run(["bash", "-n"], input="\n".join(block.commands), text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        for piece in every_piece(block):
            if (words := arguments(piece)) is not None:
                parse(words)
            elif script := next(
                (word for word in piece if word.startswith("benchmarks/") and word.endswith(".py")), None
            ):
                source = (ROOT / script).read_text("utf-8")
                assert all(word in source for word in piece if word.startswith("--")), piece
    elif block.language == "python":
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "diffulm":
                assert node.attr in diffulm.__all__, f"there is no diffulm.{node.attr}"


def script(block: Block) -> str:
    """The lines of a shell block that can run in a test."""
    commands = ["diffulm demo" if command.strip() == "make demo" else command for command in block.commands]
    if block.mark == "short":
        given = r"diffulm (adapt|sft) [^|&;#]*[^|&;# ]"
        commands = [re.sub(given, lambda found: f"{found[0]} {SHORT[found[1]]}", command) for command in commands]
    return "\n".join(command for command in commands if pieces(command)[0][0] not in NOT_HERE)


def run_shell(text: str, folder: Path, shared: Path | None = None) -> str:
    """What a text of the shell prints, run in a folder. AssertionError with its errors if it fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if shared is not None:
        environment["DIFFULM_SHARED"] = str(shared)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_python(code: str, where: str, line: int, names: dict[str, Any], folder: Path) -> str:
    """What a block of Python prints, run in a folder with these names, which it may add to."""
    with chdir(folder), redirect_stdout(StringIO()) as out:
        exec(compile("\n" * line + code, where, "exec"), names)  # errors name the line of the page
    return out.getvalue()


def write_named(block: Block, folder: Path) -> None:
    """A block that begins with a comment `# NAME.yaml` is a file of that name. Any YAML is one that PyYAML reads."""
    yaml.safe_load(block.code)
    if named := re.match(r"# ([\w-]+\.ya?ml)$", block.code, re.M):
        (folder / named[1]).write_text(block.code, "utf-8")
