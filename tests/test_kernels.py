"""Faster kernels for bfloat16 on a CPU: the same numbers, and the model's own forward whenever they would not be."""

import copy

import pytest
import torch

from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.kernels import hasten
from models import build, ids


def hastened(family: str):
    plain = adopt(build(family).to(torch.bfloat16))[0].model.eval()
    quick = copy.deepcopy(plain)
    if not hasten(quick):
        pytest.skip("this CPU or torch has no bfloat16 products in oneDNN")
    return plain, quick


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_the_same_logits(family):
    plain, quick = hastened(family)
    before, after = (model(input_ids=ids()).logits.float() for model in (plain, quick))
    assert before.std() > 0.1
    # bfloat16 keeps 8 bits; layers of it in another order of summation move a logit by a few per cent of its spread
    assert (before - after).abs().max() < 0.05 * before.std()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), quick.state_dict().values(), strict=True))


def test_changed_weights_are_seen_and_gradients_flow():
    _, quick = hastened("gpt2")
    tokens = ids()
    quick(input_ids=tokens).logits.float().pow(2).mean().backward()
    assert all(p.grad is not None for p in quick.transformer.h.parameters())
    with torch.no_grad():
        before = quick(input_ids=tokens).logits
        quick.transformer.h[0].mlp.c_fc.weight.mul_(0)
        assert not torch.equal(quick(input_ids=tokens).logits, before)
        fresh = copy.deepcopy(quick)
        quick.transformer.h[0].mlp.c_fc.weight = torch.nn.Parameter(
            torch.ones_like(fresh.transformer.h[0].mlp.c_fc.weight)
        )
        assert not torch.equal(quick(input_ids=tokens).logits, fresh(input_ids=tokens).logits)


def test_nothing_is_done_to_other_models():
    model = build("gpt2")
    assert not hasten(model) and "forward" not in model.transformer.h[0].mlp.c_fc.__dict__
