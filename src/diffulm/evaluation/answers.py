"""Answers in what a model wrote: finding them, comparing them, voting on them. No torch in here.

A text in which no answer is found has the answer None: it is wrong, and it does not vote.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from diffulm.errors import unknown

# a sign belongs to it where nothing stands before that it could be taken from: the 4 of "3-4" is 4
_SIGN = r"(?<![\w)])[-−]"
_NUMBER = re.compile(
    rf"(?:{_SIGN})?\$?(?:[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’´`“”")


def number(text: str) -> str | None:
    """The last number of a text in one way of writing: 1000 for "$1,000", 18 for "18.0" and "18.", -0.5 for "-.50"."""
    found = [_plain(one) for one in _NUMBER.findall(text)]
    return found[-1] if found else None


def _plain(found: str) -> str:
    value = Decimal(re.sub("[$,]", "", found.replace("−", "-")))
    return f"{value.normalize() + 0:f}"  # + 0: no -0


def marked(text: str) -> str | None:
    """The first number after the last `####` of a text, where GSM8K has its answer; None without such a mark."""
    _, mark, after = text.rpartition("####")
    found = _NUMBER.search(after) if mark else None
    return _plain(found[0]) if found else None


def same_number(said: str | None, right: str) -> bool:
    """Whether two numbers are one. said: as `number` writes it; right: any way that Python writes one.

    Where the right one has more decimals than were said, and at least two were said, it is enough to have rounded it: 1.83
    for 1.8333333333333335, but not 1.8, nor 1.84.
    """
    if said is None:
        return False
    one, other = Decimal(said), Decimal(right)
    places = -int(one.as_tuple().exponent)
    if 2 <= places < -int(other.as_tuple().exponent):
        return abs(one - other) <= Decimal(10) ** -places / 2
    return one == other


def letter(text: str, letters: str = "ABCD") -> str | None:
    """The option that a text names: "(C)" anywhere, else what follows "answer is", else the letter that it begins with.

    "A" that begins a sentence ("A number below 4") is the article.
    """
    plain = letters.replace("A", "")
    article = r"|A(?!\w|\s+[a-z])" if "A" in letters else ""
    for pattern in (rf"\(([{letters}])\)", rf"answer\s*(?:is|:)\s*([{letters}])\b", rf"^\W*([{plain}](?!\w){article})"):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return None


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and superfluous space, as answers of TriviaQA and SQuAD are compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def known(aliases: Sequence[str]) -> tuple[str, ...]:
    """The answers that count, normalised; what is nothing then ("The", "!!!") does not, or every text would contain it."""
    return tuple(dict.fromkeys(one for one in map(normalised, aliases) if one))


def exact(text: str | None, aliases: Sequence[str]) -> bool:
    """Whether a text is one of the answers."""
    return text is not None and normalised(text) in known(aliases)


def contains(text: str | None, aliases: Sequence[str]) -> bool:
    """Whether one of the answers stands anywhere in a text: what the paper's TriviaQA calls a match."""
    return text is not None and any(one in normalised(text) for one in known(aliases))


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer given most often, of those given equally often the first (Wang et al., 2022); None if there is none."""
    votes = Counter(one for one in answers if one is not None)
    return votes.most_common(1)[0][0] if votes else None


def hit(right: Sequence[bool], k: int) -> bool:
    """hit@k: whether any of the first k draws is right. ValueError for fewer draws, which would be another figure."""
    if len(right) < k:
        raise ValueError(f"hit@{k} of {len(right)} draws")
    return any(right[:k])


EXTRACTS: dict[str, Callable[[str], str | None]] = {
    "number": number, "marked": marked, "letter": letter, "text": lambda text: normalised(text) or None,
}  # fmt: skip


@dataclass(frozen=True)
class Vote:
    """answer: the one given most often; None where no draw has one. answers: that of each draw."""

    answer: str | None
    answers: tuple[str | None, ...]

    @property
    def share(self) -> float:
        """Of all draws, those that give this answer."""
        return self.answers.count(self.answer) / len(self.answers) if self.answer is not None else 0.0


def vote(found: Any, extract: str | Callable[[str], str | None] = "number") -> Vote:
    """Self-consistency (Wang et al., 2022): what most draws answer.

        diffulm.vote(lm.generate("Question: 2 + 3?\nAnswer:", length=16, temperature=0.7, n=8)).answer

    found: what `lm.generate(..., n=...)` gives for one prompt, or texts. extract: "number" (the last one), "marked" (the
    number after `####`), "letter" (the option named, A to D), "text" (all of it, without case, articles and punctuation), or
    a function from a text to its answer, None where it has none. BadInput for another name.
    """
    if isinstance(extract, str):
        if extract not in EXTRACTS:
            raise unknown("way to find an answer", extract, EXTRACTS)
        extract = EXTRACTS[extract]
    if hasattr(found, "completion"):
        found = [one.fills[0] for one in found.candidates] or [found.completion]
    answers = tuple(map(extract, found))
    return Vote(majority(answers), answers)
