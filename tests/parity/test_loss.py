"""The training loss, its random draws recorded: masks, cross-entropies, losses, gradient norms; fine-tuning included."""

import math

import pytest
import torch

from diffulm import noise, objective

# Nats, absolute: as for logits, of which it is a smooth function (another kernel: 8e-6; one bit of `visible`: 0.5).
CROSS_ENTROPY = 5e-5
# Relative: float32 sums of some dozens of terms in another order; measured 2e-7.
LOSS = 1e-5
# Relative: measured 2e-7 (another version of transformers); a tied weight counted twice moves it by 3e-2 and more.
GRADIENT = 1e-5


def drawn(train):
    """Where the noise fell, position 0 left out: with shift it carries no loss."""
    return train["masked"] & train.denoiser.predictable(train["ids"])


def by_id(train):
    """Where the published code believes the noise fell: wherever the mask id stands."""
    return (train["canvas"] == train.family["mask_id"]) & train.denoiser.predictable(train["ids"])


def free(train):
    return ~train["fixed"] & train.denoiser.predictable(train["ids"])


def cross_entropy(train):
    """(B, L) of the clean tokens, 0 in column 0; with gradient."""
    where = train.denoiser.predictable(train["ids"])
    ce = train.denoiser.cross_entropy(train["canvas"], train["ids"][where], where, train["visible"])
    return torch.zeros(where.shape).masked_scatter(where, ce)


def loss(train, name, masked, weighted=True):
    weight = 1 / train["t"] if weighted else torch.ones_like(train["t"])
    return objective.loss(cross_entropy(train), masked, free(train), weight, name)


def recorded(train, name):
    """A recorded number. The published losses are NaN where nothing is masked, and there only; ours are 0."""
    value = float(train[name])
    assert math.isnan(value) == (train.facts["n_masked_drawn"] == 0 and name != "loss_unbiased")
    return 0.0 if math.isnan(value) else value


def gradient_norm(train, value):
    """L2 over the parameters; `parameters()` names a tied weight once."""
    gradients = torch.autograd.grad(value, list(train.denoiser.model.parameters()))
    return float(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())


def test_masks(train, monkeypatch):
    """Our Bernoulli noise, given the recorded times and uniforms, hides the same tokens."""
    time, floor = train["t"].double(), 1e-3
    monkeypatch.setattr(noise, "strata", lambda *_: (time - floor) / (1 - floor))
    monkeypatch.setattr(noise, "_positions", lambda *_: train["u"].double())
    ours = noise.bernoulli(~train["fixed"], 0, 0, torch.arange(len(time)), len(time), floor=floor)
    assert torch.equal(ours.masked, train["masked"])
    # 1e-6 relative: one rounding of 1/t to float32.
    torch.testing.assert_close(ours.weight, 1 / train["t"], rtol=1e-6, atol=0)


def test_counts(train):
    """Our two masks and the free tokens are those that the losses below were computed from."""
    facts = train.facts
    counted = [int(mask.sum()) for mask in (drawn(train), by_id(train), free(train))]
    assert counted == [facts["n_masked_drawn"], facts["n_masked_by_id"], facts["n_free"]]


@torch.no_grad()
def test_cross_entropy(train):
    """At every position, masked or not."""
    torch.testing.assert_close(cross_entropy(train), train["ce"], rtol=0, atol=CROSS_ENTROPY)


@torch.no_grad()
def test_losses(train):
    published, unweighted = recorded(train, "loss_published"), recorded(train, "loss_unweighted")
    assert float(loss(train, "published", by_id(train))) == pytest.approx(published, rel=LOSS)
    assert float(loss(train, "published", by_id(train), weighted=False)) == pytest.approx(unweighted, rel=LOSS)
    # The objective divides by the free tokens, the published code by the masked ones.
    share = train.facts["n_masked_by_id"] / train.facts["n_free"]
    assert float(loss(train, "unweighted", by_id(train))) == pytest.approx(unweighted * share, rel=LOSS)
    assert float(loss(train, "bound", drawn(train))) == pytest.approx(recorded(train, "loss_unbiased"), rel=LOSS)


@torch.no_grad()
def test_weighted_sum(train):
    """The bound as a global batch adds it up: numerator and denominator apart."""
    token_weight, denominator = objective.bound(drawn(train), free(train), 1 / train["t"])
    total = float((token_weight * cross_entropy(train)).sum())
    assert total == pytest.approx(float(train["loss_weighted_sum"]), rel=LOSS)
    assert denominator == train.facts["n_free"]


@pytest.mark.parametrize(
    ("name", "mask", "norm"), [("published", by_id, "grad_norm_published"), ("bound", drawn, "grad_norm_unbiased")]
)
def test_gradient_norms(train, name, mask, norm):
    if train.facts["n_masked_drawn"] == 0:
        assert norm not in train.facts, "the published code gives NaN here, and no norm of it is recorded"
    ours = gradient_norm(train, loss(train, name, mask(train)))
    assert ours == pytest.approx(train.facts.get(norm, 0.0), rel=GRADIENT)


@torch.no_grad()
def test_the_mask_id_in_clean_text(train):
    """The published loss counts occurrences of the mask id that nobody masked; ours, from what was drawn, does not."""
    same = torch.equal(by_id(train), drawn(train))
    assert same == (train.facts["n_masked_by_id"] == train.facts["n_masked_drawn"])
    for name, mask, want in (("published", drawn, "loss_published"), ("bound", by_id, "loss_unbiased")):
        swapped = float(loss(train, name, mask(train)))
        assert (swapped == pytest.approx(recorded(train, want), rel=LOSS)) == same
