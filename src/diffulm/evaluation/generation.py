"""Quality of unconditional samples: perplexity under a judge and entropy, always together, since either alone can be gamed;
what the text itself is like, to compare them with."""

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
    denoise, rows = tiled(denoiser), []
    block = denoiser.record.block_size if denoiser.record.attention == "block" else None
    spans = [range(start, min(start + (block or length), length)) for start in range(0, length, block or length)]
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        out = torch.full((size, length), denoiser.record.bos_token_id, device=denoiser.device)
        for span in spans:  # under block attention one after the other, each seeing only what is finished
            fixed, present = torch.ones(2, size, length, dtype=torch.bool, device=denoiser.device).unbind()
            fixed[:, max(span.start, 1) : span.stop], present[:, span.stop :] = False, False
            out, _ = sample(
                denoise, out, fixed, present, mask_token_id=denoiser.record.mask_token_id, sampler=sampler,
                steps=-(-steps // len(spans)), temperature=temperature, top_p=top_p,
                seeds=[(seed, first + i) for i in range(size)],
            )  # fmt: skip
        rows.append(out)
    return torch.cat(rows)


def quality(judge: Any, ids: Int[Tensor, "n l"]) -> Quality:
    """How an AR judge (a transformers model) takes the samples, BOS in front of each."""
    with evaluating(judge):
        logits = judge(input_ids=ids.to(judge.device)).logits[:, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].to(judge.device).flatten())
    return Quality(math.exp(float(nats)), entropy(ids), len(ids))


def entropy(ids: Int[Tensor, "n l"]) -> float:
    """Mean over texts of the entropy in nats of the tokens one uses; position 0 is BOS and does not count."""
    return sum(_entropy(row) for row in ids[:, 1:]) / len(ids)


def repeated(ids: Int[Tensor, "n l"], n: int = 4) -> float:
    """Share of the n-grams of a text that it has had before, the mean over texts; position 0 is BOS and does not count."""
    if ids.shape[1] <= n:
        return 0.0
    grams = ids[:, 1:].unfold(1, n, 1)
    return sum(1 - len(row.unique(dim=0)) / len(row) for row in grams) / len(ids)


def share(ids: Int[Tensor, "n l"], token: int) -> float:
    """How much of the texts is this token; position 0 is BOS and does not count."""
    return float((ids[:, 1:] == token).double().mean())


def unigram_entropy(ids: Int[Tensor, "n l"]) -> float:
    """Nats a token of the best guess that knows how frequent each token is and nothing else.

    Counted, with the correction of Miller and Madow: a count misses rare tokens and so finds too little. Position 0 is BOS
    and does not count.
    """
    tokens = ids[:, 1:].flatten()
    return _entropy(tokens) + (len(tokens.unique()) - 1) / (2 * len(tokens))


def _entropy(tokens: Tensor) -> float:
    found = torch.unique(tokens, return_counts=True)[1].double() / len(tokens)
    return float(-(found * found.log()).sum())
