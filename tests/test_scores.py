"""The scores of `bounds` on a real (tiny, random) model through the real tile: bound, orders, left to right, the parent."""

import itertools
import math

import pytest
import torch

from diffulm import bounds, visibility
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.tile import tiled
from models import build

TOKENS = 6


@pytest.fixture(scope="module")
def setting():
    """(denoiser, its denoise with every canvas computed once, ids, free): 6 free tokens in a canvas of 10."""
    model = build("llama")
    with torch.no_grad():  # random weights of a larger scale, so that what is masked matters
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    denoiser, _ = adopt(model)
    run, seen = tiled(denoiser), {}

    def denoise(ids, where, present=None):
        everywhere = denoiser.predictable(ids[:1])
        for row in ids:
            if (key := tuple(row.tolist())) not in seen:
                logits = run(row[None], everywhere)
                seen[key] = torch.cat([torch.zeros(1, logits.shape[1]), logits])
        return torch.cat([seen[tuple(row.tolist())][asked] for row, asked in zip(ids, where, strict=True)])

    ids = torch.tensor([1, 5, 9, 13, 17, 21, 25, 29, 33, 37])
    free = torch.tensor([False, True, False, True, True, True, False, True, True, False])
    assert int(free.sum()) == TOKENS
    return denoiser, denoise, ids, free


def test_the_interval_covers_the_exact_bound(setting):
    """180 to 198 of 200 fixed seeds: a 95% interval, with the binomial error of 200 tries (15.4 around 190 at 5 sigma)."""
    denoiser, denoise, ids, free = setting
    mask = denoiser.record.mask_token_id
    exact = bounds.exact_bound(denoise, ids, free, mask)
    exact = exact if isinstance(exact, float) else exact.nats
    scores = [bounds.bound(denoise, ids, free, mask, 64, seed) for seed in range(200)]
    covered = sum(abs(score.nats - exact) <= 1.96 * score.stderr for score in scores)
    assert 180 <= covered <= 198
    assert all(score.tokens == TOKENS for score in scores)


def test_the_bound_is_the_mean_over_all_orders_and_above_their_mixture(setting):
    denoiser, denoise, ids, free = setting
    mask = denoiser.record.mask_token_id
    orders = torch.tensor(list(itertools.permutations(range(TOKENS))))
    nats = bounds.order_nats(denoise, ids, free, mask, orders).double()
    exact = bounds.exact_bound(denoise, ids, free, mask)
    exact = exact if isinstance(exact, float) else exact.nats
    assert exact == pytest.approx(float(nats.mean()), abs=1e-4)  # float32 sums of a few dozen nats
    assert exact >= -math.log(float((-nats).exp().mean())) - 1e-4
    assert float(nats.std()) > 0.01  # orders differ, or the line above says nothing


def test_left_to_right_agrees_with_a_naive_loop(setting):
    denoiser, denoise, ids, free = setting
    mask = denoiser.record.mask_token_id
    total = 0.0
    for j in free.nonzero().flatten().tolist():
        canvas = ids.clone()
        canvas[[i for i in free.nonzero().flatten().tolist() if i >= j]] = mask
        where = torch.arange(len(ids))[None] == j
        with torch.no_grad():
            total -= float(denoiser(canvas[None], where=where).log_softmax(-1)[0, ids[j]])
    score = bounds.left_to_right(denoise, ids, free, mask)
    assert (score.stderr, score.tokens) == (0, TOKENS)
    assert score.nats == pytest.approx(total, abs=1e-4)  # the tile pads: another shape, float32


def test_under_a_causal_matrix_left_to_right_is_the_parent_s_own_likelihood(setting):
    denoiser, _, ids, _ = setting
    mask = denoiser.record.mask_token_id
    free = torch.arange(len(ids)) > 0

    def causal(ids, where, present=None):
        with torch.no_grad():
            return denoiser(ids, visibility.causal(ids.shape[1]), where).float()

    with torch.no_grad():
        logits = denoiser.model(input_ids=ids[None]).logits[0, :-1].float()
    logits[:, mask] = -torch.inf  # a dedicated mask row is no token of the parent
    own = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
    score = bounds.left_to_right(causal, ids, free, mask)
    assert score.nats == pytest.approx(float(own), abs=1e-4)  # float32
