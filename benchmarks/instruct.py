"""Fine-tuning on generated instructions: padding policies against each other, an instruct model against its AR parent.

    python benchmarks/instruct.py train RUNS [--only NAME ...]
    python benchmarks/instruct.py measure RUNS [--only NAME ...]
    python benchmarks/instruct.py report RUNS [--out FILE.json]

`policies`: `pocket` on the data `simple`, equal canvas positions each, then asked held-out instructions on canvases of several
lengths, beside those of training. `models`: the preset `instruct`, and `pocket-ar` fine-tuned on the same rows at the best of
its learning rates. Policies and rates are chosen on other held-out instructions than those that the models are measured on.
`tiny`: that preset on a file of "say: " and three words.
Every run is one of `diffulm sft`, every measurement a file beside the runs: what is finished is not done again.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from pairs import conditions

from diffulm.chat import conversation, template_of
from diffulm.data import simple
from diffulm.evaluation.cells import NORMAL_95
from diffulm.evaluation.subject import opened
from diffulm.recipes.sft import sft

AR = {"model": "pocket-ar", "objective": "autoregressive"}
POLICY = {"preset": "instruct", "tokens": "600K", "length": 96, "global_batch": 16}
FEW = {"eval_every": "100%", "eval_rows": 8, "eval_answers": 8}
"""What a run measures by itself."""
POLICIES: dict[str, dict[str, Any]] = {
    "full": {"padding": "full", "packing": False},
    "full, weight 0.1": {"padding": "full", "packing": False, "padding_weight": 0.1},
    "random 0 to 32, one a row": {"padding": "random", "padding_tokens": 32, "packing": False},
    "random 0 to 32": {"padding": "random", "padding_tokens": 32},
    "random 0 to 8": {"padding": "random", "padding_tokens": 8},
    "none": {"padding": "none"},
    "random 0 to 32, truncation": {"padding": "random", "padding_tokens": 32, "truncation": 0.3},
    "block": {"padding": "block", "model": "pocket-block"},
}
CANVASES, CANVAS = (16, 48, 96), 32
"""Positions behind a question: for the policies, and for the models."""
SURE = {
    "threshold": 0.95
}  # of policies: what the model is so sure of is revealed at once, which takes a third of the time
RATES = {"pocket": (1.5e-3,), "pocket-ar": (1e-3, 3e-3)}
RATE_TOKENS, MODEL_TOKENS = "60K", "1M"
# Not the words of `simple`, nor such as Python is full of: most are several tokens.
OTHERS = """
    apple beach bread bridge button candle castle chair cloud dragon dream flower forest garden green happy horse island
    kitten light mirror monkey music ocean orange paper pencil pepper planet purple queen rabbit river rocket silver snake
    spider stone summer table tiger train turtle window winter yellow
""".split()
TINY = {"tiny, 300 rows": 300}
HELD = 200  # rows of it
VALIDATED = 20  # instructions of each kind; half of them on the shortest and longest canvas
ASKED = 600  # of the models
BINS = ((1, 2), (3, 6), (7, 12), (13, 30))
"""Tokens of an answer, its end included."""

Answer = dict[str, Any]


def named(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "_")


class Bench:
    """Where runs and figures are."""

    def __init__(self, runs: str) -> None:
        self.runs = Path(runs)
        test = list(simple.instructions("test"))
        self.test, self.validation = test[:ASKED], unlike(test)
        self.spoken = [("say", said(words)) for words in triples(HELD, "test")]

    def train(self, name: str, settings: dict[str, Any]) -> None:
        out, began = self.runs / named(name), time.monotonic()
        if not (out / "report.json").exists():
            settings = {"model": "pocket", **FEW, **settings}
            if name in TINY:
                settings["data"] = str(self.written(TINY[name]))
            if settings["model"] == "pocket-block":
                settings["model"] = str(self.runs.parent / "pocket-block")
            sft(settings.pop("preset"), out=str(out), **settings)
            print(f"{time.monotonic() - began:6.0f} s: {name}", file=sys.stderr, flush=True)

    def measure(self, name: str, canvas: int) -> None:
        """What a run's model answers, kept beside the runs: for the models to all of the test part."""
        file, folder = self.file(name, canvas), self.runs / named(name)
        if file.exists() or not (folder / "report.json").exists():
            return
        began = time.monotonic()
        others = self.validation if canvas in (CANVAS, CANVASES[1]) else self.validation[::2]
        asked = self.test if name.startswith("model") else self.spoken if name in TINY else others
        found = answers(folder, asked, canvas, SURE if asked is others else {})
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
        print(f"{time.monotonic() - began:6.0f} s: {name}, canvas of {canvas}", file=sys.stderr, flush=True)

    def written(self, rows: int) -> Path:
        """A file of so many rows, and none that is asked."""
        file = self.runs / f"say-{rows}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(said(words)) + "\n" for words in triples(rows, "train")))
        return file

    def answers(self, name: str, canvas: int) -> list[Answer]:
        """What `measure` has found; [] where it has not."""
        file = self.file(name, canvas)
        return json.loads(file.read_text()) if file.exists() else []

    def file(self, name: str, canvas: int) -> Path:
        return self.runs / "measured" / f"{named(name)}.{canvas}.json"

    def rates(self, model: str) -> dict[float, float]:
        """Learning rate -> held-out loss of its short run, as far as they are there."""
        files = {rate: self.runs / named(f"rate, {model}, {rate:g}") / "report.json" for rate in RATES[model]}
        return {rate: json.loads(file.read_text())["causal_view"] for rate, file in files.items() if file.exists()}

    def rate(self, model: str) -> float | None:
        """The learning rate of the lowest held-out loss; None while a run of one is missing."""
        found = self.rates(model)
        if len(RATES[model]) == 1:
            return RATES[model][0]
        return min(found, key=lambda rate: found[rate]) if len(found) == len(RATES[model]) else None


def plan(bench: Bench) -> dict[str, tuple[dict[str, Any], Sequence[int]]]:
    """Every run: its settings for `diffulm sft` and the canvases it is asked on. The models once their rates are known."""
    found: dict[str, tuple[dict[str, Any], Sequence[int]]]
    found = {f"policy, {name}": (POLICY | settings, CANVASES) for name, settings in POLICIES.items()}
    for model, rates in RATES.items():
        common = {"preset": "instruct"} | (AR if model == "pocket-ar" else {})
        for rate in rates if len(rates) > 1 else ():
            short = {"tokens": RATE_TOKENS, "learning_rate": rate, "eval_rows": 64, "eval_answers": 0}
            found[f"rate, {model}, {rate:g}"] = common | short, ()
        best = bench.rate(model)
        if best is not None:
            found[f"model, {model}"] = common | {"learning_rate": best, "tokens": MODEL_TOKENS}, (CANVAS,)
    return found | {name: ({"preset": "tiny", "tokens": "100K"}, (CANVAS,)) for name in TINY}


def triples(count: int, part: simple.Part) -> list[list[str]]:
    """So many times three words, those of the test part never in the other."""
    random, found = Random(part), list[list[str]]()
    while len(found) < count:
        words: list[str] = random.sample(OTHERS, 3)
        if simple.held_out(words) == (part == "test") and words not in found:
            found.append(words)
    return found


def said(words: Sequence[str]) -> simple.Row:
    text = " ".join(words)
    return {"messages": [{"role": "user", "content": f"say: {text}"}, {"role": "assistant", "content": text}]}


def unlike(test: list[tuple[str, simple.Row]]) -> list[tuple[str, simple.Row]]:
    """Other held-out instructions than these: as many of each kind."""
    found: dict[str, list[simple.Row]] = {kind: [] for kind in simple.KINDS}
    known = [row for _, row in test]
    for kind, row in simple.instructions("test", seed=1):
        if row not in known and len(found[kind]) < VALIDATED:
            found[kind].append(row)
    return [(kind, row) for kind, some in found.items() for row in some]


def answers(folder: Path, asked: list[tuple[str, simple.Row]], canvas: int, how: dict[str, Any]) -> list[Answer]:
    """Greedy answers, in confidence order, on a canvas of so many positions, of the instructions whose right answer fits.

    Of each: kind, wanted and tokens (of the right answer and of this one, the end included), ended, right.
    """
    autoregressive = "diffulm" not in json.loads((folder / "config.json").read_text())
    subject = opened(folder, parent=autoregressive)
    template = template_of(subject.tokenizer)
    rows = [(kind, row, template.opening(conversation(row["messages"][:-1]))) for kind, row in asked]
    wanted = [len(template.answer(row["messages"][-1]["content"])) for _, row, _ in rows]
    fitting = [(row, n) for row, n in zip(rows, wanted, strict=True) if n <= canvas]
    said = subject.complete(
        [opening for (_, _, opening), _ in fitting],
        canvas,
        keys=range(len(fitting)),
        closing=(template.end, template.pad),
        **how,
    )
    found = []
    for ((kind, row, _), n), (one,) in zip(fitting, said, strict=True):
        tokens = len(template.part(one.text)) + 1 if one.ended else canvas
        told = {"ended": one.ended, "right": simple.right(row, one.text), "text": one.text}
        found.append({"kind": kind, "wanted": n, "tokens": tokens} | told)
    return found


def right(found: Sequence[Answer]) -> float:
    return sum(one["right"] for one in found) / len(found)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, 1927)."""
    z = NORMAL_95
    middle, half = (hits + z * z / 2), z * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return (middle - half) / (count + z * z), (middle + half) / (count + z * z)


def mcnemar(ours: list[Answer], theirs: list[Answer]) -> dict[str, Any]:
    """Right here and wrong there, and the other way round; the exact two-sided p of a fair coin."""
    pairs = [(a["right"], b["right"]) for a, b in zip(ours, theirs, strict=True)]
    more, less = pairs.count((True, False)), pairs.count((False, True))
    tail = sum(math.comb(more + less, k) for k in range(min(more, less) + 1)) / 2 ** (more + less)
    return {"right here alone": more, "right there alone": less, "p": min(1.0, 2 * tail)}


def figures(found: list[Answer]) -> dict[str, Any]:
    """Shares and mean lengths of one model on one canvas."""
    if not found:
        return {}
    count = len(found)
    errors = [one["tokens"] - one["wanted"] for one in found]
    return {
        "count": count,
        "right": right(found),
        "interval": wilson(sum(one["right"] for one in found), count),
        "empty": sum(not one["text"].strip() for one in found) / count,
        "never ended": sum(not one["ended"] for one in found) / count,
        "length error": sum(map(abs, errors)) / count,
        "longer by": sum(errors) / count,
        "by kind": grouped(found, lambda one: one["kind"]),
        "by length": grouped(found, lambda one: next(f"{a} to {b}" for a, b in BINS if a <= one["wanted"] <= b)),
    }


def grouped(found: list[Answer], of: Callable[[Answer], str]) -> dict[str, Any]:
    """(right, count) of each group, in the order of their names."""
    groups = {name: [one["right"] for one in found if of(one) == name] for name in dict.fromkeys(map(of, found))}
    return {name: (sum(groups[name]), len(groups[name])) for name in sorted(groups, key=lambda name: (len(name), name))}


def report(bench: Bench) -> dict[str, Any]:
    policies = {
        name: {canvas: figures(bench.answers(f"policy, {name}", canvas)) for canvas in CANVASES} for name in POLICIES
    }
    found = {model: bench.answers(f"model, {model}", CANVAS) for model in RATES}
    return conditions(torch.get_num_threads()) | {
        "policies": policies,
        "rates": {model: bench.rates(model) for model in RATES},
        "models": {model: {"learning_rate": bench.rate(model)} | figures(some) for model, some in found.items()},
        "tiny": {name: figures(bench.answers(name, CANVAS)) for name in TINY},
        "against the parent": mcnemar(*found.values()) if all(found.values()) else None,
    }


def tables(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "| policy | canvas | right | empty | never ended | length error | longer by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, canvases in found["policies"].items():
        for canvas, one in canvases.items():
            if one:
                shares = " | ".join(f"{one[key]:.1%}" for key in ("right", "empty", "never ended"))
                lines.append(f"| {name} | {canvas} | {shares} | {one['length error']:.2f} | {one['longer by']:+.2f} |")
    models = {name: one for name, one in found["models"].items() if "by kind" in one}
    for key in ("by kind", "by length") if models else ():
        lines += ["", f"| {key} | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
        for group in next(iter(models.values()))[key]:
            cells = " | ".join("{} of {}".format(*one[key][group]) for one in models.values())
            lines.append(f"| {group} | {cells} |")
    for name, one in models.items():
        low, high = one["interval"]
        lines.append(f"\n{name}: {one['right']:.1%} ({low:.1%} to {high:.1%}), learning rate {one['learning_rate']:g}")
    lines += [f"\n{name}: {one['right']:.1%} of {one['count']}" for name, one in found["tiny"].items() if one]
    return "\n".join([*lines, "", json.dumps(found["against the parent"]), json.dumps(found["rates"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure", "report"))
    parser.add_argument("runs", help="where runs and figures are")
    parser.add_argument("--only", nargs="+", help="these runs alone, by name: 'policy, none'")
    parser.add_argument("--out", help="of `report`: a JSON file")
    asked = parser.parse_args()
    bench = Bench(asked.runs)
    if asked.what == "report":
        found = report(bench)
        if asked.out:
            Path(asked.out).write_text(json.dumps(found, indent=1) + "\n")
        print(tables(found))
        return
    for name, (settings, canvases) in plan(bench).items():
        if asked.only is None or name in asked.only:
            if asked.what == "train":
                bench.train(name, settings)
            for canvas in canvases if asked.what == "measure" else ():
                bench.measure(name, canvas)


if __name__ == "__main__":
    main()
