"""Noise schedules against their derivatives and closed forms."""

import math

import pytest
import torch

from diffulm import schedule
from diffulm.errors import BadInput

NAMES = ["linear", "cosine", "polynomial"]
TIMES = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_weight_is_minus_the_derivative_of_alpha_over_one_minus_alpha(name):
    chosen = schedule.by_name(name)
    h = 1e-6
    derivative = (chosen.level(TIMES + h) - chosen.level(TIMES - h)) / (2 * h)
    # Central differences: h^2 x third derivative (1e-12) and rounding 1e-16 / h (1e-10), over levels above 1e-4.
    torch.testing.assert_close(chosen.weight(TIMES), derivative / chosen.level(TIMES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_and_order(name, dtype):
    chosen = schedule.by_name(name)
    assert chosen.name == name
    times = torch.linspace(0.001, 1.0, 1000, dtype=dtype)
    level, weight = chosen.level(times), chosen.weight(times)
    assert level.dtype == weight.dtype == dtype
    assert float(level[-1]) == 1.0
    assert (level > 0).all()
    assert (level.diff() > 0).all()
    assert (weight >= 0).all()
    assert weight.isfinite().all()


def test_closed_forms():
    assert torch.equal(schedule.by_name("linear").level(TIMES), TIMES)
    assert torch.equal(schedule.by_name("linear").weight(TIMES), 1 / TIMES)
    third = torch.tensor([1 / 3], dtype=torch.float64)
    # sin(pi/6) = 1/2; pi/2 / tan(pi/6); rounding of float64
    torch.testing.assert_close(schedule.by_name("cosine").level(third), torch.full_like(third, 0.5), rtol=1e-12, atol=0)
    cosine = schedule.by_name("cosine").weight(third)
    torch.testing.assert_close(cosine, torch.full_like(third, math.pi / 2 * 3**0.5), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.by_name("polynomial").level(third), third**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.by_name("polynomial").weight(third), 2 / third, rtol=1e-12, atol=0)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(BadInput, match="linear"):
        schedule.by_name("linaer")
