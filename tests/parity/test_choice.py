"""The published multiple-choice score, its masks recorded, and the sums that put it right."""

import pytest
import torch

from diffulm import bounds, objective
from diffulm.denoiser.tile import tiled

# Nats, absolute: as for logits, of which cross-entropies are a smooth function (another kernel moves them by up to 8e-6).
CROSS_ENTROPY = 5e-5
# Relative: float32 means of a few dozen terms in another order; measured 2e-7.
LOSS = 1e-5


def estimate(choice, denoise):
    free = ~choice["fixed"][0] & choice.denoiser.predictable(choice["ids"])[0]
    mask_token_id = choice.denoiser.record.mask_token_id
    return bounds.published_estimate(denoise, choice["ids"][0], free, mask_token_id, choice["t"], choice["u"][:, 0])


def test_levels_and_score(choice):
    """The same tokens are hidden at every level, and they cost the same."""
    asked, inner = [], tiled(choice.denoiser)

    def denoise(ids, where, present=None):
        asked.append(where)
        return inner(ids, where, present)

    level_mean = estimate(choice, denoise)
    assert torch.equal(torch.cat(asked), choice["masked"][:, 0])
    torch.testing.assert_close(level_mean.float(), choice["level_mean"], rtol=0, atol=CROSS_ENTROPY)
    assert float(level_mean.mean()) == pytest.approx(float(choice["score"]), rel=LOSS)


@torch.no_grad()
def test_cross_entropy(choice):
    """Of every token of every canvas, masked or not; and from it our own sums, which weigh the levels."""
    masked, facts = choice["masked"][:, 0], choice.facts
    ids = choice["ids"].expand_as(masked)
    where = choice.denoiser.predictable(ids)
    canvas = ids.masked_fill(masked, choice.family["mask_id"])
    ce = choice.denoiser.cross_entropy(canvas, ids[where], where)
    ce = torch.zeros(where.shape).masked_scatter(where, ce)
    torch.testing.assert_close(ce, choice["ce"][:, 0], rtol=0, atol=CROSS_ENTROPY)

    free = (~choice["fixed"] & where[:1]).expand_as(masked)
    bound = float(objective.loss(ce, masked, free, 1 / choice["t"], "bound"))
    assert bound == pytest.approx(facts["bound_nats_per_token_grid"], rel=LOSS)
    assert bound * facts["answer_len"] == pytest.approx(facts["bound_nats_grid"], rel=LOSS)
    mean = float(objective.loss(ce, masked, free, 1 / choice["t"], "row_mean"))
    nonempty = len(masked) - facts["levels_with_nothing_masked"]
    assert mean * len(masked) / nonempty == pytest.approx(facts["mean_over_nonempty_levels"], rel=LOSS)


def test_the_pick(family):
    """The lowest score wins."""
    scores = [float(estimate(choice, tiled(choice.denoiser)).mean()) for choice in family.cases("choice")]
    assert scores.index(min(scores)) == family.family["choice_pick_published"]
