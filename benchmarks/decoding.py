"""Tokens per second of diffusion decoding beside `generate` of transformers with its cache, on the same weights.

    python benchmarks/decoding.py --json           # the headline pairs, under ten minutes on two cores
    python benchmarks/decoding.py --all --json     # batches, sampling, lengths, Qwen3-0.6B geometry, the shipped models
    python benchmarks/decoding.py --all --json --trained MODEL PARENT    # and these, as often as wanted

Random weights of GPT-2-small geometry (Qwen3-0.6B too with --all), the last norm scaled up so that the distributions are
peaked as a trained model's are; bfloat16, two threads. Speed only: what the text is worth is measured by curves.py. A pair is
one run of each side, one after another, in an order that turns round; a figure is the median of the paired ratios,
tokens per second of ours over those of `generate` (the tokens are as many), with its distribution-free interval. Both
sides get the same prompt, BOS included; `generate` is kept from ending early. In bfloat16 on a CPU our side gives linear
layers a second layout (denoiser/kernels.py), which speeds `generate` up as well: the ratio to that is *_hastened.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from pairs import alternated, conditions, median
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config

import diffulm
from diffulm.canvas import Canvas
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.cache import cacheable
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.kernels import hasten
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


RANDOM = {"full16_random": Way(None, {"steps": 16, "sampler": "random"})}


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


def canvases(rows: int, prompt: int, length: int, denoiser: Denoiser | None = None) -> list[Canvas]:
    most = 50_000 if denoiser is None else denoiser.vocabulary - 1
    ids = torch.randint(0, most, (rows, prompt + length), generator=torch.Generator().manual_seed(1))
    fixed = torch.arange(prompt + length) < prompt
    return [Canvas(row, fixed, (), None) for row in ids]


def ours(denoiser: Denoiser, way: Way, made: list[Canvas], **more: Any) -> Callable[[], list[Any]]:
    reader, options = seen_by(denoiser, way.block), GenerateOptions(**way.options, **more, batch_size=len(made))
    return lambda: fill(reader, made, options)


def theirs(model: Any, made: list[Canvas], **drawing: Any) -> Callable[[], Any]:
    length = int((~made[0].fixed).sum())
    left = torch.stack([one.ids[one.fixed] for one in made]).to(DEVICE)
    options = {"max_new_tokens": length, "min_new_tokens": length, "pad_token_id": 0, "do_sample": False} | drawing
    return lambda: model.generate(left, attention_mask=torch.ones_like(left), **options)


def compared(
    denoiser: Denoiser, parent: Any, some: dict[str, Way], made: list[Canvas], pairs: int, sampled: bool = False
) -> dict[str, Any]:
    """Each way of decoding beside `generate` of the parent on the same prompts."""
    rows, length = len(made), int((~made[0].fixed).sum())
    drawn = {"temperature": 1.0, "top_p": 0.9} if sampled else {}
    as_theirs = {"do_sample": True, "top_p": 0.9, "top_k": 0} if sampled else {}
    sides: dict[str, Any] = {name: ours(denoiser, way, made, **drawn) for name, way in some.items()}
    sides["generate"] = theirs(parent, made, **as_theirs)
    cacheable(denoiser)
    if hasten(denoiser.model):
        sides["generate, hastened"] = theirs(denoiser.model, made, **as_theirs)
    seconds, results = alternated(sides, pairs, DEVICE, warm=pairs > 1)
    rates = {name: rows * length / statistics.median(took) for name, took in seconds.items()}

    def ratio(name: str, to: str) -> dict[str, Any]:
        return median([a / b for a, b in zip(seconds[to], seconds[name], strict=True)])

    found: dict[str, Any] = {
        "rows": rows,
        "prompt": int(made[0].fixed.sum()),
        "tokens": length,
        "tokens_per_second": rates,
    }
    for name, way in some.items():
        found[name] = ratio(name, "generate") | {"block": way.block, "options": way.options | drawn}
        found[name]["forwards"] = results[name][0].forwards
        if "generate, hastened" in sides:
            found[name]["hastened"] = ratio(name, "generate, hastened")["ratio"]
    return found


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


def headline(pairs: int) -> dict[str, Any]:
    """GPT-2-small, one row: 128 tokens behind 32, and 480; what drawing and the loop cost beside the forwards."""
    denoiser, parent = built("gpt2-small"), built("gpt2-small").model
    short = compared(denoiser, parent, ways(LENGTH, 16) | RANDOM, canvases(1, PROMPT, LENGTH), pairs)
    long = compared(denoiser, parent, ways(512 - PROMPT, 64), canvases(1, PROMPT, 512 - PROMPT), max(1, pairs // 3))
    full, random, block = ways(LENGTH, 16)["full16"], RANDOM["full16_random"], ways(LENGTH, 16)["block4"]
    drawn = {"temperature": 1.0, "top_p": 0.9}
    costs = {
        "random": shares(denoiser, random, LENGTH, temperature=1.0),
        "random_top_p": shares(denoiser, random, LENGTH, **drawn),
        "confidence": shares(denoiser, full, LENGTH),
        "confidence_top_p": shares(denoiser, full, LENGTH, **drawn),
        "block4": shares(denoiser, block, LENGTH),
    }
    names = [*ways(LENGTH, 16), *RANDOM]
    return (
        {f"decode_ratio_{name}": short[name]["ratio"] for name in names}
        | {f"decode_ratio_{name}_hastened": short[name].get("hastened") for name in names}
        | {f"decode_ratio_{name}_at_512": long[name]["ratio"] for name in ways(480, 64)}
        | {f"sampling_share_{name}": cost["sampling_share"] for name, cost in costs.items()}
        | {"loop_share": max(cost["loop_share"] for cost in costs.values())}
        | {"pairs": {"160 positions": short, "512 positions": long}, "costs": costs}
    )


def batches(denoiser: Denoiser, parent: Any, some: dict[str, Way], pairs: int, rows: tuple[int, ...]) -> dict[str, Any]:
    """Several rows, greedy and sampled."""
    return {
        f"{count} rows, {'sampled' if sampled else 'greedy'}": compared(
            denoiser, parent, some, canvases(count, PROMPT, LENGTH, denoiser), pairs, sampled
        )
        for count in rows
        for sampled in (False, True)
    }


def lengths(pairs: int) -> dict[str, Any]:
    """Eight tokens a forward, blocks four, over the whole text: where each way wins."""
    denoiser, parent, found = built("gpt2-small"), built("gpt2-small").model, {}
    for length in (128, 256, 512, 1024, 2048):
        some = ways(length - PROMPT, length // 8)
        some = {name: way for name, way in some.items() if length < 1000 or name.startswith(("block", "dual"))}
        found[f"{length} positions"] = compared(denoiser, parent, some, canvases(1, PROMPT, length - PROMPT), pairs)
    return {"lengths": found}


def small(pairs: int) -> dict[str, Any]:
    found = batches(built("gpt2-small"), built("gpt2-small").model, ways(LENGTH, 16), pairs, (1, 4, 16))
    return {"gpt2-small": found}


def large(pairs: int) -> dict[str, Any]:
    some = {name: ways(LENGTH, 16)[name] for name in ("block4", "full16", "dual16")}
    return {"qwen3-0.6b": batches(built("qwen3-0.6b"), built("qwen3-0.6b").model, some, pairs, (1, 4))}


def trained(model: str, parent: str, pairs: int) -> dict[str, Any]:
    """A trained model beside its parent, both in float32."""
    denoiser, judge = diffulm.load(model).denoiser, diffulm.adopt(parent).model
    if denoiser.record.attention == "block":
        some = {f"block{n}": Way(denoiser.record.block_size, {"steps": LENGTH // n}) for n in (1, 2, 4)}
        some["threshold"] = Way(denoiser.record.block_size, {"threshold": 0.9})
    else:
        some = {f"full{steps}": Way(None, {"steps": steps}) for steps in (16, 32)}
        some |= {"dual16": ways(LENGTH, 16)["dual16"], "threshold": Way(None, {"threshold": 0.9})}
    return batches(denoiser, judge, some, pairs, (1, 4))


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "headline": headline, "small": small, "lengths": lengths, "large": large
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--part", action="append", choices=[*PARTS, "trained"], help="instead of --all: only these")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of the headline; the other parts take a third")
    parser.add_argument("--trained", nargs=2, action="append", default=[], metavar=("MODEL", "PARENT"))
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(THREADS)
    wanted = [*PARTS, "trained"] if asked.all else asked.part or ["headline"]
    report = conditions(THREADS)
    for name, part in PARTS.items():
        if name in wanted:
            report |= part(asked.pairs if name == "headline" else max(1, asked.pairs // 3))
    for model, parent in [("pocket", "pocket-ar"), *asked.trained] if "trained" in wanted else ():
        report[Path(model).name] = trained(model, parent, max(1, asked.pairs // 3))
    print(json.dumps(report, indent=2) if asked.json else "\n".join(f"{key}: {value}" for key, value in report.items()))


if __name__ == "__main__":
    with torch.no_grad():
        main()
