"""What the HTTP face refuses, and in what words: bodies, keys, sizes, routes."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("fastapi")

from diffulm.serving.app import application
from diffulm.serving.settings import Settings
from fake_backend import CHAT, COMPLETE, HOLES, INFILL, MODELS, PROMPT, SCORE, TALK, TEXT, Answer, Made, ask


def said(**content: Any) -> dict[str, Any]:
    return TALK | {"messages": [{"role": "user", "content": "a"} | content]}


REFUSED = [
    (COMPLETE, {"prompt": "a"}, "model", "is missing"),
    (COMPLETE, {"model": "tiny"}, "prompt", "is missing"),
    (COMPLETE, PROMPT | {"prompt": 3}, "prompt", "should be text or a list, not 3"),
    (COMPLETE, PROMPT | {"prompt": []}, "prompt", "too few"),
    (COMPLETE, PROMPT | {"prompt": [[]]}, "prompt.0", "too few"),
    (COMPLETE, PROMPT | {"prompt": ["a", 3]}, "prompt.1", "should be text, not 3"),
    (COMPLETE, PROMPT | {"prompt": [3, "a"]}, "prompt.1", "should be a whole number"),
    (COMPLETE, PROMPT | {"prompt": [-1]}, "prompt.0", "greater than or equal to 0"),
    (COMPLETE, PROMPT | {"prompt": [True]}, "prompt.0", "whole number"),
    (COMPLETE, PROMPT | {"temprature": 1}, "temprature", "did you mean 'temperature'?"),
    (COMPLETE, PROMPT | {"block": 4}, "block", "did you mean 'block_size'?"),
    (COMPLETE, PROMPT | {"sampler": "confidnce"}, "sampler", "did you mean 'confidence'?"),
    (COMPLETE, PROMPT | {"schedule": "cosin"}, "schedule", "'linear' or 'cosine'"),
    (COMPLETE, PROMPT | {"steps": 2, "factor": 0.5}, "steps", "give one of them"),
    (COMPLETE, PROMPT | {"max_tokens": True}, "max_tokens", "whole number"),
    (COMPLETE, PROMPT | {"max_tokens": "3"}, "max_tokens", "whole number, not '3'"),
    (COMPLETE, PROMPT | {"max_tokens": 3.5}, "max_tokens", "whole number"),
    (COMPLETE, PROMPT | {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    (COMPLETE, PROMPT | {"max_tokens": 10**30}, "max_tokens", "less than"),
    (COMPLETE, PROMPT | {"temperature": "1"}, "temperature", "should be a number"),
    (COMPLETE, PROMPT | {"temperature": -1}, "temperature", "greater than or equal to 0"),
    (COMPLETE, PROMPT | {"top_p": 10**400}, "top_p", "should be a number"),
    (COMPLETE, PROMPT | {"stream": 1}, "stream", "true or false"),
    (COMPLETE, PROMPT | {"seed": -1}, "seed", "greater than or equal to 0"),
    (COMPLETE, PROMPT | {"stop": ["a", ""]}, "stop.1", "should not be empty"),
    (COMPLETE, PROMPT | {"stop": ["a"] * 17}, "stop", "too many"),
    (COMPLETE, PROMPT | {"best_of": 2}, "best_of", "not supported"),
    (COMPLETE, PROMPT | {"best_of": True}, "best_of", "not supported"),
    (COMPLETE, PROMPT | {"logit_bias": {"50256": -100}}, "logit_bias", "not supported"),
    (COMPLETE, PROMPT | {"presence_penalty": 0.5}, "presence_penalty", "not supported"),
    (COMPLETE, PROMPT | {"logprobs": 6}, "logprobs", "less than or equal to 5"),
    (COMPLETE, PROMPT | {"stream_options": {"canvas": True}}, "stream_options", "stream=true"),
    (COMPLETE, PROMPT | {"stream": True, "stream_options": {"canvs": True}}, "stream_options.canvs", "mean 'canvas'?"),
    (COMPLETE, PROMPT | {"min_tokens": 2}, "min_tokens", "with a suffix"),
    (COMPLETE, PROMPT | {"suffix": "b", "min_tokens": 9, "max_tokens": 3}, "min_tokens", "more than the 3"),
    (COMPLETE, PROMPT | {"suffix": "b", "prompt": [1]}, "suffix", "as text"),
    (COMPLETE, PROMPT | {"suffix": "b", "logprobs": 1}, "logprobs", "leave them out"),
    (COMPLETE, PROMPT | {"echo": True, "logprobs": 1}, "logprobs", "/v1/score"),
    (COMPLETE, PROMPT | {"echo": True, "prompt": [1]}, "echo", "as text"),
    (COMPLETE, PROMPT | {"metadata": {"a": 1}}, "metadata.a", "should be text"),
    (COMPLETE, [PROMPT], None, "should be an object"),
    (CHAT, TALK | {"messages": []}, "messages", "too few"),
    (CHAT, TALK | {"messages": "a"}, "messages", "should be a list"),
    (CHAT, TALK | {"messages": [3]}, "messages.0", "should be an object"),
    (CHAT, said(role="usr"), "messages.0.role", "'user'"),
    (CHAT, said(content=3), "messages.0.content", "should be text or a list"),
    (CHAT, said(content=None), "messages.0.content", "should be text or a list"),
    (CHAT, said(contnt="a"), "messages.0.contnt", "did you mean 'content'?"),
    (CHAT, said(content=[{"type": "image_url", "image_url": {}}]), "messages.0.content.0.type", "'text'"),
    (CHAT, said(tool_calls=[{}]), "messages.0.tool_calls", "not supported"),
    (CHAT, TALK | {"tools": [{}]}, "tools", "not supported"),
    (CHAT, TALK | {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    (CHAT, TALK | {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "one of them"),
    (CHAT, TALK | {"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    (CHAT, TALK | {"prompt": "a"}, "prompt", "unknown field"),
    (INFILL, {"model": "tiny"}, "text", "text is missing"),
    (INFILL, HOLES | {"parts": [{}]}, "text", "give one of them"),
    (INFILL, HOLES | {"text": "a"}, "text", "has no hole"),
    (INFILL, HOLES | {"text": "a <hole:0>"}, "text", "is not a hole"),
    (INFILL, {"model": "tiny", "parts": ["a"]}, "parts", "has no hole"),
    (INFILL, {"model": "tiny", "parts": ["a", 3]}, "parts.1", "should be text or an object"),
    (INFILL, {"model": "tiny", "parts": ["a", {"lenght": 3}]}, "parts.1.lenght", "did you mean 'length'?"),
    (INFILL, {"model": "tiny", "parts": [{"length": 3, "most": 1}]}, "parts.0", "has no length"),
    (INFILL, {"model": "tiny", "parts": [{"length": 3, "choices": ["a"]}]}, "parts.0", "leave those out"),
    (SCORE, TEXT | {"text": ""}, "text", "should not be empty"),
    (SCORE, TEXT | {"samples": 0}, "samples", "greater than or equal to 1"),
    (SCORE, TEXT | {"samples": 10**6}, "samples", "at most 4096"),
    (SCORE, TEXT | {"method": "exact"}, "method", "'bound' or 'left_to_right'"),
    (SCORE, TEXT | {"text": ["a"] * 33}, "text", "at most 32"),
    (COMPLETE, PROMPT | {"n": 17}, "n", "at most 16"),
    (COMPLETE, PROMPT | {"steps": 4097}, "steps", "at most 4096"),
    (COMPLETE, PROMPT | {"prompt": ["a"] * 33}, "prompt", "at most 32"),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_served_is_named(path, body, param, words):
    status, named, message = ask(path, body).error
    assert (status, named) == (400, param) and words in message


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"  ", "is empty"),
        (b"{", "not JSON"),
        (b'{"model": "tiny", "prompt": "a", "top_p": NaN}', "has no NaN"),
        (b'{"model": "tiny", "prompt": "a", "metadata": {"a": -Infinity}}', "has no -Infinity"),
        (b'{"model": "tiny", "prompt": "a", "top_p": 1e400}', "finite"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "half a character"),
        (b'{"model": "tiny", "prompt": "a", "user": "\\uD83D"}', "half a character"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"max_tokens": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"model": "\xff"}', "not UTF-8"),
    ],
    ids=range(12),
)
def test_what_is_no_json_is_refused(raw, words):
    status, _, message = ask(COMPLETE, raw).error
    assert status == 400 and words in message


def test_pairs_of_surrogates_are_characters():
    backend = Made()
    assert ask(COMPLETE, b'{"model":"tiny","prompt":"\\ud83d\\ude00"}', backend).status == 200
    assert backend.jobs[0].input["prompt"] == "\U0001f600"


def test_a_field_that_comes_twice_is_named():
    assert ask(COMPLETE, b'{"model":"x","model":"tiny","prompt":"a"}').error[:2] == (400, "model")


def test_deep_values_where_nothing_is_expected_are_refused():
    deep = b'{"model": "tiny", "prompt": "a", "logit_bias": ' + b"[" * 500 + b"]" * 500 + b"}"
    assert ask(COMPLETE, deep).error[:2] == (400, "logit_bias")


def test_bodies_of_another_kind_size_and_route():
    assert ask(COMPLETE, PROMPT, content_type="text/plain").error[0] == 415
    assert ask(COMPLETE, PROMPT, content_type="application/x-www-form-urlencoded").error[0] == 415
    assert ask(COMPLETE, PROMPT, content_type="application/json; charset=utf-8").status == 200
    large = PROMPT | {"prompt": "a" * 3000}
    for headers in ({}, {"content_length": "3040"}, {"content_length": "9" * 5000}):
        answer = ask(COMPLETE, large, settings={"max_body": 1000}, **headers)
        assert answer.error[0] == 413
    assert (
        ask("/v1/nothing").error[0]
        == ask("/v1/completions/", PROMPT).error[0]
        == ask("/assets/../app.py").error[0]
        == 404
    )
    wrong = ask(COMPLETE)
    assert wrong.error[0] == 405 and wrong.headers["allow"] == "POST"
    answer = ask(COMPLETE, PROMPT | {"model": "poket"})
    assert answer.error[:2] == (404, "model") and answer.json["error"]["code"] == "model_not_found"


def test_a_body_that_does_not_come_is_not_waited_for():
    async def slow() -> Answer:
        app = application(Settings(model="tiny", timeout=0.05), Made())
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": COMPLETE,
            "headers": [(b"content-type", b"application/json")],
        }
        await app(scope | {"query_string": b"", "http_version": "1.1"}, receive, send)
        return Answer(sent[0]["status"], {}, sent[1]["body"])

    assert asyncio.run(slow()).error[0] == 408


def test_keys():
    settings = {"keys": ("one", "two")}
    for given in (
        {},
        {"authorization": "Bearer three"},
        {"authorization": "Basic one"},
        {"authorization": "Bearer \xe9"},
    ):
        answer = ask(COMPLETE, b"[", settings=settings, **given)  # before the body is looked at
        assert answer.error[0] == 401 and answer.headers["www-authenticate"] == "Bearer"
    for key in ("one", "two"):
        assert ask(COMPLETE, PROMPT, settings=settings, authorization=f"Bearer {key}").status == 200
    assert ask("/metrics", settings=settings).status == ask("/v1/models", settings=settings).status == 401
    for path in ("/health", "/ready", "/", "/docs", "/openapi.json"):
        assert ask(path, settings=settings).status == 200
    described = ask("/openapi.json", settings=settings).json["paths"]
    assert described[COMPLETE]["post"]["security"] and "401" in described[COMPLETE]["post"]["responses"]


def test_other_pages_may_ask_only_where_it_was_said():
    assert "access-control-allow-origin" not in ask("/health", origin="https://a.example").headers
    allowed = {"cors": ("https://a.example",)}
    answer = ask("/health", settings=allowed, origin="https://a.example")
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in ask("/health", settings=allowed, origin="https://b.example").headers


@pytest.mark.parametrize(
    ("path", "body", "param"), [(COMPLETE, PROMPT | {"suffix": "z"}, "suffix"), (INFILL, {"text": "<hole:1>"}, "model")]
)
def test_a_model_that_cannot_infill(path, body, param):
    backend = Made(models=[MODELS[0] | {"infills": False}])
    status, named, message = ask(path, {"model": "tiny"} | body, backend).error
    assert (status, named) == (400, param) and "cannot infill" in message and not backend.jobs
