"""Every sampler under every commit rule it takes, on fake denoisers: what must hold whatever the model says."""

import itertools
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffulm.errors import BadInput
from diffulm.options import sampler_names
from diffulm.samplers import Frame, Reveal, State, by_name, names
from diffulm.samplers._loop import _blocks
from diffulm.samplers._state import AHEAD, smallest
from fake_denoisers import CASES, COMMITS, MASK, SAMPLERS, VOCABULARY, Hashed, limit, run, start

OURS = ["confidence", "entropy", "left_to_right", "margin", "random"]
ORDER_FIRST = ["first_hitting", "left_to_right", "published_random", "random"]
BY_SCHEDULE = [case for case in CASES if case[0] in OURS and case[1] in ("linear", "cosine")]
every_case = pytest.mark.parametrize(("sampler", "commit"), CASES)


# --- every sampler, every commit rule ---


def test_names_are_the_public_modules_and_each_holds_a_rule_of_its_name():
    assert names() == sampler_names()
    published = ["published_confidence", "published_random"]
    assert {*OURS, *published, "first_hitting"} == set(SAMPLERS)
    assert [by_name(name).__name__ for name in names()] == names()
    with pytest.raises(BadInput, match="confidence"):
        by_name("confidense")
    with pytest.raises(BadInput):
        by_name("_loop")


def followed(sampler, ids, fixed, present=None, eos=None, **options):
    """`run`, with everything checked that can be seen from outside."""
    denoise, frames = Hashed(), []
    out, forwards = run(
        sampler, ids, fixed, present, denoise=denoise, callback=frames.append, eos_token_id=eos, **options
    )
    free = ~fixed if present is None else ~fixed & present
    assert torch.equal(out[~free], ids[~free]), "what is fixed stays"
    assert not (out[free] == MASK).any(), "no mask survives"
    assert forwards.sum() == denoise.rows, "forwards is what was run"
    assert denoise.batches <= {len(ids)}, "the denoiser always gets the whole batch"
    assert len(frames) == forwards.max() + 1
    assert torch.equal(frames[0].masked, free)
    assert torch.equal(frames[-1].ids, out)
    run_in = torch.zeros_like(forwards)
    for before, after in itertools.pairwise(frames):
        shown, hidden = before.masked & ~after.masked, after.masked & ~before.masked
        unfinished = before.masked.any(1)
        # A row is run as long as it has a mask, and every forward of it reveals something; then never again.
        assert torch.equal(shown.any(1), unfinished)
        run_in += unfinished
        assert torch.equal(after.step > before.step, unfinished)
        assert (after.ids[after.masked] == MASK).all()
        kept = ~before.masked & ~hidden
        if eos is None:
            assert torch.equal(after.ids[kept], before.ids[kept]), "what is revealed stays, or is hidden again"
        if "remask" not in options:
            assert not hidden.any()
        assert torch.equal(after.revealed < 0, after.masked | ~free)
    assert torch.equal(run_in, forwards)
    return out, forwards, frames


@every_case
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_run(sampler, commit, temperature):
    ids, fixed = start(5, 12)
    fixed[3, 2:] = True  # one free position
    fixed[4] = True  # none
    _, forwards, _ = followed(sampler, ids, fixed, temperature=temperature, **COMMITS[commit])
    assert forwards.tolist()[3:] == [1, 0]
    most = (~fixed).sum(1)
    if commit == "remask":
        assert (forwards <= COMMITS[commit]["steps"]).all()
    elif sampler == "first_hitting":
        assert torch.equal(forwards, most)
    else:
        assert (forwards <= (most.clamp(max=4) if "steps" in COMMITS[commit] else most)).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_steps_are_an_upper_limit(sampler, steps):
    ids, fixed = start(3, 12)
    _, forwards, _ = followed(sampler, ids, fixed, steps=steps)
    assert (forwards <= (10 if sampler == "first_hitting" else min(10, steps))).all()


@st.composite
def canvases(draw):
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    bits = st.lists(st.booleans(), min_size=rows * length, max_size=rows * length)
    fixed = torch.tensor(draw(bits)).view(rows, length)
    present = (
        torch.arange(length) < torch.tensor(draw(st.lists(st.integers(1, 14), min_size=rows, max_size=rows)))[:, None]
    )
    return torch.arange(rows * length).view(rows, length) % (VOCABULARY - 2), fixed, present


@given(
    canvases(),
    st.sampled_from(CASES),
    st.fixed_dictionaries(
        {},
        optional={
            "block": st.integers(1, 15),
            "eos": st.integers(0, 8),
            "top_k": st.integers(1, 12),
            "min_p": st.floats(0, 1),
            "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        },
    ),
    st.sampled_from([0.05, 0.5, 1.0]),  # how strict an adaptive rule is
    st.integers(1, 30),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_rule_ends(canvas, case, options, limit, steps):
    sampler, commit = case
    rule = dict(COMMITS[commit])
    if "steps" in rule:
        rule["steps"] = steps
    else:
        rule[commit] = limit
    ids, fixed, present = canvas
    out, forwards, _ = followed(sampler, ids, fixed, present, **options, **rule)
    free = (~fixed & present).sum(1)
    if commit == "remask":
        blocks = -(-ids.shape[1] // options.get("block", ids.shape[1]))
        assert (forwards <= max(steps, blocks)).all()
    else:
        assert (forwards <= free).all()
    assert torch.equal(run(sampler, ids, fixed, present, **_renamed(options), **rule)[0], out), "seeds reproduce"


def _renamed(options):
    return {("eos_token_id" if name == "eos" else name): value for name, value in options.items()}


@every_case
def test_a_row_depends_on_its_seed_and_content_alone(sampler, commit):
    """Not on its neighbours, their order or number, nor on padding: with blocks and an end of text, too."""
    ids, fixed = start(4, 12)
    fixed[1, 4:8] = fixed[2, 3:] = True
    options = {**COMMITS[commit], "block": 7, "eos_token_id": 3}
    together, forwards = run(sampler, ids, fixed, **options)
    order = torch.tensor([2, 0, 3, 1])
    shuffled, _ = run(sampler, ids[order], fixed[order], seeds=[(5, int(row)) for row in order], **options)
    assert torch.equal(shuffled, together[order])
    for row in range(2):
        alone, count = run(sampler, ids[row : row + 1], fixed[row : row + 1], seeds=[(5, row)], **options)
        assert torch.equal(alone[0], together[row])
        assert count[0] == forwards[row]
    padded = torch.nn.functional.pad(ids, (0, 5), value=3)
    present = torch.arange(17).expand(4, -1) < 12
    # Padding is never free, whatever `fixed` says.
    out, count = run(sampler, padded, torch.nn.functional.pad(fixed, (0, 5)), present, **options)
    assert torch.equal(out[:, :12], together)
    assert (out[:, 12:] == 3).all()
    assert torch.equal(count, forwards)


@pytest.mark.parametrize("sampler", SAMPLERS)
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


@every_case
def test_forbidden_ids_and_the_mask_are_never_drawn(sampler, commit):
    class Wants:
        def __call__(self, ids, where, present=None):
            return torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 8, 9, 10]).expand(int(where.sum()), -1)

    for temperature in (0.0, 1.0):
        ids, fixed = start(20, 12)
        options = {"temperature": temperature, "top_p": 1.0, **COMMITS[commit]}
        out, _ = run(sampler, ids, fixed, denoise=Wants(), forbidden=[7, 8], **options)
        assert set(out[~fixed].tolist()) <= set(range(7))


@every_case
def test_only_what_is_given_counts_and_nothing_given_is_changed(sampler, commit):
    ids, fixed = start(3, 12)
    before = ids.clone(), fixed.clone()
    out, _ = run(sampler, ids, fixed, **COMMITS[commit])
    assert torch.equal(run(sampler, ids.masked_fill(~fixed, 5), fixed, **COMMITS[commit])[0], out)
    spoil = lambda frame: [part.fill_(1) for part in vars(frame).values() if isinstance(part, torch.Tensor)]  # noqa: E731
    assert torch.equal(run(sampler, ids, fixed, callback=spoil, **COMMITS[commit])[0], out)
    assert torch.equal(ids, before[0])
    assert torch.equal(fixed, before[1])


@pytest.mark.parametrize(("sampler", "commit"), [case for case in CASES if case[0] in ORDER_FIRST])
def test_an_order_known_beforehand_asks_only_for_what_it_may_reveal(sampler, commit):
    ids, fixed = start(2, 30)
    denoise, frames = Hashed(), []
    run(sampler, ids, fixed, denoise=denoise, callback=frames.append, **COMMITS[commit])
    shown = sum(int((a.masked & ~b.masked).sum()) for a, b in itertools.pairwise(frames))
    if commit in ("threshold", "entropy_bound", "factor"):
        assert denoise.most == AHEAD < 28
    else:
        assert denoise.asked == shown


@pytest.mark.parametrize("sampler", [name for name in OURS if name not in ORDER_FIRST])
def test_other_orders_ask_for_what_is_masked(sampler):
    ids, fixed = start(2, 12)
    denoise = Hashed()
    run(sampler, ids, fixed, steps=5, denoise=denoise)
    assert denoise.asked == 2 * sum(10 * t // 5 for t in range(1, 6))


def test_frames():
    frames: list[Frame] = []
    ids, fixed = start(2, 12)
    run("random", ids, fixed, callback=frames.append, temperature=0.7)
    assert torch.equal(frames[0].masked, ~fixed)
    assert (frames[0].ids[~fixed] == MASK).all()
    assert frames[0].rows == (0, 1)
    assert [frame.step.tolist() for frame in frames] == [[step, step] for step in range(5)]
    assert (frames[0].revealed == -1).all() and frames[0].confidence.isnan().all()
    for before, after in itertools.pairwise(frames):
        shown = before.masked & ~after.masked
        assert (after.revealed[shown] == before.step[0]).all()
        logits = Hashed()(before.ids, shown)
        logits[:, MASK] = -torch.inf
        expected = logits.softmax(-1).gather(1, after.ids[shown][:, None])[:, 0]
        # before temperature and top-p; 1e-6: float32 numbers below 1
        assert (after.confidence[shown] - expected).abs().max() < 1e-6
        assert torch.equal(after.confidence.isnan(), after.masked | fixed)
        assert torch.equal(after.revealed[~before.masked], before.revealed[~before.masked])


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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rules_are_short(sampler):
    """A sampler is a page: 10 to 35 lines with its documentation."""
    source = import_module(f"diffulm.samplers.{sampler}").__file__
    assert source is not None
    with open(source) as file:
        assert 10 <= len(file.readlines()) <= 35


# --- what does not go together ---


@pytest.mark.parametrize("sampler", ["first_hitting", "published_confidence", "published_random"])
@pytest.mark.parametrize("commit", [name for name in COMMITS if name != "linear"])
def test_samplers_that_count_for_themselves_take_no_rule(sampler, commit):
    asked = {"cosine": "cosine"}.get(commit, commit)
    with pytest.raises(BadInput, match=f"{sampler}.*{asked}"):
        run(sampler, *start(1, 12), **COMMITS[commit])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 0.9, "factor": 1.0}, "threshold and factor"),
        ({"threshold": 0.9, "schedule": "cosine"}, "threshold and schedule=cosine"),
        ({"threshold": 0.9, "remask": 0.1}, "remask .* threshold"),
        ({"schedule": "square"}, "schedule 'square'"),
    ],
)
def test_rules_that_exclude_each_other(options, match):
    with pytest.raises(BadInput, match=match):
        run("confidence", *start(1, 12), **options)


# --- schedules ---


def left_masked(count, steps, commit):
    """How many stay masked after each step, from the definition: at least one is revealed at each."""
    from math import cos, pi

    steps, left = min(steps, count), [count]
    for step in range(1, steps + 1):
        share = (steps - step) / steps if commit == "linear" else cos(pi / 2 * step / steps)
        left.append(min(left[-1] - 1, int(count * share + 1e-9)))
    return left


@pytest.mark.parametrize(("sampler", "commit"), BY_SCHEDULE)
@pytest.mark.parametrize("steps", [1, 2, 7, 23])
def test_exactly_the_budget_stays_masked(sampler, commit, steps):
    ids, fixed = start(3, 14)
    fixed[1, 4:] = True
    frames = []
    schedule = COMMITS[commit] | {"steps": steps}
    _, forwards = run(sampler, ids, fixed, callback=frames.append, **schedule)
    for row in range(3):
        expected = left_masked(int((~fixed[row]).sum()), steps, commit)
        left = [int(frame.masked[row].sum()) for frame in frames]
        assert left == expected + [0] * (len(left) - len(expected))
        assert forwards[row] == len(expected) - 1


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


# --- blocks ---


@pytest.mark.parametrize(("sampler", "commit"), CASES)
def test_blocks_are_filled_in_order(sampler, commit):
    """Positions j // 5, fixed ones counted: the first block has four free positions, the next five, and so on."""
    ids, fixed = start(2, 23)
    fixed[1, 5:10] = True  # a block without anything to do
    _, _, frames = followed(sampler, ids, fixed, block=5, **COMMITS[commit])
    number = torch.arange(23) // 5
    for before, after in itertools.pairwise(frames):
        for row in range(2):
            changed = (before.masked[row] != after.masked[row]) & before.masked[row]
            if changed.any():
                assert set(number[changed].tolist()) == {int(number[before.masked[row]].min())}


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 41))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_steps_are_shared_out_by_free_tokens(free, steps, width):
    tokens, shares = (part[0].tolist() for part in _blocks(torch.tensor([free]), steps, width))
    assert tokens == [sum(free[at : at + width]) for at in range(0, len(free), width)]
    busy = [(count, share) for count, share in zip(tokens, shares, strict=True) if count]
    assert all(share == 0 for count, share in zip(tokens, shares, strict=True) if not count)
    assert all(share >= 1 for _, share in busy)
    assert sum(shares) == (max(steps, len(busy)) if busy else 0)
    exact = [steps * count / sum(tokens) for count, _ in busy]
    if all(share >= 1 for share in exact):  # nobody is given more than is due: what is left is rounding
        assert all(abs(share - due) <= 1 for (_, share), due in zip(busy, exact, strict=True))


@pytest.mark.parametrize("sampler", OURS)
def test_each_block_keeps_to_its_own_budget(sampler):
    ids, fixed = torch.zeros(1, 18, dtype=torch.int64), torch.zeros(1, 18, dtype=torch.bool)
    frames = []
    _, forwards = run(sampler, ids, fixed, block=6, steps=7, callback=frames.append)
    # 7 steps for 6 + 6 + 6 tokens: ends at 7/3 and 14/3, rounded 2 and 5, so 2, 3 and 2 steps.
    assert [int(frame.masked.sum()) for frame in frames] == [18, 15, 12, 10, 8, 6, 3, 0]
    assert forwards.tolist() == [7]


def test_one_block_for_all_is_no_block():
    ids, fixed = start(3, 12)
    assert torch.equal(run("confidence", ids, fixed, block=12)[0], run("confidence", ids, fixed)[0])
    assert not torch.equal(run("confidence", ids, fixed, block=4)[0], run("confidence", ids, fixed)[0])


# --- the end of the text ---

EOS, PAD = 8, 7


class Says:
    """Wants `tokens`[j] at j, whatever stands there, more surely where `sure` is larger."""

    def __init__(self, tokens, sure=None):
        self.logits = 5.0 * torch.nn.functional.one_hot(torch.tensor(tokens), VOCABULARY)
        self.logits *= torch.ones(len(tokens))[:, None] if sure is None else torch.tensor(sure)[:, None]
        self.asked = []

    def __call__(self, ids, where, present=None):
        self.asked.append(where.clone())
        return self.logits[where.nonzero()[:, 1]]


def filled(denoise, fixed=(), **options):
    length = len(denoise.logits)
    canvas = torch.full((1, length), 6), torch.zeros(1, length, dtype=torch.bool)
    canvas[1][0, list(fixed)] = True
    frames = []
    options = {"temperature": 0.0, "eos_token_id": EOS, "pad_token_id": PAD, "callback": frames.append, **options}
    out, forwards = run("confidence", *canvas, denoise=denoise, **options)
    return out[0].tolist(), int(forwards), frames


def test_after_the_end_all_that_is_free_becomes_padding():
    # Revealed in the order 5, 3 (the end), then what is left of it: 0, 1.
    denoise = Says([1, 2, 3, EOS, 4, 5, 1, 1], sure=[0.5, 0.4, 1, 0.9, 0.1, 1.0, 0.1, 0.1])
    out, forwards, frames = filled(denoise, fixed=[2, 6], steps=8)
    assert out == [1, 2, 6, EOS, PAD, PAD, 6, PAD]
    assert forwards == 4
    assert frames[1].ids[0, 5] == 5, "it had been revealed already"
    end = frames[2]
    assert end.ids[0].tolist() == [MASK, MASK, 6, EOS, PAD, PAD, 6, PAD]
    assert end.masked[0].tolist() == [True, True, *[False] * 6]
    assert end.revealed[0].tolist() == [-1, -1, -1, 1, 1, 0, -1, 1]
    assert end.confidence[0].isnan().tolist() == [True, True, True, False, True, True, True, True]
    assert not any(where[0, 4:].any() for where in denoise.asked[2:]), "padding meets no vocabulary"


def test_padding_is_the_end_token_unless_said_otherwise_and_no_end_token_no_end():
    tokens = [1, EOS, 2, 3]
    assert filled(Says(tokens), pad_token_id=None, steps=1)[0] == [1, EOS, EOS, EOS]
    assert filled(Says(tokens), eos_token_id=None, steps=1)[0] == tokens
    assert filled(Says([1, 6, 2, 3]), fixed=[1], eos_token_id=6, steps=1)[0] == [1, 6, 2, 3], "a given one ends nothing"


def test_the_leftmost_end_counts():
    assert filled(Says([1, EOS, 2, EOS, 3]), steps=1)[0] == [1, EOS, PAD, PAD, PAD]
    late_first = Says([1, EOS, 2, EOS, 3], sure=[0.1, 0.5, 0.3, 1.0, 0.2])
    assert filled(late_first, steps=5)[0] == [1, EOS, PAD, PAD, PAD]


def test_blocks_after_the_end_are_not_run():
    out, forwards, _ = filled(Says([1, 2, EOS, 3, 4, 5, 1, 2, 3]), block=3, steps=9)
    assert out == [1, 2, EOS, *[PAD] * 6]
    assert forwards <= 3


def test_what_is_left_of_the_end_keeps_its_pace():
    """Eight tokens in eight steps, the end first, in the middle: those before it still come one a step."""
    denoise = Says([1, 1, 1, 1, EOS, 1, 1, 1], sure=[0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5])
    _, forwards, frames = filled(denoise, steps=8)
    assert [int(frame.masked.sum()) for frame in frames] == [8, 4, 3, 2, 1, 0]
    assert forwards == 5


# --- remasking ---


@pytest.mark.parametrize("sampler", OURS)
@pytest.mark.parametrize("steps", [6, 10, 35])
def test_remasking_keeps_the_budget(sampler, steps):
    ids, fixed = start(6, 12)
    _, forwards, frames = followed(sampler, ids, fixed, steps=steps, remask=0.4)
    for frame in frames:
        assert torch.equal(frame.masked.sum(1), 10 * (steps - frame.step).clamp(max=steps) // steps)
    assert (forwards <= steps).all()
    assert forwards.max() > min(10, steps - 1), "tokens are masked again"


def test_how_often_a_token_is_masked_again():
    """Rate 0.2 of each revealed token at each step but the last, where there is room; 4000 rows, 20 tokens, 3 steps."""
    ids, fixed = torch.zeros(4000, 20, dtype=torch.int64), torch.zeros(4000, 20, dtype=torch.bool)
    frames = []
    options = {"steps": 3, "remask": 0.2, "callback": frames.append, "seeds": range(4000), "top_p": 1.0}
    run("random", ids, fixed, denoise=lambda ids, where, present=None: torch.zeros(int(where.sum()), 10), **options)
    assert [int(frame.masked[0].sum()) for frame in frames] == [20, 13, 6, 0]
    again = (frames[2].masked & ~frames[1].masked).sum(1)
    # Of 7 revealed tokens binomially many, never more than the 6 that may stay masked.
    law = torch.distributions.Binomial(7, torch.tensor(0.2)).log_prob(torch.arange(8.0)).exp() * 4000
    law[4] += law[5:].sum()
    seen = torch.bincount(again.clamp(max=4), minlength=5)
    assert ((seen - law[:5]) ** 2 / law[:5]).sum() < limit(4)
    assert not (frames[3].masked & ~frames[2].masked).any(), "not at the last step"
    assert (again > 0).any() and (frames[2].revealed[frames[2].masked] == -1).all()


def test_the_end_of_the_text_is_not_masked_again():
    frames = filled(
        Says([1, 2, 3, EOS, 4, 5, 6, 1], sure=[0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5]), steps=30, remask=0.9
    )[2]
    assert len(frames) > 5
    assert all(frame.ids[0, 3] == EOS for frame in frames[1:])
