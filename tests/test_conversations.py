"""Conversations to rows: what a model is trained on is what it is asked, every example once, none in sight of another."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffulm.chat import Template, template_of
from diffulm.data import conversations
from diffulm.data.conversations import FIXED, PADDING, REPLY, Counts, Example, Shape, examples, laid, messages_of
from diffulm.data.documents import Skips
from diffulm.lm import DiffusionLM
from diffulm.recipes import pocket
from models import bad, flip
from runs import WORDS

BOS, PAD = 1, 2
few = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def template() -> Template:
    return template_of(pocket.tokenizer([" ".join(WORDS) * 20], 300))


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


def lines(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


# -- rows of data


@pytest.mark.parametrize(
    ("row", "talk"),
    [
        ({"messages": turns("a", "b", "c", "d")}, turns("a", "b", "c", "d")),
        ({"messages": turns("a", "b", "c"), "text": 3}, turns("a", "b")),  # nothing replies to the last one
        ({"prompt": "a", "response": "b", "id": 7}, turns("a", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, turns("a", "b")),
        ({"instruction": "a", "input": None, "output": "b"}, turns("a", "b")),
        ({"instruction": "a", "output": "b"}, turns("a", "b")),
        ({"instruction": "a", "input": "c d", "output": "b"}, turns("a\n\nc d", "b")),
    ],
)
def test_the_shapes_of_rows(row, talk):
    assert messages_of(row) == talk


def test_format_strings_name_other_fields():
    row = {"question": "1 + 1?", "chain": "1 + 1 = 2", "answer": 2, "messages": "mine"}
    told = messages_of(row, "{question}", "{chain}\n#### {answer}")
    assert told == turns("1 + 1?", "1 + 1 = 2\n#### 2")
    assert messages_of({"a": {"b": ["x", "y"]}}, "{a[b][1]}", "z{{}}") == turns("y", "z{}")


@pytest.mark.parametrize(
    ("row", "fields", "said"),
    [
        ({"text": "a"}, (), "holds no conversation: it has text, not messages"),
        ({}, (), "holds no conversation: it has none"),
        ({"prompt": "a"}, (), "holds no conversation: it has prompt"),
        ({"prompt": "a", "response": " "}, (), "has no answer: its text is empty"),
        ({"prompt": "a", "response": None}, (), "has no answer"),
        ({"prompt": 5, "response": "b"}, (), "has no prompt"),
        ({"instruction": "", "output": "b"}, (), "has no prompt"),
        ({"instruction": "a", "output": ""}, (), "has no answer"),
        ({"messages": turns("a")}, (), "has no answer: no message is the assistant's"),
        ({"messages": turns("a", "\ud800")}, (), "message 2 is not Unicode text"),
        ({"messages": "a"}, (), "a conversation is a list of messages"),
        ({"q": "a"}, ("{q}", "{a}"), "'{a}' asks for 'a', which this row does not have; it has q"),
        ({"q": "a"}, ("{0}", "{q}"), "'{0}' asks for "),
        ({"q": "a"}, ("{q}", "{q!x}"), "'{q!x}' asks for "),
        ({"q": "a"}, ("{q.__class__.nothing}", "{q}"), "asks for "),
    ],
)
def test_rows_that_hold_no_conversation(row, fields, said):
    with bad(said.replace("{", "\\{").replace("}", "\\}")):
        messages_of(row, *fields)


# -- training lays out what decoding asks


class Asked(Exception):
    """In the place of a reply: the canvas that was to be filled."""

    @staticmethod
    def of(lm: DiffusionLM, denoiser: Any, canvases: list[Any], *rest: Any) -> None:
        raise Asked(canvases[0])


@few
@given(
    talk=st.lists(st.sampled_from(["the cat", "say: a b", "é🦜 ", "<|mask|>", " red\n\nball"]), min_size=2, max_size=6),
    system=st.booleans(),
    seed=st.integers(0, 9),
    padding=st.sampled_from(["random", "full", "none"]),
)
def test_what_is_fixed_is_what_chat_puts_on_its_canvas(child, template, talk, system, seed, padding):
    """Up to its first free position an example is the canvas of `lm.chat`, and then it is the reply, its end, padding."""
    lm: DiffusionLM = child.lm
    mine, said = template_of(lm.tokenizer), turns(*talk)
    said = [{"role": "system", "content": "be kind"}, *said] if system else said
    shape = Shape(200, padding=padding, seed=seed)
    row = {"messages": said}
    made = list(conversations._examples(messages_of(row), mine, [lm.record.bos_token_id], "each"))
    replies = [n for n, one in enumerate(said) if one["role"] == "assistant"]
    assert len(made) == len(replies)
    for at, one in zip(replies, made, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DiffusionLM, "_fill", Asked.of)
            with pytest.raises(Asked) as caught:
                lm.chat(said[:at], 8)  # pyright: ignore[reportArgumentType]
        (canvas,) = caught.value.args
        ids, kinds = laid(one, 0, shape, mine.pad)
        first = next(n for n, kind in enumerate(kinds) if kind != FIXED)
        fixed = int(canvas.fixed.sum())
        assert ids[:first] == canvas.ids[:fixed].tolist() and canvas.fixed[:fixed].all()
        assert kinds[:first] == [FIXED] * first
        answer = mine.answer(said[at]["content"])
        assert ids[first : first + len(answer)] == answer and answer[-1] == canvas.ends[0]
        assert set(ids[first + len(answer) :]) <= {canvas.ends[1] or canvas.ends[0]}
        assert kinds[first:] == [REPLY] * len(answer) + [PADDING] * (len(ids) - first - len(answer))


@pytest.mark.parametrize(("which", "count"), [("each", 2), ("last", 1)])
def test_turns(template, tmp_path, which, count):
    data = lines(tmp_path / "a.jsonl", [{"messages": turns("one", "two", "three", "four")}])
    found = list(examples(data, template, BOS, Shape(64, turns=which), Counts()))
    assert [one.reply for one in found] == [template.answer(text) for text in ("two", "four")][-count:]
    assert found[-1].opening == [BOS, *template.opening(turns("one", "two", "three"))]


# -- what does not fit


def test_what_does_not_fit_is_dropped_cut_or_an_error(template, tmp_path):
    rows = [{"prompt": "a", "response": "b " * n} for n in (2, 30, 3, 40)] + [{"prompt": "a " * 60, "response": "b"}]
    data = lines(tmp_path / "a.jsonl", rows)

    def made(too_long: str) -> tuple[list[Example], Counts]:
        counts = Counts()
        return list(examples(data, template, BOS, Shape(24, too_long=too_long), counts)), counts

    dropped, counts = made("drop")
    assert [len(one.reply) for one in dropped] == [len(template.answer("b " * n)) for n in (2, 3)]
    assert (counts.conversations, counts.examples, counts.dropped, counts.cut) == (5, 2, 3, 0)
    assert counts.longest_reply == len(template.answer("b " * 3))
    assert str(counts).startswith("3 replies that do not fit left out: ") and "a.jsonl, conversation 2" in str(counts)
    cut, counts = made("cut")
    assert (counts.examples, counts.dropped, counts.cut) == (4, 1, 2), "a prompt without room for a reply is dropped"
    assert [len(one.opening) + len(one.reply) for one in cut[1::2]] == [24, 24] and template.end not in cut[1].reply
    assert cut[1].reply == template.answer("b " * 30)[: len(cut[1].reply)] and counts.longest_reply == len(cut[1].reply)
    assert "2 replies that do not fit cut" in str(counts)
    longest = 1 + len(template.opening(turns("a"))) + len(template.answer("b " * 30))
    with bad(f"a.jsonl, line 2: takes {longest} positions, a row has 24; set length higher, or too_long=drop or cut"):
        made("stop")
    exactly = Shape(longest, too_long="stop")
    assert len(list(examples(lines(tmp_path / "b.jsonl", rows[:2]), template, BOS, exactly, Counts()))) == 2


def test_bad_rows_are_counted(template, tmp_path):
    data = lines(
        tmp_path / "a.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a"}, {"prompt": "c", "response": ""}]
    )
    with bad("a.jsonl, line 2: holds no conversation: it has prompt"):
        list(examples(data, template, BOS, Shape(64), Counts()))
    skips, counts = Skips(), Counts()
    assert len(list(examples(data, template, BOS, Shape(64), counts, skips=skips))) == counts.conversations == 1
    assert skips.count == 2 and "a.jsonl, line 3: has no answer" in str(skips)


# -- padding and truncation

ONE = Example([BOS, 5, 6, 7], [8, 9, 10, PAD])


def padding_of(shape: Shape, number: int = 0) -> int:
    ids, kinds = laid(ONE, number, shape, PAD)
    assert ids == [*ONE.opening, *ONE.reply, *[PAD] * (len(ids) - 8)]
    return kinds.count(PADDING)


def test_the_policies_of_padding():
    assert padding_of(Shape(20, padding="none")) == 0
    assert padding_of(Shape(20, padding="full")) == 12
    assert [padding_of(Shape(20, padding="block", align=size)) for size in (1, 3, 4, 5, 16)] == [0, 1, 0, 2, 8]
    assert padding_of(Shape(8, padding="full")) == padding_of(Shape(8, padding="block", align=5)) == 0
    assert padding_of(Shape(10, padding="block", align=16)) == 2, "a row ends there"


def test_random_padding_is_uniform_and_a_function_of_the_seed():
    shape = Shape(64, padding="random", padding_tokens=7)
    drawn = [padding_of(shape, n) for n in range(4000)]
    assert drawn == [padding_of(shape, n) for n in range(4000)]
    assert drawn != [padding_of(Shape(64, padding="random", padding_tokens=7, seed=1), n) for n in range(4000)]
    # 500 of each in the mean, standard deviation 21
    assert set(drawn) == set(range(8)) and all(abs(drawn.count(n) - 500) < 100 for n in range(8))
    assert {padding_of(Shape(10, padding="random", padding_tokens=7), n) for n in range(99)} == {0, 1, 2}, (
        "the row ends"
    )
    assert {padding_of(Shape(64, padding="random", padding_tokens=0), n) for n in range(9)} == {0}


def test_truncation_cuts_anywhere_within_the_reply_and_leaves_no_end():
    shape = Shape(64, padding="full", truncation=0.25)
    lengths = [len(laid(ONE, n, shape, PAD)[0]) for n in range(4000)]
    cut = [length - 4 for length in lengths if length < 64]
    # a quarter of 4000, standard deviation 27
    assert abs(len(cut) - 1000) < 130 and set(cut) == {1, 2, 3}
    assert all(abs(cut.count(n) - len(cut) / 3) < 100 for n in (1, 2, 3))
    for n in range(50):
        ids, kinds = laid(ONE, n, shape, PAD)
        if len(ids) < 64:
            assert PAD not in ids and PADDING not in kinds
    alone = Example([BOS], [PAD])
    assert all(laid(alone, n, Shape(8, padding="none", truncation=0.99), PAD)[1] == [FIXED, REPLY] for n in range(50))


# -- rows


@few
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=120),
    align=st.sampled_from([1, 4]),
    packing=st.booleans(),
    padding=st.sampled_from(["random", "block", "none"]),
)
def test_every_example_is_in_once_and_documents_do_not_overlap(sizes, align, packing, padding):
    shape = Shape(16, padding=padding, padding_tokens=3, align=align, packing=packing)
    # ids that say which example they are of
    made = [
        Example([100 * n + i for i in range(a)], [100 * n + 50 + i for i in range(b)])
        for n, (a, b) in enumerate(sizes, 1)
    ]
    parts = [laid(one, n, shape, PAD) for n, one in enumerate(made)]
    rows = list(conversations.rows(iter(parts), shape, PAD))
    found = []
    for ids, document, kind in rows:
        assert len(ids) == len(document) == len(kind) == 16
        assert document[0] == 0 and all(b - a in (0, 1) for a, b in itertools.pairwise(document))
        for number in range(document[-1] + 1):
            first, last = document.index(number), document.index(number) + document.count(number)
            if kind[first:last] == [FIXED] * (last - first) and set(ids[first:last]) == {PAD}:
                continue  # a gap: nothing to learn, and a document of its own
            assert first % align == 0
            found.append((ids[first:last], kind[first:last]))
    assert sorted(found) == sorted(parts)
    if not packing:
        assert found == parts and len(rows) == len(sizes)
    elif align == 1:
        gaps = [
            document[-1] + 1 - len({d for d, k in zip(document, kind, strict=True) if k}) for _, document, kind in rows
        ]
        assert max(gaps) <= 1, "at the end of a row alone"


def test_short_examples_fill_the_gaps_of_long_ones():
    shape = Shape(16, padding="none")
    parts = [laid(Example([1] * a, [8]), n, shape, PAD) for n, a in enumerate((11, 11, 11, 3, 3, 3))]
    assert len(list(conversations.rows(iter(parts), shape, PAD))) == 3


# -- kept in a folder


def built(template, data, folder, shape=Shape(48, padding_tokens=4), **more):
    return conversations.build(data, template, BOS, shape, folder, **more)


def rows_of(dataset) -> list[tuple[list[int], ...]]:
    return [(row["ids"], row["document"], row["kind"]) for row in dataset]


def test_a_folder_of_rows_is_used_again_and_made_again_when_it_is_not_what_is_asked_for(template, tmp_path):
    data = lines(tmp_path / "a.jsonl", [{"prompt": f"say: {w}", "response": w} for w in WORDS])
    arrow = tmp_path / "rows" / "blocks.arrow"

    def again(**more):
        rows, held, manifest = built(template, data, tmp_path / "rows", **more)
        return rows_of(rows), rows_of(held), manifest, arrow.stat().st_ino

    first = again(hold_out=4)
    assert again(hold_out=4) == first
    assert first[2]["examples"] == len(WORDS) and len(first[1]) == min(4, len(WORDS) // 10)
    flip(arrow)
    damaged = again(hold_out=4)
    assert damaged[:3] == first[:3] and damaged[3] != first[3]
    for more in ({"hold_out": 0}, {"shape": Shape(48, seed=1)}, {"fields": ("{prompt}", "{response}")}):
        assert again(**more)[2]["wanted"] != first[2]["wanted"]
    lines(tmp_path / "a.jsonl", [{"prompt": "one", "response": "two"}] * 12)
    changed = again(hold_out=4)
    assert changed[2]["examples"] == 12 and changed[2]["wanted"] != first[2]["wanted"]


def test_what_was_left_out_is_said_again(template, tmp_path):
    data = lines(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a"}] * 3)
    told = []
    for _ in range(2):
        skips = Skips()
        built(template, data, tmp_path / "rows", skips=skips)
        told.append(str(skips))
    assert told[0] == told[1] and told[0].startswith("3 bad rows left out: ")


@pytest.mark.parametrize(("count", "asked", "held"), [(50, 4, 4), (50, 64, 5), (2, 64, 1), (11, 64, 1), (50, 0, 0)])
def test_what_is_held_out_is_the_end_of_the_data_and_is_not_trained_on(template, tmp_path, count, asked, held):
    data = lines(tmp_path / "a.jsonl", [{"prompt": f"say: {n}", "response": f"{n}"} for n in range(count)])
    rows, last, manifest = built(template, data, tmp_path / "rows", hold_out=asked)
    answers = [tuple(template.answer(f"{n}")) for n in range(count)]
    replies = []
    for ids, document, kind in rows_of(rows):
        for number in set(document):
            replies += [tuple(t for t, d, k in zip(ids, document, kind, strict=True) if (d, k) == (number, REPLY))]
    assert sorted(filter(None, replies)) == sorted(answers[: count - held])
    alone = [tuple(t for t, k in zip(ids, kind, strict=True) if k == REPLY) for ids, _, kind in rows_of(last)]
    assert alone == answers[count - held :] and manifest["held_out"] == held
    assert all(PADDING not in kind for _, _, kind in rows_of(last))
    assert manifest["documents"] == max(document[-1] + 1 for _, document, _ in rows_of(rows))


def test_no_conversation_that_fits(template, tmp_path):
    data = lines(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b " * 90}] * 3)
    with bad("a.jsonl: should have a conversation that fits .*3 replies that do not fit left out.*set length higher"):
        built(template, data, tmp_path / "rows")
    one = lines(tmp_path / "b.jsonl", [{"prompt": "a", "response": "b"}])
    with bad(
        "b.jsonl: should have two conversations that fit, one to be held out, it has 1; set length higher, or give more"
    ):
        built(template, one, tmp_path / "rows", hold_out=4)
    assert not (tmp_path / "rows").exists() and not (tmp_path / "rows.tmp").exists()
