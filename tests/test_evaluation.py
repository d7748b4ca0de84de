"""Infilling figures and sample quality against what can be worked out by hand; the report page."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from diffulm import filling, visibility
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.record import Record
from diffulm.evaluation import generation, infilling, likelihood
from diffulm.evaluation.infilling import Filled, Task
from diffulm.recipes import pocket
from diffulm.training.report import table, write_report

CODE = '''
class Box:
    def area(self, width, height):
        """The area of the box."""
        return width * height

def long(values):
    total = 0
    for value in values:
        total += value * value
    return total
'''


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=61, max_position_embeddings=64, **shape)).eval()


@pytest.fixture(scope="module")
def denoiser(model) -> Denoiser:
    return Denoiser(model, Record(mask_token_id=60, bos_token_id=0))


def test_holes_in_blocks_leave_the_margin_and_depend_on_seed_and_row():
    blocks = torch.arange(40 * 64).reshape(40, 64)
    tasks = infilling.tasks_from_blocks(blocks, 8, margin=10)
    assert all(task.start >= 10 and task.stop <= 54 and task.stop - task.start == 8 for task in tasks)
    assert min(task.start for task in tasks) < 16 and max(task.stop for task in tasks) > 48
    assert [t.start for t in infilling.tasks_from_blocks(blocks[:5], 8, 10)] == [t.start for t in tasks[:5]]
    assert [t.start for t in infilling.tasks_from_blocks(blocks, 8, 10, seed=1)] != [t.start for t in tasks]
    assert tasks[0].hidden == tuple(range(tasks[0].start, tasks[0].stop))


def test_holes_in_code_are_in_whole_functions():
    tokenizer = pocket.tokenizer([CODE * 3], 300)
    tasks = infilling.tasks_from_code(tokenizer, 0, [CODE], hole=4, count=10, longest=200)
    texts = sorted(tokenizer.decode(task.ids[1:]) for task in tasks)
    assert len(texts) == 2 and texts[0].startswith("def area(self") and texts[1].startswith("def long(values)")
    whole = Filled([task.ids for task in tasks], 1.0)
    assert infilling.parses(tokenizer, whole) == 1.0
    assert infilling.token_accuracy(tasks, whole) == (1.0, 0.0)
    broken = Filled([(0, *tokenizer("def (", add_special_tokens=False)["input_ids"]), whole.ids[1]], 1.0)
    assert infilling.parses(tokenizer, broken) == 0.5


def test_token_accuracy_counts_the_hole_alone_and_its_error_is_over_tasks():
    tasks = [Task((0, 1, 2, 3, 4), 1, 3), Task((0, 5, 6, 7, 8), 2, 4)]
    filled = Filled([(0, 1, 9, 3, 4), (0, 9, 6, 7, 9)], 2.0)
    accuracy, error = infilling.token_accuracy(tasks, filled)
    assert accuracy == 0.75  # one of two, then two of two; the changed tokens outside do not count
    assert error == pytest.approx(math.sqrt(0.125 / 2))
    assert infilling.tokens_per_second(tasks, filled) == 2.0


def test_fill_keeps_the_surroundings_and_the_batch_does_not_matter(denoiser, monkeypatch):
    blocks = (torch.arange(6 * 40).reshape(6, 40) * 7) % 59
    tasks = infilling.tasks_from_blocks(blocks, 6, margin=4)
    whole = infilling.fill(denoiser, tasks, steps=6)
    for task, ids in zip(tasks, whole.ids, strict=True):
        assert ids[: task.start] == task.ids[: task.start] and ids[task.stop :] == task.ids[task.stop :]
        assert 60 not in ids
    monkeypatch.setattr(infilling, "BATCH", 2)
    assert infilling.fill(denoiser, tasks, steps=6).ids == whole.ids


def test_the_parent_reads_the_left_side_only(model):
    blocks = (torch.arange(3 * 30).reshape(3, 30) * 7) % 59
    tasks = infilling.tasks_from_blocks(blocks, 5, margin=4)
    changed = [
        Task((*task.ids[: task.stop], *(0 for _ in task.ids[task.stop :])), task.start, task.stop) for task in tasks
    ]
    one, two = infilling.continue_left(model, tasks), infilling.continue_left(model, changed)
    for task, a, b in zip(tasks, one.ids, two.ids, strict=True):
        assert a[: task.stop] == b[: task.stop] and a[task.stop :] == task.ids[task.stop :]
        context = torch.tensor([task.ids[: task.start]])
        for token in a[task.start : task.stop]:  # greedy, one at a time
            assert int(model(input_ids=context).logits[0, -1].argmax()) == token
            context = torch.cat([context, torch.tensor([[token]])], 1)


def test_whole_texts_by_their_likelihood(model):
    rows = torch.randint(0, 59, (4, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logp = model(input_ids=rows).logits.log_softmax(-1)
        totals = [sum(float(logp[r, i, rows[r, i + 1]]) for i in range(19)) for r in range(4)]
        nats = infilling._nats(model, rows)
    assert nats.tolist() == pytest.approx([-total for total in totals], rel=1e-5)  # float32 of about 80 nats


def test_best_of_k_is_at_least_as_likely_as_the_first_draw(model):
    blocks = (torch.arange(3 * 30).reshape(3, 30) * 7) % 59
    tasks = infilling.tasks_from_blocks(blocks, 5, margin=4)
    state = torch.get_rng_state()
    filled = infilling.continue_left(model, tasks, best_of=6, seed=1)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are left alone
    assert filled.ids == infilling.continue_left(model, tasks, best_of=6, seed=1).ids


def test_perplexity_and_entropy(model):
    ids = torch.tensor([[0, 1, 1, 2, 2], [0, 3, 3, 3, 3]])
    got = generation.quality(model, ids)
    assert got.entropy == pytest.approx(math.log(2) / 2)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert got.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-5)  # float32


def test_unconditional_samples(denoiser, monkeypatch):
    ids = generation.unconditional(denoiser, 5, 12, steps=4, sampler="random", temperature=1.0)
    assert ids.shape == (5, 12) and bool((ids[:, 0] == 0).all()) and not bool((ids == 60).any())
    assert len({tuple(row.tolist()) for row in ids}) == 5
    monkeypatch.setattr(generation, "BATCH", 2)
    assert torch.equal(ids, generation.unconditional(denoiser, 5, 12, steps=4, sampler="random", temperature=1.0))


def blockwise(model, size: int) -> Denoiser:
    return Denoiser(model, Record(mask_token_id=60, bos_token_id=0, attention="block", block_size=size))


def naive(denoiser: Denoiser, ids: torch.Tensor, start: int, hidden: list[int]) -> torch.Tensor:
    """-log p of the tokens at `hidden`, all in the block that starts at `start`: what decoding sees, a clean prefix and the
    block, nothing after it."""
    size = denoiser.record.block_size or len(ids)
    canvas = ids[None, : start + size].clone()
    where = torch.zeros_like(canvas, dtype=torch.bool)
    where[0, hidden] = True
    canvas[where] = 60
    with torch.no_grad():
        logp = denoiser(canvas, where=where).log_softmax(-1)
    return -logp.gather(1, ids[where[0].nonzero()[:, 0]][:, None])[:, 0]


def test_the_bound_of_a_block_model_is_the_sum_of_its_blocks(model):
    """By enumeration: for each block the mean over k of the mean over its subsets of n / k times their cost."""
    denoiser = blockwise(model, 3)
    blocks = torch.tensor(
        [[0, 9, 4, 31, 8, 17, 5], [0, 2, 2, 40, 41, 2, 6]]
    )  # blocks of 2 (beside BOS), 3 and 1 tokens
    exact = 0.0
    for ids in blocks:
        for start, stop in ((1, 3), (3, 6), (6, 7)):
            n = stop - start
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(range(start, stop), k))
                costs = [float(naive(denoiser, ids, start // 3 * 3, list(s)).sum()) for s in subsets]
                exact += sum(costs) / len(costs) * n / k / n
    got = likelihood.bound(denoiser, blocks, samples=1000, seed=1)
    assert got.tokens == 12 and got.stderr < 0.05
    assert abs(got.nats - exact / 12) < 4 * got.stderr  # 4 sigma, fixed seed
    assert (
        got.levels[4] is not None and got.levels[0] is None
    )  # one of two tokens masked; never fewer than one of three


def test_left_to_right_of_a_block_model(model):
    denoiser = blockwise(model, 3)
    blocks = torch.tensor([[0, 9, 4, 31, 8, 17, 5]])
    total = 0.0
    for start, stop in ((1, 3), (3, 6), (6, 7)):
        for j in range(start, stop):
            total += float(naive(denoiser, blocks[0], start // 3 * 3, list(range(j, stop)))[0])
    got = likelihood.left_to_right(denoiser, blocks)
    assert got.nats == pytest.approx(total / 6, abs=2e-5)  # twice the columns: another order of summation
    assert (got.tokens, got.stderr) == (6, 0.0)


def test_blocks_of_one_are_the_causal_view_and_one_block_is_full_attention(model):
    blocks = torch.randint(1, 59, (3, 12), generator=torch.Generator().manual_seed(0))
    whole, ones, one = Denoiser(model, Record(60, 0)), blockwise(model, 1), blockwise(model, 12)
    causal = likelihood.autoregressive(whole, blocks).nats
    of_ones = likelihood.bound(ones, blocks, samples=4)
    assert of_ones.nats == pytest.approx(causal, abs=2e-5) and of_ones.stderr == 0
    assert likelihood.left_to_right(ones, blocks).nats == pytest.approx(causal, abs=2e-5)
    a, b = (likelihood.bound(d, blocks, samples=8, seed=3) for d in (whole, one))
    assert a.nats == pytest.approx(b.nats, abs=2e-5)
    a, b = (likelihood.left_to_right(d, blocks) for d in (whole, one))
    assert a.nats == pytest.approx(b.nats, abs=2e-5)


def test_levels_of_the_bound_add_up_to_it(denoiser):
    """With k uniform, the mean over levels of the cost of a masked token is the bound itself."""
    blocks = torch.randint(1, 59, (4, 41), generator=torch.Generator().manual_seed(0))
    got = likelihood.bound(denoiser, blocks, samples=400)
    levels = [level for level in got.levels if level is not None]
    assert len(levels) == 10
    assert sum(levels) / 10 == pytest.approx(got.nats, abs=4 * got.stderr)


def test_left_to_right_at_some_positions_estimates_it(denoiser):
    blocks = torch.randint(1, 59, (20, 17), generator=torch.Generator().manual_seed(0))
    exact, some = likelihood.left_to_right(denoiser, blocks), likelihood.left_to_right(denoiser, blocks, forwards=4)
    assert some.tokens == 80 and exact.tokens == 20 * 16
    assert 0 < some.stderr < 0.2 and abs(some.nats - exact.nats) < 4 * some.stderr
    assert likelihood.left_to_right(denoiser, blocks, forwards=4) == some
    assert likelihood.left_to_right(denoiser, blocks, forwards=99) == exact


def test_the_future_counts_exactly_where_it_is_seen(model, denoiser, monkeypatch):
    blocks = torch.randint(1, 59, (6, 20), generator=torch.Generator().manual_seed(0))
    gain, error = likelihood.future(denoiser, blocks)
    assert gain != 0 and error > 0
    assert likelihood.future(blockwise(model, 1), blocks)[0] == pytest.approx(0, abs=1e-6)  # float error of a mean
    assert abs(likelihood.future(blockwise(model, 5), blocks)[0]) > 1e-4
    original = Denoiser._mask

    def causal(self, visible, rows, columns, batch):
        return original(self, visibility.causal(rows.shape[-1]), rows, columns, batch)

    monkeypatch.setattr(Denoiser, "_mask", causal)
    assert likelihood.future(denoiser, blocks)[0] == 0


def test_what_a_text_is_like():
    ids = torch.tensor([[0, 1, 2, 3, 4, 1, 2, 3, 4], [0, 5, 5, 5, 5, 5, 5, 5, 5]])
    assert generation.repeated(ids) == pytest.approx((1 / 5 + 4 / 5) / 2)  # five 4-grams each
    assert generation.repeated(ids, n=2) == pytest.approx((3 / 7 + 6 / 7) / 2)
    assert generation.repeated(ids[:, :4]) == 0
    assert generation.share(ids, 5) == 0.5 and generation.share(ids, 0) == 0
    assert generation.entropy(ids) == pytest.approx(math.log(4) / 2)
    drawn = torch.randint(0, 50, (40, 51), generator=torch.Generator().manual_seed(0))
    assert generation.unigram_entropy(drawn) == pytest.approx(math.log(50), abs=0.005)  # uncorrected it is 0.012 below


def test_samples_of_a_block_model_see_what_is_finished(model, monkeypatch):
    """Block by block: at each forward everything before the block is filled, and nothing after it is asked for."""
    seen = []
    original = filling.tiled

    def watching(denoiser):
        denoise = original(denoiser)

        def call(ids, where, present=None):
            seen.append((ids.clone(), where.clone()))
            return denoise(ids, where, present)

        return call

    monkeypatch.setattr(filling, "tiled", watching)
    options = {"steps": 6, "sampler": "random", "temperature": 1.0}
    ids = generation.unconditional(blockwise(model, 4), 2, 10, cache="none", **options)
    assert ids.shape == (2, 10) and not (ids == 60).any() and (ids[:, 0] == 0).all()
    first = [int(where.any(0).nonzero()[0]) // 4 * 4 for _, where in seen]
    assert first == [0, 0, 4, 4, 4, 8]  # steps in proportion to the tokens of a block: BOS is none
    for start, (canvas, where) in zip(first, seen, strict=True):
        assert not (canvas[:, :start] == 60).any() and (canvas[where] == 60).all()
        assert not where[:, :start].any() and not where[:, start + 4 :].any()
    assert torch.equal(ids, generation.unconditional(blockwise(model, 4), 2, 10, **options))  # and with the cache


def test_the_report_is_one_file_and_escapes_what_it_shows(tmp_path: Path):
    rows = [{"step": 0, "eval_parent": 1.0, "eval_bound": 5.0}, {"step": 10, "tokens": 1000, "loss": 4.0}]
    rows += [{"step": 10, "eval_bound": 4.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text("data: <b>.txt\n")
    page = write_report(tmp_path, "a & b", {"bound": 4.0}, table(["x"], [["<i>"]])).read_text()
    assert "a &amp; b" in page and "&lt;b&gt;.txt" in page and "&lt;i&gt;" in page
    assert "<svg" in page and "http" not in page and "<script" not in page
