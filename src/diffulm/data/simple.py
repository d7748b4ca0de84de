"""Simple instructions that every user has, with no download: data=simple to learn from, simple:test to be asked.

Words that Python's source is full of, and things to do with them whose right answers are known, from one token to about
25 long. What is asked of which words is drawn from a seed; a hash of the words says on which side an instruction
stands, so no words (in their order) of the test part were trained on, whatever was asked of them.
"""

import hashlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Literal

Part = Literal["train", "test"]
Row = dict[str, list[dict[str, str]]]

PARTS: dict[str, Part] = {"simple": "train", "simple:test": "test"}
"""What a part is called as data."""
HELD_OUT = 0.05
COUNTS: dict[Part, int] = {"train": 40_000, "test": 1_000}
"""Instructions of a part."""
MOST = 8
"""Words of an instruction."""
WORDS = """
    action args array attribute base block body buffer build byte cache call case char child class client close code column
    command config context copy count data date decode default delete dict element encode entry error event export field
    file filter find flag float flush format frame from function get group handle header host import index init input
    integer item join key label length level line link list load lock log loop make match message method mode module
    name next node number object offset open option order output parent parse parser part path point port process queue
    range read record remove reset result return root row run scope search self send server set size socket source
    split stack start state stop stream string table target task test text thread time timer token tree tuple type
    update url user value version wait width window word write
""".split()

Asked = tuple[str, str]
"""What is asked and the right answer."""


def instructions(part: Part = "train", count: int | None = None, seed: int = 0) -> Iterator[tuple[str, Row]]:
    """(what is to be done, its row): `count` of them (None: as many as the part usually has), all kinds equally often.

    A row holds `messages`, the last of them the right answer. The same seed gives the same rows on every machine; in the
    test part no row comes twice, so it has no more than it usually has (ValueError): there are only so many additions.
    """
    if part == "test" and count is not None and count > COUNTS["test"]:
        raise ValueError(f"count={count}: the test part has {COUNTS['test']} instructions")
    random, names, seen = Random(f"{seed}, {part}"), list(KINDS), set[str]()
    left = COUNTS[part] if count is None else count
    while left:
        name = names[left % len(names)]
        words, turns = KINDS[name](random)
        if held_out(words) != (part == "test") or (part == "test" and str(turns) in seen):
            continue
        seen.add(str(turns) if part == "test" else "")
        left -= 1
        yield name, {"messages": [message for turn in turns for message in _messages(turn)]}


def rows(part: Part = "train", count: int | None = None, seed: int = 0) -> Iterator[Row]:
    """The rows of `instructions`, as conversations are read from a file."""
    return (row for _, row in instructions(part, count, seed))


def held_out(words: list[str]) -> bool:
    """Whether an instruction about these words, in this order, is in the test part."""
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:8], "big") < HELD_OUT * 2**64


def right(row: Row, answer: str) -> bool:
    """Whether this is the last answer of the row, but for space around it."""
    return answer.strip() == row["messages"][-1]["content"]


def _messages(turn: Asked) -> list[dict[str, str]]:
    return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]


def _some(random: Random, fewest: int, most: int = MOST) -> list[str]:
    return random.sample(WORDS, random.randint(fewest, most))


def _about(
    asked: str, answer: Callable[[list[str]], str], fewest: int = 1, most: int = MOST
) -> Callable[[Random], tuple[list[str], list[Asked]]]:
    """An instruction about a list of words: what is asked stands before them."""

    def drawn(random: Random) -> tuple[list[str], list[Asked]]:
        words = _some(random, fewest, most)
        return words, [(f"{asked}: {' '.join(words)}", answer(words))]

    return drawn


def _contains(random: Random) -> tuple[list[str], list[Asked]]:
    words = _some(random, 2, 6)
    one = random.choice(words if random.random() < 0.5 else [word for word in WORDS if word not in words])
    return words, [(f"yes or no: is {one} in: {' '.join(words)}", "yes" if one in words else "no")]


def _add(random: Random) -> tuple[list[str], list[Asked]]:
    a, b = random.randint(0, 49), random.randint(0, 49)
    return [str(a), str(b)], [(f"add {a} and {b}", str(a + b))]


def _two_turns(random: Random) -> tuple[list[str], list[Asked]]:
    words = _some(random, 2, 5)
    answers = {"the first one": words[0], "the last one": words[-1], "backwards": " ".join(words[::-1])}
    then = random.choice(list(answers))
    return words, [(f"say: {' '.join(words)}", " ".join(words)), (f"now {then}", answers[then])]


# Each draws (the words that it is about, its turns).
KINDS: dict[str, Callable[[Random], tuple[list[str], list[Asked]]]] = {
    "say": _about("say", " ".join),
    "say twice": _about("say twice", lambda words: " ".join(words * 2), most=6),
    "first": _about("first word of", lambda words: words[0], 2),
    "last": _about("last word of", lambda words: words[-1], 2),
    "reverse": _about("reverse", lambda words: " ".join(words[::-1]), 2, 6),
    "sort": _about("sort", lambda words: " ".join(sorted(words)), 2, 5),
    "count": _about("count the words", lambda words: str(len(words))),
    "upper case": _about("upper case", lambda words: " ".join(words).upper(), most=4),
    "number": _about("number", lambda words: "\n".join(f"{n}. {word}" for n, word in enumerate(words, 1)), most=6),
    "contains": _contains,
    "add": _add,
    "two turns": _two_turns,
}
