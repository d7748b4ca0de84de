"""What a training step minimises: blocks with clean context, their schedules, the AR term, documents that share a block."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from diffulm import visibility
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Clean, Denoiser
from diffulm.recipes.adapt import AdaptConfig, stages
from diffulm.training.curriculum import Curriculum, Samples
from diffulm.training.step import loss_of, prepared
from models import build

LENGTH, BATCH = 14, 8
MASK, SEED = 31, 3


@pytest.fixture(scope="module")
def denoiser():
    return adopt(build("llama"), mask_token=str(MASK))[0]


def batches(cut: list[int], documents: list[int] | None = None) -> list[dict[str, torch.Tensor]]:
    """One step's samples, in micro-batches of the sizes in `cut`."""
    rows = []
    for n in range(BATCH):
        ids = torch.randint(1, 30, (LENGTH,), generator=torch.Generator().manual_seed(n))
        block = {"ids": ids}
        if documents:
            block["document"] = torch.tensor(documents)
        rows.append(block)
    samples = Samples(rows, True, SEED, BATCH, steps=20)
    step = [samples[5 * BATCH + n] for n in range(BATCH)]
    parts = torch.arange(BATCH).split(cut)
    return [{key: torch.stack([step[i][key] for i in part]) for key in step[0]} for part in parts]


def loss(denoiser, curriculum: Curriculum, cut: list[int], documents: list[int] | None = None) -> float:
    inputs = prepared(curriculum, batches(cut, documents), 1, lambda total: total)
    with torch.no_grad():
        return sum(float(loss_of(denoiser, curriculum, each, len(inputs))) for each in inputs)


BLOCKS = Curriculum(MASK, SEED, BATCH, noise="count", stages=((0, 4),))
CASES = {
    "blocks": (BLOCKS, None),
    "blocks, bernoulli": (replace(BLOCKS, noise="bernoulli"), None),
    "row means of blocks": (replace(BLOCKS, objective="row_mean"), None),
    "AR term": (Curriculum(MASK, SEED, BATCH, ar_weight=0.5), None),
    "annealing": (Curriculum(MASK, SEED, BATCH, anneal_steps=10), None),
    "documents": (Curriculum(MASK, SEED, BATCH), [0] * 5 + [1] * 6 + [2] * 3),
    "documents, blocks, AR term": (replace(BLOCKS, ar_weight=0.5), [0] * 5 + [1] * 6 + [2] * 3),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_does_not_depend_on_the_micro_batch(denoiser, name):
    curriculum, documents = CASES[name]
    whole = loss(denoiser, curriculum, [8], documents)
    assert whole > 1
    # sums of float32 in another order, on a loss of about 4 nats
    assert loss(denoiser, curriculum, [2, 5, 1], documents) == pytest.approx(whole, abs=5e-6)


@pytest.mark.parametrize("noise", ["count", "bernoulli"])
def test_blocks_of_one_are_the_autoregressive_loss(denoiser, noise):
    autoregressive = loss(denoiser, Curriculum(MASK, SEED, BATCH, objective="autoregressive"), [8])
    curriculum = replace(BLOCKS, stages=((0, 1),), noise=noise)
    hidden = curriculum.hide(batches([8])[0])
    if noise == "count":
        assert hidden.where[:, 1:].all()
        # the same sums over another kernel's attention
        assert loss(denoiser, curriculum, [8]) == pytest.approx(autoregressive, abs=5e-6)
    else:  # each token at its own level, weighed by its inverse: the same in the mean
        assert 0.3 < hidden.where[:, 1:].float().mean() < 0.7
        assert (hidden.token_weight[hidden.where] >= 1).all()


def test_a_block_s_loss_is_that_of_the_block_after_the_clean_text_before_it(denoiser):
    """Against a naive loop: each block alone, behind its clean prefix, under a block-causal matrix."""
    [batch] = batches([8])
    hidden = BLOCKS.hide(batch)
    total = 0.0
    for first in range(0, LENGTH, 4):
        end = min(first + 4, LENGTH)
        canvas = batch["ids"][:, :end].clone()
        canvas[:, first:] = hidden.canvas[:, first:end]
        where = hidden.where[:, :end].clone()
        where[:, :first] = False
        if first:  # with shift, a block's first token is read off the last row of the block before
            canvas_first, where_first = canvas[:, : first + 1], where[:, : first + 1]
            total += weighed(denoiser, canvas_first, where_first, batch["ids"], hidden.token_weight)
            where[:, first] = False
        total += weighed(denoiser, canvas, where, batch["ids"], hidden.token_weight)
    expected = total / float(hidden.denominator)
    assert loss(denoiser, BLOCKS, [8]) == pytest.approx(expected, abs=1e-5)  # as above, summed over four blocks


def weighed(denoiser, canvas, where, ids, weight) -> float:
    visible = visibility.block_causal(canvas.shape[1], 4)
    length = canvas.shape[1]
    with torch.no_grad():
        ce = denoiser.cross_entropy(canvas, ids[:, :length][where], where, visible)
    return float((ce * weight[:, :length][where]).sum())


def test_each_block_has_a_level_of_its_own():
    [batch] = batches([8])
    hidden = BLOCKS.hide(batch)
    counts = torch.nn.functional.pad(hidden.where, (0, 2)).reshape(8, 4, 4).sum(2)
    assert not hidden.where[:, 0].any()
    assert (counts[:, 1:] >= 1).all() and (counts[:, 0] >= 1).all()  # count noise leaves no block without a mask
    assert (counts[:, 1:].max(1).values > counts[:, 1:].min(1).values).float().mean() > 0.5  # blocks differ within rows
    weights = torch.where(hidden.where, hidden.token_weight, 0.0)[:, 4:8]
    assert torch.allclose(weights.sum(1), torch.full((8,), 4.0))  # n / k on each of k


def test_the_levels_of_all_blocks_are_stratified():
    curriculum = replace(BLOCKS, noise="bernoulli", stages=((0, 7),), schedule="linear")
    [batch] = batches([8])
    weights = curriculum.hide(batch).token_weight.reshape(8, 2, 7)
    # weight 1/t; with 16 blocks one level in each sixteenth, wherever something was hidden
    levels = (1 / weights.amax(2)[weights.amax(2) > 0]).sort().values
    assert len(levels) > 8
    assert float(levels.diff().min()) > 0.999 * (1 - 1e-3) / 16  # evenly spaced but for the rounding of float32


def test_the_ar_term_is_the_causal_view_s_loss(denoiser):
    plain = Curriculum(MASK, SEED, BATCH)
    autoregressive = loss(denoiser, replace(plain, objective="autoregressive"), [8])
    both = loss(denoiser, replace(plain, ar_weight=0.5), [8])
    assert both == pytest.approx(loss(denoiser, plain, [8]) + 0.5 * autoregressive, abs=5e-6)
    unshifted = adopt(build("llama"), mask_token=str(MASK), shift=False)[0]
    term = loss(unshifted, replace(plain, ar_weight=1.0), [8]) - loss(unshifted, plain, [8])
    assert term == pytest.approx(autoregressive, abs=1e-5)  # its causal view has a shift, whatever the diffusion has


@pytest.mark.parametrize("size", [None, 4])
def test_documents_do_not_see_each_other(denoiser, size):
    """What stands in one document moves no loss of another, and positions begin again."""
    curriculum = replace(BLOCKS, stages=((0, size),))
    documents = [0] * 8 + [1] * 6  # at a block's edge, so that the second alone has the same blocks
    [inputs] = prepared(curriculum, batches([8], documents), 1, lambda total: total)
    assert not inputs["where"][:, [0, 8]].any()  # both BOS are fixed

    def second(inputs):
        only = inputs | {"weight": inputs["weight"] * (inputs["document"] == 1)}
        with torch.no_grad():
            return float(loss_of(denoiser, curriculum, only, 1))

    before = second(inputs)
    changed = dict(inputs)
    for name in ("ids", "canvas"):
        changed[name] = inputs[name].clone()
        changed[name][:, :8] = (changed[name][:, :8] + 7) % 30
    assert second(changed) == pytest.approx(before, abs=1e-7)  # not even float error: the same sums
    alone = {name: value[:, 8:] for name, value in inputs.items() if value.dim() == 2}
    alone |= {"step": inputs["step"], "row": inputs["row"], "document": torch.zeros(8, 6, dtype=torch.long)}
    assert second(alone | {"document": torch.ones(8, 6, dtype=torch.long)}) == pytest.approx(before, abs=2e-6)


def config(**more) -> AdaptConfig:
    return AdaptConfig(model="m", data="d", out="o", tokens=100 * 8 * 16, length=16, global_batch=8, **more)


def test_stages():
    assert stages(config()) == ((0, None),)
    assert stages(config(block_size=8)) == ((0, 8),)
    plan = [
        {"size": 1, "steps": "10%"},
        {"size": 8, "steps": 20},
        {"size": None, "steps": 30},
        {"size": 4, "steps": "1%"},
    ]
    found = stages(config(block_schedule=plan))
    assert found == ((0, 1), (10, 8), (30, None), (60, 4))
    curriculum = Curriculum(MASK, SEED, BATCH, stages=found)
    sizes = [curriculum.block_size(step) for step in (0, 9, 10, 29, 30, 59, 60, 99)]
    assert sizes == [1, 1, 8, 8, None, None, 4, 4]


def test_some_steps_are_taken_under_full_attention():
    curriculum = replace(BLOCKS, full_share=0.25)
    sizes = [curriculum.block_size(step) for step in range(1000)]
    assert set(sizes) == {4, None}
    assert 0.2 < sizes.count(None) / 1000 < 0.3  # 250 with a standard deviation of 14
    assert sizes == [curriculum.block_size(step) for step in range(1000)]


def test_a_step_of_the_mix_sees_everything_though_the_record_says_blocks(denoiser):
    curriculum = Curriculum(MASK, SEED, BATCH, noise="count")
    in_blocks = Denoiser(denoiser.model, replace(denoiser.record, attention="block", block_size=4))
    assert loss(in_blocks, curriculum, [8]) == pytest.approx(
        loss(denoiser, curriculum, [8]), abs=1e-6
    )  # the same matrix


def test_times_between_floor_and_ceiling():
    curriculum = Curriculum(MASK, SEED, BATCH, floor=0.4, ceiling=0.5)
    hidden = curriculum.hide(batches([8])[0])
    weights = hidden.token_weight[hidden.where]
    assert 2 <= float(weights.min()) <= float(weights.max()) <= 2.5


def test_clean_rows_are_counted_once(denoiser):
    """The step's loss through blocks is what the denoiser gives for the same canvas."""
    [inputs] = prepared(BLOCKS, batches([8]), 1, lambda total: total)
    where = inputs["where"]
    with torch.no_grad():
        logits = denoiser(inputs["canvas"], None, where, clean=Clean(inputs["ids"], 4))
    ce = F.cross_entropy(logits, inputs["ids"][where], reduction="none")
    assert loss(denoiser, BLOCKS, [8]) == pytest.approx(float((ce * inputs["weight"][where]).sum()), abs=5e-6)
