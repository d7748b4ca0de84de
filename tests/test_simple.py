"""The generated instructions: the same everywhere, right by another computation, nothing of the test part in training."""

import hashlib
import itertools
import json
import re

import pytest

from diffulm import load
from diffulm.chat import conversation, template_of
from diffulm.data import simple
from diffulm.recipes.config import resolve
from diffulm.recipes.sft import SftConfig

Parts = dict[simple.Part, list[tuple[str, simple.Row]]]


@pytest.fixture(scope="module")
def parts() -> Parts:
    return {"train": list(simple.instructions(count=6000)), "test": list(simple.instructions("test"))}


def _expected(question: str, before: str) -> str:
    """The answer, computed from the text of the question alone; before: the answer that it follows."""
    if found := re.fullmatch(r"add (\d+) and (\d+)", question):
        return str(sum(map(int, found.groups())))
    if found := re.fullmatch(r"yes or no: is (\w+) in: (.*)", question):
        return "yes" if re.search(rf"\b{found[1]}\b", found[2]) else "no"
    asked, text = question.split(": ") if ": " in question else (question, before)
    words = re.findall(r"[a-z]+", text)
    return {
        "say": text,
        "say twice": f"{text} {text}",
        "first word of": text.partition(" ")[0],
        "last word of": text.rpartition(" ")[2],
        "reverse": " ".join(words[-1 - i] for i in range(len(words))),
        "sort": " ".join(sorted(words)),
        "count the words": str(text.count(" ") + 1),
        "upper case": text.swapcase(),
        "number": "".join(f"{i + 1}. {words[i]}\n" for i in range(len(words))).strip(),
        "now the first one": words[0],
        "now the last one": words[-1],
        "now backwards": " ".join(reversed(words)),
    }[asked]


def test_answers_are_right(parts: Parts) -> None:
    for _, row in itertools.chain(*parts.values()):
        before = ""
        for asked, answered in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            assert (asked["role"], answered["role"]) == ("user", "assistant")
            assert answered["content"] == _expected(asked["content"], before)
            before = answered["content"]


def test_right_is_exact_but_for_space_around() -> None:
    row = {"messages": [{"role": "user", "content": "say: a b"}, {"role": "assistant", "content": "a b"}]}
    assert simple.right(row, " a b\n")
    assert not any(simple.right(row, wrong) for wrong in ("", "a", "a  b", "a b a b", "A b"))


def test_the_test_part_shares_no_words_with_the_training_part(parts: Parts) -> None:
    def words(row: simple.Row) -> tuple[str, ...]:
        question = row["messages"][0]["content"]
        return tuple(re.findall(r"\d+", question) or question.split(": ")[-1].split())

    train, test = ({words(row) for _, row in found} for found in parts.values())
    assert len(train) > 3000 and not train & test
    assert all(simple.held_out(list(one)) for one in test) and not any(simple.held_out(list(one)) for one in train)


def test_every_kind_comes_equally_often_with_answers_of_every_length(parts: Parts) -> None:
    for found in parts.values():
        kinds = [name for name, _ in found]
        assert set(kinds) == set(simple.KINDS)
        assert max(map(kinds.count, simple.KINDS)) - min(map(kinds.count, simple.KINDS)) <= 1
        lengths = {len(row["messages"][-1]["content"].split()) for _, row in found}
        assert lengths >= {1, 2, 3, 4, 5, 6, 7, 8, 10, 12}
    rows = [json.dumps(row) for _, row in parts["test"]]
    assert len(set(rows)) == len(rows) == 1000
    with pytest.raises(ValueError, match="the test part has 1000 instructions"):
        next(simple.rows("test", 1001))


def test_the_same_seed_gives_the_same_rows_everywhere(parts: Parts) -> None:
    rows = list(simple.rows("train", 6000))
    assert rows == [row for _, row in parts["train"]]
    assert rows != list(simple.rows("train", 6000, seed=1))
    digest = hashlib.sha256(json.dumps(rows[:500]).encode()).hexdigest()
    assert digest.startswith("fb903185896a65dd")  # as written down once: another machine, the same rows


def test_the_preset_has_room_for_every_instruction(parts: Parts) -> None:
    config = resolve("sft", SftConfig, "instruct", {"model": "pocket", "out": "out"})
    assert (config.data, config.eval_data) == ("simple", "simple:test")
    assert set(simple.PARTS) == set(SftConfig.made)
    template = template_of(load("pocket").tokenizer)
    for _, row in parts["test"][::8]:
        *before, answer = conversation(row["messages"])
        assert 1 + len(template.opening(before)) + len(template.answer(answer["content"])) <= config.length
