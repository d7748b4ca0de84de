"""Who may look at whom, against matrices written out by hand."""

import pytest
import torch

from diffulm import visibility
from diffulm.errors import BadInput


def matrix(*rows: str) -> torch.Tensor:
    return torch.tensor([[column == "x" for column in row] for row in rows])


CAUSAL = matrix("x..", "xx.", "xxx")


def test_written_out():
    assert torch.equal(visibility.causal(3), CAUSAL)
    assert torch.equal(visibility.full(2), matrix("xx", "xx"))
    assert torch.equal(visibility.window(4, 2), matrix("xx..", "xxx.", ".xxx", "..xx"))
    assert torch.equal(visibility.block_causal(5, 2), matrix("xx...", "xx...", "xxxx.", "xxxx.", "xxxxx"))
    documents = torch.tensor([[0, 0, 1], [4, 5, 4]])
    assert torch.equal(
        visibility.same_document(documents),
        torch.stack([matrix("xx.", "xx.", "..x"), matrix("x.x", ".x.", "x.x")]),
    )


def test_composition():
    sliding = visibility.causal(4) & visibility.window(4, 2)
    assert torch.equal(sliding, matrix("x...", "xx..", ".xx.", "..xx"))
    packed = visibility.causal(3) & visibility.same_document(torch.tensor([[0, 1, 1]]))
    assert torch.equal(packed[0], matrix("x..", ".x.", ".xx"))


def test_limits():
    for length in (1, 5):
        assert torch.equal(visibility.window(length, 1), torch.eye(length, dtype=torch.bool))
        assert torch.equal(visibility.window(length, length), visibility.full(length))
        assert torch.equal(visibility.block_causal(length, 1), visibility.causal(length))
        assert torch.equal(visibility.block_causal(length, length), visibility.full(length))


def test_padding_is_seen_by_nobody_and_no_row_is_blind():
    here = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])
    seen = visibility.present(here)
    assert torch.equal(seen[0], matrix("xx.", "xx.", "xxx"))
    assert torch.equal(seen[1], matrix("xxx", ".xx", ".xx"))
    assert torch.equal(seen[2], torch.eye(3, dtype=torch.bool))


@pytest.mark.parametrize("order", ["bernoulli", "near"])
def test_annealing_ends(order):
    for length in (1, 7):
        assert torch.equal(visibility.annealed(length, 0.0, 1, 2, order), visibility.causal(length))
        for ratio in (1.0, 1.5):
            assert torch.equal(visibility.annealed(length, ratio, 1, 2, order), visibility.full(length))


def test_bernoulli_annealing_opens_each_future_pair_with_the_ratio():
    steps, ratio, length = 400, 0.3, 12
    drawn = torch.stack([visibility.annealed(length, ratio, 5, step) for step in range(steps)])
    future = ~visibility.causal(length)
    assert drawn[:, ~future].all()
    share = drawn[:, future].double().mean()
    pairs = int(future.sum())
    # 5 standard errors: 6 in 10 million seeds would fail on right code.
    assert abs(share - ratio) < 5 * (ratio * (1 - ratio) / (steps * pairs)) ** 0.5
    # No pair is favoured: 66 pairs, each a binomial of 400 draws; 5 standard errors again.
    each = drawn[:, future].double().mean(0)
    assert (each - ratio).abs().max() < 5 * (ratio * (1 - ratio) / steps) ** 0.5


def test_bernoulli_annealing_is_a_function_of_seed_and_step():
    first = visibility.annealed(16, 0.5, 3, 10)
    assert torch.equal(first, visibility.annealed(16, 0.5, 3, 10))
    assert not torch.equal(first, visibility.annealed(16, 0.5, 3, 11))
    assert not torch.equal(first, visibility.annealed(16, 0.5, 4, 10))
    # What is open stays open as the ratio grows.
    assert (first <= visibility.annealed(16, 0.7, 3, 10)).all()


def test_near_annealing_opens_the_nearest_first():
    half = visibility.annealed(5, 0.5, 0, 0, "near")
    assert torch.equal(half, matrix("xxx..", "xxxx.", "xxxxx", "xxxxx", "xxxxx"))
    assert torch.equal(half, visibility.annealed(5, 0.5, 9, 9, "near"))
    # 0.7 of the largest distance, 4, is 2.8: distance 2 is open, 3 is not.
    assert torch.equal(visibility.annealed(5, 0.7, 0, 0, "near"), half)
    assert torch.equal(visibility.annealed(5, 0.75, 0, 0, "near"), matrix("xxxx.", *["xxxxx"] * 4))


def test_anneal_ratio():
    assert [visibility.anneal_ratio(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert visibility.anneal_ratio(0, 10_000) == 0.0001
    assert visibility.anneal_ratio(0, 0) == 1.0


@pytest.mark.parametrize("build", [visibility.window, visibility.block_causal], ids=["window", "block"])
def test_sizes_are_positive(build):
    with pytest.raises(BadInput, match="at least 1"):
        build(4, 0)


@pytest.mark.parametrize("ratio", [-0.1, float("nan")])
def test_ratios_are_not_negative(ratio):
    with pytest.raises(BadInput, match="ratio"):
        visibility.annealed(4, ratio, 0, 0)
