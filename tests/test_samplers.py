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
from diffulm.samplers._state import AHEAD, smallest
from fake_denoisers import CASES, COMMITS, MASK, OURS, SAMPLERS, VOCABULARY, Hashed, followed, run, start

ORDER_FIRST = ["first_hitting", "left_to_right", "published_random", "random"]
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


@every_case
def test_a_run(sampler, commit):
    ids, fixed = start(5, 12)
    fixed[3, 2:] = True  # one free position
    fixed[4] = True  # none
    _, forwards, _ = followed(sampler, ids, fixed, **COMMITS[commit])
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
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_rule_ends(canvas, case, options, limit, steps):
    sampler, commit = case
    rule = dict(COMMITS[commit])
    if "steps" in rule:
        rule["steps"] = steps
    else:
        rule[commit] = limit
    ids, fixed, present = canvas
    options = {"forbidden": [1, 4], **options}
    out, forwards, _ = followed(sampler, ids, fixed, present, **options, **rule)
    drawn = out[~fixed & present & (out != options.get("eos", MASK))]  # it pads what follows it, forbidden or not
    assert not torch.isin(drawn, torch.tensor([1, 4])).any()
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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_forbidden_ids_and_the_mask_are_never_drawn(sampler):
    class Wants:
        def __call__(self, ids, where, present=None):
            return torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 8, 9, 10]).expand(int(where.sum()), -1)

    for temperature in (0.0, 1.0):
        ids, fixed = start(20, 12)
        out, _ = run(sampler, ids, fixed, denoise=Wants(), temperature=temperature, forbidden=[7, 8], top_p=1.0)
        assert set(out[~fixed].tolist()) <= set(range(7))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_what_is_given_counts_and_nothing_given_is_changed(sampler):
    ids, fixed = start(3, 12)
    before = ids.clone(), fixed.clone()
    out, _ = run(sampler, ids, fixed)
    assert torch.equal(run(sampler, ids.masked_fill(~fixed, 5), fixed)[0], out)
    spoil = lambda frame: [part.fill_(1) for part in vars(frame).values() if isinstance(part, torch.Tensor)]  # noqa: E731
    assert torch.equal(run(sampler, ids, fixed, callback=spoil)[0], out)
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
