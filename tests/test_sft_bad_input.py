"""Bad input for `diffulm sft`: one line that names the file and the row, exit code 2, nothing written."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from broken import Place, make_kinds, one_error, parquet, refused, run
from diffulm.checkpoint.save import save
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.quiet import quietly
from models import build, tokenizer

GOOD = {"prompt": "w5 w6", "response": "w7"}
REFUSES = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ message.content }} {% endfor %}"
)
UNKNOWN = "{{ raise_exception('no such thing') }}"
SETTINGS = "length=32 global_batch=2 tokens=64 padding_tokens=2 eval_answers=1 eval_steps=1 device=cpu".split()


def say(*contents: Any, first: str = "user", **system: Any) -> dict[str, Any]:
    """A row of messages whose roles take turns."""
    names = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    made = [{"role": names[n % 2], "content": text} for n, text in enumerate(contents)]
    return {"messages": [*({"role": "system", "content": text} for text in system.values()), *made]}


def tune(at: Place, *settings: str, rows: Any = (), model: Any = None, name: str = "a.jsonl") -> list[str]:
    """A run whose data are good rows, and these behind them; or these bytes alone."""
    if not isinstance(rows, bytes):
        rows = "".join(
            (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in [GOOD, GOOD, *rows]
        ).encode()
    data = at.file(name, rows)
    return ["sft", "tiny", f"model={model or at.model()}", f"data={data}", "out=out", *SETTINGS, *settings]


def third(row: Any, *settings: str):
    """The third row is bad."""
    return lambda at: tune(at, *settings, rows=[row])


def role(name: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": name, "content": "w5", **more}, {"role": "assistant", "content": "w6"}]}


HERE = "a.jsonl, line 3: "
CASES: dict[str, tuple[Any, ...]] = {
    # -- rows
    "no answer": (third({"prompt": "w5", "response": ""}), HERE + "has no answer"),
    "an answer that is a number": (third({"prompt": "w5", "response": 7}), HERE + "has no answer"),
    "nobody answers": (third(say("w5")), HERE + "has no answer: no message is the assistant's"),
    "no output": (third({"instruction": "w5", "output": None}), HERE + "has no answer"),
    "a prompt without response": (third({"prompt": "w5"}), HERE + "holds no conversation: it has prompt", "name its fields"),
    "rows of text": (third({"text": "w5"}), HERE + "holds no conversation: it has text"),
    "a row without fields": (third({}), HERE + "holds no conversation: it has none"),
    "a row that is a list": (third([1]), HERE + "a list, not an object"),
    "messages that are text": (third({"messages": "w5"}), HERE + "a conversation is a list of messages"),
    "no messages": (third({"messages": []}), HERE + "a conversation is a list of messages, at least one"),
    "a message that is text": (third({"messages": ["w5"]}), HERE + "message 1 is not of the form"),
    "an unknown role": (third(role("usr")), HERE + "message 1 has the unknown role 'usr'", "did you mean user?"),
    "a role like no other": (third(role("gpt")), HERE, "unknown role 'gpt'; known are system, user, assistant"),
    "a role that is a number": (third(role(3)), HERE + "message 1 is not of the form"),
    "two systems": (third(say("w5", "w6", one="w7", two="w8")), HERE + "a conversation has two system messages; keep one"),
    "a system that is not first": (
        third({"messages": [*say("w5", "w6")["messages"], {"role": "system", "content": "w7"}]}), HERE + "the system message",
    ),
    "a system alone": (third(say(one="w7")), HERE + "a conversation has no message but the system's"),
    "an assistant first": (third(say("w5", "w6", first="assistant")), HERE + "a conversation begins with the assistant's turn"),
    "two of the user": (
        third({"messages": say("w5")["messages"] * 2}), HERE + "a conversation has two turns of the user in a row",
    ),
    "two of the assistant": (
        third({"messages": [*say("w5", "w6")["messages"], say("w5", "w6")["messages"][1]]}), "two turns of the assistant",
    ),
    "an empty message": (third(say(" \n", "w6")), HERE + "message 1, the user's, has no text"),
    "content that is no text": (third(say([{"type": "text"}], "w6")), HERE + "message 1, the user's, has no text"),
    "no content": (third({"messages": [{"role": "user"}]}), HERE + "message 1, the user's, has no text"),
    "half of a surrogate pair": (third('{"prompt": "\\ud800", "response": "w6"}'), HERE + "message 1 is not Unicode text"),
    "a row that is no JSON": (third('{"prompt": "w5",'), HERE + "not JSON", "mend or delete this row"),
    "a row that is not UTF-8": (lambda at: tune(at, rows=b'{"prompt": "\xff"}'), "a.jsonl, line 1: not UTF-8", "convert"),
    "a format string over no field": (
        lambda at: tune(at, "prompt={prompt}", "response={chain} {response}"), "a.jsonl, line 1: ", "'chain'", "it has prompt",
    ),
    "a format string by number": (lambda at: tune(at, "prompt={}", "response={response}"), "a.jsonl, line 1: '{}' asks for"),
    "a format string that is none": (lambda at: tune(at, "prompt={", "response={response}"), "a.jsonl, line 1: '{' asks for"),
    "a bad row of Parquet": (
        lambda at: tune(at, rows=parquet(prompt=["w5", "w5"], response=["w6", None]), name="a.parquet"),
        "a.parquet, row 2: has no answer",
    ),
    "a bad row held out": (
        lambda at: tune(at, f"eval_data={at.file('e.jsonl', json.dumps(say('w5')))}"), "e.jsonl, line 1: has no answer",
    ),
    "a bad row, and out far down": (lambda at: [*tune(at, rows=["{"]), "out=deep/down/run"], HERE + "not JSON"),
    # -- data
    "plain text": (lambda at: tune(at, rows=b"w5", name="a.txt"), "a.txt: is plain text, which has no rows; convert it"),
    "no such data": (lambda at: [*tune(at), "data=b.jsonl"], "b.jsonl: no such file", "did you mean a.jsonl?"),
    "no such data set, offline": (lambda at: [*tune(at), "data=no/such"], "no/such: no such file", "cannot be reached"),
    "a name of made data misspelt": (lambda at: [*tune(at), "data=simpel"], "simpel: no such file"),
    "an empty file": (lambda at: tune(at, rows=b""), "a.jsonl: should have two conversations that fit", "it has 0"),
    "one conversation": (
        lambda at: tune(at, rows=json.dumps(GOOD).encode()),
        "should have two conversations that fit, one to be held out, it has 1",
    ),
    "an empty file held out": (
        lambda at: tune(at, f"eval_data={at.file('e.jsonl', b'')}"), "e.jsonl: should have a conversation",
    ),
    "gzip cut short": (lambda at: tune(at, rows=gzip.compress(b"{}")[:-9], name="a.jsonl.gz"), "damaged gzip file"),
    "a row longer than the context": (
        third({"prompt": "w5", "response": "w6 " * 40}, "too_long=stop"), HERE + "takes ", "a row has 32; set length higher",
    ),
    "nothing fits": (
        lambda at: tune(at, rows=(json.dumps({"prompt": "w5", "response": "w6 " * 40}) + "\n").encode() * 3),
        "should have two conversations that fit", "3 replies that do not fit left out: a.jsonl, conversation 1; ",
    ),
    "only bad rows": (lambda at: tune(at, "bad_rows=skip", rows=b"{\n{\n"), "should have two conversations that fit"),
    "data that takes in the run": (
        lambda at: [*tune(at), f"data={Path(at.file('d/a.jsonl')).parent}/**/*.jsonl", "out=d/run"],
        "takes in what the run writes to out=",
    ),
    # -- templates
    "an unknown template": (lambda at: tune(at, "template=plian"), "template 'plian': no such template; did you mean plain?"),
    "a template like no other": (lambda at: tune(at, "template=zzz"), "there are auto, alpaca, paper, plain; or name a .jinja"),
    "no such .jinja file": (lambda at: tune(at, "template=mine.jinja"), "template 'mine.jinja': no such template"),
    "no name of a template": (lambda at: tune(at, "template="), "template should not be empty"),
    "a template that fails": (
        lambda at: tune(at, f"template={at.file('m.jinja', UNKNOWN)}"), "cannot render this conversation: no such thing",
    ),
    "a template that is no Jinja": (
        lambda at: tune(at, f"template={at.file('m.jinja', '{% for %}')}"), "cannot render this conversation: ",
    ),
    "a template that is not UTF-8": (lambda at: tune(at, f"template={at.file('m.jinja', bytes([255]))}"), "m.jinja", "UTF-8"),
    "a template that refuses a row": (
        lambda at: tune(at, f"template={at.file('m.jinja', REFUSES)}", rows=[say("w5", "w6", one="w7")]),
        HERE + "the chat template cannot render this conversation: no system here",
    ),
    "a template that misspells": (
        lambda at: tune(at, f"template={at.file('m.jinja', REFUSES.replace('content', 'contents'))}"),
        "the chat template leaves out what the user says; it should have message.content",
    ),
    # -- settings
    "tokens and epochs": (lambda at: tune(at, "epochs=1"), "tokens and epochs: give one of them"),
    "neither tokens nor epochs": (lambda at: tune(at, "tokens=null"), "tokens and epochs: give one of them"),
    "a prompt alone": (lambda at: tune(at, "prompt={q}"), "prompt and response: give both of them, or neither"),
    "full padding of packed rows": (lambda at: tune(at, "padding=full"), "padding=full", "set packing=false"),
    "padding to blocks that are none": (lambda at: tune(at, "padding=block"), "padding=block", "does not fill blocks; take"),
    "an unknown policy": (lambda at: tune(at, "padding=ful"), "'full', 'block' or 'none', not 'ful'"),
    "an unknown key": (lambda at: tune(at, "paddng=full"), "unknown key 'paddng'; did you mean 'padding'?"),
    "a key of adapt": (lambda at: tune(at, "eval_blocks=3"), "unknown key 'eval_blocks'"),
    "a preset of adapt": (lambda at: ["sft", "diffugpt-s", *tune(at)[2:]], "is a preset of `adapt`, not of `sft`"),
    "canvases beyond the context": (lambda at: tune(at, "length=65"), "length=65", "takes at most 64 positions"),
    "a batch that does not divide": (lambda at: tune(at, "micro_batch=3"), "micro_batch=3 does not divide"),
    # -- models
    "fresh weights of an adapted model": (lambda at: tune(at, "scratch=true"), "scratch=True: is for AR parents", "leave"),
    "another mask of an adapted model": (lambda at: tune(at, "mask_token=w5"), "mask_token=w5: is for AR parents"),
    "quantised without a library or a GPU": (lambda at: tune(at, "adapter=lora", "quantise=4bit"), "quantise=4bit: needs "),
    "quantised without an adapter": (lambda at: tune(at, "quantise=4bit"), "quantise=4bit: there is no adapter"),
    "an adapted model read without its shift": (lambda at: tune(at, "shift=false"), "shift=false", "adapted with the shift"),
    "an adapted model as an AR one": (lambda at: tune(at, "objective=autoregressive"), "is a diffusion model; give its AR"),
    "no such model, offline": (lambda at: tune(at, model="no/such"), "no/such: no such folder, and not on the hub"),
    "a model without tokenizer": (lambda at: tune(at, model=at.model(without="tokenizer*")), "has no tokenizer"),
    "a parent without tokenizer": (lambda at: tune(at, model=at.model("plain", without="tokenizer*")), "has no tokenizer"),
    "an encoder": (lambda at: tune(at, model=at.kinds / "bert"), "it is a bert model, an encoder"),
    "an adapter of peft's own": (
        lambda at: tune(at, model=Path(at.file("p/adapter_config.json", '{"peft_type": "LORA"}')).parent), "p",
    ),
    "out holds something": (lambda at: [*tune(at), f"out={Path(at.file('full/x')).parent}"], "is not empty and holds no run"),
}  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> Path:
    return make_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_line(case: str, kinds: Path, tmp_path: Path, monkeypatch, capsys):
    refused(CASES[case], kinds, tmp_path, monkeypatch, capsys)


def test_a_tokenizer_that_cannot_end_a_reply(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = tokenizer()
    with quietly():
        save(*adopt(build("llama"), words), tmp_path / "model")
        words.eos_token = None
        words.save_pretrained(tmp_path / "model")
    line = one_error(tune(Place(tmp_path, tmp_path, monkeypatch), model=tmp_path / "model"), capsys)
    assert "the tokenizer has no EOS and its chat template ends a reply with no special token" in line


def test_bad_rows_are_skipped_and_counted(kinds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        GOOD,
        {"prompt": "w5"},
        "{",
        say("w5", "w6", first="assistant"),
        role("usr"),
        say("w5", one="a", two="b"),
        {"x": 1},
    ]
    arguments = tune(Place(tmp_path, kinds, monkeypatch), "bad_rows=skip", rows=rows)
    code, out, err = run(arguments, capsys)
    assert code == 0 and "skipped: 6" in out and "conversations: 3" in out
    (said,) = [line for line in err.splitlines() if "bad rows" in line]
    assert said.startswith("diffulm: 6 bad rows left out: ") and said.endswith("; and 1 more")
    assert (
        "a.jsonl, line 4: holds no conversation" in said and "a.jsonl, line 7: message 1 has the unknown role" in said
    )
