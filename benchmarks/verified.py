"""Exactly the autoregressive distribution, several tokens a forward: how many, and how fast, against `generate`.

    python benchmarks/verified.py build/pocket/heldout.jsonl.gz pocket runs/verified-pocket --json
    python benchmarks/verified.py TEXT MODEL ... --count            # tokens a forward alone: worth something on a busy machine

Each model continues the same held-out beginnings, greedily and at temperature 1. The sides run in turn, a text at a time:
transformers' `generate` with its cache (of an adapter: its parent), our loop with one token a forward, and drafts of several
sizes, whose texts are compared with those of that loop.
"""

import argparse
import gzip
import json
import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch

import diffulm
from diffulm.denoiser.adapter import adapter_off, attached
from diffulm.denoiser.denoiser import evaluating
from diffulm.denoiser.drafting import affinity, reader
from diffulm.samplers.verified import verified


@dataclass
class Side:
    """What one way to decode has done so far."""

    model: str
    temperature: float
    draft: int | None  # None: generate
    shape: dict = field(default_factory=dict)
    tokens: int = 0
    forwards: int = 0
    rows: int = 0
    same: int = 0  # tokens equal to those of one at a time
    seconds: list[float] = field(default_factory=list)

    def said(self, reference: "Side") -> dict:
        found = {k: v for k, v in asdict(self).items() if k not in ("seconds", "same")}
        found |= {"tokens_a_forward": round(self.tokens / max(1, self.forwards), 3)}
        found |= {
            "rows_a_forward": round(self.rows / max(1, self.forwards), 1),
            "same": self.same / max(1, self.tokens),
        }
        if self.seconds:
            ratios = [theirs / ours for theirs, ours in zip(reference.seconds, self.seconds, strict=True)]
            found |= {
                "seconds": round(statistics.median(self.seconds), 4),
                "speed": round(statistics.median(ratios), 3),
            }
        return found


def beginnings(path: str, lm, count: int, length: int) -> list[torch.Tensor]:
    """The first `length` tokens, BOS included, of `count` texts that are long enough."""
    found = []
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
        for line in file:
            ids = lm.tokenizer(json.loads(line)["text"][: 8 * length], add_special_tokens=False).input_ids
            if len(ids) >= length:
                found.append(torch.tensor([lm.record.bos_token_id, *ids[: length - 1]]))
            if len(found) == count:
                break
    return found


def run(side: Side, lm, text: torch.Tensor, new: int, seed: int, forbidden: list[int], args) -> torch.Tensor:
    began = time.perf_counter()
    if side.draft is None:
        options = {"temperature": side.temperature, "top_k": 0} if side.temperature else {}
        with torch.random.fork_rng(devices=[]), adapter_off(lm.model) if attached(lm.model) else nullcontext():
            torch.manual_seed(seed)
            out = lm.model.generate(
                text[None], attention_mask=torch.ones_like(text)[None], max_new_tokens=new, min_new_tokens=new,
                do_sample=bool(side.temperature), pad_token_id=0,
                suppress_tokens=[t for t in forbidden if t < lm.denoiser.vocabulary] or None, **options,
            )[0]  # fmt: skip
        side.forwards += new
        side.rows += new
    else:
        canvas = torch.nn.functional.pad(text, (0, new))[None]
        fixed = (torch.arange(canvas.shape[1]) < len(text))[None]

        def counted():
            read = reader(lm.denoiser)

            def reading(known, draft):
                side.rows += 1 + len(draft.tokens) + sum(n + (not lm.record.shift) for n in draft.ahead)
                return read(known, draft)

            return reading

        found, forwards = verified(
            counted, canvas, fixed, seeds=[seed], draft=side.draft, forbidden=forbidden, temperature=side.temperature,
            affinity=affinity(lm.denoiser) if args.affinity else None, **side.shape,
        )  # fmt: skip
        out = found[0]
        side.forwards += int(forwards)
    side.tokens += new
    side.seconds.append(time.perf_counter() - began)
    return out[len(text) :]


def measured(name: str, args: argparse.Namespace) -> list[dict]:
    lm = diffulm.load(name, dtype=getattr(torch, args.dtype))
    eos = lm.tokenizer.eos_token_id
    forbidden = sorted({lm.mask_token_id, *([] if eos is None else [eos])})  # no side stops early
    texts, out = beginnings(args.text, lm, args.texts, args.prompt), []
    for temperature in args.temperatures:
        shape = {key: getattr(args, key) for key in ("depth", "groups") if getattr(args, key) is not None}
        sides = [Side(name, temperature, None), Side(name, temperature, 0)]
        sides += [Side(name, temperature, k, shape) for k in args.drafts]
        sides = sides[1:] if args.count else sides
        with evaluating(lm.model):
            affinity(lm.denoiser)  # made once a model
            for i, text in enumerate(texts):
                made = {}
                for side in sides[i % len(sides) :] + sides[: i % len(sides)]:
                    made[side.draft] = run(side, lm, text, args.new, i, forbidden, args)
                for side in sides:
                    side.same += int((made[side.draft] == made[0]).sum())
        for side in sides:
            if args.count:
                side.seconds = []
            out.append(side.said(sides[0]))
            if not args.json:
                print(" ".join(f"{k}={v}" for k, v in out[-1].items()), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="held-out text, .jsonl or .jsonl.gz")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32, help="tokens that are given")
    parser.add_argument("--new", type=int, default=64, help="tokens to add")
    parser.add_argument("--drafts", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--depth", type=int, help="how far ahead a draft reaches")
    parser.add_argument("--groups", type=int, help="guess only behind so many places of a draft")
    parser.add_argument("--no-affinity", dest="affinity", action="store_false", help="guesses as the masks make them")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", action="store_true", help="no times")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = [row for name in args.models for row in measured(name, args)]
    if args.json:
        print(json.dumps({"threads": args.threads, "dtype": args.dtype, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
