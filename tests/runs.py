"""Tiny training runs for the tests: a parent and text made here, settings, and what of a run must come out the same."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from diffulm.recipes import pocket
from diffulm.training.run_folder import read_metrics

CLOCK = {"seconds", "time_to_go", "utilisation"}  # readings that may differ between a run and the same run resumed
WORDS = "the cat sat on a mat and then saw one big red ball under an old tree near his house".split()


def make_home(root: Path) -> Path:
    """An AR parent of 40,000 parameters with its tokenizer in `root`/parent, and `root`/text.jsonl."""
    texts = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 40)) + "." for i in range(1, 120)]
    (root / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    fast = pocket.tokenizer(texts, 300)
    fast.save_pretrained(root / "parent")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(root / "parent")
    return root


def settings(home: Path, out: Path, **more: Any) -> dict[str, Any]:
    """24 steps of 12 canvases of 32 positions, logged every 4, saved at every log line."""
    made = {"model": str(home / "parent"), "data": str(home / "text.jsonl"), "out": str(out), "tokens": 24 * 12 * 32}
    made |= {
        "learning_rate": 5e-3,
        "length": 32,
        "global_batch": 12,
        "logging_steps": 4,
        "save_seconds": 0,
        "eval_blocks": 4,
    }
    return made | {"eval_every": 8, "eval_samples": 2, "device": "cpu", **more}


def short(home: Path, out: Path, **more: Any) -> list[str]:
    """The command line of a run that takes half a second: 8 steps, a checkpoint every other one, the last two kept."""
    small = {"tokens": 8 * 4 * 16, "length": 16, "global_batch": 4, "logging_steps": 2, "eval_blocks": 2}
    made = settings(home, out, **small | {"eval_every": 4, **more})
    return ["adapt", "tiny", *(f"{key}={value}" for key, value in made.items())]


def timeless(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCK and not k.endswith("per_second")} for row in rows]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
