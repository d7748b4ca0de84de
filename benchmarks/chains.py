"""Word problems of additions and subtractions in the manner of GSM8K, made here: exact, without an end, no download.

    Anna has 16 apples. She gives 3 apples to Ben. She buys 4 more. How many apples does Anna have now?
    <<16-3=13>> <<13+4=17>> #### 17

A problem has 1 to 4 steps, as many sentences of change. A part (train, valid, test) is
the problems whose question falls into it by checksum, so no question is in two of them. `corpus` is text in the same
language for a parent to learn from: stories that say each new number, and plain equations; no question and no `<<`.
"""

import random
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STEPS = (1, 2, 3, 4)
LARGEST, CHANGE = 20, 6  # no number is larger, no change; each is one token
NAMES = {
    **dict.fromkeys("Anna Clara Eva Grace Ida Kate Mary Rose".split(), "She"),
    **dict.fromkeys("Ben David Frank Henry Jack Leo Paul Tom".split(), "He"),
}
THINGS = "apples pears plums nuts books pens coins stamps cards shells marbles buttons cakes eggs beads stones".split()
MORE = ("{who} buys {k} more.", "{who} finds {k} {things}.", "{other} gives {name} {k} {things}.")
FEWER = ("{who} loses {k} {things}.", "{who} gives {k} {things} to {other}.", "{other} takes {k} {things} from {name}.")
START = ("{name} has {k} {things}.", "{name} begins with {k} {things}.")
ASK = ("How many {things} does {name} have now?", "How many {things} are left?")
TOTAL = ("Now {name} has {k} {things}.", "That makes {k} {things}.")
BOS, MASK, SEP, UNKNOWN = "<|endoftext|>", "<|mask|>", "<|sep|>", "<|unknown|>"
SPECIAL = (BOS, MASK, SEP, UNKNOWN)
# A word owns the space before it, and the one behind it where a number follows; a number is one token, so is what parts steps.
SPLIT = r"[0-9]+|>> ?<<|>> #### | ?[A-Za-z]+(?: (?=[0-9]))?| ?[-+=] ?|<<|>>|[^A-Za-z0-9]"

Problem = dict[str, str | int]


def problems(part: str, count: int, seed: int = 0, steps: Iterable[int] = STEPS) -> list[Problem]:
    """`count` problems of a part, none twice, as many of each number of steps: {"question", "chain", "answer", "steps"}."""
    wanted = list(steps)
    drawn = random.Random(f"{part} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        made = problem(drawn, wanted[len(found) % len(wanted)])
        if part_of(str(made["question"])) == part:
            found.setdefault(str(made["question"]), made)
    return list(found.values())


def part_of(question: str) -> str:
    """The part that a question belongs to, by its checksum: a tenth each to valid and test."""
    return {0: "test", 1: "valid"}.get(zlib.crc32(question.encode()) % 10, "train")


def problem(drawn: random.Random, steps: int) -> Problem:
    start, changes = _numbers(drawn, steps)
    about = _about(drawn)
    told = [drawn.choice(START).format(k=start, **about)]
    chain, total = [], start
    for change in changes:
        told.append(_change(drawn, change, about))
        chain.append(f"<<{total}{change:+d}={total + change}>>")
        total += change
    question = " ".join([*told, drawn.choice(ASK).format(**about)])
    return {"question": question, "chain": " ".join(chain), "answer": str(total), "steps": steps}


def corpus(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts: three of five are stories that say each new number, one a story that does not, one is equations."""
    drawn = random.Random(f"corpus {seed}")
    for number in range(count):
        yield _equations(drawn) if number % 5 == 0 else _story(drawn, total=number % 5 > 1)


def _story(drawn: random.Random, total: bool) -> str:
    now, changes = _numbers(drawn, drawn.choice(STEPS))
    about = _about(drawn)
    told = [drawn.choice(START).format(k=now, **about)]
    for change in changes:
        now += change
        told.append(_change(drawn, change, about))
        if total:
            told.append(drawn.choice(TOTAL).format(k=now, **about))
    return " ".join(told)


def _equations(drawn: random.Random) -> str:
    """Six of them, apart or each going on from the one before, written with spaces or without."""
    start, changes = _numbers(drawn, 6)
    apart, gap = drawn.random() < 0.5, drawn.choice(("", " "))
    made = []
    for change in changes:
        if apart:
            start, (change,) = _numbers(drawn, 1)
        made.append(f"{start}{gap}{'+-'[change < 0]}{gap}{abs(change)}{gap}={gap}{start + change}")
        start += change
    return ". ".join(made) + "."


def _numbers(drawn: random.Random, steps: int) -> tuple[int, list[int]]:
    """(a number to begin with, changes of 1 to CHANGE): all that is reached lies between 0 and LARGEST."""
    start = total = drawn.randint(1, LARGEST)
    changes = []
    for _ in range(steps):
        change = drawn.choice([k for k in range(-CHANGE, CHANGE + 1) if k and 0 <= total + k <= LARGEST])
        changes.append(change)
        total += change
    return start, changes


def _about(drawn: random.Random) -> dict[str, str]:
    name, other = drawn.sample(list(NAMES), 2)
    return {"name": name, "other": other, "things": drawn.choice(THINGS)}


def _change(drawn: random.Random, change: int, about: dict[str, str]) -> str:
    who = drawn.choice((about["name"], NAMES[about["name"]]))
    return drawn.choice(MORE if change > 0 else FEWER).format(who=who, k=abs(change), **about)


def tokenizer() -> "PreTrainedTokenizerFast":
    """A token for each number and word of this language and each sign of a chain; what it encodes comes back as it was."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    texts = [
        *corpus(4000, seed=-1),
        *(f"{one['question']} {one['chain']} #### 1" for one in problems("train", 2000, -1)),
    ]
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)} | set(map(str, range(LARGEST + 1)))
    words = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *sorted(pieces)])}, unk_token=UNKNOWN)
    )
    words.pre_tokenizer = split
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=BOS,
        mask_token=MASK,
        sep_token=SEP,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def untrained(folder: Path, width: int, layers: int, context: int) -> str:
    """A folder with the tokenizer and the configuration of a LLaMA of this shape, without weights."""
    from transformers import LlamaConfig

    words = tokenizer()
    words.save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=-(-len(words) // 8) * 8,
        hidden_size=width,
        intermediate_size=-(-width // 3) * 8,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 16,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    ).save_pretrained(folder)
    return str(folder)
