"""The HTTP face over a backend that is made up: what is asked of it, shapes of replies, order of chunks, the schema."""

import asyncio

import pytest

pytest.importorskip("fastapi")

from diffulm.options import GenerateOptions, ScoreOptions
from diffulm.serving.app import application
from diffulm.serving.bodies import NAMES
from diffulm.serving.job import Refused
from diffulm.serving.settings import Settings
from fake_backend import CHAT, COMPLETE, HOLES, INFILL, PROMPT, SCORE, TALK, TEXT, Made, ask, asked

# -- what is asked of the backend, and what is made of its answers


def test_choices_of_prompts_are_jobs_prompt_by_prompt():
    backend = Made()
    body = PROMPT | {
        "prompt": ["a", "b"],
        "n": 2,
        "max_tokens": 2,
        "seed": 5,
        "block_size": 4,
        "stop": "x",
        "steps": None,
    }
    answer = ask(COMPLETE, body, backend).json
    assert [job.input for job in backend.jobs] == [{"prompt": p, "draw": d} for p in "ab" for d in (0, 1)]
    assert all(job.options == {"block": 4, "stop": ["x"], "seed": 5, "length": 2} for job in backend.jobs)
    assert [(one["index"], one["text"]) for one in answer["choices"]] == [(i, f" w{i}.0 w{i}.1") for i in range(4)]
    # the prompt of two choices counts once
    spent = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18, "forwards": 8, "tokens_per_forward": 1.0}
    assert answer["usage"] == spent and answer["seed"] == 5 and answer["object"] == "text_completion"


def test_models():
    listed = ask("/v1/models").json
    assert listed["object"] == "list" and listed["data"] == [ask("/v1/models/tiny").json]
    one = {"id": "tiny", "object": "model", "created": 0, "owned_by": "diffulm", "context": 64, "infills": True}
    assert listed["data"] == [one]
    assert ask("/v1/models/a/b").error[:2] == (404, "model")


def test_ids_are_a_prompt():
    backend = Made()
    assert len(ask(COMPLETE, PROMPT | {"prompt": [[1, 2], [3]]}, backend).json["choices"]) == 2
    assert [job.input["prompt"] for job in backend.jobs] == [[1, 2], [3]]
    assert len(ask(COMPLETE, PROMPT | {"prompt": [1, 2]}, backend).json["choices"]) == 1


def test_a_seed_is_drawn_and_told():
    backend = Made()
    told = {ask(COMPLETE, PROMPT, backend).json["seed"] for _ in range(4)}
    assert len(told) > 1 and backend.jobs[0].options["seed"] in told


def test_a_suffix_makes_a_hole():
    backend = Made()
    answer = ask(COMPLETE, PROMPT | {"suffix": "z", "min_tokens": 3, "max_tokens": 8, "echo": True}, backend).json
    assert backend.jobs[0].kind == "infill"
    assert backend.jobs[0].input["parts"] == ["a", {"length": 3, "most": 8}, "z"]
    assert answer["choices"][0]["text"] == "ab" and answer["choices"][0]["finish_reason"] == "stop"


def test_holes_of_all_kinds():
    backend = Made()
    answer = ask(INFILL, HOLES | {"text": "a <hole:2> b <hole:1-4><hole>", "n": 3}, backend).json
    assert backend.jobs[0].input["parts"] == ["a ", {"length": 2}, " b ", {"length": 1, "most": 4}, {}]
    assert len(backend.jobs) == 1 and backend.jobs[0].options["n"] == 3
    assert answer["fills"] == ["b"] and answer["candidates"] == [{"text": "a b c", "fills": ["b"], "score": None}]
    parts = ["<hole:2>", {"choices": ["x", "y"]}, {"pattern": "[0-9]+", "most": 4}]
    assert ask(INFILL, {"model": "tiny", "parts": parts}, backend).status == 200
    assert backend.jobs[0].input["parts"] == parts


def test_what_openai_s_client_adds_has_no_effect_and_the_rest_is_neutral():
    idle = {"user": "me", "metadata": {"a": "b"}, "store": False, "frequency_penalty": 0.0, "logit_bias": {}}
    assert ask(COMPLETE, PROMPT | idle | {"best_of": 1, "suffix": ""}).status == 200
    chat = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "parallel_tool_calls": True}
    assert ask(CHAT, TALK | idle | chat | {"modalities": ["text"], "service_tier": "auto"}).status == 200
    fields = dict.fromkeys(ask("/openapi.json").json["components"]["schemas"]["ChatBody"]["properties"])
    assert ask(CHAT, fields | TALK).status == 200  # null is what is not given


def test_a_conversation_is_handed_on_as_text():
    backend = Made()
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    reply = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None, "annotations": []}
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}, reply]
    answer = ask(CHAT, TALK | {"messages": messages, "max_completion_tokens": 2, "n": 2}, backend).json
    said = [("system", "be brief"), ("user", "hello"), ("assistant", "b")]
    assert backend.jobs[1].input == {
        "messages": [{"role": role, "content": text} for role, text in said], "length": 2, "draw": 1,
    }  # fmt: skip
    assert answer["choices"][1]["message"] == {"role": "assistant", "content": " w1.0 w1.1 w1.2", "refusal": None}


def test_logprobs():
    answer = ask(COMPLETE, PROMPT | {"max_tokens": 2, "logprobs": 2}).json["choices"][0]["logprobs"]
    assert answer["tokens"] == [" w0.0", " w0.1"] and answer["text_offset"] == [0, 5]
    assert answer["token_logprobs"] == [-1.5, -1.5]
    assert answer["top_logprobs"][0] == {" w": -1.0, " x": -9999.0, " w0.0": -1.5}  # JSON has no infinity
    assert ask(COMPLETE, PROMPT | {"logprobs": 0}).json["choices"][0]["logprobs"]["top_logprobs"] is None
    first = ask(CHAT, TALK | {"logprobs": True, "top_logprobs": 1}).json["choices"][0]["logprobs"]["content"][0]
    top = {"token": " w", "bytes": [32, 119], "logprob": -1.0}
    assert first == {"token": " w0.0", "bytes": list(b" w0.0"), "logprob": -1.5, "top_logprobs": [top]}


def test_scores():
    backend = Made()
    answer = ask(SCORE, TEXT | {"text": ["a", "b"], "context": "c", "method": "left_to_right"}, backend).json
    assert [job.input for job in backend.jobs] == [{"text": text, "context": "c"} for text in "ab"]
    assert backend.jobs[0].options == {"method": "left_to_right", "samples": 64, "seed": 0}
    assert answer["data"] == [{"nats": None, "stderr": 0.5, "tokens": 4}] * 2  # an infinite one is null
    assert answer["usage"]["forwards"] == 16


# -- streams


@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETE, PROMPT | {"echo": True}), (CHAT, TALK), (COMPLETE, PROMPT | {"suffix": "z"})]
)
def test_the_chunks_of_a_choice_are_its_text(path, body):
    body = body | {"n": 2, "seed": 1, "max_tokens": 4}
    whole = ask(path, body).json
    *chunks, done = ask(path, body | {"stream": True}).chunks
    assert done == "data: [DONE]"
    assert {(one["id"], one["model"], one["seed"]) for one in chunks} == {(chunks[0]["id"], "tiny", 1)}
    assert {one["object"] for one in chunks} == {"chat.completion.chunk" if path == CHAT else "text_completion"}
    for number, choice in enumerate(whole["choices"]):
        mine = [one["choices"][0] for one in chunks if one["choices"][0]["index"] == number]
        if path == CHAT:
            assert mine[0]["delta"]["role"] == "assistant" and mine[-1]["delta"] == {}
            text = "".join(one["delta"].get("content", "") for one in mine)
            assert text == choice["message"]["content"]
        else:
            assert "".join(one["text"] for one in mine) == choice["text"]
        assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]


def test_canvases_and_usage_are_chunks_without_choices():
    body = PROMPT | {"stream": True, "max_tokens": 3, "stream_options": {"canvas": True, "include_usage": True}}
    *chunks, usage, _ = ask(COMPLETE, body).chunks
    canvases = [one["canvas"] for one in chunks if "canvas" in one]
    assert [one["step"] for one in canvases] == [0, 1, 2]
    assert canvases[0] == {"index": 0, "step": 0, "masked": 1, "tokens": [[" w0.0", 0.5, True]]}
    assert all((one["choices"] == []) == ("canvas" in one) and one["usage"] is None for one in chunks)
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    assert "canvas" in chunks[0] and chunks[1]["choices"][0]["text"] == " w0.0"  # in the order in which they came


def test_a_stream_of_holes_ends_with_the_whole():
    *canvases, whole, done = ask(INFILL, HOLES | {"stream": True, "stream_options": {"canvas": True}}).chunks
    assert [one["canvas"]["step"] for one in canvases] == [0, 1, 2] and done == "data: [DONE]"
    assert whole["object"] == "infill" and whole["fills"] == ["b"] and whole["usage"]["completion_tokens"] == 3


# -- what goes wrong behind


LOST = {"status": 503, "message": "the worker died", "param": None, "code": "worker_died"}


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_before_a_text_is_a_status(stream):
    backend = Made(refused=Refused(429, "try again", code="queue_full", retry_after=7))
    answer = ask(COMPLETE, PROMPT | {"stream": stream}, backend)
    assert answer.error[0] == 429 and answer.headers["retry-after"] == "7"
    assert answer.json["error"]["type"] == "rate_limit_error"
    backend = Made(error={"status": 400, "message": "too long", "param": "prompt", "code": None})
    assert ask(COMPLETE, PROMPT | {"stream": stream, "max_tokens": 1}, backend).error == (400, "prompt", "too long")
    assert ask(COMPLETE, PROMPT | {"stream": stream}, Made(ready=False, models=[])).error[0] == 503


def test_what_goes_wrong_later_is_the_last_event():
    answer = ask(COMPLETE, PROMPT | {"stream": True, "max_tokens": 3}, Made(error=LOST))
    *chunks, last = answer.chunks
    assert answer.status == 200 and len(chunks) == 2
    assert last["error"] == {"message": "the worker died", "type": "server_error", "param": None, "code": "worker_died"}
    assert ask(COMPLETE, PROMPT, Made(error=LOST)).error == (503, None, "the worker died")
    assert ask(SCORE, TEXT, Made(error=LOST)).error[0] == 503


@pytest.mark.parametrize(
    ("path", "body"),
    [(COMPLETE, PROMPT), (COMPLETE, PROMPT | {"stream": True}), (CHAT, TALK | {"stream": True}), (SCORE, TEXT)],
)
def test_who_goes_away_has_its_jobs_cancelled(path, body):
    async def left() -> Made:
        backend, gone = Made(hold=asyncio.Event()), asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, gone.set)
        # the jobs never end by themselves
        await asyncio.wait_for(asked(application(Settings(model="tiny"), backend), path, body, gone=gone), 5)
        return backend

    assert asyncio.run(left()).closed == 1


def test_who_goes_away_without_reading_has_its_jobs_cancelled():
    async def left() -> int:
        backend, gone = Made(), asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, gone.set)
        app = application(Settings(model="tiny"), backend)
        await asked(app, COMPLETE, PROMPT | {"stream": True}, gone=gone, reads=2)
        return backend.closed  # at once, not when somebody collects the garbage

    assert asyncio.run(left()) == 1


def test_ready_says_whether_there_is_a_model():
    assert ask("/ready").status == 200
    assert (
        ask("/ready", backend=Made(ready=False)).error[0] == 503
        and ask("/health", backend=Made(ready=False)).status == 200
    )


# -- what it says of itself


def test_the_schema_has_the_library_s_defaults_and_ranges():
    models = ask("/openapi.json").json["components"]["schemas"]
    for source, model, names in (
        (GenerateOptions, "CompletionBody", NAMES),
        (ScoreOptions, "ScoreBody", {name: name for name in ScoreOptions.model_fields}),
    ):
        theirs = source.model_json_schema()["properties"]
        for ours, name in names.items():
            said = models[model]["properties"][ours]
            assert said.get("default") == theirs[name].get("default") and ("description" in said or ours == "seed")
    top_p = models["CompletionBody"]["properties"]["top_p"]["anyOf"][0]
    assert top_p == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert "confidence" in models["CompletionBody"]["properties"]["sampler"]["enum"]
    assert models["CompletionBody"]["properties"]["n"]["anyOf"][0]["maximum"] == 16


def test_the_schema_says_what_errors_there_are():
    paths = ask("/openapi.json").json["paths"]
    for path in (COMPLETE, CHAT, INFILL, SCORE):
        replies = paths[path]["post"]["responses"]
        assert set(replies) == {"200", "400", "404", "408", "413", "415", "429", "503", "504"}
        for status in set(replies) - {"200"}:
            assert replies[status]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorReply")


def test_the_pages_need_no_other_host():
    docs = ask("/docs")
    text = docs.body.decode()
    assert "http" not in text.replace("<!doctype html>", "") and "<script" not in text
    assert all(word in text for word in (COMPLETE, "block_size", "from 1", "confidence", "The queue is full"))
    assert ask("/").headers["content-security-policy"].startswith("default-src 'self';")


def test_metrics_and_the_log(capsys):
    app = application(Settings(model="tiny"), Made())
    asyncio.run(asked(app, COMPLETE, PROMPT | {"prompt": "a secret", "max_tokens": 4}))
    asyncio.run(asked(app, COMPLETE, PROMPT | {"prompt": "a secret", "max_tokens": 4, "stream": True}))
    asyncio.run(asked(app, COMPLETE, PROMPT | {"n": 99}))
    asyncio.run(asked(app, "/v1/secret"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "secret" not in "".join(lines)
    assert " POST /v1/completions 200 " in lines[0] and lines[1].endswith(" 4 tokens") and " GET other 404 " in lines[3]
    counted = asyncio.run(asked(app, "/metrics")).body.decode()
    assert 'diffulm_requests_total{route="/v1/completions",status="200"} 2.0' in counted
    assert 'diffulm_requests_total{route="/v1/completions",status="400"} 1.0' in counted
    assert 'diffulm_first_text_seconds_count{route="/v1/completions"} 2.0' in counted
    for line in ("completion_tokens_total 8.0", "rows_total 21.0", "restarts_total 1.0", "ready 1.0", "waiting 0.0"):
        assert f"diffulm_{line}" in counted
    ask(COMPLETE, PROMPT | {"prompt": "a secret"}, settings={"log_prompts": True})
    assert "a secret" in capsys.readouterr().err
