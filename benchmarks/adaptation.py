"""What adaptation keeps: an adapted model, the same architecture from scratch, and their AR parent on the same held-out text.

    python benchmarks/adaptation.py PARENT ADAPTED SCRATCH HELD_OUT [--json]

PARENT: an AR folder. ADAPTED, SCRATCH: finished runs of `diffulm adapt`. HELD_OUT: text files. Blocks of 128 positions: BOS,
then the stream of documents each followed by EOS. Prints losses, samples under the parent, and holes of 8 tokens.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from diffulm.checkpoint.load import load
from diffulm.data.blocks import build
from diffulm.denoiser.adopt import adopt
from diffulm.evaluation import generation, infilling, likelihood

LENGTH, BLOCKS, LEFT_TO_RIGHT_BLOCKS, DRAWS = 128, 128, 32, 32
SAMPLES, HOLE, STEPS = 64, 8, 8


def held_out(denoiser: Any, tokenizer: Any, data: str, length: int = LENGTH) -> torch.Tensor:
    bos = denoiser.record.bos_token_id
    with tempfile.TemporaryDirectory() as folder:
        rows = build(data, tokenizer, bos, tokenizer.eos_token_id, length, Path(folder) / "blocks").with_format("torch")
        count = min(BLOCKS, len(rows))
        return torch.stack([torch.as_tensor(rows[i * len(rows) // count]["ids"]).long() for i in range(count)])


def losses(denoiser: Any, blocks: torch.Tensor) -> dict[str, float]:
    whole = likelihood.bound(denoiser, blocks, DRAWS)
    few = blocks[:: max(1, len(blocks) // LEFT_TO_RIGHT_BLOCKS)][:LEFT_TO_RIGHT_BLOCKS]
    return {
        "bound": whole.nats,
        "bound_stderr": whole.stderr,
        "left_to_right": likelihood.left_to_right(denoiser, few).nats,
        "causal_view": likelihood.autoregressive(denoiser, blocks).nats,
    }


def samples(denoiser: Any, judge: Any) -> dict[str, dict[str, float]]:
    found = {}
    for sampler, steps, temperature in (
        ("random", 127, 1.0),
        ("random", 32, 1.0),
        ("confidence", 127, 1.0),
        ("confidence", 32, 1.0),
    ):
        ids = generation.unconditional(denoiser, SAMPLES, LENGTH, steps=steps, sampler=sampler, temperature=temperature)
        got = generation.quality(judge, ids)
        found[f"{sampler}, {steps} steps"] = {"perplexity": got.perplexity, "entropy": got.entropy}
    return found


def own_samples(judge: Any, bos: int, count: int, length: int) -> torch.Tensor:
    """(count, length): an AR model's own samples at temperature 1, BOS in front of each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = torch.full((count, 1), bos)
        return judge.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=length - 1, min_new_tokens=length - 1,
            do_sample=True, top_k=0, top_p=1.0, pad_token_id=0,
        )  # fmt: skip


def parent_samples(judge: Any, bos: int) -> dict[str, float]:
    """The parent's own samples, the reference for both figures."""
    ids = own_samples(judge, bos, SAMPLES, LENGTH)
    got = generation.quality(judge, ids)
    return {"perplexity": got.perplexity, "entropy": got.entropy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("parent", "adapted", "scratch", "data"):
        parser.add_argument(name)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    parent, tokenizer = adopt(asked.parent)
    blocks = held_out(parent, tokenizer, asked.data)
    few = blocks[:: max(1, len(blocks) // LEFT_TO_RIGHT_BLOCKS)][:LEFT_TO_RIGHT_BLOCKS]
    own = likelihood.autoregressive(parent, blocks).nats
    report: dict[str, Any] = {
        "blocks": len(blocks),
        "left_to_right_blocks": len(few),
        "parent": {
            "autoregressive": own,
            "autoregressive_on_left_to_right_blocks": likelihood.autoregressive(parent, few).nats,
        },
    }
    judge = AutoModelForCausalLM.from_pretrained(asked.parent, dtype=torch.float32)
    tasks = infilling.tasks_from_blocks(blocks, HOLE)
    for name, folder in (("adapted", asked.adapted), ("scratch", asked.scratch)):
        denoiser, _ = load(folder)
        report[name] = losses(denoiser, blocks)
        report[name] |= {
            "bound_over_parent": report[name]["bound"] / own,
            "left_to_right_over_parent": report[name]["left_to_right"]
            / report["parent"]["autoregressive_on_left_to_right_blocks"],
            "samples": samples(denoiser, judge),
            "holes": infilling.token_accuracy(tasks, infilling.fill(denoiser, tasks, STEPS)),
        }
    report["parent"]["samples"] = parent_samples(judge, parent.record.bos_token_id or 0)
    report["parent"]["holes, left context"] = infilling.token_accuracy(tasks, infilling.continue_left(judge, tasks))
    best = infilling.continue_left(judge, tasks, best_of=STEPS)
    report["parent"][f"holes, best of {STEPS}"] = infilling.token_accuracy(tasks, best)
    print(json.dumps(report, indent=2) if asked.json else "\n".join(f"{key}: {value}" for key, value in report.items()))


if __name__ == "__main__":
    main()
