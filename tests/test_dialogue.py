"""A conversation: what the model is shown of it, and what becomes of its last answer."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffulm
from diffulm import Hole
from diffulm.chat import template_of
from diffulm.data.conversations import messages_of
from diffulm.dialogue import Dialogue, hole_in
from diffulm.filling import fill
from diffulm.lm import Generation
from models import bad

HELLO = "hello there"


@pytest.fixture(scope="module")
def lm():
    return diffulm.load("pocket")


class Fake:
    """A model that answers what it is told to and remembers what it was asked; an answer may be an interrupt."""

    def __init__(self, tokenizer: Any, *answers: Any, context: int | None = 100) -> None:
        self.tokenizer, self.answers, self.reply_length = tokenizer, list(answers), 20
        self.denoiser = SimpleNamespace(context=context)
        self.record = SimpleNamespace(bos_token_id=0)
        self.asked: list[list[tuple[str, str]]] = []
        self.options: list[dict[str, Any]] = []

    def chat(self, messages, length=None, *, callback=None, on_text=None, **options):
        self.asked.append([(one["role"], one["content"]) for one in messages])
        self.options.append({"length": length, **options})
        answer = self.answers.pop(0) if self.answers else HELLO
        on_text(answer[:3])
        if answer.endswith("^C"):
            raise KeyboardInterrupt
        return Generation(answer, [], 1, 0.0, answer)


@pytest.fixture
def talking(lm):
    def start(*answers, context=100, system="", **options) -> tuple[Dialogue, Fake]:
        fake = Fake(lm.tokenizer, *answers, context=context)
        return Dialogue(fake, options, system), fake

    return start


def test_the_model_sees_what_was_said(talking):
    talk, fake = talking("one", "two", system="be kind", temperature=0.5)
    assert talk.say("a").completion == "one"
    talk.say("b")
    assert fake.asked[0] == [("system", "be kind"), ("user", "a")]
    assert fake.asked[1] == [*fake.asked[0], ("assistant", "one"), ("user", "b")]
    assert fake.options[1] == {"length": None, "temperature": 0.5, "seed": 0}
    assert [one["content"] for one in talk.messages] == ["be kind", "a", "one", "b", "two"]
    assert (talk.answer, talk.left_out) == ("two", 0)


def test_a_system_text_may_change_at_any_time(talking):
    talk, fake = talking()
    talk.say("a")
    talk.system = "be brief"
    talk.say("b")
    assert [asked[0] for asked in fake.asked] == [("user", "a"), ("system", "be brief")]


def test_a_turn_without_an_answer_is_not_shown_again(talking):
    talk, fake = talking(" \n", "two")
    talk.say("a")
    assert talk.messages == []
    talk.say("b")
    assert fake.asked[1] == [("user", "b")]
    assert [one["content"] for one in talk.messages] == ["b", "two"]


def test_an_interrupted_answer_is_what_was_final_of_it(talking):
    talk, fake = talking("one", "two^C")
    talk.say("a")
    with pytest.raises(KeyboardInterrupt):
        talk.say("b")
    assert talk.turns == [("a", "one"), ("b", "two")]
    talk.say("c")
    assert fake.asked[2][-3:] == [("user", "b"), ("assistant", "two"), ("user", "c")]


def test_retry_draws_with_the_next_seed_and_replaces_the_answer(talking):
    talk, fake = talking("one", "two", "three", "four^C", "five", seed=2**63 - 2)
    with bad("there is no answer yet"):
        talk.retry()
    talk.say("a")
    talk.retry()
    talk.retry()
    assert talk.turns == [("a", "three")]
    with pytest.raises(KeyboardInterrupt):
        talk.retry()
    assert talk.turns == [("a", "three")], "it stays when its successor was interrupted"
    talk.say("b")
    assert [one["seed"] for one in fake.options] == [2**63 - 2, 2**63 - 1, 0, 1, 2**63 - 2]
    assert all(asked == [("user", "a")] for asked in fake.asked[:4])


def test_the_oldest_turns_are_left_out(talking, lm):
    talk, fake = talking(system="sys", context=100)
    template = template_of(lm.tokenizer)
    before = 0
    for number in range(12):
        talk.say(f"question {number}")
        asked = fake.asked[-1]
        messages = [{"role": role, "content": content} for role, content in asked]
        assert 1 + len(template.opening(messages)) + fake.reply_length <= 100
        whole = [
            ("user", f"question {n}") if not k else ("assistant", HELLO) for n in range(number + 1) for k in (0, 1)
        ]
        assert asked[0] == ("system", "sys")
        assert asked[1:] == whole[2 * talk.left_out : -1]
        more = [messages[0], *({"role": r, "content": c} for r, c in whole[2 * (talk.left_out - 1) : -1])]
        assert not talk.left_out or 1 + len(template.opening(more)) + fake.reply_length > 100, "no more than needed"
        assert talk.left_out >= before
        before = talk.left_out
    assert before > 5
    assert len(talk.turns) == 12, "they are not forgotten"
    talk.set("length", 60)
    talk.say("one more")
    assert talk.left_out > before
    talk.set("length", 5)
    talk.say("again")
    Dialogue(fake, {"length": 5}, "sys", talk.turns[:-1]).say("again")
    assert fake.asked[-1] == fake.asked[-2], "shorter answers leave more room"
    assert len(fake.asked[-1]) > len(fake.asked[-3])


def test_a_long_message_gets_what_room_there_is(talking):
    talk, fake = talking(context=100)
    talk.say("a")
    talk.say("wort " * 25)
    assert (talk.left_out, len(fake.asked[-1]), fake.options[-1]["length"]) == (1, 1, None)
    with bad("there is room for 98"):
        talk.say("wort " * 60)
    assert len(talk.turns) == 2
    talk.set("length", 60)
    with bad("there is room for 39"):
        talk.say("wort " * 25)
    talk.set("length", 100)
    with bad("100 tokens for an answer are too many"):
        talk.say("a")


def test_a_model_without_a_limit_is_shown_everything(talking):
    talk, fake = talking(context=None)
    for _ in range(9):
        talk.say("wort " * 25)
    assert len(fake.asked[-1]) == 17


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_a_message_has_text(talking, text):
    talk, fake = talking()
    with bad("no text"):
        talk.say(text)
    assert (talk.turns, fake.asked) == ([], [])


def test_settings(talking):
    talk, fake = talking(sampler="random", steps=None)
    talk.set("steps", "8")
    talk.set("temperature", "0.5")
    assert talk.options == {"sampler": "random", "steps": 8, "temperature": 0.5}
    for name, value, words in (
        ("steps", "0", "steps should be greater"),
        ("seed", "x", "seed should be"),
        ("sampler", "confidense", "did you mean 'confidence'"),
        ("threshold", "0.5", "steps and threshold each say"),
        ("stps", "1", "did you mean 'steps'"),
    ):
        with bad(words):
            talk.set(name, value)
    assert talk.options == {"sampler": "random", "steps": 8, "temperature": 0.5}
    talk.set("steps", None)
    talk.say("a")
    assert fake.options[0] == {"sampler": "random", "temperature": 0.5, "length": None, "seed": 0}


def test_what_is_saved_is_data_to_tune_on(talking, tmp_path):
    path = tmp_path / "talks.jsonl"
    talk, _ = talking("日本🦜\n\u2028", "", "three", system="be kind")
    with bad("nothing to save"):
        talk.save(path)
    assert not path.exists()
    for text in "abc":
        talk.say(text)
    talk.save(path)
    talk.turns = talk.turns[:1]
    talk.system = ""
    talk.save(path)
    one, two = [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
    assert [each["content"] for each in messages_of(one)] == ["be kind", "a", "日本🦜\n\u2028", "c", "three"]
    assert [each["role"] for each in messages_of(two)] == ["user", "assistant"]


def test_nothing_else_is_written_to(talking, tmp_path):
    talk, _ = talking()
    talk.say("a")
    other = tmp_path / "notes.txt"
    other.write_text("my notes")
    with bad("notes.txt: is there, and holds no conversations"):
        talk.save(other)
    with bad("is not a file"):
        talk.save(tmp_path)
    assert other.read_text() == "my notes"
    cut = tmp_path / "cut.jsonl"
    cut.write_text('{"messages": []}')  # no line end
    talk.save(cut)
    assert len(cut.read_text().splitlines()) == 2


# -- which part of an answer is meant


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("<3> old", ["the ", Hole(3), " words of\nan answer"]),
        ("<2-5>  words of an", ["the old ", Hole(2, 5), " answer"]),
        ("the", [Hole(1, 4), " old words of\nan answer"]),
        ("of <hole:2>, or <hole>.", ["of ", Hole(2), ", or ", Hole(), "."]),
        ("the old words of an answer", [Hole(5, 20)]),
    ],
)
def test_the_part_that_is_meant(lm, words, parts):
    found = hole_in("the old words of\nan answer", words, lm.tokenizer)
    if words.startswith("the old"):  # as many tokens as the tokenizer makes of it
        tokens = len(lm.tokenizer.encode("the old words of\nan answer", add_special_tokens=False))
        parts = [Hole(tokens // 2, 2 * tokens)]
    assert found == parts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("new", "'new' is not in the last answer"),
        ("The old", "'The old' is not in"),
        ("<3>", "'<3>' is not in"),
        ("<0> old", "'<hole:0>' is not a hole"),
        ("<5-2> old", "is not a hole"),
        ("o", "'o' is in the last answer 3 times"),
        ("a <hole:x>", "is not a hole"),
    ],
)
def test_words_that_mean_no_part(lm, words, message):
    with bad(message):
        hole_in("the old words of it", words, lm.tokenizer)


# -- with a model


def test_an_answer_is_that_of_the_model_and_watched(lm):
    talk, frames, pieces = Dialogue(lm, {"length": 12, "temperature": 0.7, "seed": 3}), [], []
    made = talk.say("class Stack:", frames.append, pieces.append)
    direct = lm.chat([{"role": "user", "content": "class Stack:"}], length=12, temperature=0.7, seed=3)
    assert made.completion == direct.completion == "".join(pieces) == talk.answer
    assert made.ids == direct.ids
    assert frames[0] == [(12 * "░", True)]
    drawn = [("".join(text for text, still in frame if not still), frame) for frame in frames]
    assert all(made.completion.startswith(final) for final, _ in drawn)
    assert [len(final) for final, _ in drawn] == sorted(len(final) for final, _ in drawn)
    assert all(not frame[0][1] for final, frame in drawn if final), "what is final comes first"
    assert drawn[-1] == (made.completion, [(made.completion, False)])
    hidden = ["".join(text for text, _ in frame).count("░") for frame in frames]
    assert hidden == sorted(hidden, reverse=True)


def test_nothing_is_final_where_tokens_are_masked_again(lm):
    frames = []
    made = Dialogue(lm, {"length": 8, "steps": 12, "remask": 0.3}).say("class Stack:", frames.append)
    assert len(frames) > 8
    assert all(still for frame in frames[:-1] for _, still in frame)
    assert frames[-1] == [(made.completion, False)]


@pytest.fixture
def filled(monkeypatch):
    """(canvas, ids that are never drawn) of each hole that is filled."""
    seen = []

    def spy(denoiser, canvases, options, forbidden, *rest):
        seen.extend((one, set(forbidden)) for one in canvases)
        return fill(denoiser, canvases, options, forbidden, *rest)

    monkeypatch.setattr("diffulm.infilling.fill", spy)
    return seen


def test_an_edit_fills_its_hole_from_both_sides(lm, filled):
    """One token at temperature 0: the likeliest on the canvas of BOS, question, left part, mask, right part, end."""
    talk = Dialogue(lm, {"length": 12}, "write Python", [("adds", "def add(a, b):\n    return a + b\n")])
    frames = []
    edited = talk.edit(["def add(a, b):\n    return a ", Hole(1), " b\n"], frames.append)
    template = template_of(lm.tokenizer)
    opening = template.opening([{"role": "system", "content": "write Python"}, {"role": "user", "content": "adds"}])
    left, right = template.part("def add(a, b):\n    return a "), template.part(" b\n")
    ids = [lm.record.bos_token_id, *opening, *left, lm.mask_token_id, *right, template.end]
    assert [one.ids.tolist() for one, _ in filled] == [ids]
    where = torch.tensor([ids]) == lm.mask_token_id
    logits = lm.denoiser(torch.tensor([ids]), where=where)[0]
    logits[[*lm.forbidden, template.end, lm.mask_token_id]] = -torch.inf
    assert edited.fills == [lm.tokenizer.decode(int(logits.argmax()))]
    assert edited.text == f"def add(a, b):\n    return a {edited.fills[0]} b\n"
    assert talk.turns == [("adds", edited.text)]
    assert frames[0] == [("def add(a, b):\n    return a ", False), ("░", True), (" b\n", False)]
    assert frames[-1] == [(edited.text, False)]


@pytest.mark.parametrize("hole", [Hole(1), Hole(1, 2)])
def test_an_edit_ends_as_the_template_ends_an_answer(lm, filled, hole):
    """A template with text and a token of its own behind an answer; nothing in a hole may be that token."""
    tokenizer = copy.copy(lm.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} !<|reserved_0|>{% endif %}{% endfor %}"
    )
    assert len(template_of(tokenizer).answer("")) > 1
    Dialogue(replace(lm, tokenizer=tokenizer), turns=[("q", "a = b")]).edit(["a = ", hole])
    assert template_of(tokenizer).answer("")[-1] == 2
    for made, forbidden in filled:
        behind = template_of(tokenizer).answer("")
        assert made.ids.tolist()[-len(behind) :] == behind
        assert bool(made.fixed[-len(behind) :].all())
        assert {2, lm.tokenizer.eos_token_id} <= forbidden


@settings(deadline=None, derandomize=True, max_examples=6)
@given(st.integers(0, 5), st.integers(1, 3), st.booleans())
def test_an_edit_changes_nothing_but_the_part_that_is_named(lm, start, count, free):
    words = "def close(self): self.file is None 日本🦜".split(" ")
    talk = Dialogue(lm, {"length": 12}, turns=[("earlier", "one"), ("q", " ".join(words))])
    named = " ".join(words[start : start + count])
    left, right = " ".join(words[:start]), " ".join(words[start + count :])
    parts = hole_in(talk.answer, named if free else f"<2> {named}", lm.tokenizer)
    if free:  # as few ways as still are several
        parts = [Hole(1, 2) if isinstance(part, Hole) else part for part in parts]
    text = talk.edit(parts).text
    assert text.startswith(left)
    assert text.endswith(right)
    assert len(text) >= len(left) + len(right)
    assert not free or text != " ".join(words), "there was another way"
    assert talk.turns == [("earlier", "one"), ("q", text)]


def test_an_edit_of_free_length_is_another_text(lm):
    talk = Dialogue(lm, turns=[("q", "def close(self): pass")])
    best = talk.edit(["def ", Hole(1, 2), "(self): pass"]).text
    assert talk.edit(["def ", Hole(1, 2), "(self): pass"]).text not in (best, "def close(self): pass")


def test_an_edit_of_a_long_answer_leaves_out_old_turns_for_itself_alone(lm, filled):
    talk = Dialogue(lm, {"length": 4}, turns=[("for i in range(10): " * 4, "x = 1")] * 3 + [("q", "a = 1")])
    talk.edit(["x = 1\n" * 35, Hole(1)])
    (made, _), template = filled[0], template_of(lm.tokenizer)
    answer = len(made.ids) - made.spans[0].start
    assert len(made.ids) <= 256 < 1 + len(template.opening(talk.messages[:-1])) + answer
    assert talk.left_out == 0


def test_an_edit_that_cannot_be_changes_nothing(lm):
    blocks = replace(lm, denoiser=copy.copy(lm.denoiser))
    blocks.denoiser.record = replace(lm.record, attention="block", block_size=4)
    for model, parts, words in (
        (blocks, ["a ", Hole(1)], "cannot infill"),
        (lm, ["a ", Hole(300)], "too many"),
        (lm, ["a"], "no hole"),
    ):
        talk = Dialogue(model, turns=[("q", "a b")])
        with bad(words):
            talk.edit(parts)
        assert talk.turns == [("q", "a b")]
    with bad("there is no answer yet"):
        Dialogue(lm).edit(["a ", Hole(1)])


def test_an_interrupted_edit_changes_nothing(lm):
    def stop(_):
        raise KeyboardInterrupt

    talk = Dialogue(lm, turns=[("q", "a b")])
    with pytest.raises(KeyboardInterrupt):
        talk.edit(["a ", Hole(2)], stop)
    assert talk.turns == [("q", "a b")]
