"""GSM8K as the paper did it, on sums that a small model can learn: is the diffusion child ahead of its AR parent?

    python benchmarks/arithmetic.py train RUNS [--only NAME ...]        # parent, child, then every arm
    python benchmarks/arithmetic.py measure RUNS OUT [--plot FILE]      # accuracy -> OUT (JSON) and the page's tables

Problems, corpus and tokenizer come from chains.py. The AR parent learns the language from the corpus; the child is adapted from
it on the same corpus, and the control is the parent trained on by as many tokens. Then every arm is fine-tuned on the same
problems by `diffulm sft gsm8k-diffugpt`, for the same number of canvas positions: rows times length, question and padding
included. Three learning rates on seed 0, the one of the highest accuracy on the valid part, two more seeds of it. Asked and
scored by the suite's part `gsm8k`. What is finished is not done again.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import chains
import torch
from curves import rounded
from pairs import conditions

import diffulm
from diffulm import chat
from diffulm.bounds import student
from diffulm.evaluation.cells import NORMAL_95
from diffulm.evaluation.subject import Subject, opened
from diffulm.evaluation.suite import gsm8k
from diffulm.evaluation.trial import Trial
from diffulm.scoring import Request, scores

LENGTH, WIDTH, LAYERS = 72, 64, 4
CORPUS, TRAIN, VALID, TEST = 100_000, 2000, 200, 400
PARENT_TOKENS, ADAPT_TOKENS, TOKENS = "2M", "3M", "800K"
SEEDS = (0, 1, 2)
AR = {"objective": "autoregressive", "annealing": "none"}
PRETRAINED = {"length": LENGTH, "eval_every": "50%", "save_seconds": 60}
TUNED = {"length": LENGTH, "global_batch": 16, "warmup_steps": "5%", "precision": "float32"}
EVALUATED = {"eval_every": "100%", "eval_rows": 16, "eval_answers": 0}
ANNEALED = {"annealing": "bernoulli", "anneal_steps": "35%"}
PARENT, CHILD = "AR parent", "adapted, then tuned"
# name -> (model it begins from, settings over the preset)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    PARENT: ("parent", AR),
    CHILD: ("child", {}),
    "in one run": ("parent", ANNEALED),
    "in one run, no shift": ("parent", {**ANNEALED, "shift": False}),
    "in one run, no annealing": ("parent", {}),
    "from scratch": ("parent", {"scratch": True}),  # its shape alone
    "AR parent, trained on": ("control", AR),
}
RATES = (1e-3, 3e-3, 8e-3)
LIKE: dict[str, str] = dict.fromkeys(
    ("in one run, no shift", "in one run, no annealing", "from scratch"), "in one run"
)  # whose rate they take
STEPS, MOST = (1, 2, 4, 8, 16, 32, 64), 64
ANSWERS, DRAWS = 200, 32  # of the bound
PLACES = {"the first number": 1, "the first change": 3, "the first result": 5}  # in an answer: << 16 - 3 = 13
KEPT = "accuracy.json"


def prepared(runs: Path) -> Path:
    """The folder of what chains.py makes, written once; valid and test as files that the suite's part finds."""
    folder = runs / "data"
    if not (folder / "untrained" / "config.json").exists():
        rows(folder / "corpus.jsonl", ({"text": text} for text in chains.corpus(CORPUS)))
        rows(folder / "train.jsonl", chains.problems("train", TRAIN))
        for part, count in (("valid", VALID), ("test", TEST)):
            rows(folder / part / "gsm8k-symbolic" / "test.jsonl", chains.problems(part, count))
        chains.untrained(folder / "untrained", WIDTH, LAYERS, LENGTH)
    return folder


def rows(file: Path, found: Iterable[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in found))


def pretrain(runs: Path, name: str) -> None:
    data = prepared(runs)
    settings: dict[str, Any] = {**PRETRAINED, "data": str(data / "corpus.jsonl"), "out": str(runs / name)}
    if name == "parent":
        settings |= {**AR, "model": str(data / "untrained"), "scratch": True, "learning_rate": 4e-3}
        diffulm.adapt("tiny", tokens=PARENT_TOKENS, global_batch=24, **settings)
        return
    settings |= {"model": str(runs / "parent"), "tokens": ADAPT_TOKENS, "global_batch": 8}
    diffulm.adapt("tiny", **settings | (AR | {"learning_rate": 1e-3} if name == "control" else {}))


def folder(runs: Path, arm: str, rate: float, seed: int) -> Path:
    return runs / arm.replace(", ", "-").replace(" ", "_") / f"{rate:g}-seed{seed}"


def tune(runs: Path, arm: str, rate: float, seed: int) -> None:
    """One fine-tuning; nothing where it is finished."""
    out, (model, settings) = folder(runs, arm, rate, seed), ARMS[arm]
    if (out / "report.json").exists():
        return
    data, began = prepared(runs), time.monotonic()
    files = {"data": str(data / "train.jsonl"), "eval_data": str(data / "valid" / "gsm8k-symbolic" / "test.jsonl")}
    asked = {**TUNED, **EVALUATED, **files, **settings, "model": str(runs / model), "tokens": TOKENS, "out": str(out)}
    diffulm.sft("gsm8k-diffugpt", learning_rate=rate, seed=seed, **asked)
    print(arm, rate, seed, f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def best(runs: Path, arm: str) -> float:
    """The learning rate of the highest accuracy on the valid part, seed 0; of equal ones the lower."""
    arm = LIKE.get(arm, arm)
    found = {rate: statistics.fmean(hits(runs, arm, rate, SEEDS[0], "valid", MOST)) for rate in RATES}
    print(arm, found, file=sys.stderr, flush=True)
    return max(found, key=lambda rate: (found[rate], -rate))


def hits(runs: Path, arm: str, rate: float, seed: int, part: str, steps: int) -> list[float]:
    """1 or 0 for each question of a part, as the suite scores it; kept beside the run."""
    out = folder(runs, arm, rate, seed)
    kept = json.loads((out / KEPT).read_text()) if (out / KEPT).exists() else {}
    key = f"{part}, {steps} steps"
    if key not in kept:
        subject = opened(str(out), parent="objective" in ARMS[arm][1])
        (cell,) = gsm8k.run(Trial(subject, data=runs / "data" / part, steps=steps, batch_size=64))
        kept[key] = {"items": cell.items, "counts": cell.counts}
        (out / KEPT).write_text(json.dumps(kept))
    return kept[key]["items"]


def answered(subject: Subject, problem: chains.Problem) -> tuple[list[int], list[int]]:
    """(BOS and the question in the model's template, the ids of its right answer)."""
    template = chat.template_of(subject.tokenizer)
    before = template.opening([{"role": "user", "content": str(problem["question"])}])
    return [*subject.bos, *before], template.answer(f"{problem['chain']} #### {problem['answer']}")


def nats(runs: Path, arm: str, rate: float, seed: int) -> list[float]:
    """What each of the first right answers of the test part costs, its end included, in nats: the AR loss, or the any-order
    bound; kept beside the run."""
    file = folder(runs, arm, rate, seed) / "nats.json"
    if not file.exists():
        subject = opened(str(file.parent), parent="objective" in ARMS[arm][1])
        method = "autoregressive" if subject.autoregressive else "bound"
        pairs = [answered(subject, one) for one in chains.problems("test", ANSWERS)]
        asked = [
            Request((*left, *right), len(left), len(left) + len(right), n) for n, (left, right) in enumerate(pairs)
        ]
        file.write_text(json.dumps([one.nats for one in scores(subject.denoiser, asked, method, DRAWS)]))
    return json.loads(file.read_text())


def alone(runs: Path, arm: str, rate: float, seed: int) -> dict[str, list[float]]:
    """Whether a diffusion model puts one number back into a right answer where nothing else is hidden, by what the number is;
    kept beside the run."""
    file = folder(runs, arm, rate, seed) / "alone.json"
    if not file.exists():
        subject, found = opened(str(file.parent)), {}
        for problem in chains.problems("test", ANSWERS):
            left, right = answered(subject, problem)
            canvas = [*left, *right, *[chat.template_of(subject.tokenizer).pad] * LENGTH][:LENGTH]
            places = {**PLACES, "the answer": len(right) - 2}
            where = torch.arange(LENGTH) == len(left) + torch.tensor([*places.values()])[:, None]
            ids = torch.tensor(canvas).expand(len(places), -1).masked_fill(where, subject.lm.mask_token_id)
            with torch.no_grad():
                said = subject.denoiser(ids, where=where).argmax(-1).tolist()
            for (name, at), token in zip(places.items(), said, strict=True):
                found.setdefault(name, []).append(float(token == right[at]))
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def train(asked: argparse.Namespace) -> None:
    for name in ("parent", "child", "control"):
        if not asked.only or name in asked.only:
            pretrain(asked.runs, name)
    for arm in ARMS:
        if not asked.only or arm in asked.only:
            for rate in () if arm in LIKE else RATES:
                tune(asked.runs, arm, rate, SEEDS[0])
            rate = best(asked.runs, arm)
            for seed in SEEDS:
                tune(asked.runs, arm, rate, seed)


def estimate(seeds: list[list[float]]) -> tuple[float, float]:
    """(mean, half width of its 95% interval) of figures of the same questions from several seeds: Student's t over the means
    of the seeds, and the normal interval over the means of the questions, added as variances."""
    means = [statistics.fmean(one) for one in seeds]
    questions = [statistics.fmean(one) for one in zip(*seeds, strict=True)]
    of_seeds = student(len(seeds) - 1) * statistics.stdev(means) / math.sqrt(len(seeds))
    of_questions = NORMAL_95 * statistics.stdev(questions) / math.sqrt(len(questions))
    return statistics.fmean(means), math.hypot(of_seeds, of_questions)


def mcnemar(ours: list[float], theirs: list[float]) -> tuple[int, int, float]:
    """(questions that only ours has right, only theirs, the exact two-sided p of so uneven a split) (McNemar, 1947)."""
    only = [sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((ours, theirs), (theirs, ours))]
    n = sum(only)
    tail = sum(math.comb(n, k) for k in range(min(only) + 1)) / 2**n
    return only[0], only[1], min(1.0, 2 * tail)


def minus(ours: list[list[float]], theirs: list[list[float]]) -> list[list[float]]:
    return [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)]


def measure(runs: Path) -> dict[str, Any]:
    """Every arm whose runs are there: accuracy, by number of reasoning steps, against the parent, by decoding steps."""
    steps = [one["steps"] for one in chains.problems("test", TEST)]
    report: dict[str, Any] = conditions(torch.get_num_threads()) | {
        "tokens": {"parent": PARENT_TOKENS, "adapted": ADAPT_TOKENS, "tuned": TOKENS},
        "questions": {"train": TRAIN, "valid": VALID, "test": TEST},
        "arms": {},
    }
    found: dict[str, list[list[float]]] = {}
    costs: dict[str, list[list[float]]] = {}
    for arm in ARMS:
        if not all((folder(runs, LIKE.get(arm, arm), rate, SEEDS[0]) / "report.json").exists() for rate in RATES):
            continue
        rate = best(runs, arm)
        seeds = [seed for seed in SEEDS if (folder(runs, arm, rate, seed) / "report.json").exists()]
        if len(seeds) < 2:
            continue
        found[arm] = [hits(runs, arm, rate, seed, "test", MOST) for seed in seeds]
        costs[arm] = [nats(runs, arm, rate, seed) for seed in seeds]
        told: dict[str, Any] = {"rate": rate, "seeds": [statistics.fmean(one) for one in found[arm]]}
        if arm not in LIKE:
            told["valid"] = {one: statistics.fmean(hits(runs, arm, one, SEEDS[0], "valid", MOST)) for one in RATES}
        told |= {"accuracy": estimate(found[arm]), "nats": estimate(costs[arm])}
        told["by reasoning"] = {
            count: estimate([[hit for hit, of in zip(one, steps, strict=True) if of == count] for one in found[arm]])
            for count in chains.STEPS
        }
        for other in (PARENT, "in one run"):
            if other in found and arm != other and len(found[other]) == len(found[arm]):
                told[f"minus {other}"] = estimate(minus(found[arm], found[other]))
                told[f"nats minus {other}"] = estimate(minus(costs[arm], costs[other]))
                told[f"McNemar {other}"] = [mcnemar(*pair) for pair in zip(found[arm], found[other], strict=True)]
        if arm == CHILD:
            single = [alone(runs, arm, rate, seed) for seed in seeds]
            told["alone"] = {name: estimate([one[name] for one in single]) for name in single[0]}
            told["by decoding"] = {n: estimate([hits(runs, arm, rate, one, "test", n) for one in seeds]) for n in STEPS}
        report["arms"][arm] = told
    return report


def percent(found: list[float] | tuple[float, float] | None, sign: str = "") -> str:
    return "" if found is None else f"{100 * found[0]:{sign}.1f} ± {100 * found[1]:.1f}"


def tables(report: dict[str, Any]) -> dict[str, str]:
    """Name -> Markdown."""
    from results_page import plus_minus, table

    arms = report["arms"]
    head = ["arm", "learning rate", "test accuracy, %", "each seed", "minus AR parent", "minus in one run"]
    made, costs = [], []
    for name, one in arms.items():
        seeds = " ".join(f"{100 * seed:.1f}" for seed in one["seeds"])
        others = [percent(one.get(f"minus {other}"), "+") for other in (PARENT, "in one run")]
        made.append([name, f"{one['rate']:g}", percent(one["accuracy"]), seeds, *others])
        beside = plus_minus(one.get("nats minus in one run"), 2, "+") if name != PARENT else ""
        costs.append([name, plus_minus(one["nats"], 2), beside])
    steps = [[name, *(percent(one) for one in found["by reasoning"].values())] for name, found in arms.items()]
    single = [[name, *map(percent, one["alone"].values())] for name, one in arms.items() if "alone" in one]
    forwards = [
        [name, *(percent(one) for one in found["by decoding"].values())]
        for name, found in arms.items()
        if "by decoding" in found
    ]
    return {
        "accuracy": table(head, made),
        "nats": table(["arm", "nats an answer", "minus in one run"], costs),
        "reasoning": table(["steps of reasoning", *map(str, chains.STEPS)], steps),
        "alone": table(["arm", *PLACES, "the answer"], single),
        "decoding": table(["decoding steps", *map(str, STEPS)], forwards),
    }


def plot(report: dict[str, Any], file: str) -> None:
    """Accuracy by steps of reasoning, and by decoding steps with the parent as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, found) in enumerate(report["arms"].items()):
        across = [int(count) + 0.04 * (number - 3) for count in found["by reasoning"]]
        values = [[100 * one[i] for one in found["by reasoning"].values()] for i in (0, 1)]
        left.errorbar(across, *values, fmt="o-", ms=3, lw=1, elinewidth=0.7, color=f"C{number}", label=name)
        if "by decoding" in found:
            values = [[100 * one[i] for one in found["by decoding"].values()] for i in (0, 1)]
            right.errorbar([int(n) for n in found["by decoding"]], *values, fmt="o-", ms=3, lw=1, color=f"C{number}")
    right.axhline(100 * report["arms"][PARENT]["accuracy"][0], color="C0", ls="--")
    right.set_xscale("log", base=2)
    right.set(xlabel="decoding steps (dashed: the AR parent)", xticks=STEPS, xticklabels=STEPS)
    left.set(xlabel="steps of reasoning", ylabel="accuracy, %", xticks=chains.STEPS, ylim=(-5, 105))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=100, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", choices=("parent", "child", "control", *ARMS))
    parser.add_argument("--plot")
    asked = parser.parse_args()
    if asked.what == "train":
        train(asked)
        return
    report = rounded(measure(asked.runs))
    if asked.out:
        asked.out.write_text(json.dumps(report, indent=1) + "\n")
    if asked.plot:
        plot(report, asked.plot)
    print("\n\n".join(tables(report).values()))


if __name__ == "__main__":
    main()
