"""Forms: what is fixed stays, what is filled is of its kind, and JSON parses, whatever the model says."""

import copy
import datetime
import enum
import itertools
import json
import re
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

import diffulm
from diffulm import Hole, adopt, constraints, forms
from diffulm.chat import template_of
from diffulm.constraints import Automaton
from diffulm.forms import Gap, Run
from diffulm.samplers import by_name, sample
from diffulm.schema import FORMATS, blank
from diffulm.skeleton import TYPES, from_schema, skeleton
from models import bad, build
from test_canvas import byte_level, sentence_piece

pytest.importorskip("outlines_core")


@cache
def tiny(make):
    """An untrained model: it says anything."""
    words = make()
    return adopt(
        build("llama", vocab_size=len(words), max_position_embeddings=512, eos_token_id=words.eos_token_id), words
    )


@pytest.fixture(scope="module")
def pocket():
    return diffulm.load("pocket")


class Mood(enum.Enum):
    GOOD = "good"
    ODD = 'so "so"\n'


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    born: datetime.date | None
    tags: list[Literal["a", "b"]] = Field(max_length=3)
    mood: Mood
    at: tuple[int, str]


KINDS = [
    str, int, float, bool, int | None, Literal["x", 'a "b"', "é\\"], Literal[1, "one", None], list[str], list[int | bool],
    tuple[int, str], Mood, datetime.date, Hole(2), Hole(1, 4), Hole(), Hole(choices=["yes", "n\to"]), Hole(pattern="[a-c]+x?"),
]  # fmt: skip
FIXED = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 99), st.sampled_from([0.5, "", "a ", 'say "hi"\n', "<hole>", "é}"])
)
KEYS = st.sampled_from(["a", "name", "", 'k"1', "é b"])


def templates(holes: st.SearchStrategy) -> st.SearchStrategy:
    nested = st.recursive(
        st.one_of(holes, FIXED),
        lambda each: st.one_of(st.lists(each, max_size=3), st.dictionaries(KEYS, each, max_size=3)),
        max_leaves=5,
    )
    # a hole for certain, and something fixed around it
    return st.builds(lambda some, hole: {"some": some, "and": [hole, 1]}, nested, holes)


def fits(template: Any, value: Any) -> bool:
    """Whether a value is what the template says, hole by hole."""
    if isinstance(template, dict):
        return list(template) == list(value) and all(fits(each, value[key]) for key, each in template.items())
    if isinstance(template, list):
        return len(template) == len(value) and all(map(fits, template, value))
    if isinstance(template, Hole):
        if template.choices:
            return value in template.choices
        return isinstance(value, str) and bool(re.fullmatch(template.pattern or ".+", value, re.DOTALL))
    if template is None or isinstance(template, bool | int | float | str):
        return type(template) is type(value) and template == value
    TypeAdapter(template).validate_json(json.dumps(value), strict=True)  # raises
    return True


@pytest.mark.parametrize("make", [pytest.param(byte_level, marks=pytest.mark.slow), sentence_piece])
@settings(max_examples=6, deadline=None)
@given(
    template=templates(st.sampled_from(KINDS)), seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 1.0, 5.0])
)
def test_whatever_a_model_says_the_form_parses_and_is_of_its_kinds(make, template, seed, temperature):
    form = tiny(make).fill(template, length=6, seed=seed, temperature=temperature)
    assert json.loads(form.text) == form.value
    assert fits(template, form.value), (template, form.value)
    json.dumps(form.value, allow_nan=False)


MARKS = {
    '"<hole>"': str, '"<hole:3>"': str, "<hole:int>": int, "<hole:number>": (int, float), "<hole:bool>": bool,
    '"so <hole:1-3>, <hole:int>!"': str, "<hole:yes|no>": None, '"<hole:yes|no>"': str, "<hole:1|2>": int,
    "<hole:null>": type(None), "<hole>": (str, int, float, bool, type(None)), '<hole:"x"|[]|null>': (str, list, type(None)),
}  # fmt: skip
SPACE = st.sampled_from(["", " ", "  ", "\n\t"])


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_fixed_part_of_json_text_stays_byte_for_byte(make, data):
    marks = data.draw(
        st.lists(st.sampled_from([mark for mark in MARKS if mark != "<hole:yes|no>"]), min_size=1, max_size=4)
    )
    fields = [f'"k{i}"{data.draw(SPACE)}:{data.draw(SPACE)}{mark}{data.draw(SPACE)}' for i, mark in enumerate(marks)]
    template = f'{data.draw(SPACE)}{{{data.draw(SPACE)}{",".join(fields)},"x": 1.50 }}\n'
    form = tiny(make).fill(template, length=5, temperature=2.0, seed=data.draw(st.integers(0, 99)))
    fixed = [re.escape(piece) for piece in re.split(r"<hole(?::[^>]*)?>", template)]
    assert re.fullmatch("(?:.+)".join(fixed), form.text, re.DOTALL), (template, form.text)
    value = json.loads(form.text)
    assert value == form.value and value["x"] == 1.5
    for i, mark in enumerate(marks):
        assert isinstance(value[f"k{i}"], MARKS[mark]), (mark, value)
        if "yes" in mark:
            assert value[f"k{i}"] in ("yes", "no")


@pytest.mark.parametrize(
    "options",
    [
        *({"sampler": name} for name in forms.ORDERS), {"steps": 3}, {"steps": 1}, {"steps": 40, "schedule": "cosine"},
        {"threshold": 0.001}, {"entropy_bound": 50.0}, {"factor": 30.0}, {"block": 4}, {"top_p": 0.5}, {"top_k": 1}, {"n": 2},
    ],
    ids=str,
)  # fmt: skip
def test_every_way_to_fill_gives_json(options):
    """Many tokens at once, too: those that do not go together are not revealed together."""
    template = {"a": Hole(pattern="(ab|ba|cc)+"), "b": [Hole(4), int], "c": Mood}
    form = tiny(byte_level).fill(template, length=8, temperature=1.5, seed=1, **options)
    assert all(fits(template, one.value) for one in [form, *form.candidates])
    assert len(form.candidates) == (2 if options.get("n") else 0)
    if options.get("n"):
        assert form.candidates[0].value == form.value and len({one.text for one in form.candidates}) > 1
    if "steps" in options:
        assert form.forwards <= 40


def test_a_model_that_pydantic_knows_is_filled_as_it_says():
    fields = skeleton(Person)
    assert fields.parts[0] == '{"name": "' and fields.parts[-1] == '"]}'
    for form in tiny(byte_level).fill(Person, temperature=3.0, n=8).candidates:
        Person.model_validate_json(form.text, strict=True)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_a_character_may_take_several_tokens(make):
    """Texts that no vocabulary here has whole, chosen and drawn."""
    words = make()
    assert len(words.encode("日", add_special_tokens=False)) >= 3
    form = tiny(make).fill(
        {"a": Literal["日本", "ふじ"], "b": Hole(pattern="[日本語]{2}"), "c": Hole(6, pattern="[語]{2}")}
    )
    assert (
        form.value["a"] in ("日本", "ふじ")
        and re.fullmatch("[日本語]{2}", form.value["b"])
        and form.value["c"] == "語語"
    )


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_the_bytes_of_tokens_are_what_they_decode_to(make):
    words = make()
    texts = constraints.token_texts(words)
    found = constraints.token_bytes(words, texts)
    assert all(raw.decode() == text for raw, text in zip(found, texts, strict=True) if text)
    ids = words.encode("日本 é x", add_special_tokens=False)
    assert b"".join(found[token] for token in ids).decode().strip() == "日本 é x"
    assert not any(found[token] for token in words.all_special_ids)
    assert {raw for raw in found if len(raw) == 1} >= {bytes([byte]) for byte in range(128, 192)}


def test_a_tokenizer_without_eos_will_do():
    lm = tiny(byte_level)
    words = copy.deepcopy(lm.tokenizer)
    words.eos_token = None
    template = {"a": str, "b": Hole(3), "c": list[int]}
    assert fits(template, diffulm.lm.DiffusionLM(lm.denoiser, words).fill(template, temperature=2.0, length=5).value)


# What ends a hole, on a model that is known: tokens a, b, c, (, ) and EOS; it says abc, whatever it is asked

A, B, C, LEFT, RIGHT, EOS, MASK = range(7)


def machine(pattern: str) -> Automaton:
    return constraints.automaton(pattern, ["a", "b", "c", "(", ")", "", ""], EOS)


@pytest.mark.parametrize("size", [3, 4, 7])
def test_a_hole_ends_where_the_model_puts_what_follows_it_and_its_other_places_are_shown_no_more(size):
    shown = []

    def says(ids, where, present):
        """abc) from the left, counted in the canvas as it is shown."""
        shown.append(ids[present].tolist())
        at = where.nonzero()[:, 1] - 1
        logits = torch.zeros(len(at), 7)
        logits[torch.arange(len(at)), torch.tensor([A, B, C, RIGHT])[at.clamp(max=3)]] = 9.0
        return logits

    ids = torch.tensor([[LEFT, *[MASK] * size, RIGHT, A]])
    fixed = ids != MASK
    run = Run([[Gap(1, 1 + size, machine("[abc]+").padded(EOS), EOS, (RIGHT, EOS), True)]], MASK, by_name("confidence"))
    filled, forwards = sample(
        run.around(says), ids, fixed, torch.ones_like(fixed), mask_token_id=MASK, seeds=[0], sampler=run.order
    )
    assert filled.tolist() == [[LEFT, A, B, C, *[EOS] * (size - 3), RIGHT, A]]
    assert int(forwards) == len(shown) == (3 if size == 3 else 4)  # the places left over cost nothing
    assert all(EOS not in row for row in shown)


def filled(pattern: str, size: int, says: dict[int, int], sure: list[float], ordered: bool = True, **options):
    """(the texts of a hole of `size` places in the middle, in the order in which they stood there, the frames)"""
    frames = []
    ids = torch.tensor([[LEFT, *[MASK] * size, RIGHT]])
    one = machine(pattern)
    gap = Gap(1, 1 + size, one.padded(EOS) if ordered else one, EOS, (RIGHT, EOS), ordered)
    run = Run([[gap]], MASK, by_name("confidence"))

    def model(ids, where, present):
        at = where.nonzero()[:, 1]
        logits = torch.zeros(len(at), 7)
        for row, place in enumerate(at.tolist()):
            logits[row, says[place]] = sure[place - 1]
        return logits

    sample(
        run.around(model), ids, ids != MASK, torch.ones_like(ids).bool(), mask_token_id=MASK, seeds=[0],
        sampler=run.order, callback=lambda frame: frames.append(frame.ids[0, 1:-1].tolist()), **options,
    )  # fmt: skip
    return frames


def test_what_follows_a_hole_ends_it_even_if_it_might_stand_in_it():
    says = {1: A, 2: RIGHT, 3: B, 4: B}
    assert filled("[abc)]+", 4, says, [9.0] * 4)[-1] == [A, EOS, EOS, EOS]


def test_what_ends_a_text_ends_a_hole_and_its_probability_counts_with_that_of_what_follows():
    says = {1: A, 2: EOS, 3: B, 4: B}
    assert filled("[abc]+", 4, says, [9.0] * 4)[-1] == [A, EOS, EOS, EOS]
    # two tokens of logit 0 that end it are as good as one of logit log 2
    assert filled("[abc]+", 4, {1: A, 2: B, 3: C, 4: C}, [9.0, 0.6, 9.0, 9.0])[-1] == [A, EOS, EOS, EOS]
    assert filled("[abc]+", 4, {1: A, 2: B, 3: C, 4: C}, [9.0, 0.8, 9.0, 9.0])[-1] == [A, B, C, C]


def test_a_hole_of_unknown_length_is_filled_from_the_left_one_of_a_known_length_where_the_model_is_sure():
    says = {1: A, 2: B, 3: C}
    assert filled("[abc]+", 3, says, [1.0, 2.0, 3.0])[1] == [A, MASK, MASK]
    assert filled("[abc]+", 3, says, [1.0, 2.0, 3.0], ordered=False)[1] == [MASK, MASK, C]


def test_of_tokens_revealed_at_once_those_stand_that_go_together():
    frames = filled("ab|ba|cc", 2, {1: A, 2: A}, [3.0, 3.0], ordered=False, steps=1)
    assert frames[1:] == [[A, B]]  # what is left is certain then, and costs nothing


def test_what_a_closed_hole_leaves_over_is_not_shown_and_rows_do_not_mix():
    seen = []

    def says(ids, where, present):
        seen.append([row[there].tolist() for row, there in zip(ids, present, strict=True)])
        return torch.arange(7.0).expand(int(where.sum()), 7) + torch.arange(int(where.sum()))[:, None]

    gaps = [
        [Gap(1, 4, machine("a+").padded(EOS), EOS, (RIGHT, EOS), True)],
        [Gap(0, 2, machine("b+"), EOS, (RIGHT, EOS), False)],
    ]
    ids = torch.tensor([[LEFT, A, EOS, EOS, RIGHT, C], [B, MASK, C, 0, 0, 0]])
    present = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    where = ids == MASK
    logits = Run(gaps, MASK, by_name("random")).around(says)(ids, where, present)
    assert seen == [[[LEFT, A, RIGHT, C], [B, MASK, C]]]
    assert logits.isfinite().nonzero().tolist() == [[0, B]]


@pytest.mark.parametrize("pattern", ["a*b", "(ab)*c", "a|bb"])
def test_padding_stands_behind_a_text_and_nowhere_else(pattern):
    words = "abc"
    padded = machine(pattern).padded(EOS)
    whole = {
        (*row, *[EOS] * (4 - size))
        for size in range(5)
        for row in itertools.product(range(3), repeat=size)
        if re.fullmatch(pattern, "".join(words[token] for token in row))
    }
    for first in [None, A, B, C, EOS]:
        fitting = [row for row in whole if first in (None, row[0])]
        allowed = padded.allowed([first, None, None, None])
        assert (allowed or None) == ([set(column) for column in zip(*fitting, strict=True)] or None)
    assert padded.allowed([99, None]) is None


def test_the_same_alone_in_a_batch_and_again():
    template, prompts = {"a": str, "b": int, "c": Hole(3)}, ["", "the cat ", "on the mat: ", "A dog"]
    options = {"length": 6, "temperature": 1.0}
    lm, seeds = tiny(byte_level), [5, 6, 7, 8]
    together = lm.fill(template, prompt=prompts, seed=seeds, batch_size=3, **options)
    alone = [lm.fill(template, prompt=one, seed=seed, **options) for one, seed in zip(prompts, seeds, strict=True)]
    assert [replace(one, seconds=0.0) for one in alone] == [replace(one, seconds=0.0) for one in together]
    assert len({one.text for one in together}) > 1


def test_a_form_stands_where_a_reply_would(pocket):
    """Behind what the chat template opens, with its end after it."""
    talk = [{"role": "user", "content": "Who is it?"}]
    form = pocket.fill('{"name": "<hole:2>"}', prompt=talk)
    template = template_of(pocket.tokenizer)
    opening, end = [pocket.record.bos_token_id, *template.opening(talk)], template.answer("")
    assert form.ids[: len(opening)] == opening and form.ids[-len(end) :] == end
    assert pocket.tokenizer.decode(form.ids[len(opening) : -len(end)]) == form.text


def test_plain_text_is_filled_too(pocket):
    form = pocket.fill("def <hole:1>(self): self.file.close()\n# <hole:yes|no> <hole:int>\n")
    assert (
        form.value is None and form.fills[0] == "close" and form.fills[1] in ("yes", "no") and form.fills[2].isdigit()
    )
    assert form.text == f"def close(self): self.file.close()\n# {form.fills[1]} {form.fills[2]}\n"


def test_a_hole_in_text_stays_within_its_line_unless_it_has_one_for_itself():
    blanks = skeleton("# <hole>\n\n<hole>\n<hole>.\n<hole:1-9>").parts[1::2]
    assert [bool(re.fullmatch(one.pattern, "a\nb")) for one in blanks] == [False, True, False, True]
    assert all(re.fullmatch(one.pattern, 'a "b" é') for one in blanks)


def test_a_space_before_a_hole_may_be_the_beginning_of_its_token(shared):
    """As GPT-2 writes ` 3` and ` Bob`; what is fixed keeps its space."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(shared / "data/tokenizers/gpt2")
    lm = adopt(build("gpt2", vocab_size=len(words), eos_token_id=words.eos_token_id, n_positions=128), words)
    form = lm.fill('{"a": <hole:int>, "b": "to <hole:1-2>"}', length=3, temperature=2.0)
    assert re.fullmatch(r'\{"a": -?\d+, "b": "to .+"\}', form.text, re.DOTALL) and form.value["a"] == form.fills[0]
    start = form.ids.index(words.encode('":')[0])
    assert words.decode(form.ids[start + 1])[0] == " "


PROMPTS = [f'"""Module {i}."""\n\nRECORD = ' for i in range(200)]
RECORD = {
    "name": str,
    "version": float,
    "stable": bool,
    "kind": Literal["module", "package"],
    "uses": list[str],
    "lines": int,
}


@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_all_forms_of_many_prompts_parse(pocket, count):
    made = pocket.fill(RECORD, prompt=PROMPTS[:count], length=8, temperature=1.0)
    assert sum(fits(RECORD, json.loads(one.text)) for one in made) == count


# What a schema becomes


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        ("int", ["0", "-12", "907"], ["01", "1.0", "+1", "", "1e3", "--1"]),
        ("number", ["0", "-0.50", "12.25"], [".5", "1.", "1e400", "NaN", "Infinity", "01.5"]),
        ("bool", ["true", "false"], ["True", "1"]),
        ("date", ["2026-11-21"], ["2026-13-01", "26-1-1", "٢٠٢٦-11-21"]),
        ("uuid", ["01234567-89ab-cdef-0123-456789abcdef"], ["0", "01234567-89AB-cdef-0123-456789abcdef"]),
        ("str", ["a", 'a \\"b\\" \\n', "é", "\\\\"], ['"', "\\", "a\n", "\\x", "\x7f", ""]),
    ],
)
def test_what_a_kind_takes(kind, inside, outside):
    pattern = blank({"type": "string", "format": kind} if kind in FORMATS else {"type": TYPES[kind]}).pattern
    assert all(re.fullmatch(pattern, text) for text in inside)
    assert not any(re.fullmatch(pattern, text) for text in outside)


def test_what_is_given_by_a_schema_is_text():
    point = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0}, "y": {"$ref": "#/$defs/Way"}}}
    fields = {
        "at": {"$ref": "#/$defs/Point"},
        "two": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        "v": {"type": ["integer", "null"]},
        "e": {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4},
    }
    ways = {"enum": ["up", "down"], "title": "a way"}
    schema = {"type": "object", "properties": fields, "$defs": {"Point": point, "Way": ways}}
    form = from_schema(json.dumps(schema))
    assert form == skeleton(schema) == skeleton(json.dumps(schema, indent=1))
    assert "".join(part if isinstance(part, str) else "_" for part in form.parts) == (
        '{"at": {"x": _, "y": "_"}, "two": [_, _], "v": _, "e": _}'
    )
    assert form.parts[-2].options == ("2", "3")
    assert re.fullmatch(form.parts[1].pattern, "7") and not re.fullmatch(form.parts[1].pattern, "-7")


def test_a_limit_beyond_what_is_counted_holds_by_the_size_of_tokens():
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 60}}}
    made = tiny(byte_level).fill(schema, length=20, temperature=5.0, n=8)
    texts = constraints.token_texts(tiny(byte_level).tokenizer)
    assert max(map(len, texts)) > 3
    # 20 tokens of at most 3 characters
    assert max(len(texts[token]) for one in made.candidates for token in one.ids[3:]) == 3
    assert all(0 < len(one.value["a"]) <= 60 for one in made.candidates)


BAD = {
    "no hole": ({"a": 1}, "there is no hole in the template"),
    "no hole in text": ("a", "there is no hole"),
    "empty": ("", "there is no hole"),
    "not JSON": ('{"a": "<hole>"', "this is no JSON: .*line 1 column"),
    "a bare key": ('{<hole>: "a"}', "this is no JSON"),
    "a hole in a key": ('{"<hole>": 1}', "a hole stands in the key '<hole>'"),
    "a key twice": ('{"a": <hole>, "a": 1}', "the key 'a' twice"),
    "a key that is no text": ({1: str}, "the key 1: keys are text"),
    "NaN": ('{"a": NaN, "b": <hole>}', "NaN, which is no JSON"),
    "infinity": ({"a": float("inf"), "b": str}, "inf is nothing that JSON can say"),
    "bytes": ({"a": b"x", "b": str}, "a: b'x' is neither a type nor"),
    "misspelt": ('{"a": <hole:itn>}', "'<hole:itn>' is not a hole: did you mean <hole:int>"),
    "no kind": ("<hole:?>", "is not a hole: write"),
    "none long": ("<hole:0>", "is not a hole"),
    "choices that are no JSON": ('{"a": <hole:yes|no>}', "this is no JSON"),
    "an empty choice": ({"a": Literal["", "b"]}, "none of them is empty"),
    "side by side": ("<hole><hole>", "two holes stand side by side"),
    "between": ({"a": Hole(2, 8)}, r"a: in a form a hole has exactly so many tokens.*Hole\(1, 8\)"),
    "a mapping": ({"a": dict[str, int]}, "a: the schema has an object without properties"),
    "a set": ({"a": set[int]}, "a: the schema has 'uniqueItems', which no regular"),
    "a range": ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 7}}}, "a: a range of whole numbers"),
    "a wide range": ({"type": "integer", "minimum": 0, "maximum": 10**9}, "a range of whole numbers has two ends"),
    "not": ({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}, "a: the schema has 'not'"),
    "an unknown type": ({"type": "text"}, "the schema has the type 'text'; there are"),
    "an unknown format": ({"type": "string", "format": "colour"}, "the format 'colour' is not known"),
    "a lost reference": ({"$ref": "#/$defs/A"}, "refers to '#/\\$defs/A'"),
    "a loop": ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, "refers to itself"),
    "a pattern in a list": ({"a": list[datetime.time]}, r"a\[\]: a pattern or format is for a field of its own"),
    "pattern and length": ({"type": "string", "pattern": "a", "maxLength": 3}, "a pattern, a format or a length"),
    "a long list": ({"type": "array", "minItems": 999}, "a list has items of one kind"),
    "no expression": ({"a": Hole(pattern="(?=a)b")}, "it is not a regular expression here"),
    "what needs quotes": ({"a": Hole(pattern='"+')}, "no tokens can spell"),
    "too short": ({"a": Hole(2, pattern="b{90}")}, "no text of 2 tokens is what a hole asks for"),
    "too long": ({f"k{i}": str for i in range(60)}, "the model's context is 256: give less"),
    "not a type": ({"a": lambda: 0}, "neither a type nor what JSON can say"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_template_that_cannot_be_used_is_one_line(name, pocket):
    template, words = BAD[name]
    with bad(words):
        pocket.fill(template)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "verified"}, "sampler=verified: a form is filled in one of the orders confidence"),
        ({"sampler": "published_random"}, "in one of the orders"),
        ({"stop": ["x"]}, "stop, remask, .* do not go with a form"),
        ({"remask": 0.5}, "do not go with a form"),
        ({"cache": "dual"}, "do not go with a form"),
        ({"length": 0}, "length"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "begins with the assistant's turn"),
        ({"prompt": 3}, "a conversation is a list of messages"),
        ({"length": 400}, "the model's context is 256"),
    ],
    ids=str,
)
def test_options_that_do_not_go_with_a_form_are_one_line(options, words, pocket):
    with bad(words):
        pocket.fill({"a": str}, **options)


def test_a_model_that_sees_nothing_to_its_right_is_refused(pocket, monkeypatch):
    monkeypatch.setattr(type(pocket.record), "infills", property(lambda _: False))
    with bad("never trained to see text to the right"):
        pocket.fill({"a": str})


def test_without_outlines_it_says_what_to_install(pocket, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "outlines_core.json_schema", None)
    with bad("pip install outlines-core"):
        pocket.fill({"a": str})


# The verb


def test_the_verb_prints_the_form(run, tmp_path, monkeypatch):
    text = '{"name": "<hole:2>",\n "stable": <hole:bool>}'
    code, out, _ = run("fill", "pocket", "--text", text)
    assert (
        code == 0
        and out.startswith('{"name": "')
        and out.endswith("}\n")
        and json.loads(out)["stable"] in (True, False)
    )
    file = tmp_path / "form.json"
    file.write_text(text)
    assert run("fill", "pocket", "--template", str(file))[1] == out
    code, document, _ = run(
        "fill", "pocket", "--text", text, "--prompt", "x = ", "--json", "--n", "2", "--temperature", "1"
    )
    document = json.loads(document)
    assert document["value"] == json.loads(document["text"]) and len(document["candidates"]) == 2
    assert document["fills"] == list(document["value"].values()) and document["options"]["length"] == 16
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"ok": {"type": "boolean"}}}')
    code, out, _ = run("fill", "pocket", "--schema", str(schema), "--message", "Is it?")
    assert code == 0 and out in ('{"ok": true}\n', '{"ok": false}\n')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--text': give one of --text, --template and --schema"),
        (["--text", "<hole>", "--template", "a"], "--template and --text are two forms"),
        (["--text", "<hole>", "--prompt", "a", "--message", "b"], "give one of them"),
        (["--template", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--text", '{"a": <hole:itn>}'], "did you mean <hole:int>"),
        (["--text", "<hole>", "--stop", "a"], "stop, remask"),
        (["--text", "<hole>", "--message", " "], "has no text"),
    ],
)
def test_a_form_that_cannot_be_is_one_line_of_the_verb(arguments, words, run):
    code, out, error = run("fill", "pocket", *arguments)
    assert (code, out) == (2, "") and words in error and error.count("\n") == 1
