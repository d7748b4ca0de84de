"""The loop around the samplers: schedules, blocks, the end of the text, remasking; and the published rules."""

from math import cos, pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffulm.samplers._loop import _blocks
from fake_denoisers import CASES, COMMITS, MASK, OURS, SAMPLERS, VOCABULARY, Hashed, followed, limit, run, start

BY_SCHEDULE = [case for case in CASES if case[0] in OURS and case[1] in ("linear", "cosine")]

# --- schedules ---


def left_masked(count, steps, commit):
    """How many stay masked after each step, from the definition: at least one is revealed at each."""
    steps, left = min(steps, count), [count]
    for step in range(1, steps + 1):
        share = (steps - step) / steps if commit == "linear" else cos(pi / 2 * step / steps)
        left.append(min(left[-1] - 1, int(count * share + 1e-9)))
    return left


@pytest.mark.parametrize(("sampler", "commit"), BY_SCHEDULE)
@pytest.mark.parametrize("steps", [2, 7, 23])
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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_blocks_are_filled_in_order(sampler):
    """Positions j // 5, fixed ones counted: the first block has four free positions, the next five, and so on."""
    ids, fixed = start(2, 23)
    fixed[1, 5:10] = True  # a block without anything to do
    _, _, frames = followed(sampler, ids, fixed, block=5, steps=9)
    busy = [[bool(frame.masked[0, at : at + 5].any()) for at in range(0, 23, 5)] for frame in frames]
    assert all(one == sorted(one) for one in busy)
    assert sorted({sum(one) for one in busy}) == [0, 1, 2, 3, 4, 5], "one block is full before the next is begun"


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 41))
@settings(max_examples=100, deadline=None, derandomize=True)
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
@pytest.mark.parametrize("steps", [6, 35])
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
