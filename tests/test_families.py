"""Any decoder: what `adopt` calls ready is ready by the influence matrix of that very model, beyond its window."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from diffulm import visibility
from diffulm.checkpoint.opening import Refused
from diffulm.denoiser import probe as probing
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import evaluating
from diffulm.denoiser.probe import LEFT, NOTHING, OBEYS, PARALLEL
from families import ATTENTION, HYBRID, REFUSED
from models import bad, ids

# From this version on the forwards of hybrids take a matrix for each kind of layer.
OLD = Version(transformers.__version__) < Version("5.23")
LENGTH = 14  # beyond every window here (5), and more than three blocks
BLOCK = 4
# Another kernel and another order of summation, in units of the logits' standard deviation; a wrong matrix gives 0.05 and more.
CLOSE = 1e-4


def build(name, config):
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**config)).eval()


def difference(a, b):
    return float((a - b).abs().max() / b.std())


def check(model):
    """Adopt it and compare with its own forward, whole and in part."""
    given = ids(length=LENGTH)
    with evaluating(model):
        own = model(input_ids=given).logits
    denoiser, _ = adopt(model)
    causal = visibility.causal(LENGTH)
    with evaluating(model):
        ours = denoiser.rows(given, causal)[..., : own.shape[-1]]
        where = torch.zeros_like(given, dtype=torch.bool)
        where[0, 3] = where[1, [1, 9]] = True
        some = denoiser(given, causal, where)[..., : own.shape[-1]]
    assert difference(ours, own) < CLOSE
    assert difference(some, torch.stack([own[0, 2], own[1, 0], own[1, 8]])) < CLOSE
    return denoiser


@pytest.mark.parametrize("name", ATTENTION)
def test_every_layer_obeys(name):
    denoiser = check(build(name, ATTENTION[name]))
    for visible in (
        visibility.causal(LENGTH),
        visibility.full(LENGTH),
        visibility.block_causal(LENGTH, BLOCK),
        visibility.causal(LENGTH).T,
    ):
        expected = probing.expected_influence(denoiser, visible)
        assert torch.equal(probing.influence(denoiser, LENGTH, visible), expected)
    looks = probing.looks(denoiser)
    assert looks is None or {look for _, look in looks} == {OBEYS}
    assert "left_layers" not in denoiser.record.notes


@pytest.mark.parametrize("name", HYBRID)
def test_a_hybrid_says_which_layers_cannot_look_right(name):
    config, left = HYBRID[name]
    model = build(name, config)
    try:
        denoiser = check(model)
    except Refused as error:
        if not OLD:
            raise
        pytest.skip(f"not with this transformers: {error.reason}")
    assert denoiser.record.notes["left_layers"] == left
    looks = [look for _, look in probing.looks(denoiser)]
    assert all(look in (LEFT, PARALLEL) if i in left else look in (OBEYS, NOTHING) for i, look in enumerate(looks))
    causal = probing.influence(denoiser, LENGTH, visibility.causal(LENGTH))
    assert not causal.triu(1).any()
    full = probing.influence(denoiser, LENGTH, visibility.full(LENGTH))
    assert full.triu(1).any(dim=1)[:-1].all()  # every row but the last sees something to its right
    blocks = probing.influence(denoiser, LENGTH, visibility.block_causal(LENGTH, BLOCK))
    allowed = visibility.block_causal(LENGTH, BLOCK)
    assert not (blocks & ~allowed).any()
    assert (blocks & allowed).triu(1).any()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_is_refused_with_the_reason_found(name):
    config, reason = REFUSED[name]
    model = build(name, config)
    before = model.config._attn_implementation
    with bad(f"cannot be used: .*{reason}"):
        adopt(model)
    assert model.config._attn_implementation == before


def test_the_matrix_is_as_wide_as_promised():
    assert len(ATTENTION) >= 30
    assert len(ATTENTION) + len(HYBRID) + len(REFUSED) >= 36
