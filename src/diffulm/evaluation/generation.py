"""Quality of unconditional samples: perplexity under a judge and entropy, always together, since either alone can be gamed."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.probe import evaluating
from diffulm.denoiser.tile import tiled
from diffulm.samplers import sample
from diffulm.shapes import Int

BATCH = 16


@dataclass(frozen=True)
class Quality:
    """perplexity: exp of the judge's mean nats a token over all samples. entropy: mean over samples of the entropy in nats
    of the tokens a sample uses (repetition lowers it)."""

    perplexity: float
    entropy: float
    samples: int


def unconditional(
    denoiser: Denoiser,
    count: int,
    length: int,
    steps: int,
    sampler: str,
    temperature: float,
    top_p: float = 1.0,
    seed: int = 0,
) -> Int[Tensor, "n l"]:
    """`count` canvases of `length` positions, BOS and the rest drawn; row i has the stream (seed, i)."""
    assert denoiser.record.bos_token_id is not None
    rows = []
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        ids = torch.full((size, length), denoiser.record.bos_token_id, device=denoiser.device)
        fixed = torch.zeros_like(ids, dtype=torch.bool)
        fixed[:, 0] = True
        out, _ = sample(
            tiled(denoiser), ids, fixed, mask_token_id=denoiser.record.mask_token_id, sampler=sampler, steps=steps,
            temperature=temperature, top_p=top_p, seeds=[(seed, first + i) for i in range(size)],
        )  # fmt: skip
        rows.append(out)
    return torch.cat(rows)


def quality(judge: Any, ids: Int[Tensor, "n l"]) -> Quality:
    """How an AR judge (a transformers model) takes the samples, BOS in front of each."""
    with evaluating(judge):
        logits = judge(input_ids=ids.to(judge.device)).logits[:, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].to(judge.device).flatten())
    return Quality(math.exp(float(nats)), sum(_entropy(row[1:]) for row in ids) / len(ids), len(ids))


def _entropy(tokens: Tensor) -> float:
    share = torch.unique(tokens, return_counts=True)[1].double() / len(tokens)
    return float(-(share * share.log()).sum())
