"""GSM8K as the paper did it, on sums that a small model can learn: is the diffusion child ahead of its AR parent?

    python benchmarks/arithmetic.py train RUNS [--only NAME ...]      # parent, child, then every arm, each run resumable
    python benchmarks/arithmetic.py measure RUNS OUT [--plot FILE]    # test accuracy -> OUT (JSON), the page's tables on stdout

Problems, corpus and tokenizer are made by chains.py. The AR parent learns the language from the corpus; the child is adapted
from it on the same corpus, and `trained on` is the parent trained on by as many tokens, so that both had the same. Then every
arm is fine-tuned on the same problems by `diffulm.sft` for the same number of canvas positions (rows times length, padding
included). Three learning rates on seed 0, chosen by accuracy on the valid part; two more seeds of the best.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import chains

import diffulm

LENGTH, WIDTH, LAYERS = 84, 64, 4
CORPUS, TRAIN, VALID, TEST = 120_000, 2000, 200, 400
PARENT_TOKENS, ADAPT_TOKENS, TOKENS = "3M", "2M", "1M"
SEEDS = (0, 1, 2)
AR = {"objective": "autoregressive", "annealing": "none"}
COMMON = {"length": LENGTH, "global_batch": 24, "eval_every": "50%", "save_seconds": 60}


def prepared(runs: Path) -> Path:
    """The folder of what chains.py makes, written once."""
    folder = runs / "data"
    if not (folder / "untrained" / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows(folder / "corpus.jsonl", ({"text": text} for text in chains.corpus(CORPUS)))
        for part, count in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
            rows(folder / f"{part}.jsonl", chains.problems(part, count))
        chains.untrained(folder / "untrained", WIDTH, LAYERS, LENGTH)
    return folder


def rows(file: Path, found: Any) -> None:
    file.write_text("".join(json.dumps(one) + "\n" for one in found))


def pretrained(runs: Path) -> dict[str, dict[str, Any]]:
    """Name -> settings of `diffulm.adapt`: the parent, the same trained on, the child."""
    data = prepared(runs)
    common = {**COMMON, "data": str(data / "corpus.jsonl")}
    parent = str(runs / "parent")
    return {
        "parent": {
            **common, **AR, "model": str(data / "untrained"), "scratch": True, "tokens": PARENT_TOKENS, "learning_rate": 4e-3
        },
        "child": {**common, "model": parent, "tokens": ADAPT_TOKENS, "learning_rate": 3e-3},
        "control": {**common, **AR, "model": parent, "tokens": ADAPT_TOKENS, "learning_rate": 1e-3},
    }  # fmt: skip


def train(asked: argparse.Namespace) -> None:
    for name, settings in pretrained(asked.runs).items():
        if not asked.only or name in asked.only:
            started = time.monotonic()
            if not (asked.runs / name / "report.json").exists():
                diffulm.adapt("tiny", out=str(asked.runs / name), **settings)
            print(name, f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", nargs="+")
    asked = parser.parse_args()
    train(asked)


if __name__ == "__main__":
    main()
