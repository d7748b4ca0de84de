"""`diffulm doctor`"""

from __future__ import annotations

from typing import Any, TextIO

import typer

from diffulm.cli import _common


def doctor(
    network: bool = typer.Option(False, "--network", help="Also ask the hub for an answer."),
    as_json: bool = _common.JSON,
) -> None:
    """What is here and what is missing.

    Versions, devices, kernels and features, ready to be pasted into a bug report: no path, user name or token is in it.
    Exit code 2 when diffulm itself cannot work.
    """
    from diffulm import __version__
    from diffulm.errors import BadInput
    from diffulm.recipes.doctor import examine, verdict

    report: dict[str, Any] = {}
    with _common.only_result() as out:
        for title, section in examine(__version__, network):
            report[title] = section
            if not as_json:  # at once: an import that takes the interpreter down should not take this with it
                write_section(title, section, out)
        if as_json:
            _common.write_json(report, out)
    problem = verdict(report)
    if problem:
        raise BadInput(problem)


def write_section(title: str, section: dict[str, Any], out: TextIO) -> None:
    """A heading and a list in Markdown."""
    lines = LINES.get(title, _facts)(section) if "failed" not in section else [f"failed: {section['failed']}"]
    text = "\n".join([f"### {title.capitalize()}", *(f"- {line}" for line in lines), ""])
    encoding = out.encoding or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=out, flush=True)


def _facts(section: dict[str, Any]) -> list[str]:
    """`key: value` of what is known; bytes as GiB."""
    return [f"{_words(key)}: {_value(key, value)}" for key, value in section.items() if value is not None]


def _words(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _value(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, list):
        return "; ".join(_value("", each) for each in value) or "none"
    if isinstance(value, dict):
        return ", ".join(
            _value(k, v) if k in ("device", "name") else f"{_words(k)} {_value(k, v)}" for k, v in value.items()
        )
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _packages(section: dict[str, Any]) -> list[str]:
    """What is here in one line, what is too old in one each, what is not installed in one for each extra."""
    ok = [f"{name} {each['version']}" for name, each in section.items() if each["state"] == "ok"]
    old = {name: each for name, each in section.items() if each["state"] == "too old"}
    gone: dict[str | None, list[str]] = {}
    for name, each in section.items():
        if each["state"] == "missing":
            gone.setdefault(each["extra"], []).append(name)
    return [
        ", ".join(ok) or "none",
        *(f"too old: {name} {each['version']}; {each['at_least']} is needed" for name, each in old.items()),
        *(f"not installed{f' (extra {extra})' if extra else ''}: {', '.join(names)}" for extra, names in gone.items()),
    ]


def _environment(section: dict[str, Any]) -> list[str]:
    there = [f"{name}={value}" for name, value in section.items() if value is not None]
    return [*there, f"not set: {', '.join(name for name, value in section.items() if value is None)}"]


def _imports(section: dict[str, Any]) -> list[str]:
    return [f"broken: {name} ({why})" for name, why in section.items()] or ["all of them work"]


def _features(section: dict[str, Any]) -> list[str]:
    return [f"{name}: {_feature(each)}" for name, each in section.items()]


def _feature(each: dict[str, Any]) -> str:
    if each["state"] == "ready":
        return "ready"
    extra = f" (extra {each['extra']})" if each["extra"] else ""
    return f"not ready: {each['missing']}" + (f"; run: {each['get']}{extra}" if each["get"] else "")


LINES = {"packages": _packages, "environment": _environment, "imports": _imports, "features": _features}
