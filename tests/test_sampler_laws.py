"""The law of many draws, against enumeration; and how a token is drawn.

All draws have fixed seeds: a test either passes or fails. For other seeds each chi-squared test would fail one time in 1000.
"""

import itertools
from collections import Counter
from math import comb, cos, log, pi

import pytest
import torch

from diffulm import randomness
from diffulm.samplers import _draw
from diffulm.samplers._commit import entropy_bound, factor, threshold
from diffulm.samplers._draw import best_two, draw, inverse_cdf, nucleus
from diffulm.samplers._state import smallest
from fake_denoisers import CASES, Table, chi_squared, limit, run

# --- the laws of many draws ---


def test_one_at_a_time_in_random_order_has_exactly_the_any_order_law():
    table, rows = Table(), 12_000
    laws = [table.order_law(order) for order in itertools.permutations(range(3))]
    any_order = {outcome: sum(law[outcome] for law in laws) / 6 for outcome in laws[0]}
    for sampler, steps in [("random", 3), ("first_hitting", 1)]:  # which does not read `steps`
        out, forwards = table.draw(sampler, rows, steps=steps)
        assert (forwards == 3).all()
        statistic, freedom = chi_squared(out, any_order)
        assert statistic < limit(freedom)
        # The test can tell laws apart: one order alone, or all at once, is far off (its statistic grows with the rows).
        assert chi_squared(out, laws[0])[0] > 5 * limit(freedom)
    at_once, forwards = table.draw("random", rows, steps=1)
    assert (forwards == 1).all()
    statistic, freedom = chi_squared(at_once, any_order)
    assert statistic > 5 * limit(freedom)
    assert chi_squared(at_once, table.independent())[0] < limit(freedom)


def test_one_at_a_time_from_left_to_right_is_the_chain_rule():
    table = Table()
    out, forwards = table.draw("left_to_right", 8_000, steps=3)
    assert (forwards == 3).all()
    statistic, freedom = chi_squared(out, table.order_law((0, 1, 2)))
    assert statistic < limit(freedom)
    assert chi_squared(out, table.order_law((2, 1, 0)))[0] > 5 * limit(freedom)


def test_confidence_with_all_at_once_draws_from_the_marginals():
    table = Table()
    out, _ = table.draw("confidence", 8_000, steps=1, seed=3)
    statistic, freedom = chi_squared(out, table.independent())
    assert statistic < limit(freedom)


RULES = {
    "linear": {"steps": 2},
    "cosine": {"steps": 2, "schedule": "cosine"},
    "threshold": {"threshold": 0.55},
    "entropy_bound": {"entropy_bound": 0.4},
    "factor": {"factor": 1.6},
    "remask": {"steps": 5, "remask": 0.3},
}


class Reference:
    """The same in plain Python, for a table: the law of the text by enumeration of whatever can happen."""

    def __init__(self, table, sampler, commit):
        self.table, self.sampler, self.rule, self.commit = table, sampler, RULES[commit], commit

    def law(self):
        law = Counter()
        pending = Counter({((3, 3, 3), 0): 1.0})
        while pending:
            (canvas, step), p = pending.popitem()
            if 3 not in canvas:
                law[canvas] += p
                continue
            for state, share in self.steps_from(canvas, step):
                pending[state] += p * share
        return dict(law)

    def steps_from(self, canvas, step):
        masked = [i for i in range(3) if canvas[i] == 3]
        conditional = {i: self.table.conditional(canvas, i) for i in masked}
        for hidden, chance in self.hidings(canvas, step):
            count = max(len(masked) - self.stay(step), 0) + len(hidden)
            if self.commit == "remask" and count == 0:
                yield (canvas, step + 1), chance
                continue
            for tokens in itertools.product(range(3), repeat=len(masked)):
                drawn = dict(zip(masked, tokens, strict=True))
                p = chance
                for i in masked:
                    p *= conditional[i][drawn[i]]
                orders = list(self.orders(conditional, drawn))
                for order in orders:
                    length = self.adaptive(order, conditional, drawn) if "steps" not in self.rule else max(count, 1)
                    new = [drawn[i] if i in order[:length] else canvas[i] for i in range(3)]
                    yield (tuple(3 if i in hidden else new[i] for i in range(3)), step + 1), p / len(orders)

    def stay(self, step):
        if "steps" not in self.rule:
            return 0
        steps = self.rule["steps"]
        if self.commit == "cosine":
            return int(3 * cos(pi / 2 * (step + 1) / steps) + 1e-9)
        return int(3 * (steps - 1 - step) / steps + 1e-9)

    def hidings(self, canvas, step):
        if self.commit != "remask":
            return [((), 1.0)]
        revealed = [i for i in range(3) if canvas[i] != 3]
        most, rate, found = min(self.stay(step), 3 - len(revealed)), self.rule["remask"], Counter()
        for size in range(len(revealed) + 1):
            for chosen in itertools.combinations(revealed, size):
                p = rate**size * (1 - rate) ** (len(revealed) - size)
                for kept in itertools.combinations(chosen, min(size, most)):
                    found[kept] += p / comb(size, min(size, most))
        return list(found.items())

    def orders(self, conditional, drawn):
        masked = list(drawn)
        if self.sampler in ("random", "first_hitting"):
            return itertools.permutations(masked)
        keys = {
            "left_to_right": lambda i: i,
            "confidence": lambda i: -conditional[i][drawn[i]],
            "margin": lambda i: sorted(conditional[i])[-2] - sorted(conditional[i])[-1],
            "entropy": lambda i: entropy_of(conditional[i]),
        }
        return [tuple(sorted(masked, key=keys[self.sampler]))]

    def adaptive(self, order, conditional, drawn):
        sure = [conditional[i][drawn[i]] for i in order]
        torn = [entropy_of(conditional[i]) for i in order]
        lengths = range(1, len(order) + 1)
        if self.commit == "threshold":
            fitting = [n for n in lengths if min(sure[:n]) >= self.rule["threshold"]]
        elif self.commit == "factor":
            fitting = [n for n in lengths if (n + 1) * (1 - min(sure[:n])) < self.rule["factor"]]
        else:
            fitting = [n for n in lengths if sum(torn[:n]) - max(torn[:n]) <= self.rule["entropy_bound"]]
        return max(fitting, default=1)


def entropy_of(p):
    return -sum(each * log(each) for each in p)


LAWFUL = [case for case in CASES if not case[0].startswith("published") and case[0] != "first_hitting"]


@pytest.mark.parametrize(("sampler", "commit"), LAWFUL)
def test_every_order_with_every_rule_has_the_enumerated_law(sampler, commit):
    table = Table()
    law = Reference(table, sampler, commit).law()
    assert abs(sum(law.values()) - 1) < 1e-12  # float64 sums of some thousand terms
    out, forwards = table.draw(sampler, 4_000, seed=1, **RULES[commit])
    statistic, freedom = chi_squared(out, law)
    assert statistic < limit(freedom)
    if commit in ("threshold", "entropy_bound", "factor"):
        assert len(forwards.unique()) > 1, "the rule bites, and not always"


def test_the_reference_tells_samplers_and_rules_apart():
    """Else the test above could not see one in another's place. (Under one rule alone two orders may agree.)"""
    table = Table()
    laws = {case: Reference(table, *case).law() for case in LAWFUL}
    for part in (0, 1):
        for pair in itertools.combinations(sorted({case[part] for case in LAWFUL}), 2):
            cases = [[case for case in LAWFUL if case[part] == one] for one in pair]
            distances = [
                4_000 * sum((laws[a][o] - laws[b][o]) ** 2 / laws[a][o] for o in laws[a])
                for a, b in zip(*cases, strict=True)
            ]
            assert max(distances) > 10 * limit(26), pair


# --- commit rules on their own ---


def test_threshold_takes_the_longest_beginning():
    confidence = torch.tensor([[0.9, 0.8, 0.95, 0.3], [0.9, 0.9, 0.9, 0.9], [0.1, 0.9, 0.9, 0.9]])
    assert threshold(confidence, 0.8).sum(1).tolist() == [3, 4, 0]
    assert threshold(confidence, 0.81).sum(1).tolist() == [1, 4, 0]  # a later sure one does not help


def test_entropy_bound_spares_the_largest():
    entropy = torch.tensor([[0.1, 0.2, 0.4, 3.0], [3.0, 0.1, 0.2, 0.4], [0.5, 0.5, 0.5, 0.5]])
    # sums without the largest: 0, 0.1, 0.3, 0.7; 0, 0.1, 0.3, 0.7; 0, 0.5, 1, 1.5
    for bound, lengths in [(0.0, [1, 1, 1]), (0.35, [3, 3, 1]), (0.75, [4, 4, 2]), (1.2, [4, 4, 3])]:
        assert entropy_bound(entropy, bound).sum(1).tolist() == lengths


def test_factor_asks_more_of_a_longer_beginning():
    confidence = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    # (n + 1)(1 - c_n): 0.2, 0.6, 1.2, 2.0
    for f, length in [(0.1, 0), (0.3, 1), (0.7, 2), (1.3, 3), (2.1, 4)]:
        assert factor(confidence, f).sum(1).tolist() == [length]
    # c_n is the lowest among the n: out of order, 0.95 behind 0.5 does not make up for it
    assert factor(torch.tensor([[0.5, 0.95]]), 1.2).sum(1).tolist() == [1]


def test_a_rule_that_nothing_fits_commits_one():
    ids, fixed = torch.zeros(1, 6, dtype=torch.int64), torch.zeros(1, 6, dtype=torch.bool)
    for rule in ({"threshold": 1.0}, {"entropy_bound": 0.0}, {"factor": 1e-9}):
        for sampler in ("confidence", "left_to_right"):
            assert run(sampler, ids, fixed, **rule)[1].tolist() == [6]


# --- drawing ---


def naive_filters(logits, temperature, top_p, top_k, min_p):
    """(v,) probabilities by the definition, with full sorts: each filter on what the one before has left."""
    p = (logits.double() / temperature).softmax(-1)
    if top_k is not None:
        p[p < p.sort(descending=True).values[min(top_k, len(p)) - 1]] = 0
    p /= p.sum()
    sorted_p, order = p.sort(descending=True)
    p[order[sorted_p.cumsum(0) - sorted_p > top_p]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


FILTERS = [
    (1.0, 1.0, None, 0.0),
    (0.5, 1.0, None, 0.0),
    (2.0, 0.7, None, 0.0),
    (1.0, 0.85, None, 0.0),
    (1.0, 0.3, None, 0.0),
    (1.0, 1.0, 3, 0.0),
    (0.7, 0.75, 3, 0.0),
    (1.0, 1.0, None, 0.3),
    (2.0, 0.95, 4, 0.35),
    (1.0, 1.0, 1, 0.0),
    (1.0, 1.0, 100, 1.0),
]


@pytest.mark.parametrize(("temperature", "top_p", "top_k", "min_p"), FILTERS)
def test_temperature_and_filters_have_their_law(temperature, top_p, top_k, min_p):
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -torch.inf])
    n = 20_000
    uniforms = randomness.uniform(11, torch.arange(n))
    p = naive_filters(logits, temperature, top_p, top_k, min_p)
    drawn = draw(logits.expand(n, -1), uniforms, temperature, top_p, top_k, min_p, also=("filtered",))
    seen = torch.bincount(drawn.tokens, minlength=6).double()
    assert seen[p == 0].sum() == 0
    possible = p > 0
    statistic = ((seen - n * p)[possible] ** 2 / (n * p)[possible]).sum()
    assert statistic < limit(int(possible.sum()) - 1) if possible.sum() > 1 else statistic == 0
    # 1e-5: float32 logarithms of numbers near 1
    assert (drawn.filtered.double().exp() - p[drawn.tokens]).abs().max() < 1e-5
    assert (drawn.log_probability.double() - logits.double().log_softmax(-1)[drawn.tokens]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("top_p", "top_k", "min_p"), [(0.9, None, 0.0), (0.5, None, 0.0), (0.8, 400, 0.0), (1.0, None, 0.2), (0.6, 40, 0.3)]
)
def test_filters_of_a_flat_distribution(top_p, top_k, min_p):
    """A thousand tokens of about equal weight, most of them within: many attempts, and the law is still right."""
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    p = naive_filters(logits, 1.0, top_p, top_k, min_p)
    n = 20_000
    uniforms = randomness.uniform(13, torch.arange(n))
    seen = torch.bincount(
        draw(logits.expand(n, -1), uniforms, 1.0, top_p, top_k, min_p).tokens, minlength=1000
    ).double()
    assert seen[p == 0].sum() == 0
    # Tokens in 20 groups, by weight within the filters, so that a wrong edge would show too.
    groups = p.sort(descending=True).indices[: int((p > 0).sum())].chunk(20)
    statistic = sum(float((seen[group].sum() - n * p[group].sum()) ** 2 / (n * p[group].sum())) for group in groups)
    assert statistic < limit(len(groups) - 1)


@pytest.mark.parametrize("also", [(), ("entropy",), ("margin",), ("entropy", "margin", "filtered")])
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_what_is_measured(also, temperature):
    """Entropy, margin and log-probability, of the logits as they are, forbidden ids apart; nothing else is computed."""
    logits = 30 + 4 * torch.randn(70, 700, generator=torch.Generator().manual_seed(5))
    logits[:, 600:] = -torch.inf
    before, banned = logits.clone(), torch.tensor([3, 17])
    drawn = draw(logits, randomness.uniform(1, torch.arange(70)), temperature, 0.8, forbidden=banned, also=also)
    assert torch.equal(logits, before)
    logits[:, banned] = -torch.inf
    log_p = logits.double().log_softmax(-1)
    top = log_p.exp().topk(2).values
    expected = {
        "log_probability": log_p.gather(1, drawn.tokens[:, None])[:, 0],
        "entropy": torch.distributions.Categorical(logits=logits.double()).entropy(),
        "margin": top[:, 0] - top[:, 1],
    }
    for name, values in expected.items():
        if name == "log_probability" or name in also:
            # 2e-5: float32 sums of 600 numbers, and logarithms of some nats
            assert (getattr(drawn, name) - values).abs().max() < 2e-5
        else:
            assert getattr(drawn, name).isnan().all()


def test_chunks_and_company_change_nothing(monkeypatch):
    logits = 3 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(6))
    uniforms = randomness.uniform(2, torch.arange(50))
    options = {"temperature": 0.8, "top_p": 0.7, "also": ("entropy", "margin")}
    whole = draw(logits, uniforms, **options)
    monkeypatch.setitem(_draw._CHUNK, "cpu", 3000)
    chunked = draw(logits, uniforms, **options)
    alone = [draw(logits[i : i + 1], uniforms[i : i + 1], **options) for i in range(50)]
    for name in ("tokens", "log_probability", "entropy", "margin"):
        assert torch.equal(getattr(whole, name), getattr(chunked, name))
        assert torch.equal(getattr(whole, name), torch.cat([getattr(one, name) for one in alone]))
    assert draw(logits[:0], uniforms[:0], **options).tokens.shape == (0,)


def test_lower_precision_is_read_as_it_is():
    logits = 3 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(6))
    uniforms = randomness.uniform(2, torch.arange(50))
    for dtype in (torch.bfloat16, torch.float64):
        low = logits.to(dtype)
        ours, exact = draw(low, uniforms, 1.0, 0.9), draw(low.float(), uniforms, 1.0, 0.9)
        assert torch.equal(ours.tokens, exact.tokens)
    assert draw(low, uniforms, 0.0).log_probability.dtype == torch.float64


def test_of_equal_ones_the_first():
    logits = torch.zeros(3, 600)
    logits[0, [5, 300]] = logits[1, [280, 281, 599]] = 1.0
    assert draw(logits, torch.zeros(3), 0.0).tokens.tolist() == [5, 280, 0]
    greedy, best, second = best_two(torch.nn.functional.pad(logits, (0, 168), value=-torch.inf))
    assert (greedy.tolist(), best.tolist(), second.tolist()) == ([5, 280, 0], [1, 1, 0], [1, 1, 0])
    assert draw(torch.zeros(1, 1), torch.zeros(1), 0.0, also=("margin",)).margin.tolist() == [1.0]


def naive_nucleus(logits, top_p):
    """The published filter: a full sort; kept while the tokens before have a cumulative probability <= top_p."""
    values, order = logits.softmax(-1).sort(-1, descending=True)
    kept = values.cumsum(-1) - values <= top_p
    return torch.zeros_like(kept).scatter(-1, order, kept)


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])  # nuclei of nearly everything, of some, of few tokens
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.99])
def test_top_p_sets_without_a_sort_are_those_of_the_full_sort(scale, top_p):
    # In float64: there rounding moves the cut by 1e-16 of the mass, and no token ends that near to it.
    logits = scale * torch.randn(24, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    for size in (1, 7, 64, 5000):
        ids, kept = nucleus(weights, top_p, size)
        found = torch.zeros_like(weights).scatter_add(-1, ids, kept)
        assert torch.equal(found > 0, naive_nucleus(logits, top_p))
        assert torch.equal(found[found > 0], weights[found > 0])


def test_a_narrow_nucleus_looks_at_few_tokens():
    weights = torch.zeros(3, 50_000)
    weights[:, 7] = 1.0
    assert nucleus(weights, 0.9)[0].shape == (3, 64)


@pytest.mark.parametrize("width", [1, 3, 255, 256, 257, 1000])
def test_inverse_cdf_is_that_of_a_plain_cumulative_sum(width):
    generator = torch.Generator().manual_seed(width)
    weights = torch.rand(200, width, generator=generator) * (torch.rand(200, width, generator=generator) < 0.3)
    weights[:, 0] += 0.01
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    cdf = weights.double().cumsum(-1)
    naive = (cdf <= uniforms[:, None] * cdf[:, -1:]).sum(-1)
    found = inverse_cdf(weights, uniforms)
    # Sums of blocks are float32: 1e-5 of the mass may decide between neighbours, in few of the rows.
    assert (found != naive).sum() <= 2
    assert (weights.gather(1, found[:, None]) > 0).all()


def test_inverse_cdf_never_lands_on_weight_zero():
    weights = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(3, -1)
    assert inverse_cdf(weights, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3, 3]
    wide = torch.zeros(2, 1000)
    wide[:, 300] = wide[:, 700] = 1e-30
    assert inverse_cdf(wide, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [300, 700]


def test_rounding_of_the_logits_does_not_swap_tokens():
    """Two tokens of nearly equal weight keep their places in the CDF whichever is larger."""
    logits = torch.full((1, 300), -5.0)
    logits[0, 10] = logits[0, 200] = 3.0
    other = logits.clone()
    logits[0, 10] += 1e-6
    other[0, 200] += 1e-6
    for u in (0.2, 0.8):
        uniform = torch.tensor([u], dtype=torch.float64)
        assert draw(logits, uniform, 1.0, 0.9).tokens.tolist() == draw(other, uniform, 1.0, 0.9).tokens.tolist()


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-4])
def test_a_tiny_temperature_is_arg_max(temperature):
    logits = 5 * torch.randn(50, 40, generator=torch.Generator().manual_seed(2))
    uniforms = randomness.uniform(1, torch.arange(50))
    for top_p in (1.0, 0.9):
        assert torch.equal(draw(logits, uniforms, temperature, top_p).tokens, logits.argmax(-1))


def test_logits_that_are_no_numbers_are_not_drawn_from():
    uniforms = torch.zeros(2, dtype=torch.float64)
    for broken in (torch.nan, -torch.inf):
        logits = torch.zeros(2, 5)
        logits[1] = broken
        for temperature in (0.0, 1.0):
            with pytest.raises(FloatingPointError):
                draw(logits, uniforms, temperature, 1.0)


def test_smallest_takes_equal_ones_from_the_left():
    values = torch.tensor([[3.0, 1, 1, 1, 0], [0, 0, 0, 0, 0]])
    among = torch.tensor([[True, True, True, True, False], [True] * 5])
    chosen = smallest(values, among, torch.tensor([2, 0]))
    assert chosen.tolist() == [[False, True, True, False, False], [False] * 5]
