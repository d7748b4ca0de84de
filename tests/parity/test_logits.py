"""Logits of the released layouts and of the AR parents, under full, causal and annealed visibility."""

import torch

from diffulm import visibility
from diffulm.denoiser.tile import tiled

# Nats, absolute: another kernel for the same float32 sums moves these logits (standard deviation 2) by up to 8e-6, while
# a single bit of `visible` moves them by 0.5 and more, and weights times 1 + 1e-6 by 4e-5.
LOGITS = 5e-5


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=LOGITS)


def test_what_the_loader_finds(family):
    denoiser, facts = family.denoiser, family.family
    assert denoiser.vocabulary == facts["vocab_tensor"]
    assert denoiser.record.mask_token_id == facts["mask_id"]
    assert denoiser.record.bos_token_id == facts["bos"]
    assert denoiser.record.shift and denoiser.record.attention == "full"


@torch.no_grad()
def test_full_attention(logits):
    assert torch.equal(logits["ids"].masked_fill(logits["masked"], logits.family["mask_id"]), logits["canvas"])
    assert_close(logits.denoiser.rows(logits["canvas"]), logits["raw"])


@torch.no_grad()
def test_shifted(logits):
    """Asked for a token, the denoiser answers for that token: all of them, some of them, and through the tile."""
    denoiser, canvas, shifted = logits.denoiser, logits["canvas"], logits["shifted"]
    assert_close(denoiser(canvas), shifted.flatten(0, 1))
    where = logits["masked"] & denoiser.predictable(canvas)
    assert 0 < where.sum() < shifted[..., 0].numel()
    assert_close(denoiser(canvas, where=where), shifted[where[:, 1:]])
    assert_close(tiled(denoiser)(canvas, where), shifted[where[:, 1:]])


@torch.no_grad()
def test_annealed(annealed):
    denoiser, canvas, visible = annealed.denoiser, annealed["canvas"], annealed["visible"]
    assert_close(denoiser.rows(canvas, visible), annealed["raw"])
    assert_close(denoiser(canvas, visible), annealed["raw"][:, :-1].flatten(0, 1))


@torch.no_grad()
def test_annealing_starts_from_causal(annealed):
    """Every recorded matrix opens the future only, and a ratio of 0 is our causal view."""
    visible, ratio = annealed["visible"], float(annealed.name.removeprefix("anneal"))
    causal = visibility.causal(len(visible))
    assert not (causal & ~visible).any()
    assert torch.equal(visibility.annealed(len(visible), ratio, seed=0, step=0), visible) == (ratio == 0)
    view = annealed.denoiser.causal_view(annealed["canvas"])
    assert torch.allclose(view, annealed["raw"], rtol=0, atol=LOGITS) == (ratio == 0)


@torch.no_grad()
def test_the_parent(logits):
    """Adopted and read causally, the AR parent gives its own logits; a new mask row is never predicted."""
    view = logits.parent.causal_view(logits["ids"])
    own = logits["ar_parent"].shape[-1]
    assert_close(view[..., :own], logits["ar_parent"])
    assert (view[..., own:] == -torch.inf).all()
