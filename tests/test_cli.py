"""The command line as others see it: exit codes, one line for an error, the result alone on standard output."""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import diffulm
from diffulm import watch
from diffulm.cli import main
from diffulm.cli.adapt import key_values
from diffulm.errors import BadInput, nearest, unknown
from diffulm.options import GenerateOptions, Options, ScoreOptions, checked, sampler_names
from diffulm.samplers import Frame


class Letters:
    """A tokenizer of single letters: id 0 is a special token, 1 is "a"."""

    def decode(self, ids, skip_special_tokens=False, **_):
        return "".join(chr(96 + i) if i else "" if skip_special_tokens else "<s>" for i in ids)


def frame(ids, masked, step):
    hidden = torch.tensor([masked])
    revealed, confidence = torch.full(hidden.shape, -1), torch.full(hidden.shape, torch.nan)
    return Frame((0,), torch.tensor([ids]), hidden, torch.tensor([step]), revealed, confidence)


@dataclass
class Fake:
    """Stands for a DiffusionLM: keeps what it was asked, and prints, as libraries do."""

    score_value: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(nats=6.0, stderr=0.25, tokens=3))
    raises: BaseException | None = None
    asked: dict = field(default_factory=dict)
    tokenizer: Letters = field(default_factory=Letters)

    def load(self, model, **keywords):
        self.asked["load"] = (model, keywords)
        if self.raises:
            raise self.raises
        return self

    def generate(self, text, *, callback=None, **keywords):
        self.asked["generate"] = (text, keywords)
        print("a library talks")
        if callback:
            callback(frame([0, 1, 0], [False, False, True], 1))
            callback(frame([0, 1, 2], [False, False, False], 2))
        return SimpleNamespace(text=f"{text}ab", completion="ab", ids=[0, 1, 2], forwards=2, seconds=0.5)

    def infill(self, text, *, callback=None, **keywords):
        self.asked["infill"] = (text, keywords)
        return SimpleNamespace(text="filled", fills=["x"], ids=[0, 1], forwards=1, seconds=0.5)

    def score(self, text, **keywords):
        self.asked["score"] = (text, keywords)
        return self.score_value


@pytest.fixture
def fake(monkeypatch):
    lm = Fake()
    # Not setattr: that would first look for the real one and load the whole library.
    monkeypatch.setitem(vars(diffulm), "load", lm.load)
    return lm


@pytest.fixture
def stdin(monkeypatch):
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def is_one_error(result) -> str:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("diffulm: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


WRONG = {
    "no such verb": (["generat", "m"], "'generate'"),
    "no model": (["generate"], "Missing argument"),
    "misspelt flag": (["generate", "m", "--lenght", "3"], "--length"),
    "no number": (["generate", "m", "--length", "three"], "--length"),
    "flag twice given a verb": (["score", "m"], "--text"),
    "length": (["generate", "m", "--length", "-3"], "length should be greater than or equal to 1, not -3"),
    "steps": (["infill", "m", "--text", "<hole:1>", "--steps", "0"], "steps"),
    "temperature nan": (["generate", "m", "--temperature", "nan"], "temperature"),
    "temperature inf": (["generate", "m", "--temperature", "inf"], "temperature"),
    "temperature": (["generate", "m", "--temperature", "-1"], "temperature"),
    "top-p 0": (["generate", "m", "--top-p", "0"], "top_p"),
    "top-p 2": (["generate", "m", "--top-p", "2"], "top_p"),
    "seed": (["generate", "m", "--seed", "-1"], "seed"),
    "seed too large": (["generate", "m", "--seed", str(2**63)], "seed"),
    "sampler": (["generate", "m", "--sampler", "confidenc"], "did you mean 'confidence'?"),
    "schedule": (["infill", "m", "--text", "<hole:1>", "--schedule", "cos"], "schedule should be 'linear' or 'cosine'"),
    "cache": (["generate", "m", "--cache", "all"], "cache should be 'auto', 'none', 'prefix' or 'dual', not 'all'"),
    "two rules": (["generate", "m", "--steps", "3", "--threshold", "0.9"], "steps and threshold each say how many"),
    "threshold": (["generate", "m", "--threshold", "1.5"], "threshold should be less than or equal to 1, not 1.5"),
    "min-p": (["generate", "m", "--min-p", "-0.1"], "min_p should be greater than or equal to 0"),
    "n": (["generate", "m", "--n", "0"], "n should be greater than or equal to 1, not 0"),
    "stream of JSON": (["generate", "m", "--stream", "--json"], "leave out --json"),
    "stream of holes": (["infill", "m", "--text", "<hole:1>", "--stream"], "--stream"),
    "samples": (["score", "m", "--text", "a", "--samples", "0"], "samples"),
    "method": (["score", "m", "--text", "a", "--method", "left"], "left_to_right"),
    "dtype": (["generate", "m", "--dtype", "floot32"], "did you mean 'float32'?"),
    "not a setting": (["adapt", "tiny", "tokens"], "key=value"),
    "not a key": (["adapt", "tiny", "=3"], "key=value"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=WRONG)
def test_bad_input_is_one_line_before_anything_is_opened(arguments, says, fake, run):
    assert says in is_one_error(run(*arguments))
    assert fake.asked == {}


@pytest.mark.parametrize(
    "error",
    [BadInput("no such\nmodel"), FileNotFoundError("no such\n  model"), PermissionError("no such model")],
    ids=lambda error: type(error).__name__,
)
def test_a_model_that_does_not_open_is_one_line(error, fake, run):
    fake.raises = error
    assert "no such model" in is_one_error(run("generate", "m"))


def test_a_bug_is_not_hidden(fake):
    fake.raises = ValueError("ours")
    with pytest.raises(ValueError, match="ours"):
        main(["generate", "m"])


def test_debug_shows_where_bad_input_came_from(fake, monkeypatch):
    monkeypatch.setenv("DIFFULM_DEBUG", "1")
    fake.raises = BadInput("theirs")
    with pytest.raises(BadInput, match="theirs"):
        main(["generate", "m"])


def test_an_interrupt_is_130(fake, run):
    fake.raises = KeyboardInterrupt()
    assert run("generate", "m") == (130, "", "diffulm: interrupted\n")


def test_no_arguments_is_an_overview(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "diffulm infill pocket" in out
    assert out != run("--help")[1]


def test_python_m_equals_diffulm():
    done = subprocess.run([sys.executable, "-m", "diffulm", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"diffulm {diffulm.__version__}\n", "")


def test_a_reader_that_has_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "diffulm", "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_generate_prints_the_text_alone(fake, run):
    code, out, err = run("generate", "m", "--prompt", r"one\n", "--length", "2")
    assert (code, out) == (0, "one\\nab\n")  # no escape is interpreted
    assert "a library talks" in err
    assert fake.asked["load"] == ("m", {"mask_token_id": None, "dtype": None})


def test_generate_hands_over_what_was_asked(fake, run):
    flags = "--length 5 --steps 3 --sampler random --temperature 0.5 --top-p 0.9 --seed 7 --stop a --stop b".split()
    code, _, _ = run("generate", "m", "--text", "p", *flags, "--mask-token-id", "811", "--dtype", "bfloat16")
    assert code == 0
    expected = {"length": 5, "steps": 3, "sampler": "random", "temperature": 0.5, "top_p": 0.9, "seed": 7}
    assert fake.asked["generate"][0] == "p"
    whole = GenerateOptions(**expected, stop=["a", "b"]).model_dump(exclude={"length_method"})
    assert fake.asked["generate"][1] == whole
    assert fake.asked["load"] == ("m", {"mask_token_id": 811, "dtype": torch.bfloat16})


@pytest.mark.parametrize("verb", ["generate", "infill"])
def test_every_option_of_filling_is_a_flag_with_the_same_default(verb, fake, run):
    assert run(verb, "m", "--text", "a<hole:1>")[0] == 0
    asked, defaults = fake.asked[verb][1], GenerateOptions().model_dump()
    assert {key: defaults[key] for key in asked} == asked
    assert (
        defaults.keys() - asked.keys() <= {"infill": {"length", "length_method"}, "generate": {"length_method"}}[verb]
    )


def test_generate_json_is_one_document(fake, run):
    code, out, _ = run("generate", "m", "--prompt", "é", "--json")
    document = json.loads(out)
    assert code == 0
    assert (
        document.items() >= {"text": "éab", "completion": "ab", "ids": [0, 1, 2], "forwards": 2, "model": "m"}.items()
    )
    assert document["options"]["length"] == 64


def test_infill_json_has_the_fills(fake, run):
    _, out, _ = run("infill", "m", "--text", "a <hole:2>", "--steps", "2", "--json")
    assert json.loads(out).items() >= {"text": "filled", "fills": ["x"]}.items()
    assert fake.asked["infill"][0] == "a <hole:2>"
    assert "length" not in fake.asked["infill"][1]


def test_standard_input_is_taken_byte_for_byte(fake, run, stdin):
    stdin("é\r\n\\n\n".encode())
    run("infill", "m", "--text", "-")
    assert fake.asked["infill"][0] == "é\r\n\\n\n"


def test_standard_input_that_is_not_text(fake, run, stdin):
    stdin(b"\xff\xfe")
    assert "UTF-8" in is_one_error(run("score", "m", "--text", "-"))


def test_an_argument_that_is_not_text(fake, run):
    assert "UTF-8" in is_one_error(run("score", "m", "--text", os.fsdecode(b"\xff")))


def test_score(fake, run):
    flags = ["--text", "abc", "--context", "before", "--samples", "8", "--seed", "3"]
    assert run("score", "m", *flags)[:2] == (0, "6.0000 nats (+- 0.2500), 3 tokens, 2.0000 a token\n")
    assert fake.asked["score"] == ("abc", {"context": "before", "samples": 8, "seed": 3, "method": "bound"})
    _, out, _ = run("score", "m", *flags, "--json")
    assert json.loads(out).items() >= {"nats": 6.0, "stderr": 0.25, "tokens": 3, "nats_per_token": 2.0}.items()


def test_json_knows_no_infinity(fake, run):
    fake.score_value = SimpleNamespace(nats=6.0, stderr=math.inf, tokens=0)
    _, out, _ = run("score", "m", "--text", "", "--json")
    assert json.loads(out, parse_constant=pytest.fail)["stderr"] is None


def stand_in(monkeypatch, name: str, **members) -> None:
    """A module of the package that needs neither be imported nor exist."""
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def inspected(monkeypatch):
    found = SimpleNamespace(
        adoptable=True, reason="", as_dict=lambda: {"family": "gpt2", "probe": {"full": True}, "x": None}
    )
    asked = []

    def look(model, **options):
        asked.append((model, options["mask_token"]))
        return found

    stand_in(monkeypatch, "diffulm.recipes.inspect", inspect=look)
    return SimpleNamespace(found=found, asked=asked)


def test_inspect(inspected, run):
    code, out, err = run("inspect", "m", "--mask-token", "811", "--json")
    assert (code, json.loads(out), err) == (0, {"family": "gpt2", "probe": {"full": True}, "x": None}, "")
    assert inspected.asked == [("m", "811")]


def test_inspect_of_what_cannot_be_adapted(inspected, run):
    inspected.found.adoptable, inspected.found.reason = False, "it looks\nboth ways already"
    code, out, err = run("inspect", "m", "--json")
    assert (code, json.loads(out)["family"]) == (2, "gpt2")
    assert err == "diffulm: error: m cannot be adapted: it looks both ways already\n"
    assert is_one_error(run("inspect", "m")) == err


@pytest.fixture
def adapted(monkeypatch):
    asked = []

    def go(preset, overrides, plan):
        asked.append((preset, overrides, plan))
        if "interrupt" in overrides:
            raise KeyboardInterrupt
        print("progress")
        return {"out": "runs/x", "bound": 3.5}

    stand_in(monkeypatch, "diffulm.recipes.adapt", run=go)
    monkeypatch.delenv("RANK", raising=False)
    return asked


def test_adapt(adapted, run):
    assert run("adapt", "tiny", "tokens=1", "data=a=b", "tokens=4M")[:2] == (0, "out: runs/x\nbound: 3.5\n")
    code, out, _ = run("adapt", "tiny", "--plan", "--json")
    assert (code, json.loads(out)) == (0, {"out": "runs/x", "bound": 3.5})
    assert adapted == [("tiny", {"tokens": "4M", "data": "a=b"}, False), ("tiny", {}, True)]


def test_adapt_says_how_to_go_on(adapted, run):
    code, out, err = run("adapt", "tiny", "interrupt=1")
    assert (code, out) == (130, "")
    assert err == "diffulm: interrupted; the same command goes on from the last checkpoint\n"


def test_of_many_processes_one_speaks(adapted, run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run("adapt", "tiny", "--json")[:2] == (0, "")


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text(), min_size=1))
def test_settings_come_back_as_they_were_given(settings):
    assert key_values([f"{key}={value}" for key, value in settings.items()]) == settings


def test_watch_without_a_terminal_is_plain_lines(fake, run):
    code, out, err = run("generate", "m", "--watch", "--json")
    assert code == 0
    json.loads(out)
    assert [line for line in err.splitlines() if "masked" in line] == [
        "step   1,    1 masked | a░",
        "step   2,    0 masked | ab",
    ]


def test_watch_keeps_a_step_on_its_line(capsys, monkeypatch):
    monkeypatch.setattr(Letters, "decode", lambda *_, **__: "a\n\r\0\x1b[2J\u2028é")
    with watch.watching(True, Letters()) as draw:
        draw(frame([1], [False], 1))
    assert capsys.readouterr().err == "step   1,    0 masked | a\\n\\r\\x00\\x1b[2J\\u2028é\n"


def test_watch_on_a_terminal_draws_in_place():
    screen = io.StringIO()
    # The same kind as everywhere in these tests: rich keeps the codes that a style had on the first terminal.
    kind = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    console = Console(file=screen, force_terminal=True, width=40, _environ=kind)
    with watch._drawing(console, Letters(), "░") as draw:
        draw(frame([1, 0, 0], [False, True, True], 1))
        drawn = screen.getvalue()
    assert drawn.count("░") == 2
    assert "step 1, 2 masked" in drawn
    assert "\x1b[2K" in screen.getvalue()  # erased again: the result follows


def test_the_picture_without_a_tokenizer_shows_ids():
    assert watch.picture(None, [5, 0, 7], [False, True, False]) == "5░7"


@given(st.floats(), st.floats(), st.integers(), st.integers())
def test_what_is_in_range_passes_and_nothing_else(temperature, top_p, length, seed):
    right = 0 <= temperature < math.inf and 0 < top_p <= 1 and 1 <= length < 2**31 and 0 <= seed < 2**63
    asked = {"temperature": temperature, "top_p": top_p, "length": length, "seed": seed}
    if right:
        assert checked(GenerateOptions, **asked).model_dump().items() >= asked.items()
    else:
        with pytest.raises(BadInput) as error:
            checked(GenerateOptions, **asked)
        assert "\n" not in str(error.value)


class Needy(Options):
    model: str


@pytest.mark.parametrize(
    ("model", "asked", "says"),
    [
        (GenerateOptions, {"lenght": 3}, "unknown key 'lenght'; did you mean 'length'?"),
        (Needy, {}, "model is missing"),
        (Needy, {"modle": "m"}, "unknown key 'modle'; did you mean 'model'?"),
        (GenerateOptions, {"seed": [1, -1]}, "seed"),
        (GenerateOptions, {"length": 2.5}, "length should be a whole number"),
        (GenerateOptions, {"batch_size": 0}, "batch_size"),
        (ScoreOptions, {"method": "exact"}, "'bound' or 'left_to_right'"),
    ],
)
def test_options_say_what_is_wrong(model, asked, says):
    with pytest.raises(BadInput, match="^" + says.replace("?", r"\?") if says[0] != "'" else says):
        checked(model, **asked)


def test_every_sampler_is_an_option():
    assert "confidence" in sampler_names()
    for name in sampler_names():
        assert checked(GenerateOptions, sampler=name).sampler == name


def test_nearest():
    assert nearest("Tokns", ["tokens", "seed"]) == "tokens"
    assert nearest("zzz", ["tokens", "seed"]) is None
    assert str(unknown("key", "zzz", {"b", "a"})) == "unknown key 'zzz'; there are: a, b"
