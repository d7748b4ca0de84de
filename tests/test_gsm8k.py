"""GSM8K as the paper did it: the presets against the paper's table, and the sums that benchmarks/arithmetic.py is about."""

import importlib
import json
import math
import re
from pathlib import Path

import pytest

from diffulm.recipes.config import PRESETS, resolve
from diffulm.recipes.sft import SftConfig

ROOT = Path(__file__).parents[1]
# The paper (arXiv 2410.17891 v3), value by value; what it leaves open is told in the header of the preset.
ROWS = {
    "template": "paper", "prompt": "{question}", "response": "{chain} #### {answer}", "length": 256, "packing": False,
    "padding": "full", "padding_weight": 1.0, "too_long": "drop", "truncation": 0.0, "annealing": "none", "shift": True,
    "noise_schedule": "linear", "noise_floor": 1e-3, "noise_ceiling": 1.0, "ar_weight": 0.0, "scratch": False,
}  # fmt: skip
PAPER = {
    "gsm8k-diffugpt": ROWS | {
        "adapter": "none", "learning_rate": 3e-4, "warmup_steps": 2000, "epochs": 200, "global_batch": 128,
    },
    "gsm8k-diffullama": ROWS | {
        "adapter": "lora", "lora_rank": 8, "train_embeddings": True, "learning_rate": 1e-4,
    },
}  # fmt: skip
DEVIATIONS = {"noise": "count", "objective": "bound"}
TOLD = {
    "gsm8k-diffugpt": ["a fixed BOS", "objective `bound`", "count noise", "Not given in the paper: the number of GPUs"],
    "gsm8k-diffullama": ["BOS, objective `bound`, count noise", "rank 16", "Not given in the paper: alpha, epochs, batch"],
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_presets_are_as_the_paper_but_for_what_they_say(name):
    config = resolve("sft", SftConfig, name, {"model": "m", "data": "d", "out": "o"})
    assert {key: getattr(config, key) for key in PAPER[name]} == PAPER[name]
    assert {key: getattr(config, key) for key in DEVIATIONS} == DEVIATIONS
    lines = (PRESETS / "sft" / f"{name}.yaml").read_text("utf-8").splitlines()
    header = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    for words in TOLD[name]:
        assert words in header


@pytest.fixture
def chains(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("chains")


@pytest.fixture
def arithmetic(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("arithmetic")


def test_the_chains_are_what_the_words_say(chains):
    """Read again from the question alone, sentence by sentence, by whose hand the things go through."""
    for one in chains.problems("train", 400):
        steps = re.findall(r"<<(\d+)([+-])(\d+)=(\d+)>>", one["chain"])
        assert " ".join(f"<<{a}{sign}{b}={c}>>" for a, sign, b, c in steps) == one["chain"]
        assert all(int(a) + int(sign + b) == int(c) for a, sign, b, c in steps)
        assert [a for a, *_ in steps[1:]] == [c for *_, c in steps[:-1]] and steps[-1][-1] == one["answer"]
        assert len(steps) == one["steps"]
        sentences = re.split(r"(?<=[.?]) ", one["question"])
        name = sentences[0].split()[0]
        assert re.search(r"\d+", sentences[0])[0] == steps[0][0]
        told = []
        for sentence in sentences[1:-1]:
            who, verb, *_ = sentence.split()
            mine = who in (name, chains.NAMES[name])
            gone = verb == "loses" or (verb in ("gives", "takes") and (verb == "gives") == mine)
            told.append(("-" if gone else "+", re.search(r"\d+", sentence)[0]))
        assert told == [(sign, b) for _, sign, b, _ in steps]


def test_no_question_is_in_two_parts_and_all_is_as_it_was(chains):
    parts = {part: chains.problems(part, 600) for part in ("train", "valid", "test")}
    questions = [one["question"] for found in parts.values() for one in found]
    assert len(set(questions)) == len(questions) == 1800
    assert {chains.part_of(one["question"]) for one in parts["valid"]} == {"valid"}
    for found in parts.values():
        assert [one["steps"] for one in found[:8]] == [1, 2, 3, 4, 1, 2, 3, 4]
        assert all(0 <= int(n) <= chains.LARGEST for one in found for n in re.findall(r"\d+", one["chain"]))
    again = chains.problems("test", 700)
    assert again[:600] == parts["test"] and chains.problems("test", 600, seed=1) != parts["test"]
    share = sum(chains.part_of(one) == "test" for one in questions_of_all(chains)) / 2000
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 2000)  # four standard deviations of a tenth of 2,000


def questions_of_all(chains) -> list[str]:
    import random

    drawn = random.Random(5)
    return [str(chains.problem(drawn, 1 + n % 4)["question"]) for n in range(2000)]


def test_the_corpus_is_the_same_language_and_no_problem(chains):
    texts = list(chains.corpus(500))
    assert texts == list(chains.corpus(500))
    assert not any("How many" in text or "<<" in text or "####" in text for text in texts)
    sums = [one for text in texts for one in re.findall(r"(\d+) ?([+-]) ?(\d+) ?= ?(\d+)", text)]
    assert len(sums) == 6 * 100  # a text of five
    assert all(int(a) + int(sign + b) == int(c) for a, sign, b, c in sums)
    words = chains.tokenizer()
    asked = [f"{one['question']}\n{one['chain']} #### {one['answer']}" for one in chains.problems("test", 300)]
    for text in [*texts, *asked]:
        ids = words(text.replace("\n", words.sep_token), add_special_tokens=False)["input_ids"]
        assert words.unk_token_id not in ids
        assert words.decode(ids) == text.replace("\n", words.sep_token)
        assert len(ids) + 2 <= importlib.import_module("arithmetic").LENGTH  # with BOS and EOS


def test_a_pair_of_models_is_compared_question_by_question(arithmetic):
    ours, theirs = [1.0] * 8 + [0.0] * 2, [0.0] * 7 + [1.0] * 2 + [0.0]
    only, others, p = arithmetic.mcnemar(ours, theirs)
    assert (only, others) == (7, 1) and p == pytest.approx(2 * (1 + 8) / 2**8)
    assert arithmetic.mcnemar(ours, ours) == (0, 0, 1.0)
    seeds = [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    middle, half = arithmetic.estimate(seeds)
    of_seeds = 4.303 * 0.25 / math.sqrt(3)  # seeds of 0.5, 0.75, 0.25
    questions = 1.96 * math.sqrt(sum((x - 0.5) ** 2 for x in (1, 1 / 3, 2 / 3, 0)) / 3 / 4)
    assert middle == pytest.approx(0.5) and half == pytest.approx(math.hypot(of_seeds, questions), rel=1e-3)


def test_the_page_says_what_its_json_says(arithmetic):
    report = json.loads((ROOT / "benchmarks" / "results" / "2026-11-22-arithmetic.json").read_text("utf-8"))
    page = (ROOT / "docs" / "gsm8k.md").read_text("utf-8")
    for name, table in arithmetic.tables(report).items():
        assert table in page, (
            f"docs/gsm8k.md has another table of {name}: print it with benchmarks/arithmetic.py measure"
        )
    assert "images/arithmetic.png" in page and (ROOT / "docs" / "images" / "arithmetic.png").is_file()
