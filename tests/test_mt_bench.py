"""MT-bench without a judge: the forms that code can decide, how the prompts are asked, what is counted."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffulm import chat
from diffulm.errors import BadInput
from diffulm.evaluation import formats
from diffulm.evaluation.journal import Journal
from diffulm.evaluation.subject import Completion
from diffulm.evaluation.suite import mt_bench
from diffulm.evaluation.trial import Trial
from diffulm.recipes import evaluate
from models import tokenizer

ANIMALS = "All apples are amber. Ants ate “acorns.” And another!"
LETTERS = "Bees hum. Cats nap! Dogs dig?"
FENCED = '```json\n{"people": ["A"], "organizations": [], "locations": ["B"]}\n```'
ROWS = "Kaladin, The Way, Brandon, 2010\nZylo, Stars, Anne, 1999"

# prompt and turn: texts that have the form, texts that do not
FORMS: dict[tuple[int, int], tuple[list[str], list[str]]] = {
    (81, 2): ([ANIMALS, "a b c"], ["All are. But not all.", "...", "1. A list"]),
    (86, 2): ([LETTERS, "bees hum."], ["All hum. Bees too.", "Bees. Dogs.", "Bees. Bees.", LETTERS + " Bees."]),
    (87, 1): (
        [f"{formats.HOUSE} Nobody.", f"“{formats.HOUSE}"],
        ["The old house.", formats.HOUSE[:-1], f"So: {formats.HOUSE}"],
    ),
    (87, 2): (["The house was old. Nobody ever came there."], ["The house was old. Nobody came.", "!"]),
    (88, 2): (
        ["- red house\n- old door\n* dark secret", "Here:\n- a\n- b\n- c"],
        ["- a\n- b", "- a\n- b\n- c\n- d", "a\nb\nc"],
    ),
    (89, 2): (["Try FlexPower now"], ["Try flex power now"]),
    (131, 1): (
        ["[5, 1, 3]", "```json\n[5]\n```"],
        ["5, 1, 3", "[5.0]", "[true]", "[]", "the answer is [5]", '{"a": 5}', "[5"],
    ),
    (131, 2): (['{"a": 1}', "[]"], ["{'a': 1}", "1", '"a"', '{"a": NaN' + "]"]),
    (133, 1): (
        [ROWS, f"```\n{ROWS}\n```"],
        ["Kaladin, The Way, Brandon", "a, b, c, d", f"{ROWS}\nand so on", "a,,b,2010"],
    ),
    (133, 2): (["{}"], ["none"]),
    (135, 1): (['[{"country": "Denmark"}]'], ["country: Denmark"]),
    (135, 2): (["- country: A\n  capital: B", "a: 1"], ["text", '{"a": 1}', "a: b: c", "", "- [", "{}"]),
    (136, 1): (
        ["Amazon, 7\nriver, 4\nyou, 2"],
        ["Amazon, 7\nriver, 9\nyou, 2", "Amazon, 7\nriver, 4", "a: 1\nb: 2\nc: 3", "a, 1\nb, x\nc, 2"],
    ),
    (136, 2): (["to, 1\nand, 1\nthe, 3"], [", 1\n, 2\n, 3"]),
    (137, 1): ([FENCED], ['{"a": []}', '{"a": [], "b": [], "c": "d"}', '{"a": [], "b": [], "c": [1]}', "[[], [], []]"]),
    (137, 2): (['{"a": ["B"]}'], [FENCED.replace(", ", ",\n"), "a"]),
    (138, 1): (['{"iPhone": 7.5, "Pixel": 8}'], ['{"iPhone": "7"}', "{}", '{"a": true}', "[7.5]"]),
    (140, 1): (
        ["month,high,low\nJan,1,2\nFeb,3,4"],
        ["month,high,low\nJan,1,2", "a,b\nc,d\ne,f", "a,b,c\n1,2\n3,4,5", "words\nmore\nand more"],
    ),
    (140, 2): (
        ['[{"month": "Jan", "high": 157}]'],
        ['[{"month": "Jan", "high": 157.5}]', '{"month": "Jan"}', "[true]", "157"],
    ),
}
LIMITS: dict[tuple[int, int], tuple[list[str], list[str]]] = {
    (83, 1): (["word " * 199], ["word " * 200]),
    (85, 1): (["one\nparagraph"], ["two\n\nparagraphs", "two\n \nparagraphs"]),
    (86, 1): (["one"], ["one\n\ntwo"]),
    (88, 1): (["one\n\n"], ["one\n\ntwo"]),
    (90, 2): (["They asked; the hero hid it."], ["He asked.", "It is hers.", "she’s there", "HIS"]),
    (92, 1): (["Bazinga. As Sheldon, I"], ["As Sheldon, I"]),
    (99, 1): ("\n".join("a" * 9).split("\n\n"), ["\n".join("a" * 10)]),
    (99, 2): (["a\n\n" * 9], ["a\n" * 10]),
}  # fmt: skip


@pytest.mark.parametrize("name", ["FORMS", "LIMITS"])
def test_a_form_is_held_by_what_has_it_and_by_nothing_else(name):
    checks, expected = getattr(formats, name), globals()[name]
    assert expected.keys() == checks.keys()
    for prompt, (held, broken) in expected.items():
        assert [text for text in held if not formats.kept(checks, *prompt, text)] == [], prompt
        assert [text for text in broken if formats.kept(checks, *prompt, text)] == [], prompt
        assert not formats.kept(checks, *prompt, " \n"), "an empty text has no form"


def test_every_form_is_asked_for_by_the_prompts_own_words(shared):
    words = {
        81: "letter A", 86: "alphabet", 87: "", 88: "", 89: "FlexPower", 131: "JSON", 133: "", 135: "", 136: "word, number",
        137: "JSON", 138: "JSON object", 140: "", 83: "fewer than 200 words", 85: "fewer than two paragraphs",
        90: "gendered pronouns", 92: "As Sheldon", 99: "less than 10 lines",
    }  # fmt: skip
    rows = [json.loads(line) for line in (shared / "data/eval/mt-bench.jsonl").read_text("utf-8").splitlines()]
    turns = {row["id"]: " ".join(row["turns"]) for row in rows}
    for number, _ in (*formats.FORMS, *formats.LIMITS):
        assert words[number] in turns[number]
    assert formats.HOUSE in turns[87] and "four-word" in turns[87] and "CSV" in turns[140] and "YAML" in turns[135]


TALKS = [
    {"id": 81, "turns": ["w11 w12", "w30 w31"]},
    {"id": 83, "turns": ["fewer than 200 words", "w5 w6"]},
    {"id": 85, "turns": ["w7 " * 70, "w8"]},
    {"id": 104, "turns": ["w9 " * 44, "w10"]},
]


class Fake:
    """Answers by the words of the last turn, in a tokenizer of whole words; keeps what it was asked."""

    name, autoregressive, bos, context = "fake", False, [1], 96

    def __init__(self) -> None:
        self.tokenizer = tokenizer()
        self.lm = SimpleNamespace(record=SimpleNamespace(notes={}))
        self.calls: list[dict[str, Any]] = []

    def complete(self, prompts, lengths, **options):
        self.calls.append({"prompts": prompts, "lengths": lengths, **options})
        asked = [self.tokenizer.decode(ids) for ids in prompts]
        said = ["All w3" if "w12" in one and "w30" not in one else "" if "w5" in one else "But w4" for one in asked]
        return [[Completion(f" {text}", 0, 2, ended=text != "But w4")] for text in said]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mt-bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALKS))
    return tmp_path


def test_what_is_counted(folder):
    fake = Fake()
    cells = {cell.metric: cell for cell in mt_bench.run(Trial(fake, data=folder))}  # pyright: ignore[reportArgumentType]
    # first turns: answered, truncated; not asked (70 words and half of the context for the answer do not fit); truncated
    assert cells["share answered"].items == (1, 1, 0, 1, 1, 0, 1, 1)
    assert cells["share empty"].items == (0, 0, 0, 0, 0, 1, 0, 0), "what was not asked is not empty"
    assert cells["share truncated"].items == (0, 1, 0, 1, 1, 0, 1, 1)
    assert cells["share in the form asked"].items == (0,), "But does not begin with A"
    assert cells["share within the limit"].items == (1, 0), "what was not asked has not kept to it"
    assert cells["repeated 4-grams"].count == 6
    told = cells["share answered"]
    assert told.counts == {"beyond the context": 1, "first turn left out": 2}
    assert (told.length, told.note, told.settings["template"]) == ("free", "not fine-tuned", "plain")
    assert all(cell.value is not None for cell in cells.values())


def test_how_the_prompts_are_asked(folder):
    fake, template = Fake(), chat.template_of(tokenizer())
    mt_bench.run(Trial(fake, data=folder, limit=1, steps=7))  # pyright: ignore[reportArgumentType]
    first, second = fake.calls
    talk: list[chat.Message] = [{"role": "user", "content": TALKS[0]["turns"][0]}]
    assert first["prompts"] == [template.opening(talk)]
    talk += [{"role": "assistant", "content": "All w3"}, {"role": "user", "content": TALKS[0]["turns"][1]}]
    assert second["prompts"] == [template.opening(talk)], "its own first answer stands before the second turn"
    assert first["closing"] == (template.end, template.pad) and first["lengths"] == [47]  # half of 96 less BOS
    assert (first["steps"], first["keys"], second["keys"]) == (7, ["mt_bench 81 1"], ["mt_bench 81 2"])


def test_a_prompt_that_just_fits_is_asked(folder):
    def talk(words: int) -> list[chat.Message]:
        return [{"role": "user", "content": "w9 " * words}]

    fake, template = Fake(), chat.template_of(tokenizer())
    most = fake.context - len(fake.bos) - 47 - (len(template.opening(talk(1))) - 1)
    trial = Trial(fake, data=folder)  # pyright: ignore[reportArgumentType]
    found = mt_bench.asked(trial, template, [talk(most), talk(most + 1)], ["1", "2"])
    assert [one.text for one in found] == ["But w4", None]
    assert len(fake.calls[0]["prompts"][0]) + len(fake.bos) + 47 == fake.context


def test_an_interrupted_run_goes_on_with_the_same_answers(folder, tmp_path):
    kept = tmp_path / "journal.jsonl"
    once = mt_bench.run(Trial(Fake(), data=folder, journal=Journal(kept)))  # pyright: ignore[reportArgumentType]
    again = Fake()
    assert mt_bench.run(Trial(again, data=folder, journal=Journal(kept))) == once  # pyright: ignore[reportArgumentType]
    assert again.calls == []


@pytest.mark.parametrize(
    "row", [{"id": 1, "turns": ["w1"]}, {"id": 1, "turns": ["w1", " "]}, {"id": 1, "turns": ["w1", 2]}]
)
def test_rows_that_are_none(tmp_path, row):
    (tmp_path / "mt-bench.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadInput, match=r"mt-bench.jsonl, row 1: "):
        mt_bench.run(Trial(Fake(), data=tmp_path))  # pyright: ignore[reportArgumentType]


def test_it_is_a_suite_of_its_own():
    def asked(name: str) -> tuple[str, ...]:
        return evaluate.EvalConfig(model="pocket", suite=name).suite  # pyright: ignore[reportArgumentType]

    assert "mt_bench" not in asked("paper") and len(asked("paper")) == len(evaluate.parts()) - 1
    assert asked("instruct") == ("gsm8k", "mt_bench")
    assert asked("paper,mt_bench") == tuple(evaluate.parts())


def test_a_model_and_its_parent_in_one_table(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mt_bench, "LENGTH", 8)
    how = {"parent": "pocket-ar", "suite": "mt_bench", "data_dir": str(folder), "limit": 1, "steps": 2}
    found = evaluate.evaluate("pocket", **how, out=str(tmp_path / "out"))
    by = {(cell["role"], cell["metric"]): cell for cell in found["cells"]}
    assert {metric for (_, metric), cell in by.items() if cell["value"] is None} == {"share within the limit"}, (
        "not asked"
    )
    assert {role for role, _ in by} == {"child", "parent"} and len(by) == 12
    assert {cell["count"] for (_, metric), cell in by.items() if metric == "share answered"} == {2}
    told = {one["metric"]: one for one in found["differences"]}
    assert told["share answered"]["p"] is not None and "share truncated" in told
