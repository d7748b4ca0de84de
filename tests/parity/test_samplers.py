"""Greedy traces of the published samplers and of the exact budget, canvas by canvas, and the sets of top-p."""

from itertools import pairwise

import pytest
import torch

from diffulm.denoiser.tile import tiled
from diffulm.samplers import sample
from diffulm.samplers._draw import draw, nucleus

# Nats, absolute: another kernel moves logits by up to 8e-6. The traces themselves are compared for equality: their
# nearest ties are 0.002 nats and more across the cut and 0.005 between the two best tokens.
SCORE = 5e-5
# The published random order draws at a temperature of 1e-4 with top-p 0.9: the second best token has e^-50 of the mass.
RANDOM_ORDER = {"temperature": 1e-4, "top_p": 0.9}


def run(trace, sampler):
    """The frames of our sampler on the recorded start, with the recorded uniforms, and the final ids."""
    frames = []
    options = RANDOM_ORDER | {"uniform": replay(trace["uniforms"])} if sampler == "published_random" else {}
    ids, _ = sample(
        tiled(trace.denoiser),
        trace["init"],
        trace["fixed"],
        mask_token_id=trace.family["mask_id"],
        sampler=sampler,
        steps=trace.facts["T"],
        seeds=list(range(len(trace["init"]))),
        callback=frames.append,
        **options,
    )
    return ids, frames


def replay(uniforms):
    """(T - 1, B, L) -> what `sample` asks for at each row's own step; the last, which reveals the rest, needs none: 0."""
    uniforms, rows = torch.nn.functional.pad(uniforms, (0, 0, 0, 0, 0, 1)), torch.arange(uniforms.shape[1])
    return lambda purpose, step: uniforms[step.clamp(max=len(uniforms) - 1), rows]


def unrolled(frames, steps):
    """(T + 1, B, L) ids and masks before each step, where our loop passes over the steps that reveal nothing."""
    ids, masked = (torch.stack([getattr(frames[0], name)] * (steps + 1)) for name in ("ids", "masked"))
    for frame in frames:
        for row, step in enumerate(frame.step.tolist()):
            ids[step:, row], masked[step:, row] = frame.ids[row], frame.masked[row]
    return ids, masked


def changes(values):
    """What follows what, repetitions left out."""
    return [value for n, value in enumerate(values) if n == 0 or value != values[n - 1]]


@torch.no_grad()
def test_forward_by_forward(trace):
    """Best token and its log-probability at every position of every canvas of the trace."""
    canvases, denoiser = trace["canvases"][:-1].flatten(0, 1), trace.denoiser
    logits = tiled(denoiser)(canvases, denoiser.predictable(canvases))
    score, predicted = logits.log_softmax(-1).max(-1)
    assert torch.equal(predicted, trace["predicted"][..., 1:].flatten())
    torch.testing.assert_close(score, trace["score"][..., 1:].flatten(), rtol=0, atol=SCORE)


def test_published(trace):
    """Step by step: `confidence_*` ranks what is revealed already, too; `random_*` reveals by the recorded uniforms."""
    ids, frames = run(trace, f"published_{trace.name.split('_')[0]}")
    canvases, masked = unrolled(frames, trace.facts["T"])
    assert torch.equal(canvases, trace["canvases"])
    assert masked.sum(-1).tolist() == trace.facts["masked_left"]
    assert torch.equal(ids[:, 1:], trace["returned"])
    for before, after in pairwise(frames):
        finished = ~before.masked.any(1)
        assert torch.equal(after.step[finished], before.step[finished]), "a finished row takes no more steps"


def test_exact_budget(exact):
    """Our `confidence`: exactly int(N t / T) stay masked. (With more steps than tokens it makes as many as tokens.)"""
    trace = exact.beside(f"sample/{exact.name.removeprefix('exact_')}")
    ids, frames = run(trace, "confidence")
    assert torch.equal(ids, exact["canvases"][-1])
    for row in range(len(ids)):
        ours = changes([frame.ids[row].tolist() for frame in frames])
        assert ours == changes(exact["canvases"][:, row].tolist())
        left = changes([int(frame.masked[row].sum()) for frame in frames])
        assert left == changes([budget[row] for budget in trace.facts["budget_int_N_t_over_T"]])


@pytest.mark.parametrize("size", [1, 4, 64])
def test_top_p_sets(topp, size):
    """Whatever number of tokens the search starts from."""
    weights = topp["logits"].softmax(-1)
    ids, kept = nucleus(weights, float(topp.name.removeprefix("p")), size)
    assert torch.equal(torch.zeros_like(weights).scatter_add(1, ids, kept) > 0, topp["kept"])


def test_top_p_draws(topp):
    """Nothing outside the set is drawn, and all of it is: 4,000 equally spaced uniforms see a share above 1/4,000."""
    top_p, kept = float(topp.name.removeprefix("p")), topp["kept"]
    for logits, allowed in zip(topp["logits"], kept, strict=True):
        uniforms = (torch.arange(4000) + 0.5) / 4000
        tokens = draw(logits.expand(len(uniforms), -1), uniforms, 1.0, top_p).tokens
        seen = torch.bincount(tokens, minlength=len(allowed)) > 0
        likely = allowed & (logits.softmax(-1) > 1 / 4000)
        assert not (seen & ~allowed).any() and not (likely & ~seen).any()
