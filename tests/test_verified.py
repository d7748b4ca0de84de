"""Decoding that is exactly autoregressive, whatever drafts; the forward that reads ahead; adapters that act on masks alone."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import diffulm
from diffulm import visibility
from diffulm.checkpoint import adapter
from diffulm.checkpoint.load import load
from diffulm.checkpoint.save import save
from diffulm.denoiser.adapter import adapter_off, gated
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Clean
from diffulm.denoiser.drafting import STRENGTH, affinity, reader
from diffulm.options import checked
from diffulm.recipes.adapt import AdaptConfig, adapt
from diffulm.recipes.merge import merge
from diffulm.samplers.verified import Draft, Race, verified
from models import VOCABULARY, bad, build, ids, tokenizer, with_adapter

# -- laws, on a toy: three symbols, a draft that depends on everything -------------------------------------------------

FIRST = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
THEN = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]], dtype=torch.float64)
DRAWS = 1000


def chance(counts, expected) -> float:
    """p-value of the chi-squared test that the counts come from a law with these expectations."""
    expected = torch.as_tensor(expected).double()
    squares = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2), squares / 2))


def toy(drafter):
    """A `Read` of the chain FIRST, THEN (behind a BOS of 0), whose guesses are what `drafter(known, draft)` says."""

    def read(known, draft):
        def after(text):
            return (FIRST if len(text) == 1 else THEN[text[-1]]).log()

        paths = [known.tolist()]
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            paths.append([*paths[parent], token])
        exact = torch.stack([after(path) for path in paths])
        return exact, [drafter(path, size) for path, size in zip(paths, draft.ahead, strict=True)]

    return lambda: read


def all_equal(path, size):
    """All guesses put their mass on one symbol, which hangs on the text, so drafts are strongly dependent and mostly wrong."""
    return torch.full((size, 3), -9.0, dtype=torch.float64).index_fill(1, torch.tensor([sum(path) % 3]), 0.0)


def good(path, size):
    return THEN[path[-1]].log().expand(size, 3)


def texts(drafter, draft, seeds, length=4, **drawing):
    canvas, fixed = (
        torch.zeros(len(seeds), length, dtype=torch.int64),
        torch.zeros(len(seeds), length, dtype=torch.bool),
    )
    fixed[:, 0] = True
    return verified(toy(drafter), canvas, fixed, seeds=seeds, draft=draft, **drawing)


@pytest.mark.parametrize("drafter", [all_equal, good])
def test_the_text_is_the_same_whatever_drafts_and_however_much(drafter):
    seeds = [(7, row) for row in range(40)]
    alone, one_each = texts(all_equal, 0, seeds, length=9, temperature=1.0)
    assert bool((one_each == 8).all())
    for draft in (1, 2, 5):
        same, forwards = texts(drafter, draft, seeds, length=9, temperature=1.0)
        assert torch.equal(same, alone)
        assert bool((forwards < 8).any()), "something was settled by a draft, or this shows nothing"


TRUTH = FIRST[:, None] * THEN


@pytest.mark.parametrize("drafter", [all_equal, good])
def test_the_law_is_the_causal_view_s(drafter):
    found, _ = texts(drafter, 2, [(1, row) for row in range(DRAWS)], length=3, temperature=1.0)
    counts = torch.bincount(found[:, 1] * 3 + found[:, 2], minlength=9)
    assert chance(counts, DRAWS * TRUTH.flatten()) > 1e-3  # the seeds are fixed: this cannot come and go


def test_the_usual_rule_is_wrong_for_such_drafts():
    """The control: accept with min(1, p/q), drafts from two diffusion steps (the second token, then the first given it)."""
    joint = torch.tensor([[0.31, 0.01, 0.01], [0.01, 0.31, 0.01], [0.01, 0.01, 0.32]], dtype=torch.float64)
    second = joint.sum(0)
    q = joint / second  # of the first token, given the second
    law = torch.zeros(3, 3, dtype=torch.float64)
    for b in range(3):
        for a in range(3):
            taken = torch.minimum(q[a, b], FIRST[a]) * second[b]  # the first token stands, so the second is looked at
            kept = torch.minimum(torch.ones(()), THEN[a, b] / second[b])
            rest = (THEN[a] - second).clamp(min=0)
            law[a, b] += taken * kept
            law[a] += taken * (1 - kept) * rest / rest.sum()
            law[a] += second[b] * (FIRST[a] - q[a, b]).clamp(min=0) * THEN[a]  # it fell: what follows is drawn anew
    assert float(law.sum()) == pytest.approx(1) and torch.allclose(law.sum(1), FIRST)  # the first token is right, still
    assert float((law - TRUTH).abs().sum() / 2) > 0.05
    assert chance(DRAWS * law.flatten(), DRAWS * TRUTH.flatten()) < 1e-3, "so the test of the law would have seen it"


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ({"temperature": 0.5}, [0.4**2, 0.3**2, 0.2**2, 0.1**2]),
        ({"temperature": 1.0, "top_k": 2}, [0.4, 0.3, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.6}, [0.4, 0.3, 0, 0]),
        ({"temperature": 1.0, "min_p": 0.6}, [0.4, 0.3, 0, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.7}, [0.4, 0.3, 0, 0]),  # a share of what top-k has left
        ({"temperature": 1.0, "forbidden": (0,)}, [0, 0.3, 0.2, 0.1]),
    ],
)
def test_temperature_and_filters(drawing, expected):
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    drawn = Counter(int(Race(key, **drawing).scores(logits, 5).argmax()) for key in range(1500))
    counts, law = torch.tensor([drawn[v] for v in range(4)]), torch.tensor(expected)
    assert bool((counts[law == 0] == 0).all())
    assert chance(counts[law > 0], 1500 * law[law > 0] / law.sum()) > 1e-3


def test_no_number_no_token():
    with pytest.raises(FloatingPointError):
        Race(0).scores(torch.tensor([torch.nan, 0.0]), 3)
    with pytest.raises(FloatingPointError):
        Race(0, forbidden=(0, 1, 9)).scores(torch.zeros(2), 3)


def test_the_end_of_the_text_and_what_is_seen_of_it():
    frames = []
    seeds = [(3, row) for row in range(6)]
    whole, forwards = texts(good, 3, seeds, length=12, temperature=1.0)
    ended, fewer = texts(good, 3, seeds, 12, temperature=1.0, eos_token_id=2, pad_token_id=9, callback=frames.append)
    for one, other in zip(whole[:, 1:].tolist(), ended[:, 1:].tolist(), strict=True):
        end = one.index(2) + 1 if 2 in one else 11
        assert other == one[:end] + [9] * (11 - end)
    assert fewer.sum() < forwards.sum() and len(frames) == 1 + int(fewer.sum())
    last = frames[-1]
    assert not last.masked.any() and torch.equal(last.ids, ended) and torch.equal(last.step, fewer)
    assert bool((last.revealed[:, 0] == -1).all() and (last.revealed[:, 1] == 0).all())
    assert torch.equal(last.revealed.amax(1) + 1, fewer)
    assert torch.allclose(last.confidence[:, 1].double(), FIRST[ended[:, 1]])
    assert bool(last.confidence[ended == 9].isnan().all())


def test_rows_are_their_own_and_what_stands_behind_a_hole_is_refused():
    both, forwards = texts(good, 3, [(3, 0), (3, 1)], length=9, temperature=1.0)
    for row in range(2):
        alone, own = texts(good, 3, [(3, row)], length=9, temperature=1.0)
        assert torch.equal(alone[0], both[row]) and own[0] == forwards[row]
    fixed = torch.tensor([[True, False, True, False]])
    canvas = torch.zeros(1, 4, dtype=torch.int64)
    with bad("left to right"):
        verified(toy(good), canvas, fixed, seeds=[0])
    present = torch.tensor([[True, True, False, False]])
    padded, _ = verified(toy(good), canvas, ~present | torch.tensor([True, False, True, True]), present, seeds=[0])
    assert padded[0, 2:].tolist() == [0, 0]


# -- the forward that reads ahead --------------------------------------------------------------------------------------

TREES = [
    Draft((5, 6, 7), (0, 1, 2), (2, 0, 1, 3)),
    Draft((5, 6, 7, 8, 9), (0, 0, 2, 2, 1), (1, 1, 1, 0, 2, 1)),
    Draft(),
]


def double(family: str, shift: bool = True):
    denoiser, _ = adopt(build(family).double(), mask_token=str(VOCABULARY - 1), shift=shift)
    return denoiser


FAMILIES = [("llama", True), ("gpt2", True), ("gemma2", True), ("qwen3_mixed", True), ("llama", False)]


@pytest.mark.parametrize(("family", "shift"), FAMILIES)
@torch.no_grad()
def test_exact_logits_are_the_causal_view_s_after_every_path(family, shift):
    denoiser, mask = double(family, shift), VOCABULARY - 1
    read, text = reader(denoiser), ids(1, 6)[0]
    for draft, take in zip(TREES, ([5, 6], [6, 8], []), strict=True):
        exact, ahead = read(text, draft)
        paths = [text.tolist()]
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            paths.append([*paths[parent], token])
        for path, found, guesses, size in zip(paths, exact, ahead, draft.ahead, strict=True):
            whole = torch.tensor([[*path, *[mask] * (size + 1)]])
            seen = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
            seen[len(path) :, len(path) :] = True
            if shift:
                expected = denoiser.rows(torch.tensor([path]), seen[: len(path), : len(path)])[0, -1]
                behind = denoiser.rows(whole[:, :-1], seen[:-1, :-1])[0, len(path) :]
            else:
                one = len(path) + 1
                expected = denoiser.rows(whole[:, :one], seen[:one, :one])[0, -1]
                seen[len(path), one:] = False
                behind = denoiser.rows(whole, seen)[0, one:]
            # float64 sums in another order; eager attention has its softmax in float32
            close = {"rtol": 0, "atol": 1e-5 if denoiser.additive else 1e-9}
            assert torch.allclose(found, expected, **close)
            assert torch.allclose(guesses, behind, **close)
        text = torch.cat([text, torch.tensor([*take, 11])])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_is_what_transformers_generates(family):
    denoiser, text = double(family), ids(2, 8)
    expected = denoiser.model.generate(
        text, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0, suppress_tokens=[VOCABULARY - 1]
    )
    canvas = torch.nn.functional.pad(text, (0, 30))
    fixed = (torch.arange(38) < 8).expand(2, -1)
    for draft in (0, 4):
        found, forwards = verified(lambda: reader(denoiser), canvas, fixed, seeds=[0, 1], draft=draft, forbidden=[63])
        assert torch.equal(found, expected)
    assert bool((forwards < 30).any())


@pytest.mark.parametrize("shift", [True, False])
def test_drawn_texts_do_not_depend_on_the_draft(shift):
    denoiser, canvas = double("llama", shift), torch.nn.functional.pad(ids(2, 4), (0, 20))
    fixed = (torch.arange(24) < 4).expand(2, -1)

    def run(draft):
        drawing = {"temperature": 0.7, "top_p": 0.9, "forbidden": [63]}
        return verified(lambda: reader(denoiser), canvas, fixed, seeds=[(0, 0), (0, 1)], draft=draft, **drawing)

    (alone, single), (drafted, forwards) = run(0), run(6)
    assert torch.equal(alone, drafted) and single.tolist() == [20, 20] and int(forwards.sum()) < 40


@torch.no_grad()
def test_what_is_drawn_in_between_informs_the_guess():
    denoiser = double("llama")
    table = affinity(denoiser)
    assert table is affinity(denoiser) and table.shape == (VOCABULARY, VOCABULARY)
    seen = denoiser.rows(torch.tensor([[denoiser.record.bos_token_id, 7]]), visibility.causal(2))[0, 1].log_softmax(-1)
    average = torch.stack([seen - table[7].double() / STRENGTH, seen]).softmax(-1)[0]
    assert float(average.sum()) == pytest.approx(1)
    ratio = (table / STRENGTH).double().exp()
    assert torch.allclose(ratio.mean(0), torch.ones(VOCABULARY).double(), atol=1e-5)  # a mean of float32 probabilities
    guess, race = torch.zeros(2, 3), Race(0)
    towards = torch.tensor([[0.0, 3, 0], [0, 0, 3], [3, 0, 0]])  # 0 is followed by 1, that by 2, that by 0
    tokens, parents, chances = race.draft(guess, torch.tensor([0]), 2, towards)
    assert (tokens, parents) == ([1, 2], [0, 1]) and chances[0] > chances[1] > 0.5
    tokens, parents, chances = race.draft(guess, torch.tensor([0]), 5, None)
    assert (
        sorted(zip(parents, tokens, strict=True))[:3] == [(0, 0), (0, 1), (0, 2)]
        and chances[:3] == [pytest.approx(1 / 3)] * 3
    )
    assert race.draft(guess, torch.tensor([0]), 0, None) == ([], [], [])
    denoiser.record = replace(denoiser.record, shift=False)
    assert affinity(denoiser) is None


def test_generate_takes_it(home):
    lm = diffulm.adopt(str(home / "parent"))
    one, *rest = (lm.generate("the cat", length=12, sampler="verified", temperature=0.7, draft=k) for k in (1, 4, 8))
    assert all(other.ids == one.ids for other in rest) and one.forwards <= 12
    with bad("block=4: sampler=verified"):
        lm.generate("the cat", length=4, sampler="verified", block=4)
    with bad("left to right"):
        lm.infill("the <hole:2> sat", sampler="verified")


def test_families_that_cannot():
    denoiser, _ = adopt(build("llama"))
    denoiser.record = replace(denoiser.record, notes={"left_layers": [0]})
    with bad("takes positions"):
        reader(denoiser)


# -- a LoRA that acts on masks alone -----------------------------------------------------------------------------------

LENGTH, BLOCK = 14, 4


@pytest.fixture(scope="module")
def parents(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    for family in ("llama", "gpt2"):
        build(family).save_pretrained(root / family)
        tokenizer().save_pretrained(root / family)
    return root


def drafter(parent: Path, only_masks: bool = True):
    """`with_adapter`; only_masks: the adapter acts on masks alone."""
    denoiser, words = with_adapter(parent)
    if only_masks:
        adapter.only_masks(denoiser)
    return denoiser, words


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_rows_that_see_no_mask_are_the_parent_s_bit_for_bit(parents, tmp_path, family):
    denoiser, words = drafter(parents / family)
    text = ids().index_fill(1, torch.arange(9, 14), denoiser.record.mask_token_id)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    said = denoiser.rows(text, causal)
    with adapter_off(denoiser.model):
        own = denoiser.rows(text.masked_fill(text == denoiser.record.mask_token_id, 0), causal)
    assert torch.equal(said[:, :9], own[:, :9])
    assert bool((said[:, 9:] - own[:, 9:]).abs().amax(-1).min() > 0.1)
    save(denoiser, words, tmp_path / "drafter")
    assert torch.equal(load(tmp_path / "drafter")[0].rows(text, causal), said)
    with bad("acts on masks alone"):
        merge(str(tmp_path / "drafter"), tmp_path / "merged")
    plain, _ = drafter(parents / family, only_masks=False)
    assert not torch.allclose(plain.rows(text, causal)[:, :9], own[:, :9], atol=0.1)
    with gated(plain.model):
        assert torch.equal(plain.rows(text, causal), said)
    assert not torch.allclose(plain.rows(text, causal)[:, :9], own[:, :9], atol=0.1)


@pytest.mark.parametrize("only_masks", [True, False])
def test_with_any_adapter_the_text_is_the_parent_s(parents, only_masks):
    denoiser, _ = drafter(parents / "llama", only_masks)
    denoiser.model.double()
    text = ids(1, 8)
    with adapter_off(denoiser.model):
        expected = denoiser.model.generate(text, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    canvas, fixed = torch.nn.functional.pad(text, (0, 20)), (torch.arange(28) < 8)[None]
    forbidden = [denoiser.record.mask_token_id]
    found, forwards = verified(lambda: reader(denoiser), canvas, fixed, seeds=[0], draft=8, forbidden=forbidden)
    assert torch.equal(found, expected) and int(forwards) < 20


def test_clean_text_read_from_left_to_right():
    seen = visibility.clean_context(4, 2, left_to_right=True).int().tolist()
    assert seen == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]


@torch.no_grad()
def test_what_is_trained_is_what_drafts():
    """The loss beside a clean copy is that of guesses behind every block's beginning, as the decoder makes them."""
    denoiser, mask = double("llama"), VOCABULARY - 1
    text = ids(1, LENGTH)
    canvas, where = text.clone(), torch.ones_like(text, dtype=torch.bool)
    canvas[:, 1:], where[:, 0] = mask, False
    found = denoiser(canvas, where=where, clean=Clean(text, BLOCK, left_to_right=True))[:, :mask]
    for start in range(BLOCK, LENGTH, BLOCK):
        size = min(BLOCK, LENGTH - start)
        exact, (guesses,) = reader(denoiser)(text[0, :start], Draft(ahead=(size,)))
        expected = torch.cat([exact, guesses[:-1]])[:, :mask]  # the last mask has nothing to say in training
        assert torch.allclose(found[start - 1 : start - 1 + size], expected, rtol=0, atol=1e-9)


def test_settings_that_go_together(parents):
    given = {"model": "m", "data": "d", "out": "o", "tokens": 1000}
    gate = {"adapter": "lora", "lora_rows": "masked", "keep_adapter": True, "train_embeddings": False}
    gate |= {"clean_copy": "causal", "block_size": 5}
    checked(AdaptConfig, **given, **gate)
    for change in ({"keep_adapter": False}, {"clean_copy": "block"}, {"checkpointing": True}, {"ar_weight": 0.5}):
        with bad(f"lora_rows=masked: needs {next(iter(change))}="):
            checked(AdaptConfig, **given, **gate | change)
    with bad("there is no adapter"):
        checked(AdaptConfig, **given, lora_rows="masked")
    with bad("set block_size"):
        checked(AdaptConfig, **given, clean_copy="causal")
    denoiser, _ = adopt(str(parents / "llama"), mask_token="5", frozen=True)
    adapter.begin(denoiser, parents / "llama", 4, 8.0, 0, embeddings=False)
    with bad("mask_token=new"):
        adapter.only_masks(denoiser)


def test_a_run_leaves_a_drafter(home, tmp_path):
    out = tmp_path / "out"
    small = {
        "tokens": 4 * 4 * 16,
        "length": 16,
        "global_batch": 4,
        "logging_steps": 2,
        "eval_blocks": 2,
        "eval_samples": 2,
    }
    small |= {"model": home / "parent", "data": home / "text.jsonl", "out": out, "eval_every": 4, "device": "cpu"}
    report = adapt("drafter", **small)
    assert not any("right side" in warning for warning in report["warnings"])  # it never had one
    denoiser, _ = load(out)
    assert denoiser.record.clean_causal and denoiser.record.notes["lora_rows"] == "masked"
    assert denoiser.model.get_input_embeddings().masks_only
    text = ids(1, 8)[0]
    with adapter_off(denoiser.model):
        parent = denoiser.rows(text[None], visibility.causal(8))[0, -1]
    exact, _ = reader(denoiser)(text, Draft(ahead=(2,)))
    assert torch.allclose(exact[0], parent, rtol=0, atol=1e-5)  # logits of about 1, in float32, from other kernels
