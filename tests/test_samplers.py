"""Samplers on fake denoisers whose distributions are known: laws, budgets, independence of rows."""

import itertools
from importlib import import_module

import pytest
import torch

from diffulm import randomness
from diffulm.errors import BadInput
from diffulm.samplers import Frame, Reveal, State, by_name, names, sample
from diffulm.samplers._draw import draw, inverse_cdf, nucleus
from diffulm.samplers._loop import smallest

OURS = ["confidence", "random"]
PUBLISHED = ["published_confidence", "published_random"]
ALL = OURS + PUBLISHED
MASK = 9
VOCABULARY = 10


class Hashed:
    """A denoiser whose logits are a pseudo-random function of the row's visible tokens and the position.

    Every call is recorded: `rows` the rows it ran, `asked` the positions.
    """

    def __init__(self, scale: float = 3.0) -> None:
        self.scale = scale
        self.rows = self.asked = 0

    def __call__(self, ids, where, present=None):
        self.rows += len(ids)
        self.asked += int(where.sum())
        assert bool(where.any(1).all()), "a row was run of which nothing was asked"
        seen = ids if present is None else torch.where(present, ids, 0)
        position = torch.arange(ids.shape[1])
        # What is not present adds 0: padding cannot change the state of a row.
        state = ((seen + 1) * (position * position + 7) * (1 if present is None else present)).sum(1)
        row, column = where.nonzero(as_tuple=True)
        uniform = randomness.uniform(state[row][:, None], column[:, None], torch.arange(VOCABULARY))
        return self.scale * uniform.float()


class Table:
    """Conditionals p(x_i | the revealed tokens) out of a table: three tokens, three symbols, mask 3; no joint fits."""

    def __init__(self, peaked: float = 1.5) -> None:
        # (canvas state, position, symbol); a state is the canvas read as a number in base 4
        self.logits = peaked * torch.randn(64, 3, 4, generator=torch.Generator().manual_seed(0))

    def __call__(self, ids, where, present=None):
        row, column = where.nonzero(as_tuple=True)
        state = (ids * torch.tensor([16, 4, 1])).sum(1)
        return self.logits[state[row], column]

    def conditional(self, canvas, position):
        """p(symbol) in float64, the mask left out."""
        state = sum(symbol * base for symbol, base in zip(canvas, (16, 4, 1), strict=True))
        return self.logits[state, position, :3].double().softmax(-1)

    def order_law(self, order):
        """{outcome: probability} of filling one token at a time in this order."""
        law = {}
        for outcome in itertools.product(range(3), repeat=3):
            canvas, p = [3, 3, 3], 1.0
            for position in order:
                p *= float(self.conditional(canvas, position)[outcome[position]])
                canvas[position] = outcome[position]
            law[outcome] = p
        return law


def start(rows: int, length: int, prompt: int = 1):
    """Canvases of `length` with the first `prompt` positions and the last fixed, contents different in every row."""
    ids = torch.arange(rows * length).view(rows, length) % (VOCABULARY - 2)
    fixed = torch.zeros(rows, length, dtype=torch.bool)
    fixed[:, :prompt] = fixed[:, -1] = True
    return ids, fixed


def run(sampler, ids, fixed, present=None, steps=4, seeds=None, denoise=None, **options):
    seeds = [(5, row) for row in range(len(ids))] if seeds is None else seeds
    return sample(
        denoise or Hashed(),
        ids,
        fixed,
        present,
        mask_token_id=MASK,
        sampler=sampler,
        steps=steps,
        seeds=seeds,
        **{"temperature": 1.0, "top_p": 0.9, **options},
    )


def chi_squared(outcomes: torch.Tensor, law: dict) -> tuple[float, int]:
    """Pearson's statistic of rows of outcomes against {outcome: probability}, cells expecting < 5 put together."""
    counts = dict.fromkeys(law, 0)
    for outcome in map(tuple, outcomes.tolist()):
        counts[outcome] += 1
    cells, rest = [], [0.0, 0.0]
    for outcome, p in law.items():
        seen, expected = counts[outcome], p * len(outcomes)
        if expected < 5:
            rest = [rest[0] + seen, rest[1] + expected]
        else:
            cells.append((seen, expected))
    if rest[1] > 0:
        cells.append(tuple(rest))
    return sum((seen - expected) ** 2 / expected for seen, expected in cells), len(cells) - 1


def limit(freedom: int) -> float:
    """The 99.9% quantile of chi-squared (Wilson and Hilferty, within 1%). Seeds are fixed: no failing by chance."""
    a = 2 / (9 * freedom)
    return freedom * (1 - a + 3.09 * a**0.5) ** 3


# --- every sampler ---


def test_names_are_the_public_modules_and_each_holds_a_rule_of_its_name():
    assert names() == sorted(ALL)
    assert [by_name(name).__name__ for name in names()] == names()
    with pytest.raises(BadInput, match="confidence"):
        by_name("confidense")
    with pytest.raises(BadInput):
        by_name("_loop")


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 8, 40])
def test_fixed_stays_and_no_mask_survives_and_forwards_is_what_was_run(sampler, temperature, steps):
    ids, fixed = start(5, 12)
    fixed[3, 2:] = True  # one free position
    fixed[4] = True  # none
    denoise = Hashed()
    frames = []
    out, forwards = run(
        sampler, ids, fixed, steps=steps, temperature=temperature, denoise=denoise, callback=frames.append
    )
    assert torch.equal(out[fixed], ids[fixed])
    assert not (out == MASK).any()
    assert forwards.sum() == denoise.rows
    assert forwards[4] == 0
    assert forwards[3] == 1
    free = (~fixed).sum(1)
    assert (forwards <= free.clamp(max=steps)).all()
    # Every forward of a row revealed something in it, and what was revealed stayed.
    assert len(frames) == forwards.max() + 1
    revealed = torch.zeros_like(forwards)
    for before, after in itertools.pairwise(frames):
        changed = (before.masked & ~after.masked).any(1)
        revealed += changed
        assert not (after.masked & ~before.masked).any()
        assert torch.equal(after.ids[~before.masked], before.ids[~before.masked])
        assert (after.ids[after.masked] == MASK).all()
    assert torch.equal(revealed, forwards)
    assert torch.equal(frames[-1].ids, out)


@pytest.mark.parametrize("sampler", ALL)
def test_a_row_depends_on_its_seed_and_content_alone(sampler):
    ids, fixed = start(6, 12)
    fixed[1, 4:8] = fixed[2, 3:] = True
    together, forwards = run(sampler, ids, fixed)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled, _ = run(sampler, ids[order], fixed[order], seeds=[(5, int(row)) for row in order])
    assert torch.equal(shuffled, together[order])
    for row in range(6):
        alone, count = run(sampler, ids[row : row + 1], fixed[row : row + 1], seeds=[(5, row)])
        assert torch.equal(alone[0], together[row])
        assert count[0] == forwards[row]


@pytest.mark.parametrize("sampler", ALL)
def test_padding_changes_nothing(sampler):
    ids, fixed = start(4, 12)
    alone, forwards = run(sampler, ids, fixed)
    padded = torch.nn.functional.pad(ids, (0, 5), value=3)
    present = torch.ones(4, 17, dtype=torch.bool)
    present[:, 12:] = False
    not_fixed = torch.nn.functional.pad(fixed, (0, 5))  # padding is never free, whatever `fixed` says
    out, count = run(sampler, padded, not_fixed, present)
    assert torch.equal(out[:, :12], alone)
    assert (out[:, 12:] == 3).all()
    assert torch.equal(count, forwards)


@pytest.mark.parametrize("sampler", ALL)
def test_seeds(sampler):
    ids, fixed = start(1, 30)
    ids, fixed = ids.expand(4, -1), fixed.expand(4, -1)
    out, _ = run(sampler, ids, fixed, seeds=[7, (7, 0), (7, 1), 8])
    assert torch.equal(out[0], out[1])  # an int is the stream (seed, 0)
    assert len({tuple(row) for row in out.tolist()}) == 3
    again, _ = run(sampler, ids, fixed, seeds=[7, (7, 0), (7, 1), 8])
    assert torch.equal(out, again)
    with pytest.raises(ValueError, match="seeds"):
        run(sampler, ids, fixed, seeds=[7])


@pytest.mark.parametrize("sampler", ALL)
def test_forbidden_ids_and_the_mask_are_never_drawn(sampler):
    class Wants:
        def __call__(self, ids, where, present=None):
            return torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 8, 9, 10]).expand(int(where.sum()), -1)

    for temperature in (0.0, 1.0):
        ids, fixed = start(20, 12)
        out, _ = run(sampler, ids, fixed, denoise=Wants(), temperature=temperature, forbidden=[7, 8], top_p=1.0)
        assert set(out[~fixed].tolist()) <= set(range(7))


@pytest.mark.parametrize("sampler", ALL)
def test_content_of_free_positions_does_not_matter(sampler):
    ids, fixed = start(3, 12)
    out, _ = run(sampler, ids, fixed)
    assert torch.equal(run(sampler, ids.masked_fill(~fixed, 5), fixed)[0], out)


@pytest.mark.parametrize("sampler", ALL)
def test_the_input_is_left_alone_and_callbacks_get_copies(sampler):
    ids, fixed = start(3, 12)
    before = ids.clone(), fixed.clone()
    out, _ = run(sampler, ids, fixed)
    vandal = run(sampler, ids, fixed, callback=lambda frame: (frame.ids.fill_(1), frame.masked.fill_(False)))
    assert torch.equal(vandal[0], out)
    assert torch.equal(ids, before[0])
    assert torch.equal(fixed, before[1])


def test_frames_say_which_rows_and_begin_all_masked():
    frames: list[Frame] = []
    ids, fixed = start(2, 12)
    run("random", ids, fixed, callback=frames.append)
    assert torch.equal(frames[0].masked, ~fixed)
    assert (frames[0].ids[~fixed] == MASK).all()
    assert frames[0].rows == (0, 1)
    assert [frame.step.tolist() for frame in frames] == [[step, step] for step in range(5)]


@pytest.mark.parametrize(
    "reveals",
    [lambda state: state.masked & False, lambda state: state.free, lambda state: ~state.free],
    ids=["nothing", "again", "fixed"],
)
def test_a_rule_that_breaks_its_word_is_stopped(reveals):
    def rule(state: State) -> Reveal:
        where = (
            reveals(state)
            if int(state.step.max())
            else smallest(state.step[:, None] * 1.0 + torch.zeros(1, 12), state.masked, state.quota)
        )
        return Reveal(where, torch.zeros_like(where, dtype=torch.int64))

    with pytest.raises(RuntimeError, match="at least one"):
        run(rule, *start(2, 12))


# --- budgets ---


@pytest.mark.parametrize("sampler", OURS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 23])
def test_exactly_the_budget_stays_masked(sampler, steps):
    ids, fixed = start(3, 12)
    fixed[1, 4:] = True
    frames = []
    _, forwards = run(sampler, ids, fixed, steps=steps, callback=frames.append)
    for row in range(3):
        count = int((~fixed[row]).sum())
        most = min(steps, count)
        expected = [count * t // most for t in range(most, -1, -1)]
        left = [int(frame.masked[row].sum()) for frame in frames]
        assert left == expected + [0] * (len(left) - len(expected))
        assert forwards[row] == most


def test_random_order_asks_only_for_what_it_reveals_and_confidence_for_what_is_masked():
    ids, fixed = start(2, 12)
    free = int((~fixed[0]).sum())
    for sampler, asked in [("random", free), ("confidence", sum(free * t // 5 for t in range(1, 6)))]:
        denoise = Hashed()
        run(sampler, ids, fixed, steps=5, denoise=denoise)
        assert denoise.asked == 2 * asked


def test_confidence_reveals_what_it_is_surest_of_before_temperature_and_top_p():
    # Position i has its best token i at 0 and another at -4 - i: the last is the surest.
    logits = torch.full((6, VOCABULARY), -20.0)
    logits[torch.arange(6), torch.arange(6)] = 0.0
    logits[:, 8] = torch.tensor([-9.0, 0, 1, 2, 3, 4])  # forbidden: it must not count
    logits[:, 7] = torch.tensor([-4.0, -5, -6, -7, -8, -9])

    class Sure:
        def __call__(self, ids, where, present=None):
            return logits[where.nonzero()[:, 1]]

    for temperature, top_p in [(0.0, 1.0), (0.2, 0.9)]:
        frames = []
        run(
            "confidence",
            torch.zeros(1, 6, dtype=torch.int64),
            torch.zeros(1, 6, dtype=torch.bool),
            steps=6,
            denoise=Sure(),
            temperature=temperature,
            top_p=top_p,
            forbidden=[8],
            callback=frames.append,
        )
        assert [frame.masked[0].tolist() for frame in frames] == [
            [True] * n + [False] * (6 - n) for n in range(6, -1, -1)
        ]


def test_confidence_is_that_of_the_drawn_token():
    """A flat position whose draw is unlikely waits, though its best token would be likelier than the other's."""
    logits = torch.full((2, VOCABULARY), -30.0)
    logits[0, :2] = torch.tensor([0.9, 0.1]).log()  # drawn: 1, at 0.1
    logits[1, :2] = torch.tensor([0.4, 0.6]).log()  # drawn: 1, at 0.6

    class Two:
        def __call__(self, ids, where, present=None):
            return logits[where.nonzero()[:, 1]]

    frames = []
    ids, fixed = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.bool)
    high = torch.full((1, 2), 0.95, dtype=torch.float64)
    run("confidence", ids, fixed, steps=2, denoise=Two(), top_p=1.0, callback=frames.append, uniform=lambda *_: high)
    assert frames[1].masked.tolist() == [[True, False]]
    assert frames[2].ids.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("rescored", "left"),
    [
        # t = 2: rank 2 of (0.2, 0.7, 0.8, 0.9) is 0.8, so one is revealed; among the masked ones it would be two.
        (0.9, [4, 3, 2, 1, 0]),
        # t = 2: rank 2 of (0.1, 0.2, 0.7, 0.8) is 0.7: two at once. t = 1: rank 1 is 0.2: the last.
        (0.1, [4, 3, 1, 0]),
    ],
)
def test_the_published_rule_ranks_revealed_positions_too(rescored, left):
    """Four positions, T = 4, scores 0.9, 0.8, 0.7, 0.2: forward 0 reveals the first, which then scores `rescored`."""
    scores = torch.tensor([0.9, 0.8, 0.7, 0.2])

    class Rescoring:
        def __call__(self, ids, where, present=None):
            row, column = where.nonzero(as_tuple=True)
            p = torch.where((column == 0) & (ids[row, 0] != MASK), rescored, scores[column])
            # The rest is spread over many tokens, so that even 0.1 is the best.
            logits = ((1 - p) / 30)[:, None].repeat(1, 31).log()
            logits[:, 1], logits[:, MASK] = p.log(), -torch.inf
            return logits

    def masked_left(sampler):
        frames = []
        ids, fixed = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.bool)
        run(sampler, ids, fixed, steps=4, denoise=Rescoring(), temperature=0.0, callback=frames.append)
        return [int(frame.masked.sum()) for frame in frames]

    assert masked_left("published_confidence") == left
    assert masked_left("confidence") == [4, 3, 2, 1, 0]


def test_the_published_random_order_reveals_with_probability_one_over_what_is_left():
    ids = torch.zeros(4000, 3, dtype=torch.int64)
    fixed = torch.zeros(4000, 3, dtype=torch.bool)
    frames = []
    _, forwards = run(
        "published_random", ids, fixed, steps=3, seeds=range(4000), denoise=Hashed(), callback=frames.append
    )
    # The step of a position is uniform on 0, 1, 2; a row runs as often as its three positions have different steps.
    seen = torch.bincount(forwards - 1, minlength=3).double()
    expected = torch.tensor([3, 18, 6]) / 27 * 4000
    assert ((seen - expected) ** 2 / expected).sum() < limit(2)
    assert all((frame.step <= 3).all() for frame in frames)


# --- the laws of many draws ---


def test_one_at_a_time_in_random_order_has_exactly_the_any_order_law():
    table, rows = Table(), 12_000
    ids, fixed = torch.zeros(rows, 3, dtype=torch.int64), torch.zeros(rows, 3, dtype=torch.bool)
    out, forwards = sample(
        table,
        ids,
        fixed,
        mask_token_id=3,
        sampler="random",
        steps=3,
        temperature=1.0,
        seeds=[(0, i) for i in range(rows)],
    )
    assert (forwards == 3).all()
    laws = [table.order_law(order) for order in itertools.permutations(range(3))]
    any_order = {outcome: sum(law[outcome] for law in laws) / 6 for outcome in laws[0]}
    statistic, freedom = chi_squared(out, any_order)
    assert statistic < limit(freedom)
    # The test can tell laws apart: one order alone, or all at once, is far off (its statistic grows with the rows).
    assert chi_squared(out, laws[0])[0] > 5 * limit(freedom)
    at_once, forwards = sample(
        table,
        ids,
        fixed,
        mask_token_id=3,
        sampler="random",
        steps=1,
        temperature=1.0,
        seeds=[(0, i) for i in range(rows)],
    )
    assert (forwards == 1).all()
    assert chi_squared(at_once, any_order)[0] > 5 * limit(freedom)
    blank = [table.conditional([3, 3, 3], position) for position in range(3)]
    independent = {o: float(blank[0][o[0]] * blank[1][o[1]] * blank[2][o[2]]) for o in laws[0]}
    assert chi_squared(at_once, independent)[0] < limit(freedom)


def test_confidence_with_all_at_once_draws_from_the_marginals():
    table, rows = Table(), 8_000
    ids, fixed = torch.zeros(rows, 3, dtype=torch.int64), torch.zeros(rows, 3, dtype=torch.bool)
    out, _ = sample(
        table,
        ids,
        fixed,
        mask_token_id=3,
        sampler="confidence",
        steps=1,
        temperature=1.0,
        seeds=[(3, i) for i in range(rows)],
    )
    blank = [table.conditional([3, 3, 3], position) for position in range(3)]
    law = {o: float(blank[0][o[0]] * blank[1][o[1]] * blank[2][o[2]]) for o in itertools.product(range(3), repeat=3)}
    statistic, freedom = chi_squared(out, law)
    assert statistic < limit(freedom)


def test_temperature_and_top_p_have_their_law():
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -torch.inf])
    n = 20_000
    uniforms = randomness.uniform(11, torch.arange(n))
    for temperature, top_p in [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7), (1.0, 0.85)]:
        p = (logits.double() / temperature).softmax(-1)
        sorted_p, order = p.sort(descending=True)
        p[order[sorted_p.cumsum(0) - sorted_p > top_p]] = 0
        p /= p.sum()
        drawn = draw(logits.expand(n, -1), uniforms, temperature, top_p)
        seen = torch.bincount(drawn.tokens, minlength=6).double()
        assert seen[p == 0].sum() == 0
        possible = p > 0
        assert ((seen - n * p)[possible] ** 2 / (n * p)[possible]).sum() < limit(int(possible.sum()) - 1)
        # 1e-5: float32 logarithms of numbers near 1
        assert (drawn.filtered.double().exp() - p[drawn.tokens]).abs().max() < 1e-5
        assert (drawn.log_probability.double() - logits.double().log_softmax(-1)[drawn.tokens]).abs().max() < 1e-5


# --- drawing ---


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


@pytest.mark.parametrize("sampler", ALL)
def test_rules_are_short(sampler):
    """A sampler is a page: 15 to 35 lines with its documentation."""
    source = import_module(f"diffulm.samplers.{sampler}").__file__
    assert source is not None
    with open(source) as file:
        assert 10 <= len(file.readlines()) <= 40
