"""What the API is, as /openapi.json says it, and the page /docs that is made of that: no script, no other host."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from diffulm.serving.settings import Settings

Schema = dict[str, Any]
HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-top: 1px solid #8884 }
code { font-family: ui-monospace, monospace }
td:first-child { white-space: nowrap }
"""


def limits(settings: Settings) -> dict[str, int]:
    """What a number in a body may be at most, where the server says it."""
    return {"n": settings.max_n, "steps": settings.max_steps, "samples": settings.max_steps}


def schema(app: FastAPI, settings: Settings) -> Schema:
    """The OpenAPI document: FastAPI's, with this server's limits, and without its 422 that never comes."""
    if app.openapi_schema:
        return app.openapi_schema
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    models = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)
    for model in models.values():
        fields = model.get("properties", {})
        for name, most in limits(settings).items():
            for kind in fields.get(name, {}).get("anyOf", ()):
                if kind.get("type") == "integer":
                    kind.pop("exclusiveMaximum", None)
                    kind["maximum"] = most
    app.openapi_schema = found
    return found


def page(document: Schema) -> str:
    """The document for people."""
    models = document["components"]["schemas"]
    parts = [
        _operation(path, method, one, models) for path, of in document["paths"].items() for method, one in of.items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(document["info"]["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{escape(document['info']['title'])} API</h1>"
        '<p>OpenAI\'s protocol with the settings of diffusion beside it; <a href="/openapi.json">openapi.json</a> is this '
        f"page for machines.</p>{''.join(parts)}</html>"
    )


def _operation(path: str, method: str, one: Schema, models: dict[str, Schema]) -> str:
    body = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    errors = "".join(
        f"<tr><td>{escape(status)}<td>{escape(reply['description'])}" for status, reply in one["responses"].items()
    )
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(one.get('description', ''))}</p>"
        f"{_fields(_model(body, models), models) if body else ''}<table>{errors}</table>"
    )


def _model(kind: Schema, models: dict[str, Schema]) -> Schema:
    return models[kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind


def _fields(model: Schema, models: dict[str, Schema]) -> str:
    rows = []
    needed = model.get("required", [])
    for name, one in sorted(model["properties"].items(), key=lambda field: field[0] not in needed):
        if one.get("description", "").startswith("Not supported"):
            continue
        words = re.sub("`(.+?)`", r"<code>\1</code>", escape(one.get("description", "")))
        default = "needed" if name in needed else escape(json.dumps(one.get("default")))
        rows.append(f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(one, models))}<td>{default}<td>{words}")
    return f"<table><tr><th>field<th>kind<th>default<th>{''.join(rows)}</table>"


def _kind(one: Schema, models: dict[str, Schema]) -> str:
    if "enum" in one or "const" in one:
        return ", ".join(str(value) for value in one.get("enum", [one.get("const")]) if value is not None)
    if "anyOf" in one:
        return " or ".join(_kind(each, models) for each in one["anyOf"] if each.get("type") != "null")
    if "$ref" in one:
        fields = ", ".join(
            name
            for name, each in _model(one, models)["properties"].items()
            if not each.get("description", "").startswith("Not supported")
        )
        return f"{{{fields}}}"
    if one.get("type") == "array":
        return f"list of {_kind(one['items'], models)}"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    ends = [f"{word} {one[name]:g}" for name, word in words.items() if abs(one.get(name, 2**31)) < 2**31]
    return " ".join([one.get("type", ""), *ends])
