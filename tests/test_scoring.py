"""The likelihood engine: every method against the plain functions of `bounds`, whatever else is scored beside it."""

import math
from dataclasses import replace

import pytest
import torch

from diffulm import bounds
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.record import Record
from diffulm.denoiser.tile import tiled
from diffulm.errors import BadInput
from diffulm.evaluation import likelihood
from diffulm.scoring import Request, encoded, hidden_draws, scores
from models import build, ids, tokenizer

CLOSE = 2e-5  # of nats a request: float32 sums of a dozen terms in another order; the promise is 1e-4 a token


@pytest.fixture(scope="module", params=["gpt2", "llama, no shift"])
def denoiser(request) -> Denoiser:
    made, _ = adopt(build(request.param.split(",")[0]))
    return Denoiser(made.model, replace(made.record, shift="no shift" not in request.param))


REQUESTS = [
    Request(tuple(row.tolist()), start, stop, key)
    for row, start, stop, key in (
        (ids(1, 14)[0], 9, 14, 1),
        (ids(1, 40, seed=1)[0], 30, 34, 2),
        (ids(1, 9, seed=2)[0], 1, 9, 3),
        (ids(1, 14, seed=3)[0], 13, 14, 4),
        (ids(1, 33, seed=4)[0], 20, 33, 1),
    )
]


def plain(denoiser: Denoiser, request: Request, method: str, draws: int):
    """(nats, stderr) of one request by the functions of `bounds`."""
    canvas = torch.tensor(request.ids)
    free = (torch.arange(len(canvas)) >= request.start) & (torch.arange(len(canvas)) < request.stop)
    given = tiled(denoiser), canvas, free, denoiser.record.mask_token_id
    if method == "bound":
        found = bounds.bound(*given, draws, 5, request.key)
        return found.nats, found.stderr
    if method == "multi_order":
        return bounds.multi_order_bound(*given, bounds.random_orders(request.tokens, 3, 5, request.key)), None
    turn = torch.arange(request.tokens)
    order = turn if method == "left_to_right" else turn.flip(0)
    return float(bounds.order_nats(*given, order[None])[0]), 0.0


@pytest.mark.parametrize("method", ["left_to_right", "right_to_left", "bound", "multi_order"])
def test_a_score_is_that_of_the_plain_functions_whatever_is_scored_beside_it(denoiser, method):
    together = scores(denoiser, REQUESTS, method, draws=12, seed=5, orders=3)
    turned = scores(denoiser, REQUESTS[::-1], method, draws=12, seed=5, orders=3)[::-1]
    for request, one, other in zip(REQUESTS, together, turned, strict=True):
        nats, stderr = plain(denoiser, request, method, 12)
        assert one.nats == pytest.approx(nats, abs=CLOSE)
        assert other.nats == pytest.approx(nats, abs=CLOSE)
        assert scores(denoiser, [request], method, draws=12, seed=5, orders=3)[0].nats == pytest.approx(nats, abs=CLOSE)
        if stderr is not None:
            assert one.stderr == pytest.approx(stderr, abs=CLOSE)
        assert one.tokens == request.tokens


def test_the_causal_reading_is_the_models_own_log_probability():
    model = build("llama")
    expected = []
    for request in REQUESTS:
        with torch.no_grad():
            logp = model(torch.tensor([request.ids])).logits[0].log_softmax(-1)
        at = torch.arange(request.start, request.stop)
        target = torch.tensor(request.ids)[at]
        expected.append(
            (-float(logp[at - 1].gather(1, target[:, None]).sum()), bool((logp[at - 1].argmax(1) == target).all()))
        )
    frozen, _ = adopt(model, frozen=True)
    for one, (nats, greedy) in zip(scores(frozen, REQUESTS, "autoregressive"), expected, strict=True):
        assert one.nats == pytest.approx(nats, abs=CLOSE)
        assert one.greedy == greedy and one.forwards == 1


def test_greedy_says_whether_every_token_is_the_likeliest_in_its_place(denoiser):
    canvas = list(REQUESTS[0].ids)
    for position in range(9, 14):
        hidden = torch.tensor([canvas])
        hidden[:, position:] = denoiser.record.mask_token_id
        where = torch.zeros_like(hidden, dtype=torch.bool)
        where[0, position] = True
        canvas[position] = int(denoiser(hidden, where=where).argmax())
    likeliest = Request(tuple(canvas), 9, 14)
    other = Request((*canvas[:12], (canvas[12] + 1) % 60, canvas[13]), 9, 14)
    found = scores(denoiser, [likeliest, other], "left_to_right")
    assert [one.greedy for one in found] == [True, False]


def test_a_block_model_is_read_beside_the_clean_text():
    made, _ = adopt(build("llama"))
    blocks = ids(3, 16)
    denoiser = Denoiser(made.model, replace(made.record, attention="block", block_size=4))
    asked = [Request(tuple(row.tolist()), 1, 16, index) for index, row in enumerate(blocks)]
    exact = sum(one.nats for one in scores(denoiser, asked, "left_to_right")) / 45
    assert exact == pytest.approx(likelihood.left_to_right(denoiser, blocks).nats, abs=1e-6)
    drawn = scores(denoiser, asked, "bound", draws=8)
    assert sum(one.nats for one in drawn) / 45 == pytest.approx(likelihood.bound(denoiser, blocks, 8).nats, abs=1e-6)
    # blocks of one are autoregressive, whatever the method
    ones = Denoiser(made.model, replace(made.record, attention="block", block_size=1))
    for method in ("left_to_right", "bound"):
        for one, causal in zip(scores(ones, asked, method), scores(ones, asked, "autoregressive"), strict=True):
            assert one.nats == pytest.approx(causal.nats, abs=CLOSE) and one.stderr == 0
    with pytest.raises(BadInput, match="full attention"):
        scores(denoiser, asked, "multi_order")


def test_each_block_has_draws_of_its_own():
    hidden, weight = hidden_draws(torch.arange(1, 17), 17, 8, 32, seed=0, key=3)
    assert not hidden[:, 0].any() and hidden[:, 1:8].any(1).all() and hidden[:, 8:16].any(1).all()
    assert not torch.equal(weight[:, 1], weight[:, 8])  # 7 tokens and 8
    pairs = hidden_draws(torch.arange(16), 16, 8, 32, seed=0, key=3)[0]
    assert not torch.equal(pairs[:, :8], pairs[:, 8:])


@pytest.mark.parametrize("draws", [8, 32])
def test_intervals_cover_the_exact_bound(draws):
    """Of 200 seeds 180 to 198: 95% but for chance (the 0.1% and 99.9% quantiles of such a count are 179 and 198)."""
    denoiser, _ = adopt(build("gpt2"))
    request = REQUESTS[2]
    canvas, free = torch.tensor(request.ids), torch.arange(len(request.ids)) >= 1
    exact = bounds.exact_bound(tiled(denoiser), canvas, free, denoiser.record.mask_token_id).nats
    found = [scores(denoiser, [request], "bound", draws, seed)[0] for seed in range(200)]
    assert 180 <= sum(abs(one.nats - exact) <= 1.96 * one.stderr for one in found) <= 198
    mean = sum(one.nats for one in found) / 200
    spread = math.sqrt(sum((one.nats - mean) ** 2 for one in found) / 199)
    assert abs(mean - exact) < 4 * spread / math.sqrt(200)  # no bias: four errors of the mean


def test_the_published_estimate_counts_an_empty_level_as_nothing_and_the_bound_does_not(denoiser):
    """A trap of the published evaluation: of one token most levels hide nothing, cost 0, and make short answers win."""
    short = replace(REQUESTS[3], key=11)
    published, bound = (scores(denoiser, [short], method, draws=16)[0] for method in ("published", "bound"))
    hidden = sum(value > 0 for value in published.values)
    assert 0 < hidden < 16
    assert published.nats == pytest.approx(bound.nats * hidden / 16, rel=1e-5)
    assert bound.stderr == 0


def test_context_text_and_suffix_are_encoded_together_and_nothing_is_lost():
    words = tokenizer()
    whole, cut = encoded(words, [1], "w3 w4", " w5 w6", " w7 w8", limit=20)
    assert (whole.ids, whole.start, whole.stop, cut) == ((1, 3, 4, 5, 6, 7, 8), 3, 5, 0)
    short, cut = encoded(words, [1], "w3 w4", " w5 w6", " w7 w8", limit=6)
    assert (short.ids, short.start, short.stop, cut) == ((1, 4, 5, 6, 7, 8), 2, 4, 1)
    assert encoded(words, [1], "w3 w4", " w5 w6", " w7 w8", limit=4) == (None, 3)  # the text itself would be cut
    assert encoded(words, [1], "w3", "")[0] is None
    assert encoded(words, [], "w3", " w4")[0] == Request((3, 4), 1, 2)


def test_requests_that_cannot_be_scored_are_refused(denoiser):
    far = tuple([3] * 65)
    for request, words in ((Request((1, 3), 2, 2), "nothing to score"), (Request(far, 60, 65), "context of 64")):
        with pytest.raises(BadInput, match=words):
            scores(denoiser, [request], "bound")
    with pytest.raises(BadInput, match="none of"):
        scores(denoiser, REQUESTS[:1], "both_ways")


def test_logits_that_are_not_finite_are_said():
    denoiser, _ = adopt(build("gpt2"))
    with torch.no_grad():
        denoiser.model.transformer.ln_f.weight[0] = math.nan
    with pytest.raises(FloatingPointError):
        scores(denoiser, REQUESTS[:1], "left_to_right")


def test_position_zero_of_a_model_with_shift_is_refused():
    denoiser = Denoiser(build("gpt2"), Record(63, 1))
    with pytest.raises(BadInput, match=r"nothing to score at 0\.\.2"):
        scores(denoiser, [Request((3, 4), 0, 2)], "bound")
