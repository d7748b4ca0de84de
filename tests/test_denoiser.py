"""The denoiser on real architectures: who sees whom, which row predicts which token, what it costs, what it leaves alone."""

import contextlib
import copy
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import DynamicCache

from diffulm import visibility
from diffulm.denoiser import head
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Clean, Denoiser, evaluating
from diffulm.denoiser.layers import recompute
from diffulm.denoiser.probe import influence
from models import LLAMA, VOCABULARY, WINDOW, WINDOWS, build, ids

LENGTH = 14  # beyond the reach of two sliding layers: 2 * (WINDOW - 1) = 8
REQUIRED = ("gpt2", "llama", "mistral", "qwen2", "qwen2_windowed", "qwen3_mixed")
OTHERS = ("opt", "cohere", "gemma2", "gptj")
VISIBLE = {
    "causal": visibility.causal(LENGTH),
    "full": visibility.full(LENGTH),
    "annealed": visibility.annealed(LENGTH, 0.05, seed=1, step=2),
    "block-causal": visibility.block_causal(LENGTH, 4),
    "mirrored": visibility.causal(LENGTH).T,
}
# Logits have a standard deviation of about 0.5; another kernel rounds them by up to 1e-6, a wrong mask moves them by 0.01.
ROUNDING = 5e-6


CHUNK = 3 * (VOCABULARY + 1) + 1  # elements of logits: three rows at once


def adopted(family: str, **options) -> Denoiser:
    return adopt(build(family), **options)[0]


def rows_of(denoiser: Denoiser, tokens: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.rows(tokens, visible)


def some(tokens: torch.Tensor, seed: int = 0) -> torch.Tensor:
    where = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    where[:, 0] = False
    return where


# --- who sees whom ---


def reached(visible: torch.Tensor, windows: list[int | None]) -> torch.Tensor:
    """[q, k]: token k reaches output q through layers that see `visible` within their windows."""
    position = torch.arange(len(visible))
    found = torch.eye(len(visible), dtype=torch.bool)
    for window in windows:
        near = (position[:, None] - position[None]).abs() < (window or len(visible))
        step = (visible & near) | torch.eye(len(visible), dtype=torch.bool)
        found = (step.double() @ found.double()) > 0
    return found


@pytest.mark.parametrize("name", VISIBLE)
@pytest.mark.parametrize("family", REQUIRED + OTHERS)
def test_influence_is_what_was_asked_for(family, name):
    windows = WINDOWS.get(family, [None, None])
    found = influence(adopted(family), LENGTH, VISIBLE[name])
    assert torch.equal(found, reached(VISIBLE[name], windows))
    if name == "full" and windows == [WINDOW, WINDOW]:
        assert not found.all()  # the case speaks of the window at all


@pytest.mark.parametrize("name", VISIBLE)
@pytest.mark.parametrize("family", ["mistral", "qwen2_windowed", "qwen3_mixed"])
def test_a_window_can_be_lifted(family, name):
    found = influence(adopted(family, window="lift"), LENGTH, VISIBLE[name])
    assert torch.equal(found, reached(VISIBLE[name], [None, None]))


@pytest.mark.parametrize("family", REQUIRED + OTHERS)
def test_the_causal_view_is_the_parent(family):
    model, tokens = build(family), ids()
    with torch.no_grad():
        own = model(input_ids=tokens).logits
        ours = adopt(model)[0].causal_view(tokens)
    assert ours.shape == (*tokens.shape, VOCABULARY + 1)
    assert (ours[..., VOCABULARY] == -torch.inf).all()
    torch.testing.assert_close(ours[..., :VOCABULARY], own, atol=ROUNDING, rtol=0)


def test_visible_may_differ_by_row():
    denoiser, tokens = adopted("qwen3_mixed"), ids(3)
    each = torch.stack([VISIBLE["causal"], VISIBLE["full"], VISIBLE["annealed"]])
    together = rows_of(denoiser, tokens, each)
    for row, visible in enumerate(each):
        alone = rows_of(denoiser, tokens[row : row + 1], visible)
        torch.testing.assert_close(together[row : row + 1], alone, atol=ROUNDING, rtol=0)


def test_visible_none_is_what_the_record_says():
    denoiser, tokens = adopted("llama"), ids()
    block = Denoiser(denoiser.model, replace(denoiser.record, attention="block", block_size=4))
    for one, name in ((denoiser, "full"), (block, "block-causal")):
        with torch.no_grad():
            assert torch.equal(one(tokens), one(tokens, VISIBLE[name]))
    assert not torch.equal(denoiser(tokens), block(tokens))


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_packed_documents_do_not_see_each_other(family):
    denoiser, first, second = adopted(family), ids(1, 9), ids(1, 12, seed=1)
    documents = torch.tensor([[0] * 9 + [1] * 12])
    positions = torch.cat([torch.arange(9), torch.arange(12)])[None]
    where = torch.ones(1, 21, dtype=torch.bool)
    where[0, [0, 9]] = False  # with shift nothing inside a document predicts its first token
    packed = torch.cat([first, second], 1)
    with torch.no_grad():
        together = denoiser(packed, visibility.same_document(documents), where, positions)
        apart = torch.cat([denoiser(first), denoiser(second)])
    torch.testing.assert_close(together[:, :VOCABULARY], apart[:, :VOCABULARY], atol=ROUNDING, rtol=0)


def test_a_window_goes_by_position():
    """[clean; noisy]: the second copy looks at the first one's past, which is near by position, far by index."""
    denoiser, tokens, length = adopted("mistral"), ids(1), LENGTH
    causal, itself = VISIBLE["causal"], torch.eye(length, dtype=torch.bool)
    visible = torch.cat([torch.cat([causal, itself & ~itself], 1), torch.cat([causal & ~itself, itself], 1)])
    positions = torch.arange(length).repeat(2)[None]
    where = torch.ones(1, 2 * length, dtype=torch.bool)
    where[0, 0] = False
    with torch.no_grad():
        twice = denoiser(tokens.repeat(1, 2), visible, where, positions)[length:, :VOCABULARY]
        once = denoiser(tokens, causal)[:, :VOCABULARY]
    torch.testing.assert_close(twice, once, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen3_mixed"])
def test_a_cached_prefix_and_a_block_equal_one_pass(family):
    denoiser, tokens, size = adopted(family), ids(2, 12), 4
    visible = visibility.block_causal(12, size)
    cache = DynamicCache()
    with torch.no_grad():
        whole = denoiser(tokens, visible).view(2, 11, -1)
        first = denoiser(tokens[:, :8], visible[:8, :8], cache=cache).view(2, 7, -1)
        second = denoiser(tokens[:, 8:], visible[8:], cache=cache).view(2, 3, -1)
    torch.testing.assert_close(first, whole[:, :7], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(second, whole[:, 8:], atol=ROUNDING, rtol=0)


# --- which row, which logits ---


@pytest.mark.parametrize("family", REQUIRED + OTHERS)
def test_where_speaks_of_targets(family):
    denoiser, tokens = adopted(family), ids(3)
    where = some(tokens)
    whole = rows_of(denoiser, tokens, VISIBLE["annealed"])
    with torch.no_grad():
        asked = denoiser(tokens, VISIBLE["annealed"], where)
    expected = whole[:, :-1][where[:, 1:]]  # row j - 1 for the token at j, row-major
    assert asked.shape == (int(where.sum()), VOCABULARY + 1)
    torch.testing.assert_close(asked[:, :VOCABULARY], expected[:, :VOCABULARY], atol=ROUNDING, rtol=0)


def test_where_without_shift():
    denoiser, tokens = adopted("llama"), ids()
    still = Denoiser(denoiser.model, replace(denoiser.record, shift=False, bos_token_id=None, emit_mask=True))
    whole = rows_of(still, tokens, VISIBLE["full"])
    with torch.no_grad():
        assert still(tokens).shape == (tokens.numel(), VOCABULARY + 1)
        torch.testing.assert_close(still(tokens), whole.flatten(0, 1), atol=ROUNDING, rtol=0)
        where = torch.zeros_like(tokens, dtype=torch.bool)
        where[1, 0] = True
        torch.testing.assert_close(still(tokens, where=where), whole[1, :1], atol=ROUNDING, rtol=0)


def test_position_0_is_not_predicted_with_shift():
    denoiser, tokens = adopted("gpt2"), ids()
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[1, 0] = True
    with pytest.raises(ValueError, match="position 0"):
        denoiser(tokens, where=where)
    with pytest.raises(ValueError, match="position 0"):
        denoiser.cross_entropy(tokens, tokens[where], where)
    assert not denoiser.predictable(tokens)[:, 0].any()
    assert denoiser.predictable(tokens)[:, 1:].all()


def test_masks_of_the_wrong_kind_are_refused():
    denoiser, tokens = adopted("gpt2"), ids()
    for visible in (VISIBLE["full"][:5], VISIBLE["full"][None, None]):
        with pytest.raises(ValueError, match="`visible` must be bool of shape"):
            denoiser(tokens, visible)
    # Past the shape checks of the tests: a float is an additive mask to transformers, an int an index to torch.
    with pytest.raises(ValueError, match="`visible` must be bool"):
        denoiser._mask(
            VISIBLE["full"].float(), torch.arange(tokens.shape[1]), torch.arange(tokens.shape[1]), len(tokens)
        )
    for where in (torch.ones_like(tokens), torch.ones(2, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="`where` must be bool of shape"):
            denoiser._rows(tokens, where)


def test_nothing_asked_nothing_given():
    denoiser, tokens = adopted("llama"), ids()
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    assert denoiser(tokens, where=nothing).shape == (0, VOCABULARY + 1)
    loss = denoiser.cross_entropy(tokens, tokens[nothing], nothing)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in denoiser.model.parameters())


def test_the_mask_is_never_predicted_unless_it_is_a_word():
    dedicated, reused, tokens = adopted("llama"), adopted("llama", mask_token=7), ids()
    assert (dedicated.record.mask_token_id, dedicated.record.emit_mask) == (VOCABULARY, False)
    assert (reused.record.mask_token_id, reused.record.emit_mask) == (7, True)
    for logits in (dedicated(tokens), dedicated.causal_view(tokens)):
        assert (logits[..., VOCABULARY] == -torch.inf).all()
        assert logits[..., :VOCABULARY].isfinite().all()
    assert reused(tokens).isfinite().all()
    assert reused.causal_view(tokens).isfinite().all()
    assert rows_of(dedicated, tokens, VISIBLE["full"]).isfinite().all()  # raw logits stay available


# --- cross-entropy ---


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "qwen3_mixed"])
def test_chunked_cross_entropy_is_that_of_the_logits(family, monkeypatch):
    denoiser, tokens = adopted(family), ids(3)
    where = some(tokens)
    targets = tokens[where]
    plain = F.cross_entropy(denoiser(tokens, VISIBLE["annealed"], where), targets, reduction="none")
    plain.square().sum().backward()  # unequal weights, so that a permutation of the targets would show
    expected = gradients(denoiser.model)

    rows = []

    def count(head, args, out):
        if out.dim() == 2:  # the outermost output is the losses, (n,)
            rows.append(len(out))

    monkeypatch.setattr(head, "CHUNK_ELEMENTS", CHUNK)
    handle = denoiser.model.get_output_embeddings().register_forward_hook(count)
    chunked = denoiser.cross_entropy(tokens, targets, where, VISIBLE["annealed"])
    assert chunked.dtype == torch.float32
    # float32 sums in another order: 1e-6 on losses of 4 nats and on gradients of the order 1
    torch.testing.assert_close(chunked, plain, atol=5e-6, rtol=0)
    rows.clear()
    denoiser.cross_entropy(tokens, targets, where, VISIBLE["annealed"]).square().sum().backward()
    for found, wanted in zip(gradients(denoiser.model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    assert max(rows) == 3  # the full logits never existed, not in the backward pass either
    assert sum(rows) >= 2 * len(targets)
    handle.remove()


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gptj", "cohere"])  # tied; untied; a bias; logits scaled
@pytest.mark.parametrize("size", [CHUNK, 2**24])
def test_the_weighed_loss_and_its_gradients_are_those_of_the_cross_entropy(family, size, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", size)
    monkeypatch.setattr(head, "SLICE", 10 if size == CHUNK else head.SLICE)
    denoiser, tokens = adopted(family), ids(3)
    where = some(tokens)
    weights = torch.rand(int(where.sum())) / 7
    expected = (denoiser.cross_entropy(tokens, tokens[where], where, VISIBLE["annealed"]) * weights).sum()
    (3 * expected).backward()
    wanted = gradients(denoiser.model)
    loss, _ = denoiser.weighed_loss(tokens, tokens[where], where, weights, VISIBLE["annealed"])
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # a sum of floats in another order
    for found, want in zip(gradients(denoiser.model), wanted, strict=True):
        torch.testing.assert_close(found, want, atol=2e-6, rtol=1e-4)  # the same, on gradients of the order 0.1
    with torch.no_grad():
        again, _ = denoiser.weighed_loss(tokens, tokens[where], where, weights, VISIBLE["annealed"])
    torch.testing.assert_close(again, loss.detach(), rtol=1e-6, atol=0)


def test_the_weighed_loss_under_autocast_and_with_a_frozen_head(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", CHUNK)
    denoiser, tokens = adopted("llama"), ids(3)
    where, weights = some(tokens), torch.rand(int(some(tokens).sum()))
    found = {}
    for name, frozen in (("plain", False), ("fused", False), ("frozen", True)):
        denoiser.model.get_output_embeddings().weight.requires_grad_(not frozen)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if name == "plain":
                loss = (denoiser.cross_entropy(tokens, tokens[where], where) * weights).sum()
            else:
                loss, _ = denoiser.weighed_loss(tokens, tokens[where], where, weights)
        loss.backward()
        head_gradient = denoiser.model.get_output_embeddings().weight.grad
        assert (head_gradient is None) == frozen
        found[name] = [loss.detach(), denoiser.model.model.layers[0].self_attn.q_proj.weight.grad, head_gradient]
        denoiser.model.zero_grad()
    # bfloat16 keeps 8 bits: products that are rounded in another order differ by a few of 2**-8
    for one, other in zip(found["fused"], found["plain"], strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02 * float(other.abs().max()))
    torch.testing.assert_close(found["frozen"][1], found["fused"][1], rtol=0, atol=0)


def test_a_loss_of_nothing_is_zero_and_so_are_its_gradients():
    denoiser, tokens = adopted("llama"), ids(2)
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    loss, _ = denoiser.weighed_loss(tokens, tokens[nowhere], nowhere, torch.zeros(0))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not gradient.any() for gradient in gradients(denoiser.model))


def in_place(model):
    """Logits that are scaled where they lie."""
    right = model.forward

    def forward(input_ids=None, attention_mask=None, position_ids=None, **options):
        out = right(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **options)
        out.logits.mul_(3)
        return out

    model.forward = forward
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "cohere", "in place"])
def test_what_follows_the_head_is_not_forgotten(family):
    """gemma2 soft-caps its logits, cohere scales them: their projection alone would be something else."""
    tokens = ids()
    denoiser = adopt(in_place(build("llama")))[0] if family == "in place" else adopted(family)
    where = some(tokens)
    assert denoiser._chunkable() is (family in ("gpt2", "llama"))
    logits = rows_of(denoiser, tokens, VISIBLE["full"])[:, :-1][where[:, 1:]][:, :VOCABULARY]
    expected = F.cross_entropy(logits, tokens[where], reduction="none")
    with torch.no_grad():
        torch.testing.assert_close(denoiser.cross_entropy(tokens, tokens[where], where), expected, atol=5e-6, rtol=0)


def test_the_cost_of_a_reused_mask_token_is_finite():
    denoiser, tokens = adopted("llama", mask_token=7), ids()
    tokens[0, 3] = 7
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[0, 3] = True
    assert denoiser.cross_entropy(tokens, tokens[where], where).isfinite().all()


# --- what is left alone ---


def test_the_model_works_as_before():
    model, tokens = build("gpt2"), ids()
    with torch.no_grad():
        own = model(input_ids=tokens).logits
        denoiser = adopt(model)[0]
        denoiser(tokens)
        again = model(input_ids=tokens).logits
    assert again.shape == (*tokens.shape, VOCABULARY + 1)
    torch.testing.assert_close(again[..., :VOCABULARY], own, atol=ROUNDING, rtol=0)


def test_a_deep_copy_is_a_model_of_its_own():
    denoiser, tokens = adopted("gpt2"), ids()
    where = some(tokens)
    with torch.no_grad():
        before = denoiser(tokens, where=where)
        other = Denoiser(copy.deepcopy(denoiser.model), denoiser.record)
        assert torch.equal(other(tokens, where=where), before)
        head = other.model.get_output_embeddings()
        assert len(head._forward_pre_hooks) == len(head._forward_hooks) == 1
        other.model.transformer.wpe.weight.zero_()
        assert not torch.equal(other(tokens, where=where), before)
        assert torch.equal(denoiser(tokens, where=where), before)


def test_two_threads_ask_one_model():
    denoiser = adopted("llama")
    asked = []
    for seed in range(2):
        tokens = ids(2, 10 + 3 * seed, seed=seed)
        asked.append((tokens, some(tokens, seed)))
    with torch.no_grad():
        expected = [denoiser(tokens, where=where) for tokens, where in asked]
    losses = [denoiser.cross_entropy(tokens, tokens[where], where).detach() for tokens, where in asked]
    wrong, ready = [], threading.Barrier(3)

    def ask(index: int) -> None:
        tokens, where = asked[index]
        ready.wait()
        for _ in range(60):
            with torch.no_grad():
                if not torch.equal(denoiser(tokens, where=where), expected[index]):
                    wrong.append(index)
                if not torch.equal(denoiser.cross_entropy(tokens, tokens[where], where), losses[index]):
                    wrong.append(index)

    def plain() -> None:
        ready.wait()
        for _ in range(120):
            with torch.no_grad():
                if denoiser.model(input_ids=asked[0][0]).logits.shape[:2] != asked[0][0].shape:
                    wrong.append("plain")

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)] + [threading.Thread(target=plain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_probing_restores_every_flag():
    model = build("gpt2").train()
    model.transformer.h[0].eval()  # frozen by its owner
    flags = [m.training for m in model.modules()]
    denoiser = adopt(model)[0]
    denoiser._chunkable()
    influence(denoiser, 4)
    assert [m.training for m in model.modules()] == flags
    assert any(flags)
    assert not all(flags)
    with contextlib.suppress(RuntimeError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise RuntimeError
    assert [m.training for m in model.modules()] == flags
    assert not torch.equal(denoiser(ids()), denoiser(ids()))  # dropout is on again


def test_a_wrapper_is_called_and_its_model_asked():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module, self.calls = inner, 0

        def forward(self, **options):
            self.calls += 1
            return self.module(**options)

    denoiser, tokens = adopted("llama"), ids()
    where = some(tokens)
    wrapper = Wrapper(denoiser.model)
    loss = denoiser.on(wrapper).cross_entropy(tokens, tokens[where], where)
    assert wrapper.calls == 1  # one root call; nothing is measured again for each wrapped copy
    assert torch.equal(loss, denoiser.cross_entropy(tokens, tokens[where], where))
    assert Denoiser(wrapper, denoiser.record).model is denoiser.model


MOE = LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "output_router_logits": True}


def test_the_load_balancing_loss_stays_as_the_parent_had_it():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**MOE, router_aux_loss_coef=0.5)).eval()
    tokens = ids()
    with evaluating(model):
        own = model(input_ids=tokens)  # causal, its own way
    denoiser, _ = adopt(model)
    assert model.config.output_router_logits  # the checkpoint says what the parent's said
    where = denoiser.predictable(tokens)
    targets, weights, causal = tokens[where], torch.rand(int(where.sum())), visibility.causal(tokens.shape[1])
    loss, balance = denoiser.weighed_loss(tokens, targets, where, weights, causal)
    assert torch.allclose(balance, 0.5 * own.aux_loss, rtol=1e-5)  # another kernel for the same matrix
    expected = (weights * denoiser.cross_entropy(tokens, targets, where, causal)).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # a sum of floats in another order
    balance.backward()
    assert model.model.layers[0].mlp.gate.weight.grad.abs().sum() > 0
    model.config.output_router_logits = False
    assert denoiser.weighed_loss(tokens, targets, where, weights)[1] is None


# --- a clean copy beside the canvas: block-causal training ---

CLEAN_FAMILIES = ["gpt2", "llama", "mistral", "qwen3_mixed", "opt", "gemma2"]


def masked_canvas(denoiser, tokens, seed=1):
    """(canvas, where): about half of the free positions masked."""
    where = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    where[:, 0] = False
    return tokens.masked_fill(where, denoiser.record.mask_token_id), where


def test_clean_context_is_what_it_says():
    seen = visibility.clean_context(6, 2)
    block = [0, 0, 1, 1, 2, 2]
    for q in range(12):
        for k in range(12):
            own, other = block[q % 6], block[k % 6]
            noisy = own == other if k < 6 else other < own
            clean = k >= 6 and other <= own
            assert bool(seen[q, k]) == (noisy if q < 6 else clean)


@pytest.mark.parametrize("family", CLEAN_FAMILIES)
def test_blocks_of_one_are_exactly_the_ar_model(family):
    denoiser, tokens = adopted(family), ids()
    canvas = torch.full_like(tokens, denoiser.record.mask_token_id)
    canvas[:, 0] = tokens[:, 0]
    where = denoiser.predictable(tokens)
    blocks = denoiser.cross_entropy(canvas, tokens[where], where, clean=Clean(tokens, 1))
    causal = denoiser.cross_entropy(tokens, tokens[where], where, visibility.causal(LENGTH))
    assert torch.allclose(blocks, causal, atol=1e-5)  # twice the columns: another order of summation
    # nothing of the noisy copy is read: the tokens on it do not matter
    assert torch.equal(blocks, denoiser.cross_entropy(tokens, tokens[where], where, clean=Clean(tokens, 1)))


@pytest.mark.parametrize("family", CLEAN_FAMILIES)
@pytest.mark.parametrize("size", [3, 4])
def test_a_block_beside_its_clean_copy_is_the_block_after_a_clean_prefix(family, size):
    """What decoding will see: everything before the block clean, the block noisy, nothing after it."""
    denoiser, tokens = adopted(family), ids()
    canvas, where = masked_canvas(denoiser, tokens)
    together = denoiser(canvas, where=where, clean=Clean(tokens, size))
    at = where.nonzero()[:, 1]
    for start in range(0, LENGTH, size):
        end = min(start + size, LENGTH)
        prefix = torch.cat([tokens[:, :start], canvas[:, start:end]], 1)
        inside = where[:, :end] & (torch.arange(end) >= start)
        alone = denoiser(prefix, visibility.block_causal(end, size), inside)
        assert torch.allclose(together[(at >= start) & (at < end)], alone, atol=2e-5)  # as above, on logits


def test_a_clean_copy_within_a_document():
    """Documents packed together stay apart: each beside its clean copy as if it were alone."""
    denoiser, tokens = adopted("llama"), ids()
    canvas, where = masked_canvas(denoiser, tokens)
    where[:, 8] = False  # the second document's first token: its BOS
    cut = torch.tensor([[0] * 8 + [1] * (LENGTH - 8)]).expand_as(tokens)
    positions = torch.cat([torch.arange(8), torch.arange(LENGTH - 8)]).expand_as(tokens)
    documents = visibility.same_document(cut)
    together = denoiser(canvas, documents, where, positions, clean=Clean(tokens, 4))
    alone = denoiser(canvas[:, 8:], where=where[:, 8:], clean=Clean(tokens[:, 8:], 4))
    assert torch.allclose(together[where.nonzero()[:, 1] >= 8], alone, atol=2e-5)


def test_a_clean_copy_needs_positions():
    denoiser, tokens = Denoiser(build("llama"), adopted("llama").record), ids()
    denoiser._takes_positions = False
    with pytest.raises(ValueError, match="a clean copy needs a family that takes positions"):
        denoiser(tokens, clean=Clean(tokens, 4))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "qwen3_mixed", "mistral"])
def test_no_mask_where_everything_is_visible(family, monkeypatch):
    denoiser, tokens = adopted(family), ids(3)
    wanted, matrix = denoiser(tokens), denoiser(tokens, VISIBLE["annealed"])
    masks = []
    plain = F.scaled_dot_product_attention

    def spy(*args, attn_mask=None, is_causal=False, **options):
        masks.append((attn_mask is None, is_causal))
        return plain(*args, attn_mask=attn_mask, is_causal=is_causal, **options)

    quick = denoiser.quick()
    quick.cross_entropy(tokens, tokens[some(tokens)], some(tokens))  # measures the head, once
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    recompute(quick.model)
    quick.model.train()
    where = some(tokens)
    loss, _ = quick.weighed_loss(tokens, tokens[where], where, torch.ones(int(where.sum())))
    loss.backward()
    quick.model.eval()
    everywhere = [no_mask for no_mask, _ in masks]
    windowed = {"qwen3_mixed": 1, "mistral": 2}.get(family, 0)  # layers that slide keep their matrix
    count = quick.config.num_hidden_layers
    assert everywhere.count(False) * count == windowed * len(masks) and len(masks) == 2 * count
    assert not any(causal for _, causal in masks)
    with torch.no_grad():
        torch.testing.assert_close(quick(tokens), wanted, atol=ROUNDING, rtol=0)
        torch.testing.assert_close(quick(tokens, VISIBLE["annealed"]), matrix, atol=0, rtol=0)
