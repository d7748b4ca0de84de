"""Caches over a canvas: exact under block-causal attention, exact under full attention when refreshed at every step."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.cache import cacheable, cached
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.tile import tiled
from families import ATTENTION
from models import VOCABULARY, build, ids
from test_families import build as family_of

BLOCK, LENGTHS, PROMPTS = 4, torch.tensor([23, 11, 17]), torch.tensor([6, 3, 9])
FAMILIES = ["gpt2", "llama", "qwen3_mixed", "mistral", "gemma2"]


def opened(family: str, attention: str = "block", shift: bool = True) -> Denoiser:
    model = build(family).double()  # equal up to rounding is then equal to 1e-9
    denoiser, _ = adopt(model)
    block = BLOCK if attention == "block" else None
    denoiser.record = replace(denoiser.record, attention=attention, block_size=block, shift=shift)
    return denoiser


def filling(denoiser: Denoiser, block: int, remask: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(ids, where, present) as a sampler hands them over, block by block, some of its masks revealed at every step; canvases
    of different length, at different places, one of them not asked at some steps."""
    drawn = torch.Generator().manual_seed(3)
    text, position = ids(3, 23), torch.arange(23)
    present = position < LENGTHS[:, None]
    masked = present & (position >= PROMPTS[:, None])
    first = masked.clone()
    mask = denoiser.record.mask_token_id
    for step in range(100):
        if not bool(masked.any()):
            return
        current = masked & (
            position // block == torch.where(masked.any(1), masked.long().argmax(1), 0)[:, None] // block
        )
        current[step % 5 == 3] = False
        if bool(current.any()):
            yield torch.where(masked, mask, text), current, present
        shown = current & (torch.rand(3, 23, generator=drawn) < 0.5)
        text = torch.where(shown, torch.randint(VOCABULARY - 2, (3, 23), generator=drawn), text)
        masked = masked & ~shown
        if remask and step % 6 == 5:  # hides again what stands in finished blocks
            masked = masked | (first & (torch.rand(3, 23, generator=drawn) < 0.1))
    raise AssertionError("the canvases were never full")


@pytest.mark.parametrize(
    ("family", "shift", "clean_copy"),
    [(family, True, "block") for family in FAMILIES]
    + [("llama", False, "block"), ("llama", True, "causal"), ("gpt2", False, "causal")],
)
def test_the_exact_cache_gives_what_running_everything_gives(family, shift, clean_copy):
    denoiser = opened(family, shift=shift)
    denoiser.record = replace(denoiser.record, notes=denoiser.record.notes | {"clean_copy": clean_copy})
    whole, quick = tiled(denoiser, rows=2), cached(denoiser, rows=2)
    for canvas in filling(denoiser, BLOCK, remask=family == "llama"):
        torch.testing.assert_close(quick(*canvas), whole(*canvas), atol=1e-5, rtol=0)  # float32 of float64 logits


def test_finished_blocks_are_run_once_more_and_never_again(monkeypatch):
    denoiser = opened("llama")
    sizes, forward = [], Denoiser.__call__
    monkeypatch.setattr(
        Denoiser, "__call__", lambda self, ids, *rest: (sizes.append(ids.shape[1]), forward(self, ids, *rest))[1]
    )
    quick, mask = cached(denoiser, rows=1), denoiser.record.mask_token_id
    text, masked = ids(1, 16), torch.arange(16)[None] >= 6
    for shown in (6, 7, 8, 9, 10, 11, 12):  # from the left, one at a time
        where = masked & (torch.arange(16) // BLOCK == shown // BLOCK)
        quick(torch.where(masked, mask, text), where)
        masked = masked & (torch.arange(16) != shown)
    # the prompt with the first block; from the row before 7 on, for nothing changes before it; then 4..7 once more (they
    # had been masks) with the block 8..11, which is run alone until it is committed with 12..15
    assert sizes == [8, 4, 8, 4, 4, 4, 8]


@pytest.mark.parametrize(
    ("family", "mode", "shift"),
    [
        *((family, "dual", True) for family in FAMILIES),
        ("llama", "prefix", True),
        ("llama", "dual", False),
        ("gpt2", "prefix", False),
    ],
)
def test_refreshed_at_every_step_nothing_is_approximate(family, mode, shift):
    denoiser = opened(family, "full", shift)
    whole, fresh, stale = tiled(denoiser), cached(denoiser, mode, BLOCK, refresh=1), cached(denoiser, mode, BLOCK)
    apart = 0.0
    for canvas in filling(denoiser, BLOCK):
        expected = whole(*canvas)
        torch.testing.assert_close(fresh(*canvas), expected, atol=1e-5, rtol=0)  # as above
        apart = max(apart, float((stale(*canvas) - expected)[expected.isfinite()].abs().max()))
    assert apart > 1e-3  # of logits that differ by about one: without a refresh it is an approximation


def test_alone_or_in_company_bit_for_bit():
    denoiser, _ = adopt(build("llama"))
    denoiser.record = replace(denoiser.record, attention="block", block_size=BLOCK)
    together, alone = cached(denoiser, rows=2), [cached(denoiser, rows=2) for _ in LENGTHS]
    for canvas, where, present in filling(denoiser, BLOCK):
        rows = together(canvas, where, present).split(where.sum(1).tolist())
        for i, one in enumerate(alone):
            assert torch.equal(one(canvas[i : i + 1], where[i : i + 1], present[i : i + 1]), rows[i])


def test_an_exact_cache_needs_blocks_and_one_batch():
    denoiser = opened("gpt2", "full")
    with pytest.raises(ValueError, match="block-causal"):
        cached(denoiser)
    quick, where = cached(denoiser, "dual", 4), torch.arange(8)[None] > 5
    quick(ids(1, 8), where)
    with pytest.raises(ValueError, match="canvases of shape"):
        quick(ids(2, 8), where.expand(2, -1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_every_family_that_is_said_to_be_cacheable_is(name):
    denoiser, _ = adopt(family_of(name, ATTENTION[name]))
    denoiser.record = replace(denoiser.record, attention="block", block_size=BLOCK)
    assert cacheable(denoiser) == (name != "mpt")  # which takes no positions
    whole, quick = tiled(denoiser), cached(denoiser)
    for canvas in filling(denoiser, BLOCK) if cacheable(denoiser) else ():
        expected = whole(*canvas)
        finite = expected.isfinite()
        # float32; found: 2e-6 of their spread
        assert (quick(*canvas) - expected)[finite].abs().max() < 1e-4 * expected[finite].std()
