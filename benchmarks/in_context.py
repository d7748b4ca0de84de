"""How much learning in context survives adaptation: patterns that a model of 3M parameters can complete, parent against child.

    python benchmarks/in_context.py train RUNS       # pocket-ar adapted on fewer tokens than pocket
    python benchmarks/in_context.py measure RUNS     # benchmarks/results/DATE-in_context.json, tables of docs/in-context.md
    python benchmarks/in_context.py page             # the tables alone, from the JSON

Five patterns of random words of the model's own vocabulary, each shown by so many shots, then one token to predict. For the
first three the text has `SLOTS` pieces whatever the shots: what is no shot is a piece of the same form with other words.

copying     a run of eight words, shown whole; then its first four: the fifth
induction   A B between other words; then A: B
recall      `x = y` among lines with other words; then `x = `: y
constant    lines `x = c` with one c; then another `x = `: c
identity    lines `x = x`; then another `x = `: x

The question stands at the end, the mask with nothing to its right; in the middle of its shots; or before all of them. A parent
reads the same text from left to right: what stands behind the question it cannot use.
"""

import argparse
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from curves import rounded
from pairs import conditions
from results_measure import pocket_text
from results_page import plus_minus, table

import diffulm
from diffulm import bounds, lm, randomness, scoring
from diffulm.canvas import encode
from diffulm.evaluation.cells import NORMAL_95, error, share_error
from diffulm.evaluation.subject import Subject, opened
from diffulm.scoring import Method, Request

OUT, PAGE = Path("benchmarks/results/2026-11-22-in_context.json"), Path("docs/in-context.md")
PARENT, CHILD = "pocket-ar", "pocket"
TOKENS, WHOLE = ("250K", "500K", "1M", "2M"), "8M"  # pocket's own run had 8M
SHOTS, SLOTS, ITEMS, SEED = (0, 1, 2, 4, 8), 12, 128, 0
FEW_AND_MANY = (SHOTS[0], SHOTS[-1])
PLACES = ("end", "middle", "start")
Piece = tuple[int, ...]
Hits = dict[str, list[float]]


@dataclass(frozen=True)
class Pattern:
    """Ids of the shots in turn, of what stands where no shot is shown (empty: nothing does), and of the question."""

    shots: Sequence[Piece]
    others: Sequence[Piece]
    before: Piece
    answer: int
    after: Piece

    def shown(self, shots: int, order: Sequence[int]) -> list[Piece]:
        """The pieces with so many shots, at the first places of `order`: more shots keep those that fewer had."""
        if not self.others:
            return list(self.shots[:shots])
        placed = dict(zip(order[:shots], self.shots, strict=False))
        return [placed.get(place, other) for place, other in enumerate(self.others)]


def words(tokenizer: Any) -> list[int]:
    """The tokens that are a word of two letters or more in the middle of a line, and are what this word is encoded as."""
    texts = {index: tokenizer.decode([index]) for index in range(len(tokenizer))}
    plain = [index for index, text in texts.items() if len(text) > 1 and text.isascii() and text.isalpha()]
    return [index for index in plain if encode(tokenizer, texts[index], inside=True) == [index]]


@dataclass(frozen=True)
class Maker:
    """Makes patterns: words to draw from, ids of what stands between the two words of a line and at its end."""

    words: Sequence[int]
    equals: Piece
    end: Piece

    def line(self, x: int, y: int) -> Piece:
        return (x, *self.equals, y, *self.end)

    def question(self, shots: Sequence[Piece], others: Sequence[Piece], x: int, y: int) -> Pattern:
        return Pattern(shots, others, (x, *self.equals), y, self.end)

    def copying(self, draw: random.Random) -> Pattern:
        run, *others = (tuple(draw.sample(self.words, 8)) for _ in range(SLOTS + 1))
        return Pattern([run] * SHOTS[-1], others, run[:4], run[4], run[5:])

    def induction(self, draw: random.Random) -> Pattern:
        a, b, *rest = draw.sample(self.words, 2 + 6 * (SLOTS + SHOTS[-1] + 1))
        *pieces, last = (tuple(rest[i : i + 6]) for i in range(0, len(rest), 6))
        shots = [(*piece[:2], a, b, *piece[4:]) for piece in pieces[SLOTS:]]
        return Pattern(shots, pieces[:SLOTS], (*last[:2], a), b, last[4:])

    def recall(self, draw: random.Random) -> Pattern:
        x, y, *rest = draw.sample(self.words, 2 + 2 * SLOTS)
        others = [self.line(*pair) for pair in zip(rest[::2], rest[1::2], strict=True)]
        return self.question([self.line(x, y)] * SHOTS[-1], others, x, y)

    def constant(self, draw: random.Random) -> Pattern:
        c, x, *rest = draw.sample(self.words, 2 + SHOTS[-1])
        return self.question([self.line(one, c) for one in rest], [], x, c)

    def identity(self, draw: random.Random) -> Pattern:
        x, *rest = draw.sample(self.words, 1 + SHOTS[-1])
        return self.question([self.line(one, one) for one in rest], [], x, x)


PATTERNS: dict[str, Callable[[Maker, random.Random], Pattern]] = {
    "copying": Maker.copying,
    "induction": Maker.induction,
    "recall": Maker.recall,
    "constant": Maker.constant,
    "identity": Maker.identity,
}


def request(pattern: Pattern, pieces: Sequence[Piece], place: str, bos: Sequence[int]) -> Request:
    """The canvas: BOS, pieces, the question whose answer alone is free; nothing behind it at the end."""
    cut = {"end": len(pieces), "middle": len(pieces) // 2, "start": 0}[place]
    left = [*bos, *itertools.chain(*pieces[:cut]), *pattern.before]
    right = [] if place == "end" else [*pattern.after, *itertools.chain(*pieces[cut:])]
    return Request((*left, pattern.answer, *right), len(left), len(left) + 1)


def requests(subject: Subject, name: str, shots: int, place: str, items: int) -> list[Request]:
    """The same items for the same vocabulary; an item has the same question for every number of shots."""
    tokenizer = subject.tokenizer
    maker = Maker(words(tokenizer), *(tuple(encode(tokenizer, text, inside=True)) for text in (" = ", "\n")))
    made = []
    for item in range(items):
        draw = random.Random(randomness.key(SEED, f"{name} {item}"))
        pattern, order = PATTERNS[name](maker, draw), draw.sample(range(SLOTS), SLOTS)
        made.append(request(pattern, pattern.shown(shots, order), place, subject.bos))
    return made


def answered(
    subject: Subject, method: Method, counts: Sequence[int], places: Sequence[str], items: int = ITEMS
) -> dict[str, dict[str, Hits]]:
    """{"pattern, place": {shots: {"right": 0 or 1 of each item, "nats": of its answer}}}."""
    found: dict[str, dict[str, Hits]] = {}
    for name, place in itertools.product(PATTERNS, places):
        for shots in counts:
            done = scoring.scores(subject.denoiser, requests(subject, name, shots, place, items), method)
            hits = {"right": [float(bool(one.greedy)) for one in done], "nats": [one.nats for one in done]}
            found.setdefault(f"{name}, {place}", {})[str(shots)] = hits
    return found


def readings(runs: Path) -> dict[str, tuple[Callable[[], Subject], Method, Sequence[int], Sequence[str]]]:
    """By name: the model, how it is read, shots and places."""

    def untrained() -> Subject:
        return Subject(PARENT, lm.adopt(PARENT))

    found: dict[str, Any] = {
        "parent": (lambda: opened(PARENT, parent=True), "autoregressive", SHOTS, PLACES),
        "child": (lambda: opened(CHILD), "left_to_right", SHOTS, PLACES),
        "child's AR reading": (lambda: opened(CHILD), "autoregressive", SHOTS, PLACES[:1]),
        "adapted on 0": (untrained, "left_to_right", SHOTS, PLACES[:1]),
    }
    for tokens in TOKENS:
        folder = runs / f"in-context/pocket-{tokens}"
        found[f"adapted on {tokens}"] = (
            lambda folder=folder: opened(folder),
            "left_to_right",
            FEW_AND_MANY,
            PLACES[:1],
        )
    return found


def kept(child: dict[str, Hits], parent: dict[str, Hits]) -> tuple[float, float]:
    """(share of what the shots spare the parent that they spare the child, its standard error): the ratio of two means over the
    same items, by linearisation. Nats without shots less nats with the most."""
    few, many = map(str, FEW_AND_MANY)
    ours, theirs = (
        [a - b for a, b in zip(one[few]["nats"], one[many]["nats"], strict=True)] for one in (child, parent)
    )
    ratio, scale = statistics.fmean(ours) / statistics.fmean(theirs), abs(statistics.fmean(theirs))
    spread = error([a - ratio * b for a, b in zip(ours, theirs, strict=True)])
    assert spread is not None
    return ratio, spread / scale


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """(mean of the paired differences, half width of its 95% interval); of right and wrong answers by Agresti and Min (2005),
    so that no difference in so many items is not one of 0 for certain."""
    between = [a - b for a, b in zip(ours, theirs, strict=True)]
    if {*ours, *theirs} <= {0.0, 1.0}:
        apart, n = sum(map(abs, between)), len(between) + 2
        return statistics.fmean(between), NORMAL_95 * math.sqrt(apart + 1 - sum(between) ** 2 / n) / n
    stderr = error(between)
    assert stderr is not None
    return statistics.fmean(between), bounds.student(len(between) - 1) * stderr


def told(name: str, found: dict[str, dict[str, Hits]], parent: dict[str, dict[str, Hits]]) -> dict[str, Any]:
    """Figures of a model: of each pattern, place and number of shots, with errors, and less the parent's."""
    figures: dict[str, Any] = {}
    for key, by_shots in found.items():
        own = figures[key] = {}
        for shots, hits in by_shots.items():
            right, nats = hits["right"], hits["nats"]
            own[shots] = {
                "right": (statistics.fmean(right), share_error(sum(right), len(right))),
                "nats": (statistics.fmean(nats), error(nats)),
            }
            if name != "parent":
                theirs = parent[key][shots]
                own[shots] |= {f"{what} - parent": difference(hits[what], theirs[what]) for what in hits}
        if name != "parent" and key.endswith("end"):
            own["kept"] = kept(by_shots, parent[key])
    return figures


def measure(runs: Path, items: int = ITEMS) -> dict[str, Any]:
    report: dict[str, Any] = conditions(torch.get_num_threads()) | {"items": items, "slots": SLOTS, "readings": {}}
    parent: dict[str, dict[str, Hits]] = {}
    for name, (model, method, counts, places) in readings(runs).items():
        subject = model()
        found = answered(subject, method, counts, places, items)
        parent = parent or found
        report["readings"][name] = told(name, found, parent)
        report |= {"words": len(words(subject.tokenizer))}
        print(
            name,
            {key: of[str(counts[-1])]["right"][0] for key, of in report["readings"][name].items()},
            file=sys.stderr,
        )
    return rounded(report)


def train(runs: Path) -> None:
    """The recipe of `pocket` on fewer tokens, each a whole run on its own schedule."""
    text = pocket_text()
    for tokens in TOKENS:
        folder = runs / f"in-context/pocket-{tokens}"
        if not (folder / "report.json").exists():
            data = {"data": str(text / "train.jsonl.gz"), "eval_data": str(text / "heldout.jsonl.gz"), "eval_blocks": 8}
            data |= {"eval_every": "100%", "eval_samples": 4}
            diffulm.adapt("pocket", model=PARENT, out=str(folder), tokens=tokens, noise="bernoulli", **data)


def percent(found: Sequence[float], sign: str = "") -> str:
    return plus_minus([100 * one for one in found], 1, sign)


def by_shots(report: dict[str, Any]) -> str:
    models = {
        "parent": "parent",
        "child": "child",
        "child's AR reading": "child, AR reading",
        "adapted on 0": "untrained",
    }
    rows = []
    for name in PATTERNS:
        for model, shown in models.items():
            of = report["readings"][model][f"{name}, end"]
            last = of[str(SHOTS[-1])]
            minus = percent(last["right - parent"], "+") if "right - parent" in last else ""
            share = percent(of["kept"]) if "kept" in of and sensible(report, name) else ""
            rows.append([f"{name}: {shown}", *(percent(of[str(k)]["right"]) for k in SHOTS), minus, share])
    return table(["right answers, %", *map(str, SHOTS), f"{SHOTS[-1]} shots, less parent", "kept, %"], rows)


def sensible(report: dict[str, Any], name: str) -> bool:
    """Whether shots spare the parent anything, so that a share of it can be kept."""
    of = report["readings"]["parent"][f"{name}, end"]
    few, many = (of[str(k)]["nats"] for k in FEW_AND_MANY)
    return few[0] - many[0] > 4 * math.hypot(few[1], many[1])


def by_tokens(report: dict[str, Any]) -> str:
    columns = {"0": "adapted on 0", **{tokens: f"adapted on {tokens}" for tokens in TOKENS}, WHOLE: "child"}
    rows = []
    for name in PATTERNS:
        key, many = f"{name}, end", str(SHOTS[-1])
        of = {tokens: report["readings"][model][key] for tokens, model in columns.items()}
        own = report["readings"]["parent"][key][many]["right"]
        rows.append([f"{name}: right", *(percent(one[many]["right"]) for one in of.values()), percent(own)])
        if sensible(report, name):
            rows.append([f"{name}: kept", *(percent(one["kept"]) for one in of.values()), ""])
    return table([f"{SHOTS[-1]} shots, %", *columns, "parent"], rows)


def by_place(report: dict[str, Any]) -> str:
    rows = []
    many = str(SHOTS[-1])
    for name in PATTERNS:
        for place in PLACES:
            key = f"{name}, {place}"
            parent, child = (report["readings"][model][key][many] for model in ("parent", "child"))
            cells = [percent(parent["right"]), percent(child["right"]), percent(child["right - parent"], "+")]
            rows.append([name, place, *cells, plus_minus(child["nats - parent"], 2, "+")])
    return table(["pattern", "question", "parent, %", "child, %", "child − parent", "in nats"], rows)


def refreshed(page: str, report: dict[str, Any]) -> str:
    """The page with the tables of this report between its markers."""
    for name, make in {"shots": by_shots, "tokens": by_tokens, "places": by_place}.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{make(report)}\n{rest[rest.index(end) :]}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "measure", "page"])
    parser.add_argument("runs", nargs="?", default="runs", type=Path)
    asked = parser.parse_args()
    if asked.what == "train":
        train(asked.runs)
    else:
        if asked.what == "measure":
            OUT.write_text(json.dumps(measure(asked.runs), indent=1) + "\n")
        PAGE.write_text(refreshed(PAGE.read_text("utf-8"), json.loads(OUT.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
