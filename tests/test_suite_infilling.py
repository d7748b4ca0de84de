"""Infilling in the suite: stories and programs with a hole, asked of `pocket` and its parent."""

import gzip
import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from diffulm import canvas, randomness
from diffulm.canvas import Hole
from diffulm.errors import BadInput
from diffulm.evaluation import infilling, sandbox
from diffulm.evaluation.data import NoData
from diffulm.evaluation.infilling import Answer, Blank, answers, hidden
from diffulm.evaluation.journal import Journal
from diffulm.evaluation.subject import opened
from diffulm.evaluation.suite import humaneval, rocstories
from diffulm.evaluation.trial import Trial

STORIES = [
    ["Ann had a list.", "It was long.", "She sorted it by name.", "Then she printed it.", "It looked good."],
    ["Tom wrote a test.", "It was red.", "He read it.", "The code was wrong.", "He fixed the code."],
    ["A file was open.", "Nobody closed it.", "The process ran out of them.", "It ended.", "So did the day."],
]
PROBLEM = {
    "task_id": "made/0",
    "entry_point": "double",
    "prompt": "def double(x):\n",
    "canonical_solution": "    return x + x\n",
    "suffix": "\n\ndef other(x):\n    return double(x)\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4 and other(3) == 6\n",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few lengths for a hole of free length, few draws."""
    monkeypatch.setattr(rocstories, "FREE", Hole(2, 4))
    monkeypatch.setattr(rocstories, "BEST_OF", 2)
    monkeypatch.setattr(humaneval, "LINE", Hole(1, 8))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "rocstories.jsonl", [{"id": n, "sentences": story} for n, story in enumerate(STORIES)])
    long = PROBLEM | {"task_id": "made/1", "prompt": "# a comment that is too long\n" * 60 + PROBLEM["prompt"]}
    write(tmp_path / "humaneval-infilling" / "single-line.jsonl", [PROBLEM, long, PROBLEM | {"task_id": "made/2"}])
    return tmp_path


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def given(monkeypatch, part, texts):
    """Have every model of a part answer with these texts."""
    monkeypatch.setattr(part, "answers", lambda subject, blanks, **how: [Answer(one) for one in texts[: len(blanks)]])


@pytest.mark.parametrize("role", ["child", "parent"])
def test_the_canvas_is_the_text_and_bos_stands_in_front_of_it_alone(role, request):
    """Neither a space between context and fill is lost, nor does BOS stand where parts meet."""
    subject = request.getfixturevalue(role)
    for story in STORIES:
        task = hidden(subject, rocstories.blank(0, story))
        assert canvas.decode(subject.tokenizer, task.ids) == " ".join(story)
        assert subject.tokenizer.decode(task.hidden) == f" {story[2]}"
        assert [at for at, token in enumerate(task.ids) if [token] == subject.bos] == [0]
    task = hidden(subject, humaneval.blank(PROBLEM))
    assert canvas.decode(subject.tokenizer, task.ids) == PROBLEM["prompt"] + "    return x + x\n" + PROBLEM["suffix"]


def test_so_it_is_for_a_tokenizer_that_puts_a_space_in_front_of_texts(shared):
    subject = opened(shared / "data/models/stories260k-hf", parent=True)
    task = hidden(subject, rocstories.blank(0, STORIES[0]))
    assert canvas.decode(subject.tokenizer, task.ids).strip() == " ".join(STORIES[0])
    assert task.ids.count(subject.bos[0]) == 1 and task.ids[0] == subject.bos[0]
    assert (
        canvas.decode(subject.tokenizer, hidden(subject, Blank("a", "sun", "flower", "s")).ids).strip() == "sunflowers"
    )


def test_child_and_parent_are_asked_the_same_and_lengths_are_in_tokens(child, parent, monkeypatch):
    """A continuation of the baseline is as long as the hole in tokens, not in characters."""
    blanks = [rocstories.blank(n, story) for n, story in enumerate(STORIES)]
    sizes = [len(canvas.encode(child.tokenizer, blank.middle, inside=True)) for blank in blanks]
    assert all(size < len(blank.middle) for size, blank in zip(sizes, blanks, strict=True))
    asked = []
    fill = child.lm.infill
    monkeypatch.setattr(type(child.lm), "infill", lambda _, texts, **how: asked.extend(texts) or fill(texts, **how))
    filled = answers(child, blanks)
    assert asked == [[one.before, Hole(size), one.after] for one, size in zip(blanks, sizes, strict=True)]
    tasks = []
    go_on = infilling.continue_left

    def spied(model, given, *rest, **how):
        tasks.extend(given)
        return go_on(model, given, *rest, **how)

    monkeypatch.setattr(infilling, "continue_left", spied)
    continued = answers(parent, blanks)
    assert [len(one.hidden) for one in tasks] == sizes
    assert [one.ids for one in tasks] == [hidden(child, blank).ids for blank in blanks]
    assert [one.forwards for one in filled] == sizes
    for one in (*filled, *continued):
        assert one.text and one.why == ""


def test_steps_are_of_each_blank_alone(child):
    """A short hole before a long one leaves it its steps: nothing shared is overwritten."""
    short, long = Blank("a", "x =", " 1", "\n"), Blank("b", "def f(", "first, second, third", "):\n")
    sizes = {one.key: len(hidden(child, one).hidden) for one in (short, long)}
    assert sizes["a"] < 4 < sizes["b"]
    found = answers(child, [short, long, short, long], steps=4, batch_size=1)
    assert [one.forwards for one in found] == [sizes["a"], 4, sizes["a"], 4]


@pytest.mark.slow
def test_a_part_changes_nothing_of_the_trial(child, folder):
    trial = Trial(child, data=folder, limit=1)
    before = vars(trial).copy()
    one = [cell.settings["steps"] for cell in rocstories.run(trial)]
    other = [cell.settings["steps"] for cell in humaneval.run(trial)]
    assert set(one) == set(other) == {64} and vars(trial) == before
    assert {cell.settings["steps"] for cell in rocstories.run(replace(trial, steps=3))} == {3}


@pytest.mark.parametrize("role", ["child", "parent"])
def test_neither_batch_size_nor_neighbours_change_anything(role, request, folder):
    subject = request.getfixturevalue(role)
    cells = [
        [*rocstories.run(trial), *humaneval.run(trial)]
        for trial in (Trial(subject, data=folder, steps=3, batch_size=size) for size in (1, 3))
    ]
    assert cells[0] == cells[1]
    blanks = [rocstories.blank(n, story) for n, story in enumerate(STORIES)]
    best = {"best_of": 4, "seed": 1} if subject.autoregressive else {"hole": Hole(2, 4), "steps": 2}
    whole = answers(subject, blanks, **best)
    assert answers(subject, blanks[2:], **best) == whole[2:]
    if subject.autoregressive:
        assert answers(subject, blanks[2:], best_of=4, seed=2) != whole[2:]


def test_cells_of_stories(child, parent, folder):
    made = rocstories.run(Trial(child, data=folder, steps=3))
    assert [(one.metric, one.length, one.count) for one in made] == [
        (metric, length, count) for length, count in (("oracle", 3), ("free", 1)) for metric in rocstories.METRICS
    ]
    made = rocstories.run(Trial(parent, data=folder))
    notes = ["prefix only", "best of 2", "prefix only, cut after a sentence; every 4th story"]
    assert [one.note for one in made] == [note for note in notes for _ in rocstories.METRICS]
    assert all(one.value is not None and 0 <= one.value <= 1 and len(one.items) == one.count for one in made)


def test_rouge(child, folder, monkeypatch):
    # by hand against "She sorted it by name.", "He read it." and "The process ran out of them."
    given(monkeypatch, rocstories, [" She sorted it by name.", " He wrote it!", "them of out ran process the"])
    cells = {one.metric: one for one in rocstories.run(Trial(child, data=folder)) if one.length == "oracle"}
    assert cells["ROUGE-1"].items == pytest.approx((1, 2 / 3, 1))
    assert cells["ROUGE-2"].items == pytest.approx((1, 0, 0))
    assert cells["ROUGE-L"].items == pytest.approx((1, 2 / 3, 1 / 6))
    assert cells["ROUGE-1"].value == pytest.approx(8 / 9) and cells["ROUGE-1"].stderr == pytest.approx(1 / 9)


def test_what_a_baseline_that_nobody_stops_said_first():
    assert rocstories.first_sentence(' He said "no." Then he left.') == ' He said "no."'
    assert rocstories.first_sentence(" It cost 2.50 and more") == " It cost 2.50 and more"
    assert humaneval.first_line("    return x\n    return y\n") == "    return x\n"
    assert humaneval.first_line("return x\x0c + 1") == "return x\x0c + 1"


def test_programs_run_with_what_stands_around_the_hole(child, folder, monkeypatch):
    given(monkeypatch, humaneval, ["    return x + x\n", None, "    return x\n"])
    run, programs = sandbox.run, []
    monkeypatch.setattr(sandbox, "run", lambda *parts: programs.append(parts) or run(*parts))
    (cell,) = humaneval.run(Trial(child, data=folder))
    assert cell.items == (1.0, 0.0) and cell.counts == {"failed": 1} and cell.stderr and cell.stderr > 0
    assert programs[0] == (
        PROBLEM["prompt"] + PROBLEM["canonical_solution"] + PROBLEM["suffix"],
        PROBLEM["test"] + "\ncheck(double)\n",
    )


def test_without_a_sandbox_nothing_is_run_and_the_cell_says_so(child, folder, monkeypatch):
    given(monkeypatch, humaneval, ["    return x + x\n"] * 3)
    monkeypatch.setattr(sandbox, "_INSIDE", folder / "missing.py")
    (cell,) = humaneval.run(Trial(child, data=folder))
    assert cell.value is None and "does not start in the sandbox" in cell.note


def test_why_programs_did_not_pass(child, folder, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    run = sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda *parts: run(*parts, seconds=1))
    given(monkeypatch, humaneval, ["    while True: pass\n", "    open('a', 'w')\n", "    return (x\n"])
    (cell,) = humaneval.run(Trial(child, data=folder))
    assert cell.value == 0 and cell.counts == {"timed out": 1, "forbidden": 1, "syntax error": 1}


@pytest.mark.parametrize("role", ["child", "parent"])
def test_a_canvas_beyond_the_context_is_said_and_not_run(role, request, folder):
    subject = request.getfixturevalue(role)
    for cell in humaneval.run(Trial(subject, data=folder, steps=3)):
        assert cell.count == len(cell.items) == 2 and cell.counts["beyond the context"] == 1
    (folder / "humaneval-infilling" / "single-line.jsonl").write_text(json.dumps(PROBLEM | {"prompt": "# x\n" * 300}))
    for cell in humaneval.run(Trial(subject, data=folder, steps=3)):
        assert (cell.value, cell.count, cell.note) == (None, 0, "beyond the context")


def test_a_hole_in_which_nothing_stood_is_counted(child, folder):
    write(
        folder / "rocstories.jsonl", [{"sentences": [*STORIES[0][:2], " ", *STORIES[0][3:]]}, {"sentences": STORIES[1]}]
    )
    first = rocstories.run(Trial(child, data=folder, steps=3))[0]
    assert first.count == 1 and first.counts == {"empty": 1}


def test_files_that_are_not_there_or_not_as_they_should_be(child, folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty") / "data"
    empty.mkdir()
    for part in (rocstories, humaneval):
        with pytest.raises(NoData):
            part.run(Trial(child, data=empty))
    write(folder / "rocstories.jsonl", [{"sentences": STORIES[0][:4]}])
    with pytest.raises(BadInput, match=r"rocstories\.jsonl, row 1: 4 sentences, a story has 5"):
        rocstories.run(Trial(child, data=folder))
    write(folder / "rocstories.jsonl", [{"sentences": STORIES[0]}, {"sentences": [1, 2, 3, 4, 5]}])
    with pytest.raises(BadInput, match=r"rocstories\.jsonl, row 2"):
        rocstories.run(Trial(child, data=folder))
    write(folder / "humaneval-infilling" / "single-line.jsonl", [PROBLEM | {"suffix": None}])
    with pytest.raises(BadInput, match="suffix is not text"):
        humaneval.run(Trial(child, data=folder))


def test_a_model_that_does_not_see_the_right_side_is_not_asked(folder):
    blind = SimpleNamespace(autoregressive=False, lm=SimpleNamespace(record=SimpleNamespace(infills=False)))
    trial = Trial(blind, data=folder)
    cells = [*rocstories.run(trial), *humaneval.run(trial)]
    assert len(cells) == 4 and all(cell.value is None and "block by block" in cell.note for cell in cells)


@pytest.mark.parametrize("role", ["child", "parent"])
def test_an_interrupted_part_goes_on(role, request, folder, tmp_path, monkeypatch):
    subject = request.getfixturevalue(role)

    def run():
        trial = Trial(subject, data=folder, limit=1, steps=3, journal=Journal(tmp_path / "journal"))
        return [*rocstories.run(trial), *humaneval.run(trial)]

    whole = run()
    for one in (rocstories, humaneval):
        monkeypatch.setattr(one, "answers", lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr(sandbox, "run", lambda *_: pytest.fail("run again"))
    assert run() == whole


def test_seeds_are_of_questions(parent):
    """The draws of a question are a function of its key, whatever stands around it in the file."""
    blanks = [Blank(name, "def f(", "x, y", "):\n") for name in ("a", "b")]
    seeds = [randomness.key(0, one.key) for one in blanks]
    tasks = [hidden(parent, one) for one in blanks]
    found = [infilling.continue_left(parent.lm.model, tasks, 2, seeds=order).ids for order in (seeds, seeds[::-1])]
    assert found[0] == found[1][::-1]


def test_solutions_of_the_benchmark_pass(shared):
    assert set(outcomes(shared, 60)) == {"passed"}


@pytest.mark.slow
def test_all_solutions_of_the_benchmark_pass(shared):
    assert set(outcomes(shared, 1)) == {"passed"}


def outcomes(shared, every):
    path = shared / "data/eval/humaneval-infilling/single-line.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(rows) > 900 and all(a["task_id"] != b["task_id"] for a, b in pairwise(rows))
    for row in rows[::every]:
        blank = humaneval.blank(row)
        test = f"{row['test']}\ncheck({row['entry_point']})\n"
        yield sandbox.run(blank.before + blank.middle + blank.after, test).why
