"""Scores on a denoiser that is a hash: no network, so that every sum over subsets and orders can be carried out."""

import itertools
import math

import pytest
import torch

from diffulm import bounds
from diffulm.errors import BadInput
from diffulm.randomness import uniform

VOCABULARY, MASK = 7, 6


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of tiny operations: a second thread only waits, and costs five times the time on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Fake:
    """Logits that depend on everything present (token by token) and on the position asked about; notes its calls."""

    def __init__(self, scale: float = 8.0):
        self.scale, self.calls = scale, []

    def __call__(self, ids, where, present=None):
        self.calls.append((ids.clone(), where.clone()))
        column = torch.arange(ids.shape[1])
        context = (uniform(1, column, ids) * 2**40).long()
        context = (context if present is None else context * present).sum(1)
        row, at = where.nonzero(as_tuple=True)
        return (self.scale * uniform(2, context[row, None], at[:, None], torch.arange(VOCABULARY))).float()

    def rows(self) -> list[int]:
        return [len(ids) for ids, _ in self.calls]


def canvas(tokens: int, seed: int = 0):
    """ids and free (tokens + 2): fixed tokens at the start and in the middle."""
    ids = torch.randint(0, MASK, (tokens + 2,), generator=torch.Generator().manual_seed(seed))
    free = torch.ones(tokens + 2, dtype=torch.bool)
    free[[0, (tokens + 1) // 2]] = False
    return ids, free


def naive_nats(denoise, ids, masked: list[int], at: list[int]) -> float:
    """-log p of the tokens at `at`, with `masked` hidden: one row, one position at a time, in float64."""
    hidden = ids.clone()
    hidden[masked] = MASK
    total = 0.0
    for position in at:
        where = torch.zeros(1, len(ids), dtype=torch.bool)
        where[0, position] = True
        total -= float(denoise(hidden[None], where).double().log_softmax(-1)[0, ids[position]])
    return total


# Cross-entropies of single tokens are float32: 1e-7 of values below 10, some 12 of them a row.
FLOAT = 1e-5


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_exact_bound_is_the_mean_over_k_and_subsets(tokens):
    ids, free = canvas(tokens)
    positions = free.nonzero()[:, 0].tolist()
    mean = 0.0
    for k in range(1, tokens + 1):
        subsets = [list(subset) for subset in itertools.combinations(positions, k)]
        costs = [naive_nats(Fake(), ids, subset, subset) for subset in subsets]
        mean += sum(costs) / len(costs) * tokens / k / tokens
    score = bounds.exact_bound(Fake(), ids, free, MASK)
    assert score.nats == pytest.approx(mean, abs=FLOAT)
    assert (score.stderr, score.tokens) == (0.0, tokens)


@pytest.mark.parametrize(("tokens", "seed"), [(4, 0), (4, 1), (5, 2)])
def test_exact_bound_is_the_mean_over_all_orders(tokens, seed):
    ids, free = canvas(tokens, seed)
    orders = torch.tensor(list(itertools.permutations(range(tokens))))
    nats = bounds.order_nats(Fake(), ids, free, MASK, orders, rows_per_call=500)
    exact = bounds.exact_bound(Fake(), ids, free, MASK).nats
    assert exact == pytest.approx(float(nats.mean()), abs=FLOAT)
    any_order = bounds.multi_order_bound(Fake(), ids, free, MASK, orders, rows_per_call=500)
    assert any_order == pytest.approx(-math.log(float((-nats).exp().mean())), abs=FLOAT)
    # Jensen; this denoiser's orders disagree, so that the gap is far above float error.
    assert exact > any_order + 0.1


def test_order_nats_by_a_loop():
    ids, free = canvas(4)
    positions = free.nonzero()[:, 0].tolist()
    orders = torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3]])
    for order, nats in zip(orders.tolist(), bounds.order_nats(Fake(), ids, free, MASK, orders), strict=True):
        turns = [positions[token] for token in order]
        loop = sum(naive_nats(Fake(), ids, turns[step:], [turns[step]]) for step in range(4))
        assert float(nats) == pytest.approx(loop, abs=FLOAT)


def test_left_to_right_by_a_loop():
    ids, free = canvas(9)
    positions = free.nonzero()[:, 0].tolist()
    loop = sum(naive_nats(Fake(), ids, positions[step:], [positions[step]]) for step in range(9))
    fake = Fake()
    score = bounds.left_to_right(fake, ids, free, MASK, rows_per_call=4)
    assert score.nats == pytest.approx(loop, abs=FLOAT)
    assert (score.stderr, score.tokens) == (0.0, 9)
    assert fake.rows() == [4, 4, 1]  # N rows, one for each token
    assert all((where.sum(1) == 1).all() for _, where in fake.calls)


@pytest.mark.parametrize("samples", [64, 15, 29])
def test_the_interval_is_calibrated(samples):
    """The exact bound lies in the 95% interval in 190 of 200 seeds on average, with a standard deviation of 3.

    180 to 198 leaves 3 standard deviations on either side; an interval 0.8 times as wide covers 88% (177 of 200), one
    1.5 times as wide 99.6%.
    """
    ids, free = canvas(8)
    exact = bounds.exact_bound(Fake(), ids, free, MASK).nats
    scores = [bounds.bound(Fake(), ids, free, MASK, samples, seed) for seed in range(200)]
    inside = sum(abs(score.nats - exact) <= 1.96 * score.stderr for score in scores)
    assert 180 <= inside <= 198
    # Unbiased: the mean of 200 estimates within 4 of its standard errors (6 in 100,000 sets of seeds fail).
    nats = torch.tensor([score.nats for score in scores], dtype=torch.float64)
    assert abs(float(nats.mean()) - exact) < 4 * float(nats.std()) / math.sqrt(200)


def test_bound_is_the_weighted_mean_of_its_draws():
    ids, free = canvas(6)
    positions = free.nonzero()[:, 0]
    masked, weight = bounds.draws(6, 10, 3, 4)
    costs = [naive_nats(Fake(), ids, subset, subset) for subset in (positions[row].tolist() for row in masked)]
    values = weight * torch.tensor(costs, dtype=torch.float64)
    score = bounds.bound(Fake(), ids, free, MASK, 10, 3, 4)
    assert score.nats == pytest.approx(float(values.mean()), abs=FLOAT)
    assert score.stderr == pytest.approx(bounds.standard_error(values), abs=FLOAT)
    assert score.tokens == 6


def test_draws_are_stratified_in_k():
    # As many tokens as draws: a stratum of two draws is exactly two values of k.
    masked, weight = bounds.draws(8, 8, 0)
    for seed in range(20):
        masked, weight = bounds.draws(8, 8, seed)
        count = masked.sum(1)
        assert ((count + 1) // 2).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
        assert torch.equal(weight, 8 / count.double())
        # Odd: the last stratum has three.
        assert [int(k > 2) for k in bounds.draws(5, 5, seed)[0].sum(1)] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_few_draws_are_unbiased_in_k(samples):
    """Over many seeds every k in 1..4 comes equally often, for odd numbers of draws too."""
    seeds = 800
    counts = torch.stack([bounds.draws(4, samples, seed)[0].sum(1) for seed in range(seeds)])
    share = torch.bincount(counts.flatten(), minlength=5)[1:].double() / counts.numel()
    # 5 standard errors of an independent sample; strata only make it narrower.
    assert (share - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / counts.numel())


@pytest.mark.parametrize("samples", [1, 4, 64])
def test_choices_of_one_question_share_their_draws(samples):
    for seed in range(20):
        short, long = bounds.draws(5, samples, seed, 9)[0], bounds.draws(8, samples, seed, 9)[0]
        k_short, k_long = short.sum(1), long.sum(1)
        # One quantile v: it lies in both ((k - 1) / 5, k / 5] and ((k' - 1) / 8, k' / 8].
        assert (torch.maximum((k_short - 1) / 5, (k_long - 1) / 8) < torch.minimum(k_short / 5, k_long / 8)).all()
        # One uniform for each answer-relative position: the smaller set of the two lies within the other.
        inside, outside = (short & ~long[:, :5]).any(1), (long[:, :5] & ~short).any(1)
        assert not (inside & outside).any()


def test_questions_and_seeds_do_not_share_their_draws():
    masked = bounds.draws(64, 64, 3, 9)[0]
    for other in (bounds.draws(64, 64, 3, 10)[0], bounds.draws(64, 64, 4, 9)[0]):
        assert not torch.equal(masked.sum(1), other.sum(1))  # the quantiles
        # And the uniforms: which positions are hidden how often.
        assert not torch.equal(masked[32:].sum(0), other[32:].sum(0))


def patterns(fake: Fake, free: torch.Tensor) -> set[tuple[bool, ...]]:
    return {tuple(row) for _, where in fake.calls for row in where[:, free].tolist()}


def test_draws_are_relative_to_the_answer():
    ids, free = canvas(6)
    longer, later = torch.cat([ids.new_zeros(3), ids]), torch.cat([free.new_zeros(3), free])
    first, second, other = Fake(), Fake(), Fake()
    bounds.bound(first, ids, free, MASK, 16, 5, key=1)
    bounds.bound(second, longer, later, MASK, 16, 5, key=1)
    bounds.bound(other, ids, free, MASK, 16, 5, key=2)
    assert patterns(first, free) == patterns(second, later) != patterns(other, free)


def test_shared_draws_cancel_in_a_difference():
    ids, free = canvas(8)
    choice = ids.clone()
    choice[-1] = (choice[-1] + 1) % MASK

    class Smooth(Fake):  # one token of context moves the logits a little, as in a network
        def __call__(self, ids, where, present=None):
            self.calls.append((ids.clone(), where.clone()))
            hidden = (ids == MASK).sum(1)
            row, at = where.nonzero(as_tuple=True)
            logits = uniform(2, at[:, None], torch.arange(VOCABULARY)) * 8 / hidden[row, None]
            return (logits + 0.1 * uniform(3, (ids.sum(1))[row, None], torch.arange(VOCABULARY))).float()

    def difference(seed: int, key: int) -> float:
        first = bounds.bound(Smooth(), ids, free, MASK, 16, seed, key=0)
        return bounds.bound(Smooth(), choice, free, MASK, 16, seed, key=key).nats - first.nats

    shared, apart = (torch.tensor([difference(seed, key) for seed in range(20)]).std() for key in (0, 1))
    # Standard deviations of 20 values each differ by a factor of 2 by chance in 2 of 1000 sets of seeds.
    assert shared < apart / 2


def test_one_token_is_exact_and_costs_one_row():
    ids, free = canvas(1)
    fake = Fake()
    score = bounds.bound(fake, ids, free, MASK, 64, 0)
    position = free.nonzero()[:, 0].tolist()
    assert score.nats == pytest.approx(naive_nats(Fake(), ids, position, position), abs=FLOAT)
    assert (score.stderr, score.tokens, fake.rows()) == (0.0, 1, [1])
    assert bounds.bound(Fake(), ids, free, MASK, 1, 0) == score


def test_no_token_costs_nothing():
    ids, free = canvas(3)
    free[:] = False
    fake = Fake()
    nothing = bounds.Score(0.0, 0.0, 0)
    assert bounds.bound(fake, ids, free, MASK, 8, 0) == nothing
    assert bounds.exact_bound(fake, ids, free, MASK) == nothing
    assert bounds.left_to_right(fake, ids, free, MASK) == nothing
    assert fake.calls == []


def test_equal_draws_run_once():
    ids, free = canvas(2)
    fake = Fake()
    bounds.bound(fake, ids, free, MASK, 64, 0)
    assert sum(fake.rows()) == 3  # two tokens have three subsets


def test_rows_per_call_changes_calls_not_results():
    ids, free = canvas(8)
    fake = Fake()
    some = bounds.bound(fake, ids, free, MASK, 33, 1, rows_per_call=5)
    assert max(fake.rows()) == 5
    all_at_once = bounds.bound(Fake(), ids, free, MASK, 33, 1, rows_per_call=64)
    assert some.nats == pytest.approx(all_at_once.nats, abs=FLOAT)
    assert some.stderr == pytest.approx(all_at_once.stderr, abs=FLOAT)


SCORES = {
    "bound": lambda *args, **options: bounds.bound(*args, 17, 2, **options),
    "exact_bound": bounds.exact_bound,
    "left_to_right": bounds.left_to_right,
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES.keys())
def test_padding_does_not_change_a_score(score):
    ids, free = canvas(5)
    padded = torch.cat([ids, ids.new_full((3,), 2)])
    more = torch.zeros(3, dtype=torch.bool)
    here = torch.cat([torch.ones_like(free), more])
    plain = score(Fake(), ids, free, MASK)
    assert score(Fake(), padded, torch.cat([free, more]), MASK, present=here).nats == pytest.approx(
        plain.nats, abs=FLOAT
    )
    # Without `present` the padding is content, which this denoiser sees.
    assert score(Fake(), padded, torch.cat([free, more]), MASK).nats != pytest.approx(plain.nats, abs=0.01)
    with pytest.raises(BadInput, match="present"):
        score(Fake(), padded, torch.cat([free, ~more]), MASK, present=here)


def test_student_quantiles():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 10: 2.2281, 30: 2.0423, 1000: 1.9623}
    for freedom, quantile in table.items():
        # the table has five digits; beyond 300 degrees of freedom the normal's quantile stands for it, 0.13% below at 1000
        assert bounds.student(freedom) == pytest.approx(quantile, rel=1.5e-3 if freedom > 300 else 2e-5)
    assert bounds.student(4, 0.001) == pytest.approx(7.1732, rel=1e-5)
    assert bounds.student(7, 0.0005) == pytest.approx(5.4079, rel=1e-5)


def test_standard_error_in_closed_form():
    def error(*values: float) -> float:
        return bounds.standard_error(torch.tensor(values, dtype=torch.float64)) * 1.959964

    # One stratum of n: s / sqrt(n) x Student's t with n - 1 degrees of freedom.
    assert error(0, 2) == pytest.approx(12.7062, rel=1e-4)
    assert error(0, 0, 3) == pytest.approx(4.3027, rel=1e-4)
    # Two strata of two, s^2 = 2 in each: sqrt((2/2 + 2/2) / 4); equal variances are worth 1 + 1 degrees of freedom.
    assert error(0, 2, 0, 2) == pytest.approx(math.sqrt(0.5) * 4.3027, rel=1e-4)
    # What lies between strata is no error, and a stratum without variance brings no degree of freedom.
    assert error(0, 2, 100, 102) == pytest.approx(error(0, 2, 0, 2), rel=1e-9)
    assert error(0, 2, 5, 5) == pytest.approx(0.5 * 12.7062, rel=1e-4)
    # Two and three draws: ((2/5)^2 x 2/2 + (3/5)^2 x 3/3); worth 3.3 degrees of freedom, at most 3.
    assert error(0, 2, 0, 0, 3) == pytest.approx(math.sqrt(0.16 + 0.36) * 3.1824, rel=2e-3)
    assert error(1, 1, 1, 1) == 0.0
    assert error(1) == math.inf
    assert error(1, math.inf) == math.inf


def test_one_sample_knows_no_error_and_an_impossible_token_costs_infinity():
    ids, free = canvas(4)
    assert bounds.bound(Fake(), ids, free, MASK, 1, 0).stderr == math.inf

    def never(ids, where, present=None):
        logits = Fake()(ids, where, present)
        logits[:, 0] = -math.inf
        return logits

    ids[free] = 0
    score = bounds.bound(never, ids, free, MASK, 8, 0)
    assert (score.nats, score.stderr) == (math.inf, math.inf)


def test_random_orders_are_uniform_permutations():
    orders = bounds.random_orders(3, 3000, 1)
    codes = (orders * torch.tensor([9, 3, 1])).sum(1)
    values, seen = codes.unique(return_counts=True)
    assert len(values) == 6
    # Chi-squared with 5 degrees of freedom: above 35.9 once in a million seeds.
    assert float(((seen - 500.0) ** 2 / 500).sum()) < 35.9
    assert torch.equal(bounds.random_orders(3, 10, 1), orders[:10])
    assert not torch.equal(bounds.random_orders(3, 10, 1, key=2), orders[:10])


def test_bad_input():
    ids, free = canvas(13)
    with pytest.raises(BadInput, match="samples"):
        bounds.bound(Fake(), ids, free, MASK, 0, 0)
    with pytest.raises(BadInput, match="rows_per_call"):
        bounds.bound(Fake(), ids, free, MASK, 4, 0, rows_per_call=0)
    with pytest.raises(BadInput, match="at most 12"):
        bounds.exact_bound(Fake(), ids, free, MASK)
    for orders in (torch.zeros(1, 13, dtype=torch.int64), torch.arange(5)[None]):
        with pytest.raises(BadInput, match="permutation"):
            bounds.order_nats(Fake(), ids, free, MASK, orders)
    with pytest.raises(BadInput, match="at least one order"):
        bounds.multi_order_bound(Fake(), ids, free, MASK, torch.zeros(0, 13, dtype=torch.int64))
    with pytest.raises(BadInput, match="at least one token"):
        bounds.draws(0, 4, 0)
