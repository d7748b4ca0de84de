"""What is hidden at a training step: stratified, unbiased, the same however the global batch is cut."""

import math

import pytest
import torch

from diffulm import noise
from diffulm.errors import BadInput

NOISES = [noise.bernoulli, noise.count]
names = pytest.mark.parametrize("draw", NOISES, ids=lambda draw: draw.__name__)


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of tiny operations: a second thread only waits, and costs five times the time on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def discrepancy(levels: torch.Tensor) -> float:
    """Largest |number of levels below x - expected number| over all x in [0, 1]."""
    levels, count = levels.sort().values, len(levels)
    index = torch.arange(count)
    return float(torch.maximum((index + 1 - levels * count).abs(), (index - levels * count).abs()).max())


@pytest.mark.parametrize("global_batch", [1, 2, 12, 60, 256])
def test_levels_of_a_global_batch_are_equally_spaced(global_batch):
    for step in range(5):
        levels = noise.strata(3, step, torch.arange(global_batch), global_batch)
        assert float(levels.min()) >= 0
        assert float(levels.max()) < 1
        gaps = levels.sort().values.diff() * global_batch
        torch.testing.assert_close(gaps, torch.ones_like(gaps), rtol=0, atol=1e-10)  # float64 rounding


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "allowed"),
    [
        # Powers of two: a run of c rows puts exactly one level into each cell of width 1/c, whatever the two rotations
        # are; below any x lie whole cells and two cut ones, so the number of levels is off by less than 2.
        (64, 8, 2.0),
        (256, 32, 2.0),
        (256, 128, 2.0),
        # Otherwise a run is a sum of such runs (at most 2 log2 c of them, but their errors largely cancel); 4 is a
        # bound that these sizes keep, and that independent levels break.
        (240, 60, 4.0),
        (1280, 160, 4.0),
    ],
)
def test_every_micro_batch_spans_the_levels(global_batch, micro_batch, allowed):
    independent = torch.Generator().manual_seed(0)
    broken = 0
    for step in range(20):
        for start in range(0, global_batch, micro_batch):
            rows = torch.arange(start, start + micro_batch)
            assert discrepancy(noise.strata(1, step, rows, global_batch)) < allowed
            broken += discrepancy(torch.rand(micro_batch, dtype=torch.float64, generator=independent)) >= allowed
    assert broken > 0  # the bound can fail


def test_the_level_of_one_row_is_uniform_over_steps():
    steps, bins = 1600, 16
    rows = torch.tensor([0, 5])
    for levels in torch.stack([noise.strata(0, step, rows, 12) for step in range(steps)], dim=1):
        seen = torch.bincount((levels * bins).long(), minlength=bins).double()
        # Chi-squared with 15 degrees of freedom: above 56.5 once in a million seeds.
        assert float(((seen - steps / bins) ** 2 / (steps / bins)).sum()) < 56.5


def test_rows_change_neighbours_from_step_to_step():
    """Without the rotation, rows 0 and 3 of 8 would lie 6/8 apart at every step."""
    rows = torch.tensor([0, 3])
    apart = {round(float(noise.strata(0, step, rows, 8).diff() * 8) % 8) for step in range(20)}
    assert len(apart) > 1


def some_free(rows: int, length: int) -> torch.Tensor:
    free = torch.ones(rows, length, dtype=torch.bool)
    free[:, 0] = False
    free[torch.arange(rows), 1 + torch.arange(rows) % (length - 1)] = False
    return free


@names
def test_one_process_and_many_hide_the_same(draw):
    rows, free = torch.arange(12), some_free(12, 9)
    whole = draw(free, 7, 3, rows, 12)
    for size in (1, 2, 3, 4, 6):
        # Ranks and micro-batches of `size` rows, in any order of arrival.
        cut = {
            start: draw(free[start:][:size], 7, 3, rows[start:][:size], 12) for start in reversed(range(0, 12, size))
        }
        parts = [cut[start] for start in sorted(cut)]
        for field in ("masked", "weight", "level"):
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))


@names
def test_a_row_does_not_depend_on_its_neighbours(draw):
    free = some_free(8, 9)
    other = free.clone()
    other[1:] = False
    first, second = (draw(each, 7, 3, torch.arange(8), 8) for each in (free, other))
    assert first.masked[0].any()
    assert torch.equal(first.masked[0], second.masked[0])
    assert torch.equal(first.weight[0], second.weight[0])


@names
def test_only_free_tokens_are_hidden_and_seed_and_step_matter(draw):
    free = some_free(32, 9)
    first = draw(free, 7, 3, torch.arange(32), 32)
    assert first.masked.any()
    assert not (first.masked & ~free).any()
    assert first.weight.dtype == first.level.dtype == torch.float32
    for other in (draw(free, 8, 3, torch.arange(32), 32), draw(free, 7, 4, torch.arange(32), 32)):
        assert not torch.equal(first.masked, other.masked)
        assert not torch.equal(first.level, other.level)


@names
def test_a_row_without_free_tokens(draw):
    free = some_free(4, 6)
    free[2] = False
    drawn = draw(free, 0, 0, torch.arange(4), 4)
    assert not drawn.masked[2].any()
    assert drawn.weight.isfinite().all()
    assert drawn.level.isfinite().all()


def test_count_masks_k_and_weighs_n_over_k():
    free = some_free(16, 9)
    free[3] = False
    for step in range(20):
        drawn = noise.count(free, 1, step, torch.arange(16), 16)
        total, masked = free.sum(1), drawn.masked.sum(1)
        assert torch.equal(masked == 0, total == 0)
        some = total > 0
        assert torch.equal(drawn.weight[some], (total / masked)[some])
        assert torch.equal(drawn.level[some], (masked / total)[some])
        assert float(drawn.weight[3]) == float(drawn.level[3]) == 0.0


def test_count_spreads_k_evenly():
    # 8 free tokens and 16 rows with equally spaced v: each k of 1..8 comes exactly twice.
    for step in range(10):
        drawn = noise.count(torch.ones(16, 8, dtype=torch.bool), 2, step, torch.arange(16), 16)
        assert torch.bincount(drawn.masked.sum(1), minlength=9).tolist() == [0] + [2] * 8


def test_bernoulli_hides_with_its_level():
    free, excess, variance = torch.ones(32, 50, dtype=torch.bool), 0.0, 0.0
    for step in range(50):
        drawn = noise.bernoulli(free, 4, step, torch.arange(32), 32)
        level = drawn.level.double()
        torch.testing.assert_close(drawn.weight, 1 / drawn.level, rtol=1e-6, atol=0)  # float32 rounding
        assert float(drawn.level.min()) >= 1e-3 - 1e-9  # the floor, in float32
        excess += float((drawn.masked.double() - level[:, None]).sum())
        variance += float((level * (1 - level)).sum()) * 50
    assert abs(excess) < 5 * math.sqrt(variance)  # 5 standard errors: 6 in 10 million seeds fail on right code


TOKENS = 3
SUBSETS = [tuple(bool(code >> token & 1) for token in range(TOKENS)) for code in range(2**TOKENS)]
COST = torch.tensor([0.0, 5.0, 1.0, 3.0, 2.0, 9.0, 4.0, 7.0], dtype=torch.float64)  # f(S), f(nothing) = 0; any numbers


def exact_count() -> float:
    """E over k uniform in 1..N and a uniform subset of size k, of N/k f(S), by enumeration."""
    return sum(
        float(cost) / (sum(s) * math.comb(TOKENS, sum(s))) for s, cost in zip(SUBSETS, COST, strict=True) if any(s)
    )


def exact_bernoulli(name: str) -> float:
    """E over t uniform in (0.001, 1) and all subsets, of weight(t) f(S), by the midpoint rule in t."""
    chosen = noise.schedules.by_name(name)
    time = 1e-3 + (1 - 1e-3) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    level = chosen.level(time)
    mean = torch.zeros_like(time)
    for subset, cost in zip(SUBSETS, COST, strict=True):
        mean += cost * level ** sum(subset) * (1 - level) ** (TOKENS - sum(subset))
    return float((chosen.weight(time) * mean).mean())


def estimate(draw, **options) -> tuple[float, float]:
    """Mean and standard error of weight x f(masked); the means of different steps are independent."""
    steps, rows = 600, 64
    free = torch.tensor([False, True, False, True, True]).expand(rows, -1)
    means = []
    for step in range(steps):
        drawn = draw(free, 11, step, torch.arange(rows), rows, **options)
        code = (drawn.masked[:, [1, 3, 4]] * torch.tensor([1, 2, 4])).sum(1)
        means.append((drawn.weight * COST[code]).mean())
    values = torch.stack(means)
    return float(values.mean()), float(values.std()) / math.sqrt(steps)


def test_count_is_unbiased():
    mean, error = estimate(noise.count)
    assert abs(mean - exact_count()) < 5 * error  # 5 standard errors, as above
    assert error < 0.02 * exact_count()  # precise enough to see a wrong weight


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_bernoulli_is_unbiased_under_every_schedule(name):
    exact = exact_bernoulli(name)
    mean, error = estimate(noise.bernoulli, schedule=name)
    assert abs(mean - exact) < 5 * error
    assert error < 0.02 * exact
    # The value does not depend on the schedule, and is the count estimator's, but for the floor, which cuts about
    # level(0.001) < 0.2% of the integral and divides by 0.999.
    assert exact == pytest.approx(exact_count(), rel=5e-3)


def test_by_name():
    assert [noise.by_name(draw.__name__) for draw in NOISES] == NOISES
    with pytest.raises(BadInput, match="bernoulli"):
        noise.by_name("bernouli")


def test_bad_input():
    free = some_free(2, 4)
    for rows in ([0, 2], [-1, 0]):
        with pytest.raises(BadInput, match="global batch"):
            noise.count(free, 0, 0, torch.tensor(rows), 2)
    for floor in (0.0, 1.0):
        with pytest.raises(BadInput, match="floor"):
            noise.bernoulli(free, 0, 0, torch.arange(2), 2, floor=floor)
