"""What the site shows that Markdown cannot say: called by mkdocs for every page (mkdocs.yml).

- A line that is nothing but a link to a section of the README becomes that section.
- `::: diffulm.load` becomes the signature and docstring of that name; `::: settings diffulm.recipes.adapt.AdaptConfig` a table
  of its fields; `::: commands` what `diffulm VERB --help` prints. All are read from the source, and torch is not imported.
- The second word of a fence is for the tests (tests/pages.py) and not shown.
"""

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

from pymdownx.slugs import slugify

import diffulm

ROOT = Path(__file__).parents[2]
slug = slugify(case="lower")
Definition = ast.FunctionDef | ast.ClassDef


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = re.sub(r"^\[.*\]\(\.\./README\.md#([\w-]+)\)$", lambda found: readme()[found[1]], markdown, flags=re.M)
    markdown = re.sub(r"^(```\w+)[ \t]+\S.*$", r"\1", markdown, flags=re.M)
    return re.sub(r"^::: (?:(settings) )?(\S+)$", _directive, markdown, flags=re.M)


def _directive(found: re.Match[str]) -> str:
    kind, name = found.groups()
    if name == "commands":
        return commands()
    return settings(name) if kind else reference(name)


@cache
def readme() -> dict[str, str]:
    """The anchor of each heading of the README -> the text up to the next one, its links as from docs/."""
    parts: dict[str, list[str]] = {}
    here, fenced = "", False
    for line in (ROOT / "README.md").read_text("utf-8").splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (heading := re.fullmatch(r"#+ (.+)", line)):
            here = slug(heading[1], "-")
        else:
            parts.setdefault(here, []).append(line.replace("](docs/", "]("))
    return {anchor: "\n".join(lines).strip() for anchor, lines in parts.items()}


def definition(name: str) -> Definition:
    """The function or class of a dotted name, a public one of the package or one of a module. KeyError if there is none."""
    module, _, last = name.rpartition(".")
    module = diffulm._HOME.get(last, module) if module == "diffulm" else module
    file = ROOT / "src" / module.replace(".", "/")
    tree = ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text("utf-8"))
    found = [node for node in tree.body if isinstance(node, Definition) and node.name == last]
    if found:
        return found[-1]  # what comes before it are its overloads
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and last in [alias.name for alias in node.names]:
            return definition(f"{node.module}.{last}")
    raise KeyError(name)


def reference(name: str) -> str:
    node = definition(name)
    if isinstance(node, ast.FunctionDef):
        return f"{_code(name, node)}\n\n{_text(node)}"
    parts = [_text(node), _fields(node)]
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"}
    for method in methods.values():
        is_property = any(ast.unparse(one).endswith("property") for one in method.decorator_list)
        shown = f"`{method.name}`: `{_returned(method)}`" if is_property else _code(f".{method.name}", method)
        parts += [f"#### {node.name}.{method.name}", shown, _text(method)]
    return "\n\n".join(part for part in parts if part)


def _returned(node: ast.FunctionDef) -> str:
    return ast.unparse(node.returns) if node.returns else "None"


def _code(name: str, node: ast.FunctionDef) -> str:
    """The signature, an argument a line where one line is not enough."""
    given = re.sub(r"(?<=[^=])=(?=[^=])", " = ", re.sub(r"^self(, )?", "", ast.unparse(node.args)))
    line = f"{name}({given}) -> {_returned(node)}"
    if len(line) > 100:
        # commas outside of brackets
        arguments = re.split(r", (?![^\[(]*[\])])", given)
        line = f"{name}(\n    " + ",\n    ".join(arguments) + f"\n) -> {_returned(node)}"
    return f"```python\n{line}\n```"


def _text(node: Definition) -> str:
    return escaped(ast.get_docstring(node) or "")


def escaped(text: str) -> str:
    """A docstring as Markdown: what looks like HTML or emphasis outside of code is meant as it stands."""
    lines = []
    for line in inspect.cleandoc(text).splitlines():
        if not line.startswith("    "):
            parts = line.split("`")
            parts[::2] = [
                re.sub(r"[<*]", lambda sign: "&lt;" if sign[0] == "<" else r"\*", part) for part in parts[::2]
            ]
            line = "`".join(parts)
        lines.append(line)
    return "\n".join(lines)


def _attributes(node: ast.ClassDef) -> list[tuple[str, ast.AnnAssign, str]]:
    """(name, assignment, what the string behind it says) of the public fields of a class."""
    following = [*node.body[1:], ast.Pass()]
    return [
        (each.target.id, each, _string(after))
        for each, after in zip(node.body, following, strict=True)
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        if each.target.id[0] != "_" and "ClassVar" not in ast.unparse(each.annotation)
    ]


def _string(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return escaped(node.value.value).replace("\n", " ")
    return ""


def _fields(node: ast.ClassDef) -> str:
    rows = [
        f"- `{name}: {ast.unparse(field.annotation)}`{': ' * bool(text)}{text}"
        for name, field, text in _attributes(node)
    ]
    return "\n".join(rows)


def settings(name: str) -> str:
    """The fields of a config: key, default, what it is."""
    rows = ["| key | default | |", "|---|---|---|"]
    node = definition(name)
    assert isinstance(node, ast.ClassDef)
    for key, field, text in _attributes(node):
        default = f"`{ast.unparse(field.value)}`" if field.value else "to be given"
        rows.append(f"| `{key}` | {default} | {text.replace('|', '&#124;')} |")
    return "\n".join(rows)


def commands() -> str:
    import typer

    from diffulm.cli import application

    group = typer.main.get_command(application())
    parts = []
    for name, verb in sorted(group.commands.items()):
        context = verb.make_context(f"diffulm {name}", [], resilient_parsing=True, terminal_width=100)
        parts.append(f"### diffulm {name}\n\n```text\n{verb.get_help(context)}\n```")
    return "\n\n".join(parts)
