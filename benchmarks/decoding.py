"""Tokens per second of diffusion decoding beside `generate` of transformers with its cache, on the same weights.

    python benchmarks/decoding.py --json           # the headline pairs, under ten minutes on two cores
    python benchmarks/decoding.py --all --json     # batches, sampling, lengths, Qwen3-0.6B geometry

Random weights of GPT-2-small geometry (Qwen3-0.6B too with --all), the last norm scaled up so that the distributions are
peaked as a trained model's are; bfloat16, two threads. Speed only: what the text is worth is measured by curves.py. A pair is
one run of each side, one after another, in an order that turns round; a figure is the median of the paired ratios,
tokens per second of ours over those of `generate` (the tokens are as many), with its distribution-free interval. Both
sides get the same prompt, BOS included; `generate` is kept from ending early.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
import transformers
from pairs import alternated, conditions, median
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config

from diffulm.canvas import Canvas
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Denoiser
from diffulm.filling import fill
from diffulm.options import GenerateOptions
from diffulm.samplers import _loop

PAIRS = 9
THREADS, PROMPT, LENGTH, BLOCK = 2, 32, 128, 16
DEVICE: Any = "cuda" if torch.cuda.is_available() else "cpu"
PEAK = 4.0  # what the last norm is multiplied by
GEOMETRIES: dict[str, Callable[[], Any]] = {
    "gpt2-small": lambda: GPT2Config(n_positions=4096),
    "qwen3-0.6b": lambda: Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=4096, tie_word_embeddings=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A way to decode: block size (None: all at once, under full attention) and the options of `fill`."""

    block: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


def ways(length: int, steps: int) -> dict[str, Way]:
    """Those that the headline compares, at the same number of forwards each but for the blocks, which take 4 tokens each."""
    return {
        "block4": Way(BLOCK, {"steps": length // 4}),
        f"full{steps}": Way(None, {"steps": steps}),
        f"prefix{steps}": Way(None, {"steps": steps, "cache": "prefix", "block": 2 * BLOCK}),
        f"dual{steps}": Way(None, {"steps": steps, "cache": "dual", "block": 2 * BLOCK}),
    }


def built(name: str) -> Denoiser:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GEOMETRIES[name](), dtype=torch.bfloat16).to(DEVICE).eval()
    norm = model.transformer.ln_f if name.startswith("gpt2") else model.model.norm
    with torch.no_grad():
        norm.weight *= PEAK
    return adopt(model, mask_token="10541")[0]


def seen_by(denoiser: Denoiser, block: int | None) -> Denoiser:
    """The same weights under full or block-causal attention."""
    other = denoiser.seeing_everything()
    if block is not None:
        other.record = replace(other.record, attention="block", block_size=block)
    return other


def canvases(rows: int, prompt: int, length: int) -> list[Canvas]:
    ids = torch.randint(0, 50_000, (rows, prompt + length), generator=torch.Generator().manual_seed(1))
    fixed = torch.arange(prompt + length) < prompt
    return [Canvas(row, fixed, (), None) for row in ids]


def ours(denoiser: Denoiser, way: Way, made: list[Canvas], **more: Any) -> Callable[[], list[Any]]:
    reader, options = seen_by(denoiser, way.block), GenerateOptions(**way.options, **more, batch_size=len(made))
    return lambda: fill(reader, made, options)


def theirs(denoiser: Denoiser, made: list[Canvas], **drawing: Any) -> Callable[[], Any]:
    """`generate` on the same weights; adoption has left them as they were, causal when nobody says otherwise."""
    length = int((~made[0].fixed).sum())
    left = torch.stack([one.ids[one.fixed] for one in made]).to(DEVICE)
    options = {"max_new_tokens": length, "min_new_tokens": length, "pad_token_id": 0, "do_sample": False} | drawing
    return lambda: denoiser.model.generate(left, attention_mask=torch.ones_like(left), **options)


def compared(
    denoiser: Denoiser, some: dict[str, Way], rows: int, length: int, pairs: int, sampled: bool = False
) -> dict[str, Any]:
    made = canvases(rows, PROMPT, length)
    drawn = {"temperature": 1.0, "top_p": 0.9} if sampled else {}
    sides = {name: ours(denoiser, way, made, **drawn) for name, way in some.items()}
    sides["generate"] = theirs(denoiser, made, **({"do_sample": True, "top_p": 0.9, "top_k": 0} if sampled else {}))
    seconds = alternated(sides, pairs, DEVICE)
    rates = {name: sorted(rows * length / s for s in took)[len(took) // 2] for name, took in seconds.items()}
    return {
        name: median([a / b for a, b in zip(seconds["generate"], seconds[name], strict=True)])
        | {"tokens_per_second": rates[name], "generate_tokens_per_second": rates["generate"]}
        | {"rows": rows, "length": length, "block": way.block, "options": way.options | drawn}
        | {"forwards": sides[name]()[0].forwards}
        for name, way in some.items()
    }


def shares(denoiser: Denoiser, way: Way, length: int, **drawn: Any) -> dict[str, float]:
    """Seconds of drawing, and of all else but the model's own forwards, over the seconds of those forwards."""
    spent = {"forward": 0.0, "draw": 0.0}

    def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            out = function(*args, **options)
            spent[what] += time.perf_counter() - begun
            return out

        return run

    reader = seen_by(denoiser, way.block)
    reader = reader.on(timed("forward", reader.module))  # pyright: ignore[reportArgumentType]
    options, made = GenerateOptions(**way.options, **drawn), canvases(1, PROMPT, length)
    fill(reader, made, options)
    spent.update(forward=0.0, draw=0.0)
    with mock.patch.object(_loop, "draw", timed("draw", _loop.draw)):
        begun = time.perf_counter()
        fill(reader, made, options)
        whole = time.perf_counter() - begun
    return {
        "sampling_share": spent["draw"] / spent["forward"],
        "loop_share": (whole - spent["draw"] - spent["forward"]) / spent["forward"],
        "seconds": whole,
    }


def headline(denoiser: Denoiser, pairs: int) -> dict[str, Any]:
    short = compared(denoiser, ways(LENGTH, 16), 1, LENGTH, pairs)
    long = compared(denoiser, ways(512 - PROMPT, 64), 1, 512 - PROMPT, max(3, pairs // 3))
    random = Way(None, {"steps": 16, "sampler": "random"})
    costs = {
        "random": shares(denoiser, random, LENGTH, temperature=1.0),
        "random, top-p": shares(denoiser, random, LENGTH, temperature=1.0, top_p=0.9),
        "confidence": shares(denoiser, ways(LENGTH, 16)["full16"], LENGTH),
        "confidence, top-p": shares(denoiser, ways(LENGTH, 16)["full16"], LENGTH, temperature=1.0, top_p=0.9),
        "block4": shares(denoiser, ways(LENGTH, 16)["block4"], LENGTH),
    }
    return (
        {f"decode_ratio_{name}": found["ratio"] for name, found in short.items()}
        | {f"decode_ratio_{name}_at_512": found["ratio"] for name, found in long.items()}
        | {f"sampling_share_{name}": cost["sampling_share"] for name, cost in costs.items()}
        | {"loop_share": max(cost["loop_share"] for cost in costs.values())}
        | {"pairs": {"160 positions": short, "512 positions": long}, "costs": costs}
    )


def everything(name: str, denoiser: Denoiser, pairs: int) -> dict[str, Any]:
    """Batches, greedy and sampled; lengths."""
    few = max(3, pairs // 3)
    out: dict[str, Any] = {}
    for rows in (1, 4, 16):
        for sampled in (False, True):
            key = f"{name}, {rows} rows, {'sampled' if sampled else 'greedy'}"
            out[key] = compared(denoiser, ways(LENGTH, 16), rows, LENGTH, few, sampled)
    for length in (128, 256, 512, 1024, 2048) if name == "gpt2-small" else ():
        some = ways(length - PROMPT, length // 8)
        out[f"{name}, {length} positions"] = compared(denoiser, some, 1, length - PROMPT, 1 if length > 600 else few)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(THREADS)
    denoiser = built("gpt2-small")
    report = conditions(THREADS) | headline(denoiser, asked.pairs)
    if asked.all:
        report["all"] = everything("gpt2-small", denoiser, asked.pairs)
        del denoiser
        report["all"] |= everything("qwen3-0.6b", built("qwen3-0.6b"), 3)
    print(json.dumps(report, indent=2) if asked.json else "\n".join(f"{key}: {value}" for key, value in report.items()))


if __name__ == "__main__":
    with torch.no_grad():
        main()
