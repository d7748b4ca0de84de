"""The counter-based uniforms: uniform, unrelated between keys, a function of the key alone."""

import pytest
import torch

from diffulm.randomness import key, uniform

COUNT = 100_000


def chi_squared_limit(freedom: int) -> float:
    """The value a chi-squared variable exceeds once in a million (Wilson-Hilferty, good to 1% here).

    The seeds are fixed, so that is how often the tests would fail on a right generator if somebody changed a seed.
    """
    return freedom * (1 - 2 / (9 * freedom) + 4.753 * (2 / (9 * freedom)) ** 0.5) ** 3


def chi_squared(values: torch.Tensor, bins: int) -> float:
    seen = torch.bincount((values.flatten() * bins).long(), minlength=bins).double()
    expected = values.numel() / bins
    return float(((seen - expected) ** 2 / expected).sum())


INDEX = torch.arange(COUNT)
KEYS = {
    "last part": (3, INDEX),
    "first part": (INDEX, 3),
    "many seeds, steps and positions": (
        torch.arange(10)[:, None, None],
        torch.arange(100)[:, None],
        torch.arange(COUNT // 1000),
    ),
    "negative": (-INDEX - 1,),
    "far apart": (INDEX * 2**40,),
}


@pytest.mark.parametrize("parts", KEYS.values(), ids=KEYS.keys())
def test_values_are_uniform(parts):
    values = uniform(*parts)
    assert values.dtype == torch.float64
    assert values.numel() == COUNT
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert chi_squared(values, 64) < chi_squared_limit(63)
    # The low bits too: a float64 in [0, 1) made of 53 bits has 8 of them below 2^-45.
    assert chi_squared((values * 2.0**45) % 1.0, 64) < chi_squared_limit(63)


OTHERS = {"next": (3, INDEX + 1), "other seed": (4, INDEX), "swapped": (INDEX, 3), "longer": (3, INDEX, 0)}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_neighbouring_keys_are_unrelated(other):
    pairs = (uniform(3, INDEX) * 16).floor() * 16 + uniform(*other) * 16
    assert chi_squared(pairs / 256, 256) < chi_squared_limit(255)


def reference(*parts: int) -> float:
    """The same definition in Python's own integers, which neither wrap nor have a sign bit."""
    state = 0
    for part in parts:
        state = ((state ^ (part % 2**64)) + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return (state >> 11) / 2**53


@pytest.mark.parametrize("parts", [(), (0,), (0, 0), (1, 2, 3), (-1,), (2**63 - 1, 5), (2**64 - 1,), (key("a"), 7)])
def test_values_equal_the_definition(parts):
    assert float(uniform(*parts)) == reference(*parts)


def test_a_value_does_not_depend_on_the_batch():
    row, position = torch.arange(6)[:, None], torch.arange(9)
    whole = uniform(1, 2, row, position)
    assert whole.shape == (6, 9)
    assert torch.equal(uniform(1, 2, row[2:4], position), whole[2:4])
    assert torch.equal(uniform(1, 2, 5, position[3]), whole[5, 3])
    assert torch.equal(uniform(torch.tensor(1), 2, row.int(), position), whole)


def test_a_key_is_made_of_integers():
    with pytest.raises(TypeError, match="integers"):
        uniform(1, torch.tensor([0.5]))


def test_string_keys_are_stable_and_distinct():
    assert key("task", 3) == 0x29C511C0AAB8087C  # sha256 of "('task', 3)", top 63 bits: the same in every process
    parts = [("ab",), ("a", "b"), ("b", "a"), (1,), ("1",), (1, 2), (12,), ("a, b",)]
    assert len({key(*part) for part in parts}) == len(parts)
    assert all(0 <= key(*part) < 2**63 for part in parts)
