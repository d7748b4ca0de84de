"""What a model costs: hand-computed figures, published ones, and memory against what PyTorch keeps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from diffulm import costs, visibility
from diffulm.checkpoint.outline import geometry
from diffulm.costs import (
    CARDS,
    Geometry,
    Method,
    estimates,
    flop_parts,
    flops,
    hours,
    inference_memory,
    training_memory,
)
from diffulm.denoiser import adapter, head
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.layers import recompute
from diffulm.denoiser.record import Record
from diffulm.denoiser.tile import tile_rows
from memory import of_a_step
from models import build

TINY = Geometry(
    layers=2, attention_layers=2, width=8, heads=2, kv_heads=1, head_width=4, intermediate=16, vocabulary=32, tied=True,
    parameters=1256, active_parameters=1256, embedding_parameters=256,
)  # fmt: skip
LLAMA_7B = Geometry(
    layers=32, attention_layers=32, width=4096, heads=32, kv_heads=32, head_width=128, intermediate=11008,
    vocabulary=32000, tied=False, parameters=6_738_415_616, active_parameters=6_738_415_616,
    embedding_parameters=2 * 32000 * 4096, context=4096,
)  # fmt: skip


def test_flops_by_hand():
    parts = flop_parts(TINY, tokens=10, length=5)
    assert parts == {
        "weights": 6 * 1000 * 10,
        "attention": 12 * 2 * (2 * 4) * 5 * 10,
        "vocabulary": 6 * 8 * 32 * 5,  # of ten tokens five are masked
    }
    assert flops(TINY, 10, 5) == sum(parts.values())


def test_flops_follow_what_is_computed():
    assert flops(TINY, 30, 5) == 3 * flops(TINY, 10, 5)
    longer = flop_parts(TINY, 10, 50)
    assert longer["attention"] == 10 * flop_parts(TINY, 10, 5)["attention"]
    assert longer["weights"] == flop_parts(TINY, 10, 5)["weights"]
    assert flop_parts(replace(TINY, attention_layers=1), 10, 5)["attention"] * 2 == flop_parts(TINY, 10, 5)["attention"]
    idle = replace(TINY, active_parameters=656)
    assert flop_parts(idle, 10, 5)["weights"] == 6 * 400 * 10
    untied = replace(TINY, parameters=1512, active_parameters=1512, embedding_parameters=512, tied=False)
    assert flops(untied, 10, 5) == flops(TINY, 10, 5)  # an output embedding costs the same, tied or not


def test_the_7b_run_of_the_paper():
    """65B tokens at 2,048 positions: the rule of thumb (6 x parameters x tokens) says 2.6e21; attention adds 8%, and only
    half of the tokens are projected onto the vocabulary."""
    total = flops(LLAMA_7B, 65 * 10**9, 2048)
    assert total == pytest.approx(6 * 6.74e9 * 65e9, rel=0.06)
    assert flop_parts(LLAMA_7B, 65 * 10**9, 2048)["attention"] / total == pytest.approx(0.076, abs=0.001)
    # 64 GH200 have the peak of as many H100: a day and a quarter at 40%
    assert hours(total, CARDS["H100 SXM"], 64, 0.4) == pytest.approx(30.3, abs=0.1)
    # why it needed sharding: the state alone is 108 GB, on 64 devices less than 2 GB each
    whole, part = (training_memory(LLAMA_7B, 2048, method=Method(shards=shards)) for shards in (1, 64))
    assert whole.total > CARDS["H100 SXM"].memory > part.total
    assert part.moments == pytest.approx(8 * LLAMA_7B.parameters / 64, rel=1e-6)
    # whole stay two layers and two embeddings in bfloat16, and the gradient of the head
    layers, head = 2 * (LLAMA_7B.parameters - 2 * 32000 * 4096) // 32, 32000 * 4096
    rest = 2 * (layers + 2 * head) + 4 * head
    assert part.total - part.activations - part.logits == pytest.approx(16 * LLAMA_7B.parameters / 64 + rest, rel=1e-3)


def test_hours():
    assert hours(3600 * 312e12, CARDS["A100 80GB"], 1, 1.0) == pytest.approx(1)
    assert hours(3600 * 312e12, CARDS["A100 80GB"], 8, 0.5) == pytest.approx(1 / 4)


def test_what_a_run_does_differently():
    """By hand, on ten tokens in canvases of five: see `test_flops_by_hand`."""
    plain = flop_parts(TINY, 10, 5)
    clean = flop_parts(TINY, 10, 5, Method(clean_share=1))  # two rows a token, pairs of twice the side, as many targets
    assert clean == {key: part * {"weights": 2, "attention": 4, "vocabulary": 1}[key] for key, part in plain.items()}
    half = flops(TINY, 10, 5, Method(clean_share=0.5))
    assert half == pytest.approx((sum(plain.values()) + sum(clean.values())) / 2)
    again = flop_parts(TINY, 10, 5, Method(ar_term=True))  # the same once more, for every token
    assert again == {key: part * {"weights": 2, "attention": 2, "vocabulary": 3}[key] for key, part in plain.items()}
    assert flop_parts(TINY, 10, 5, Method(predicted=1.0))["vocabulary"] == 2 * plain["vocabulary"]
    adapter = flop_parts(TINY, 10, 5, Method(adapter=100))  # no gradient of the weights, but of 100 others
    assert adapter["weights"] == 4 * 1000 * 10 + 6 * 100 * 10
    assert adapter["vocabulary"] == plain["vocabulary"] * 4 / 6
    assert flop_parts(TINY, 10, 5, Method(adapter=100, embeddings=True))["vocabulary"] == plain["vocabulary"]
    kept = flop_parts(TINY, 10, 5, Method(checkpointing=True))
    assert kept == plain | {"recomputation": (plain["weights"] + plain["attention"]) // 3}


def test_the_state_of_training():
    plain, mixed = (training_memory(TINY, 5, method=Method(mixed=mixed)) for mixed in (False, True))
    # and the gradient of the head by itself, before it is added to the others
    assert plain.weights + plain.gradients + plain.moments == 16 * 1256 + 4 * 8 * 32
    assert mixed.weights - plain.weights == 2 * 1256  # bfloat16 copies; the tied head is a matrix, too
    assert (mixed.gradients, mixed.moments) == (plain.gradients, plain.moments)
    assert mixed.activations < plain.activations
    assert training_memory(TINY, 5, micro_batch=3).activations == 3 * mixed.activations
    assert plain.total == plain.weights + plain.gradients + plain.moments + plain.activations + plain.logits
    assert plain.as_dict() == {"total": plain.total} | {
        name: getattr(plain, name) for name in ("weights", "gradients", "moments", "activations", "logits")
    }
    buckets, once = (training_memory(TINY, 5, method=m) for m in (Method(buckets=True), Method(accumulates=False)))
    assert buckets.total - mixed.total == 4 * 1256 and once.total < mixed.total


def test_an_adapter_takes_little_memory():
    full, low, packed = (
        training_memory(LLAMA_7B, 512, method=m)
        for m in (Method(), Method(adapter=40_000_000), Method(adapter=40_000_000, frozen_bytes=0.52))
    )
    assert low.gradients + low.moments == 12 * 40_000_000
    assert low.activations == pytest.approx(full.activations, rel=0.05)  # frozen weights keep activations as others do
    # 4 bits: of 27 GB a fourth of a half, but for the embeddings; no copies but of two layers and the head
    assert packed.weights < 0.2 * low.weights and packed.total < CARDS["RTX 4090"].memory < low.total
    trained = Method(adapter=40_000_000, embeddings=True)
    assert trained.trained(LLAMA_7B) == 40_000_000 + 2 * 32000 * 4096
    # LLaMA-7B has 40M of them at rank 16, as peft counts
    assert costs.low_rank_parameters(LLAMA_7B, 16) == 39_976_960


def test_logits_are_taken_in_chunks():
    assert (head.CHUNK_ELEMENTS, head.SLICE) == (costs.LOGITS_AT_ONCE, costs.SLICE)
    big = replace(TINY, vocabulary=10**6)
    few, many = (training_memory(big, 100, n, Method(accumulates=False)).logits for n in (1, 4))
    assert few == many == costs.LOGITS_AT_ONCE * 5 + 4 * 8 * costs.SLICE


def test_inference():
    assert tile_rows(Denoiser(build("llama"), Record(3, 1)), 32, 1) == costs.TILE_ROWS
    half, single = inference_memory(LLAMA_7B, 2048), inference_memory(LLAMA_7B, 2048, size=4)
    assert half.weights == 2 * LLAMA_7B.parameters
    assert single.weights == 2 * half.weights
    assert half.logits == 2048 * 32000 * (2 + 4 + 4)
    assert half.gradients == half.moments == 0
    assert half.total < CARDS["RTX 4090"].memory  # as people know it: a 7B model in 16 bits runs on 24 GB
    assert inference_memory(LLAMA_7B, 2048, rows=1).activations * 8 == half.activations


def kept(model, length, mixed):
    """Bytes that PyTorch saves for the backward pass, weights and their copies left out."""
    denoiser, held = Denoiser(model, Record(3, 1)), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = {p.numel() for p in model.parameters() if p.dim() == 2}

    def save(tensor):
        storage = tensor.untyped_storage()
        copy = mixed and tensor.dtype == torch.bfloat16 and storage.nbytes() // 2 in copies
        if storage.data_ptr() not in weights and not copy:
            held[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is used twice
        return tensor

    ids = torch.randint(4, 60, (1, length), generator=torch.Generator().manual_seed(0))
    where = torch.arange(length)[None] % 2 == 1
    denoiser._chunkable()  # a forward of its own, once
    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        denoiser.weighed_loss(ids, ids[where], where, torch.ones(length // 2), visibility.full(length))
    return sum(size for size, _ in held.values())


WIDE_LLAMA = {"hidden_size": 128, "intermediate_size": 352, "num_key_value_heads": 4}
WIDE_GPT2 = {"n_embd": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("family", "sizes"), [("llama", WIDE_LLAMA), ("gpt2", WIDE_GPT2)])
def test_activations_are_what_pytorch_keeps(family, sizes, mixed):
    """The difference of four layers and two, per layer. 15%: the estimate counts a LLaMA block's large tensors; casts,
    statistics and GPT-2's own order of things are left out."""
    name = {"llama": "num_hidden_layers", "gpt2": "n_layer"}[family]
    two, four = (build(family, **sizes | {name: layers}).train() for layers in (2, 4))
    layer = (kept(four, 48, mixed) - kept(two, 48, mixed)) / 2
    expected = 48 * costs._kept_for_backward(geometry(two), 48, 2 if mixed else 4)
    assert expected == pytest.approx(layer, rel=0.15)


# vocabulary, layers and length in such proportion that each of them matters
STEP = {"vocab_size": 4000, "num_hidden_layers": 6, "max_position_embeddings": 128} | WIDE_LLAMA
STEPS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "float32": {"mixed": False},
    "checkpointing": {"checkpointing": True},
    "accumulating": {"micro_batches": 2},
    "blocks": {"block_size": 8},
    "AR term": {"ar_term": True, "micro_batches": 2},
    "low rank": {"low_rank": 4},
}


@pytest.mark.parametrize(("name", "tied"), [*((name, True) for name in STEPS if name != "low rank"), ("mixed", False)])
def test_a_step_takes_what_is_expected(name, tied):
    """15%: what a plan is promised to be good for. At this size the AR term misses by 13%, the others by 10%."""
    measured, expected = step_of(build("llama", **STEP, tie_word_embeddings=tied), 8, 64, **STEPS[name])
    assert expected == pytest.approx(measured, rel=0.15)


def step_of(model, rows, length, mixed=True, checkpointing=False, micro_batches=1, low_rank=None, **more):
    """(measured, expected) bytes of a step."""
    if checkpointing:
        recompute(model)
    sizes = geometry(model)
    if low_rank:
        adapter.add_lora(model, None, low_rank, 2.0 * low_rank, seed=0)
        low_rank = sum(p.numel() for p in model.parameters() if p.requires_grad)
    denoiser = Denoiser(model, Record(3, 1))
    measured = of_a_step(denoiser, rows, length, mixed, micro_batches, **more)
    method = Method(
        mixed=mixed, checkpointing=checkpointing, accumulates=micro_batches > 1, adapter=low_rank,
        clean_share=float("block_size" in more), ar_term="ar_term" in more,
    )  # fmt: skip
    return measured, training_memory(sizes, length, rows, method).total


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "float32", "checkpointing", "accumulating", "low rank"])
def test_a_step_at_the_size_of_gpt_2(name):
    """4 x 512 tokens, as benchmarks/training.py takes them. Misses when written: 3 to 9% of all there is."""
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.random.fork_rng(devices=[]):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**still))
    measured, expected = step_of(model, 4, 512, **STEPS[name])
    assert expected == pytest.approx(measured, rel=0.15)


def test_scores_of_all_pairs_are_counted_where_they_are_held():
    eager = replace(LLAMA_7B, attention_matrix=True)
    more = training_memory(eager, 2048).activations - training_memory(LLAMA_7B, 2048).activations
    assert more >= 32 * 32 * 2048 * 2048 * (4 + 2)
    assert inference_memory(eager, 2048).activations > inference_memory(LLAMA_7B, 2048).activations


def test_the_document():
    found = estimates(LLAMA_7B, 10**9, 2048, utilisation=0.5)
    cost, memory = found["cost"], found["memory"]
    assert cost["flops"] == sum(cost["flops_by_part"].values()) == flops(LLAMA_7B, 10**9, 2048)
    assert cost["training_state_bytes"] == 16 * LLAMA_7B.parameters
    assert cost["utilisation"] == 0.5
    rows = {row["card"]: row for row in cost["cards"]}
    assert rows.keys() == CARDS.keys() and set(rows["H200"]["hours"]) == {"1", "8", "64"}
    for name, row in rows.items():
        assert row["hours"]["8"] == hours(cost["flops"], CARDS[name], 8, 0.5)
        room = 0.9 * CARDS[name].memory
        assert row["training_fits"] == (memory["training"]["mixed"]["total"] <= room)
        assert row["inference_fits"] == (memory["inference"]["bfloat16"]["total"] <= room)
    assert [row["inference_fits"] for row in cost["cards"]] == [True] * 4
    assert [row["training_fits"] for row in cost["cards"]] == [False] * 4
    small = estimates(replace(LLAMA_7B, parameters=10**9), 10**9, 2048)["cost"]["cards"]
    assert [row["training_fits"] for row in small] == [False, True, True, True]
    assert all(memory["assumptions"].values()) and all(cost["assumptions"].values())
