"""Results at our own scale: every table and plot of docs/results.md, and the runs that they are made from.

    python benchmarks/results.py train PARENT TRAIN HELD_OUT RUNS [--only law]
    python benchmarks/results.py measure PARENT TRAIN HELD_OUT RUNS

Every cell is a run of `diffulm adapt`, so it resumes, and what is finished is not run again.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ablation import cell

# Parents of the law: width, layers; heads of 16, an MLP of 8/3 of the width, the tokenizer of PARENT. 54K to 1.05M parameters.
SHAPES = {"54K": (32, 3), "135K": (48, 4), "428K": (80, 5), "1.05M": (128, 5)}
PARENT_TOKENS = "4M"
TOKENS = ("500K", "1M", "2M", "4M")
CONTROL_TOKENS = "2M"


def rate(width: int) -> float:
    """3e-3 at the width of stories260k, where benchmarks/ablation.py found it best of three; as 1 / sqrt(width) elsewhere."""
    return round(3e-3 * (64 / width) ** 0.5, 5)


def untrained(source: str, folder: Path, width: int, layers: int) -> str:
    """A LLaMA of this shape without weights, beside the tokenizer of `source`."""
    from transformers import AutoConfig, AutoTokenizer

    if not (folder / "config.json").exists():
        heads = width // 16
        config = AutoConfig.from_pretrained(
            source, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
            head_dim=16, intermediate_size=-(-width // 3) * 8,
        )  # fmt: skip
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        config.save_pretrained(folder)
    return str(folder)


def law(asked: argparse.Namespace) -> None:
    """The runs of the scaling law: for each size a parent, then a whole run for each number of tokens."""
    root = Path(asked.runs) / "results"
    for size, (width, layers) in SHAPES.items():
        fresh = untrained(asked.parent, root / f"untrained-{size}", width, layers)
        common: dict[str, Any] = {"learning_rate": rate(width), "eval_every": "25%"}
        parent = {"objective": "autoregressive", "scratch": True, "annealing": "none", "tokens": PARENT_TOKENS}
        run(asked, root, f"parent-{size}", {**common, **parent, "model": fresh})
        for tokens in TOKENS:
            run(asked, root, f"child-{size}-{tokens}", {**common, "model": str(root / f"parent-{size}"), "tokens": tokens})
    for size, (width, _) in SHAPES.items():  # the parents trained on as they are: what more of the text is worth
        control = {"objective": "autoregressive", "annealing": "none", "tokens": CONTROL_TOKENS, "eval_every": "25%"}
        control |= {"learning_rate": rate(width) / 3, "model": str(root / f"parent-{size}")}
        run(asked, root, f"control-{size}", control)


def run(asked: argparse.Namespace, root: Path, name: str, settings: dict[str, Any]) -> None:
    started = time.monotonic()
    report = cell(argparse.Namespace(runs=str(root), parent=asked.parent, train=asked.train), name, settings)
    found = {key: report.get(key) for key in ("tokens", "bound", "left_to_right", "causal_view", "parent")}
    print(name, found, f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    for name in ("parent", "train", "held_out", "runs"):
        parser.add_argument(name)
    asked = parser.parse_args()
    law(asked)


if __name__ == "__main__":
    main()
