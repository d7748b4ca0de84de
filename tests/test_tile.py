"""Batches in a fixed tile: a row's logits are the same bits alone and in any company."""

from dataclasses import replace

import pytest
import torch

from diffulm import visibility
from diffulm.denoiser import tile
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.tile import BUCKET, tile_rows, tiled
from models import VOCABULARY, build, ids

ROWS, LENGTH = 19, 40  # two full tiles of eight and a part of one; beyond one bucket, no multiple of it


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of different length, padded with junk; some ask for one token, one for none."""
    tokens = ids(ROWS, LENGTH)
    lengths = torch.tensor([40, 33, 32, 7, 40, 25, 1, 40, 39, 38, 40, 12, 31, 40, 2, 40, 5, 36, 40])
    present = torch.arange(LENGTH) < lengths[:, None]
    where = (torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.3) & present
    where[:, 0] = False
    where[[4, 7]] = False
    where[4, 17] = True
    return tokens, where, present


def by_row(logits: torch.Tensor, where: torch.Tensor) -> list[torch.Tensor]:
    return list(logits.split(where.sum(1).tolist()))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3_mixed", "gemma2"])
def test_bit_for_bit_in_any_company(family):
    denoise = tiled(adopt(build(family))[0])
    tokens, where, present = batch()
    together = by_row(denoise(tokens, where, present), where)
    assert [len(part) for part in together] == where.sum(1).tolist()
    for row in range(ROWS):
        one = slice(row, row + 1)
        assert torch.equal(denoise(tokens[one], where[one], present[one]), together[row])
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    mixed = by_row(denoise(tokens[order], where[order], present[order]), where[order])
    assert all(torch.equal(mixed[i], together[row]) for i, row in enumerate(order.tolist()))


@pytest.mark.parametrize("attention", ["full", "block"])
def test_padding_is_nobody(attention):
    denoiser, _ = adopt(build("llama"))
    if attention == "block":
        denoiser = Denoiser(denoiser.model, replace(denoiser.record, attention="block", block_size=4))
    denoise = tiled(denoiser)
    tokens, where, present = batch()
    before = denoise(tokens, where, present)
    assert torch.equal(denoise(tokens.masked_fill(~present, 5), where, present), before)
    wider = [torch.nn.functional.pad(part, (0, 50)) for part in (tokens, where, present)]
    assert torch.equal(denoise(*wider), before)
    for row, part in enumerate(by_row(before, where)):
        length = int(present[row].sum())
        with torch.no_grad():
            bare = denoiser(tokens[row : row + 1, :length], where=where[row : row + 1, :length])
        # another shape, another kernel: float32 rounds logits of deviation 0.5 by up to 1e-6
        torch.testing.assert_close(part, bare, atol=5e-6, rtol=0)


def test_present_may_have_gaps():
    denoiser, _ = adopt(build("gpt2"))
    tokens, where, present = ids(2, 12), torch.zeros(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    where[:, 9], present[0, 3:5] = True, False
    seen = visibility.present(present)
    with torch.no_grad():
        expected = denoiser(tokens, seen, where)
    torch.testing.assert_close(tiled(denoiser)(tokens, where, present), expected, atol=5e-6, rtol=0)  # as above
    assert not torch.equal(tiled(denoiser)(tokens, where)[0], expected[0])


def test_nothing_asked_nothing_run(monkeypatch):
    denoiser, _ = adopt(build("llama"))
    denoise = tiled(denoiser)
    monkeypatch.setattr(denoiser.model, "forward", None)
    tokens = ids()
    assert denoise(tokens, torch.zeros_like(tokens, dtype=torch.bool)).shape == (0, VOCABULARY + 1)


def test_a_tile_never_exceeds_the_context(monkeypatch):
    denoiser, _ = adopt(build("gpt2", n_positions=40))
    shapes = []
    honest = denoiser.model.forward
    monkeypatch.setattr(
        denoiser.model, "forward", lambda **o: shapes.append(tuple(o["input_ids"].shape)) or honest(**o)
    )
    denoise, tokens = tiled(denoiser), ids(11, 40)
    denoise(tokens, denoiser.predictable(tokens))
    assert shapes == [(8, 40), (8, 40)]
    shapes.clear()
    denoise(tokens[:3, :33], denoiser.predictable(tokens[:3, :33]))
    denoise(tokens[:3, :5], denoiser.predictable(tokens[:3, :5]))
    assert shapes == [(8, 40), (8, BUCKET)]


def test_rows_a_tile(monkeypatch):
    denoiser, _ = adopt(build("llama"))
    tokens, where, present = batch()
    assert tile_rows(denoiser, LENGTH, 3) == 8
    some = tiled(denoiser, rows=3)(tokens, where, present)
    torch.testing.assert_close(some, tiled(denoiser)(tokens, where, present), atol=5e-6, rtol=0)  # as above
    monkeypatch.setattr(tile, "SMALL", 10)
    assert tile_rows(denoiser, LENGTH, 3) == 1
    denoiser.model.bfloat16()
    assert tile_rows(denoiser, LENGTH, 3) == 3 and tile_rows(denoiser, LENGTH, 30) == 8


def test_a_model_in_training_denoises_without_dropout():
    denoiser, _ = adopt(build("gpt2").train())
    tokens, where, present = batch()
    denoise = tiled(denoiser)
    first = denoise(tokens, where, present)
    assert torch.equal(denoise(tokens, where, present), first)
    assert not first.requires_grad
    assert denoiser.model.training
    assert all(m.training for m in denoiser.model.modules())
