"""Bodies that nobody should send: each is answered in OpenAI's form, at once, and leaves the server as it was."""

import json
import zlib
from typing import Any

import pytest

pytest.importorskip("fastapi")

from attacks import BASES, CHAT, COMPLETE, INFILL, SCORE, Answer, ask, measured, watched

MIB = 2**20
STRANGE: list[Any] = [
    None, True, False, 0, -1, 2, 1.5, -0.0, 5e-324, 1.7e308, 2**31, 2**63, 10**30, 10**4000, "", "x", "\0", "\uffff\u202e",
    "x" * 5000, [], [[]], [None], ["x", 1], [1, "x"], [0] * 300, {}, {"": 0}, {"type": "text"}, [{}], [{"a": [{}]}],
    [{"role": "user"}], [{"length": 2**31 - 1}], [{"pattern": "("}], [{"choices": [""]}],
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def calm(server):
    """/health answers through all of these, and nothing is left of them."""
    with watched(server, growth=512 * MIB):  # bodies of 20 MiB, threads; a leak of these tests would be many times that
        yield
    assert measured(server, "restarts_total") == 0


def fits(answer: Answer, body: Any) -> None:
    if answer.status != 200:
        assert answer.status in (400, 404), (body, answer)
        assert answer.error["param"] is not None, (body, answer.error)
        assert (answer.status == 404) == (answer.error["code"] == "model_not_found"), answer.error


def fields(server: str, path: str) -> list[str]:
    """Those of a body, from the schema."""
    document = json.loads(ask(server, "/openapi.json").raw)
    kind = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return list(document["components"]["schemas"][kind.rpartition("/")[2]]["properties"])


def strange_values(server: Any, path: str, every: int) -> None:
    """Each field with one in `every` of the values, other ones for each."""
    names = fields(server, path)
    assert len(names) > 5 and set(BASES[path]) <= set(names)
    for place, name in enumerate(names):
        for value in STRANGE[place % every :: every]:
            body = BASES[path] | {name: value}
            fits(ask(server, path, body), body)


@pytest.mark.parametrize("path", BASES)
def test_a_field_with_a_value_that_is_not_its_own(server, path):
    strange_values(server, path, 12)


@pytest.mark.slow
@pytest.mark.parametrize("path", BASES)
def test_every_field_with_every_strange_value(server, path):
    strange_values(server, path, 1)


def raw(text: str | bytes = b"", **fields: str) -> bytes:
    """A completion's body with these fields in JSON as they are given."""
    given = {"model": '"pocket"', "prompt": '"x"', "max_tokens": "1"} | fields
    return b"{" + b", ".join(f'"{name}": {value}'.encode() for name, value in given.items()) + b"}"


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


RAW = {
    "nothing": (b"", 400),
    "space": (b" \n", 400),
    "no JSON": (b"{", 400),
    "not an object": (b"[]", 400),
    "null": (b"null", 400),
    "two objects": (raw() + raw(), 400),
    "a comma too many": (raw()[:-1] + b",}", 400),
    "deep and open": (b"[" * 500_000, 400),
    "deep objects": (b'{"a":' * 100_000, 400),
    "deep in a field": (raw(metadata=lists(20_000)), 400),
    "deep, but JSON": (raw(logit_bias=lists(900)), 400),
    "infinite": (raw(temperature="1e400"), 400),
    "an infinite seed": (raw(seed="1e400"), 400),
    "NaN": (raw(temperature="NaN"), 400),
    "-Infinity": (raw(temperature="-Infinity"), 400),
    "100,000 digits": (raw(seed="9" * 100_000), 400),
    "4,000 digits": (raw(temperature="9" * 4_000), 400),
    "hot": (raw(temperature="1.7e308"), 200),
    "a long block": (raw(block_size=str(2**31 - 1)), 200),
    "2 billion tokens": (raw(max_tokens=str(2**31 - 1)), 400),
    "2 billion choices": (raw(n=str(2**31 - 1)), 400),
    "2 billion drafts": (raw(draft=str(2**31 - 1), sampler='"verified"'), 200),
    "half a character": (raw(prompt='"\\ud800"'), 400),
    "half a character in a name": (raw(**{"\\uDFFF": "1"}), 400),
    "half a character, raw": (b'{"model": "pocket", "prompt": "\xed\xa0\x80"}', 400),
    "half a character in UTF-16": ('{"model": "pocket", "prompt": "\\ud800"}'.encode("utf-16"), 400),
    "UTF-16": (raw().decode().encode("utf-16"), 400),
    "not UTF-8": (b'{"model": "pocket", "prompt": "\xff"}', 400),
    "a byte order mark": (b"\xef\xbb\xbf" + raw(), 200),
    "NUL": (raw(prompt='"a\\u0000b"'), 200),
    "a raw NUL": (raw(prompt='"a\0b"'), 400),
    "a NUL behind": (raw() + b"\0", 400),
    "a name twice": (raw()[:-1] + b', "prompt": "y"}', 400),
    "a name twice inside": (raw(metadata='{"a": "b", "a": "c"}'), 400),
    "many names": (json.dumps({f"x{i}": i for i in range(60_000)}).encode(), 400),
    "many wrong ids": (raw(prompt=json.dumps([[None] * 150_000])), 400),
    "many stops": (raw(stop=json.dumps(["a"] * 200_000)), 400),
    "zipped": (zlib.compress(raw()), 400),
    "too large": (raw(prompt='"' + "a" * MIB + '"'), 413),
    "much too large": (b" " * (20 * MIB), 413),
}


@pytest.mark.parametrize("name", RAW)
def test_a_raw_body(server, name):
    body, status = RAW[name]
    answer = ask(server, COMPLETE, body)
    assert answer.status == status, answer
    assert status == 200 or answer.error["type"] == "invalid_request_error"


MEAN = {
    "many wrong messages": (CHAT, {"messages": [{}] * 200_000}),
    "many messages": (CHAT, {"messages": [{"role": "user", "content": "a"}] * 20_000}),
    "a long message": (CHAT, {"messages": [{"role": "user", "content": "x y " * 50_000}]}),
    "many wrong parts": (INFILL, {"parts": [{"x": 1}] * 100_000}),
    "many holes": (INFILL, {"parts": [{}] * 200_000}),
    "many marks": (INFILL, {"parts": None, "text": "<hole:1>" * 100_000}),
    "2 billion tokens": (INFILL, {"parts": [{"most": 2**31 - 1}]}),
    "many choices": (INFILL, {"parts": [{"choices": ["a"] * 200_000}]}),
    "many wrong texts": (SCORE, {"text": [""] * 200_000}),
    "a million draws": (SCORE, {"samples": 10**6}),
    "a pattern of millions of states": (INFILL, {"parts": ["a", {"length": 4, "pattern": "(a{1000}){1000}"}]}),
    "a pattern of 2**25 states": (INFILL, {"parts": ["a", {"length": 4, "pattern": f"(a|b)*a{'(a|b)' * 24}"}]}),
    "a deep pattern": (INFILL, {"parts": ["a", {"length": 4, "pattern": "(" * 500 + "a" + ")" * 500}]}),
    "no pattern": (INFILL, {"parts": ["a", {"length": 4, "pattern": "("}]}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "states" in name else []) for name in MEAN]
)
def test_more_than_a_request_may_ask_for(server, name):
    if "pattern" in name:
        pytest.importorskip("outlines_core")
    path, body = MEAN[name]
    answer = ask(server, path, BASES[path] | body)
    assert answer.status == 400 and answer.error["param"], answer


def test_what_is_not_sent_as_json(server):
    for kind in (
        "",
        "text/plain",
        "application/jsonx",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
    ):
        assert ask(server, COMPLETE, BASES[COMPLETE], content_type=kind).status == 415
    bomb = zlib.compress(b" " * (64 * MIB), wbits=31)  # 64 KiB that would be 64 MiB
    for coding in ("gzip", "deflate", "br", "x"):
        assert ask(server, COMPLETE, bomb, content_encoding=coding).status == 415
    assert ask(server, COMPLETE, BASES[COMPLETE], content_type="Application/JSON; charset=UTF-8").status == 200
