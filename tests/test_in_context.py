"""Shots before what is asked, votes on what is drawn, and the probe of benchmarks/in_context.py."""

import importlib
import json
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

import diffulm
from diffulm.denoiser.adopt import adopt
from diffulm.errors import BadInput
from diffulm.evaluation import answers, shots
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.suite import choices
from diffulm.evaluation.trial import Trial
from diffulm.lm import DiffusionLM, Generation, load
from models import build, tokenizer

ROOT = Path(__file__).parents[1]
SIQA = [
    {"context": f"w{n} w3", "question": "w4", "answers": ["w5", "w6", f"w{n}"], "label": n % 3} for n in range(10, 18)
]


# --- n draws and their vote ---


@pytest.fixture(scope="module")
def pocket() -> DiffusionLM:
    return load("pocket")


def test_n_draws_are_one_batch_and_do_not_depend_on_n(pocket):
    frames = []
    eight = pocket.generate("x = ", 6, n=8, steps=3, temperature=1.0, callback=frames.append)
    assert {frame.rows for frame in frames} == {tuple(range(8))} and len(frames) <= 4, "all eight in each forward"
    three = pocket.generate("x = ", 6, n=3, steps=3, temperature=1.0)
    texts = [one.fills[0] for one in eight.candidates]
    assert [one.fills[0] for one in three.candidates] == texts[:3]
    assert pocket.generate("x = ", 6, steps=3, temperature=1.0).completion == texts[0] == eight.completion
    assert len(set(texts)) > 4, "draws differ"
    said = [answers.normalised(text) or None for text in texts]
    assert diffulm.vote(eight, "text") == answers.Vote(answers.majority(said), tuple(said))


def test_the_vote_is_the_answer_given_most_often():
    drawn = ["so 5", "it is 7.0", "$7", "nothing", "7 apples"]
    found = diffulm.vote(drawn)
    assert (found.answer, found.answers, found.share) == ("7", ("5", "7", "7", None, "7"), 0.6)
    assert diffulm.vote(drawn, "marked") == answers.Vote(None, (None,) * 5) and diffulm.vote(["a"]).share == 0
    assert diffulm.vote(["1 #### 2", "3 #### 2", "#### 4"], "marked").answer == "2"
    assert diffulm.vote(["(B) is", "B.", "(C)"], "letter").answer == "B"
    assert diffulm.vote(["The cat.", "cat", "a dog"], "text").answer == "cat"
    assert diffulm.vote(["ab", "ac"], lambda text: text[0]).answer == "a"
    one = Generation("x = 3", [1], 1, 0.0, completion="3")
    assert diffulm.vote(one) == answers.Vote("3", ("3",)), "one draw has no candidates beside it"
    with pytest.raises(BadInput, match="unknown way to find an answer 'numbers'; did you mean 'number'"):
        diffulm.vote(drawn, "numbers")


# --- shots ---


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return Subject("tiny", DiffusionLM(*adopt(build("llama", max_position_embeddings=64), tokenizer())))


def test_a_shot_reads_as_its_question_and_its_answer():
    choice = {"context": "w3", "choices": [" w4", " w5"], "label": 1}
    assert shots.shot(choice) == "w3 w5\n\n"
    assert shots.shot(choice | {"suffix": " w6"}) == "w3 w5 w6\n\n"
    assert shots.shot({"contexts": ["w3 w4", "w3 w5"], "continuation": " w7", **choice}) == "w3 w5 w7\n\n"
    assert (
        shots.shot({"context": "w3:", "continuation": " w8", "answer": "w8", "choices": ["w9"], "label": 0})
        == "w3: w8\n\n"
    )


@pytest.mark.parametrize("limit", [2, None])
def test_shots_stand_before_every_choice_of_a_question(tmp_path, tiny, monkeypatch, limit):
    (tmp_path / "siqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SIQA))
    asked = []
    answer = choices.journaled
    monkeypatch.setattr(choices, "journaled", lambda *args, **how: asked.extend(args[3]) or answer(*args, **how))
    trial = Trial(tiny, data=tmp_path, limit=limit, shots=3)
    plain, *_ = (cell for cell in choices.run(replace(trial, shots=None)) if cell.task == "siqa")
    without, asked[:] = list(asked), []
    cell, *_ = (cell for cell in choices.run(trial) if cell.task == "siqa")
    assert (cell.settings["shots"], cell.settings["shots_used"], cell.count) == (3, 3.0, limit or 5)
    assert (cell.note, plain.note) == ("3 shots", ""), "it stands under the column of a figure without shots"
    assert plain.settings["shots"] == 0 and "shots_used" not in plain.settings and plain.count == (limit or 8)
    before = asked[0].texts[0][0].removesuffix(without[0].texts[0][0])
    assert before.count("\n\n") == 3 and all(f"w{n} w3" in before for n in (15, 16, 17)), "the last rows, never asked"
    for one, bare in zip(asked, without[: len(asked)], strict=True):
        assert one == replace(bare, texts=tuple((before + context, *rest) for context, *rest in bare.texts))


def test_without_shots_no_more_rows_are_read_than_are_asked(tmp_path, tiny):
    (tmp_path / "siqa.jsonl").write_text(json.dumps(SIQA[0]) + "\nnot a row\n")
    trial = Trial(tiny, data=tmp_path, limit=1)
    assert [cell.count for cell in choices.run(trial) if cell.task == "siqa"] == [1]
    assert [
        "line 2: not JSON" in cell.note for cell in choices.run(replace(trial, shots=1)) if cell.task == "siqa"
    ] == [True]


def test_as_many_shots_as_leave_room_for_the_longest_choice(tiny):
    rows = [{"context": "w3", "continuation": " w4"}] * 9  # two words each; BOS and 61 positions
    for length, longest, count in ((0, 45, 9), (0, 46, 8), (1, 45, 8), (44, 2, 8), (0, 61, 1), (0, 62, 0)):
        texts = ["w5", " ".join(["w5"] * longest)]
        text, used = shots.before(tiny, rows, texts, length)
        assert (used, text) == (count, "w3 w4\n\n" * count)


# --- the probe ---


@pytest.fixture(scope="module")
def probe():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("in_context")


@pytest.mark.parametrize("name", ["copying", "induction", "recall", "constant", "identity"])
def test_a_pattern_shows_what_it_asks_as_often_as_it_says(probe, name):
    maker = probe.Maker(range(100, 400), (1, 2), (3,))
    pattern = probe.PATTERNS[name](maker, random.Random(5))
    order = random.Random(6).sample(range(probe.SLOTS), probe.SLOTS)
    shown = {count: pattern.shown(count, order) for count in probe.SHOTS}
    clue = {"copying": pattern.before, "induction": pattern.before[-1:], "recall": pattern.before}.get(name, ())
    for count, pieces in shown.items():
        ids = [token for piece in pieces for token in piece]
        pairs = [tuple(ids[i : i + len(clue) + 1]) for i in range(len(ids))]
        if clue:
            assert pairs.count((*clue, pattern.answer)) == count, "the question's beginning is followed by its answer"
            assert ids.count(clue[0]) == ids.count(pattern.answer) == count, "and they stand nowhere else"
            assert len(pieces) == probe.SLOTS and len(ids) == len([t for piece in shown[0] for t in piece])
        else:
            assert len(pieces) == count and {piece[1:3] for piece in pieces} <= {(1, 2)}
            assert pattern.before[0] not in ids, "another word than any that was shown"
            assert all(piece[3] == (pattern.answer if name == "constant" else piece[0]) for piece in pieces)
    for few, more in zip(probe.SHOTS, probe.SHOTS[1:], strict=False):
        kept = [place for place, piece in enumerate(shown[few]) if piece in pattern.shots]
        assert all(shown[more][place] == shown[few][place] for place in kept), "more shots keep those that fewer had"
    ends = {place: probe.request(pattern, shown[2], place, [7]) for place in probe.PLACES}
    assert ends["end"].stop == len(ends["end"].ids), "nothing to its right"
    size = len(pattern.before) + 1
    assert ends["start"].ids[1 : size + 1] == (*pattern.before, pattern.answer) and ends["start"].stop == size + 1
    for one in ends.values():
        assert one.ids[0] == 7 and one.ids[one.start] == pattern.answer and one.stop == one.start + 1
    assert sorted(ends["middle"].ids) == sorted(ends["start"].ids) == sorted((*ends["end"].ids, *pattern.after))


def test_words_of_the_probe_are_words(probe, pocket):
    found = probe.words(pocket.tokenizer)
    assert len(found) > 500
    assert all(pocket.tokenizer.decode([one]).isalpha() for one in found)


def test_what_is_kept_of_the_parents_gain(probe):
    parent = {"0": {"nats": [4.0, 6.0, 8.0, 6.0]}, "8": {"nats": [2.0, 2.0, 2.0, 2.0]}}
    half = {"0": {"nats": [5.0, 5.0, 5.0, 5.0]}, "8": {"nats": [4.0, 3.0, 2.0, 3.0]}}
    assert probe.kept(half, parent) == (0.5, 0.0), "half of it on each item: the ratio is known exactly"
    ratio, error = probe.kept({"0": half["0"], "8": {"nats": [3.0] * 4}}, parent)
    assert ratio == 0.5 and error == pytest.approx(statistics.stdev([1, 0, -1, 0]) / 2 / 4)


def test_the_page_says_what_its_json_says(probe):
    page = (ROOT / probe.PAGE).read_text("utf-8")
    assert probe.refreshed(page, json.loads((ROOT / probe.OUT).read_text("utf-8"))) == page
