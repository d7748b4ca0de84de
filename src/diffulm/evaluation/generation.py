"""Quality of unconditional samples: perplexity under a judge and entropy, always together, since either alone can be gamed;
what the text itself is like, to compare them with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffulm import randomness
from diffulm.canvas import Canvas
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.probe import evaluating
from diffulm.filling import fill
from diffulm.options import GenerateOptions
from diffulm.samplers._draw import draw
from diffulm.shapes import Int

BATCH = 16
_ANCESTRAL = randomness.key("ancestral")


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
    seed: int | list[int] = 0,
    forbidden: Sequence[int] = (),
    **options: Any,
) -> Int[Tensor, "n l"]:
    """`count` canvases of `length` positions, BOS and the rest drawn; row i has the stream (seed, i), or its own seed's.

    Without BOS all are drawn. forbidden: ids that are never drawn. options: as in `diffulm.options.GenerateOptions`.
    """
    bos = denoiser.record.bos_token_id
    ids, fixed = torch.full((length,), bos or 0), torch.arange(length) < (bos is not None)
    made = [Canvas(ids, fixed, (), None)] * count
    filled = fill(denoiser, made, GenerateOptions(seed=seed, **{"batch_size": BATCH, **options}), forbidden)
    return torch.tensor([one.ids for one in filled])


def ancestral(
    denoiser: Denoiser, seeds: list[int], length: int, forbidden: Sequence[int] = (), **filters: Any
) -> Int[Tensor, "n l"]:
    """An AR model's own samples, a row for each seed: BOS and what is drawn after it, left to right, beyond any EOS.

    filters: temperature, top_p, top_k, min_p as in `samplers._draw.draw`. A row's random numbers depend on its seed alone.
    """
    bos, device = denoiser.record.bos_token_id, denoiser.device
    assert bos is not None  # every AR parent is adopted with one
    ids = torch.full((len(seeds), 1), bos, device=device)
    rows, banned = torch.tensor(seeds), torch.tensor([denoiser.record.mask_token_id, *forbidden], device=device)
    past: Any = None
    with evaluating(denoiser.model):
        for position in range(1, length):
            out = denoiser.model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True)
            past, logits = out.past_key_values, out.logits[:, -1].float()
            chance = randomness.uniform(_ANCESTRAL, rows, position).to(device)
            ids = torch.cat([ids, draw(logits, chance, forbidden=banned, **filters).tokens[:, None]], 1)
    return ids.cpu()


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
