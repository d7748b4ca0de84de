"""OpenAI's own client, unmodified, on a real server: what it gets is what the library gives."""

import pytest

import diffulm

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

PROMPT = "def add(a, b):\n    return"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def lm():
    return diffulm.load("pocket")


def test_models(client):
    first, second = client.models.list()
    assert (first.id, second.id) == ("pocket", "pocket-ar")
    assert first.context == 256 and first.infills and not first.autoregressive and second.autoregressive
    assert client.models.list().data[0].object == "model"


def test_completions_are_the_library_s(client, lm):
    answer = client.completions.create(
        model="pocket", prompt=[PROMPT, "import "], max_tokens=6, n=2, temperature=1, seed=7, logprobs=2, stop="\n"
    )
    for number, prompt in enumerate((PROMPT, "import ")):
        drawn = lm.generate(prompt, length=6, n=2, temperature=1.0, seed=7, stop=["\n"])
        texts = [one.text.removeprefix(prompt) for one in drawn.candidates]
        mine = answer.choices[2 * number : 2 * number + 2]
        assert [one.text for one in mine] == texts
        assert all(one.finish_reason in ("stop", "length") for one in mine)
        for one in mine:
            assert len(one.logprobs.tokens) == len(one.logprobs.token_logprobs) and "".join(
                one.logprobs.tokens
            ).startswith(one.text)
    assert answer.usage.completion_tokens == sum(len(one.logprobs.tokens) for one in answer.choices)
    assert answer.usage.forwards >= 4 and answer.seed == 7


def test_diffusion_s_settings_go_in_extra_body(client, lm):
    asked = {"steps": 3, "sampler": "random", "schedule": "cosine"}
    answer = client.completions.create(model="pocket", prompt=PROMPT, max_tokens=6, seed=3, extra_body=asked)
    assert answer.choices[0].text == lm.generate(PROMPT, length=6, seed=3, **asked).completion
    assert answer.usage.forwards == 3 and answer.usage.tokens_per_forward == 2.0
    ids = lm.tokenizer.encode(PROMPT)
    same = client.completions.create(model="pocket", prompt=ids, max_tokens=6, seed=3, extra_body=asked)
    assert same.choices[0].text == answer.choices[0].text


def test_it_infills(client, lm):
    answer = client.completions.create(
        model="pocket", prompt="import ", suffix="\n", max_tokens=1, seed=0, extra_body={"min_tokens": 1}
    )
    assert answer.choices[0].text == lm.infill("import <hole:1>\n", seed=0).fills[0]
    body = {"model": "pocket", "text": "import <hole:1>\n\ndef <hole:2>(self):", "seed": 0}
    holes = client.post("/infill", cast_to=object, body=body)
    filled = lm.infill(body["text"], seed=0)
    assert (holes["text"], holes["fills"]) == (filled.text, filled.fills)


def test_it_streams(client):
    asked = {
        "model": "pocket",
        "prompt": PROMPT,
        "max_tokens": 12,
        "seed": 1,
        "extra_body": {"sampler": "left_to_right"},
    }
    whole = client.completions.create(**asked)
    chunks = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True, "canvas": True})
    )
    assert "".join(choice.text for one in chunks for choice in one.choices) == whole.choices[0].text
    assert sum(bool(one.choices) for one in chunks) > 3  # bit by bit
    canvases = [one.canvas for one in chunks if getattr(one, "canvas", None)]
    free = [sum(free for _, _, free in one["tokens"]) for one in canvases]
    assert [one["masked"] for one in canvases] == list(range(12, -1, -1)) and set(free) == {12}
    texts = "".join(text for text, _, free in canvases[-1]["tokens"] if free)
    assert texts.startswith(whole.choices[0].text) and chunks[-1].usage == whole.usage


def test_it_chats(client):
    asked = {"model": "pocket", "messages": [{"role": "user", "content": "hello"}], "seed": 1, "max_tokens": 8, "n": 2}
    whole = client.chat.completions.create(**asked, temperature=1)
    chunks = list(client.chat.completions.create(**asked, temperature=1, stream=True))
    for choice in whole.choices:
        mine = [one.choices[0] for one in chunks if one.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant" and mine[-1].finish_reason == choice.finish_reason
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_it_scores(client, lm):
    body = {"model": "pocket", "text": ["import os", "import sys"], "context": "", "method": "left_to_right"}
    found = client.post("/score", cast_to=object, body=body)["data"]
    expected = lm.score(body["text"], method="left_to_right")
    # another number of rows in the tile: float32 sums of a few nats in another order
    assert [one["nats"] for one in found] == pytest.approx([one.nats for one in expected], abs=1e-4)


def test_the_parent_answers_beside_it(client):
    answer = client.completions.create(model="pocket-ar", prompt="import ", max_tokens=2, seed=0)
    assert answer.choices[0].text and answer.usage.forwards == 2


def test_errors_are_the_client_s_own(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="pocket", prompt="a" * 3000)
    assert error.value.param == "prompt" and "context is 256" in str(error.value)
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="poket", prompt="a")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="did you mean 'sampler'"):
        client.completions.create(model="pocket", prompt="a", extra_body={"samplr": "random"}, stream=True)
    with pytest.raises(openai.BadRequestError, match="infill") as error:
        client.completions.create(model="pocket-ar", prompt="a", suffix="b")
    talk = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(openai.BadRequestError, match="take turns") as error:
        client.chat.completions.create(model="pocket", messages=talk)
    assert error.value.param == "messages"


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("completions", {"prompt": "a b " * 400}, "prompt"),
        ("completions", {"prompt": "a b " * 400, "suffix": "z"}, "prompt"),
        ("completions", {"prompt": "a", "max_tokens": 5000}, "prompt"),  # together they are too long
        ("completions", {"prompt": "a", "block_size": 4, "sampler": "verified"}, "block_size"),
        ("completions", {"prompt": "a", "logprobs": 2, "cache": "dual", "max_tokens": 4}, "logprobs"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2, "cache": "dual"},
            "top_logprobs",
        ),
        ("completions", {"prompt": ["a"] * 32, "n": 16, "temperature": 1}, "n"),
        ("infill", {"text": "a b " * 400 + "<hole:1>"}, "text"),
        ("infill", {"parts": ["a b " * 400, {"length": 1}]}, "parts"),
    ],
    ids=range(9),
)
def test_what_the_model_cannot_do_names_the_body_s_own_field(client, route, body, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post(f"/{route}", body={"model": "pocket"} | body, cast_to=object)
    assert refused.value.param == param, refused.value


def test_what_joins_a_choice_is_counted(client, lm):
    """'impo' is two tokens and 'impor' one: what is there has fewer tokens than the texts that were given."""
    parts = ["impo", {"choices": ["r", "s"]}, "t os\n"]
    done = client.post("/infill", body={"model": "pocket", "parts": parts}, cast_to=object)
    usage = done["usage"]
    assert done["text"] in ("import os\n", "impost os\n") and usage["completion_tokens"] >= 0
    bos = lm.record.bos_token_id is not None
    assert usage["total_tokens"] == len(lm.tokenizer.encode(done["text"])) + bos
