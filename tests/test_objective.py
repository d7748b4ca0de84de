"""The objectives against their formulas, written as loops, and against being cut into micro-batches."""

import pytest
import torch

from diffulm import objective
from diffulm.errors import BadInput

NAMES = ["bound", "row_mean", "unweighted", "published"]
INVARIANT = NAMES[:3]


def batch(rows: int = 6, length: int = 7):
    """ce, masked, free, weight: rows with very different numbers of free and masked tokens, one with none masked."""
    generator = torch.Generator().manual_seed(0)
    ce = torch.rand(rows, length, generator=generator) * 5
    free = torch.arange(length) >= torch.arange(rows)[:, None]
    masked = free & (torch.rand(rows, length, generator=generator) < 0.6)
    masked[2] = False
    return ce, masked, free, 1 + 3 * torch.rand(rows, generator=generator)


def by_hand(name, ce, masked, free, weight, padding) -> float:
    """The formulas, one token at a time."""
    total, in_mask, in_free, row_means = 0.0, 0.0, 0.0, []
    for b in range(len(ce)):
        row, row_mask = 0.0, 0.0
        for i in range(ce.shape[1]):
            w = float(padding[b, i])
            in_free += w * bool(free[b, i])
            if masked[b, i]:
                scale = 1.0 if name in ("unweighted", "row_mean") else float(weight[b])
                row += w * scale * float(ce[b, i])
                row_mask += w
        total += row
        in_mask += row_mask
        row_means.append(row / row_mask if row_mask else 0.0)
    if name == "row_mean":
        return sum(row_means) / len(row_means)
    return total / (in_mask if name == "published" else in_free)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padded", [False, True])
def test_equals_its_formula(name, padded):
    ce, masked, free, weight = batch()
    padding = torch.ones_like(ce)
    padding[:, -2:] = 0.25
    value = objective.loss(ce, masked, free, weight, name, padding if padded else None)
    expected = by_hand(name, ce, masked, free, weight, padding if padded else torch.ones_like(ce))
    assert float(value) == pytest.approx(expected, rel=1e-6)  # float32 sums of 40 terms


def over_micro_batches(name: str, size: int) -> float:
    ce, masked, free, weight = batch()
    total, denominator = torch.zeros(()), torch.zeros(())
    for start in range(0, len(ce), size):
        cut = slice(start, start + size)
        token_weight, part = objective.by_name(name)(masked[cut], free[cut], weight[cut])
        assert token_weight.dtype == part.dtype == torch.float32
        total, denominator = total + (token_weight * ce[cut]).sum(), denominator + part
    return float(objective.ratio(total, denominator))


@pytest.mark.parametrize("name", INVARIANT)
def test_micro_batches_do_not_change_the_loss(name):
    whole = float(objective.loss(*batch(), name))
    for size in (1, 2, 3, 4):  # 4: the last micro-batch is smaller
        assert over_micro_batches(name, size) == pytest.approx(whole, rel=1e-6)  # float32 sums in another order


def test_published_depends_on_the_micro_batch():
    """It is the mean of the micro-batches' means, so the test above can fail; one of them has nothing masked."""
    ce, masked, free, weight = batch()
    means = [by_hand("published", *(part[b : b + 1] for part in (ce, masked, free, weight, torch.ones_like(ce))))
             for b in (0, 1, 3, 4, 5)]  # fmt: skip
    assert over_micro_batches("published", 1) == pytest.approx(sum(means) / 6, rel=1e-6)
    assert over_micro_batches("published", 1) != pytest.approx(over_micro_batches("published", 6), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("anything_free", [False, True])
def test_nothing_masked_is_zero_and_so_is_its_gradient(name, anything_free):
    ce = torch.full((2, 3), float("inf")).requires_grad_()
    free = torch.full((2, 3), anything_free)
    value = objective.loss(ce, torch.zeros(2, 3, dtype=torch.bool), free, torch.zeros(2), name)
    assert float(value.detach()) == 0.0
    (gradient,) = torch.autograd.grad(value, ce)
    assert torch.equal(gradient, torch.zeros(2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_masked_does_not_matter(name):
    ce, masked, free, weight = batch()
    spoilt = ce.masked_fill(~masked, float("nan"))
    assert float(objective.loss(spoilt, masked, free, weight, name)) == float(
        objective.loss(ce, masked, free, weight, name)
    )


def test_a_row_with_nothing_free_does_not_count():
    ce, masked, free, weight = batch()
    more = torch.zeros(1, ce.shape[1], dtype=torch.bool)
    for name in NAMES:
        padded = objective.loss(
            torch.cat([ce, ce[:1]]),
            torch.cat([masked, more]),
            torch.cat([free, more]),
            torch.cat([weight, weight[:1]]),
            name,
        )
        assert float(padded) == pytest.approx(float(objective.loss(ce, masked, free, weight, name)), rel=1e-6)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(BadInput, match="row_mean"):
        objective.by_name("rowmean")
