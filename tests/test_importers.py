"""Checkpoints of other projects: what `diffulm import` makes of them, against transformers' own models with the same weights.

Each layout was compared once with the published code, run on tiny random weights beside ours: see docs/importing.md for the
files, commits and differences. What was learned there is frozen here without that code.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffulm import visibility
from diffulm.checkpoint.files import read_config
from diffulm.checkpoint.load import load
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.cache import cacheable
from diffulm.denoiser.dit import noise_level
from diffulm.denoiser.tile import tiled
from diffulm.lm import DiffusionLM
from diffulm.lm import load as load_lm
from diffulm.recipes.convert import export, import_checkpoint
from foreign import BLOCK, CONFIGS, MASK, dit_tensors, foreign, neox_logits, own_tokenizer, plain_model
from layouts import TEXT, byte_pairs
from models import VOCABULARY, bad

PLAIN = [layout for layout, (_, made) in CONFIGS.items() if made is not None]
SHIFT, BLOCKS = ("Dream", "Fast-dLLM v2"), ("SDAR", "Fast-dLLM v2")


def masked_ids(rows: int = 2, length: int = 14) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, MASK, (rows, length), generator=generator)
    hidden = torch.rand(ids.shape, generator=generator) < 0.5
    hidden[:, 0] = False
    return torch.where(hidden, MASK, ids)


def given(layout: str) -> int | None:
    """What has to be said of the mask: the published code has it as a number, beyond a tiny vocabulary."""
    return MASK if layout == "Fast-dLLM v2" else None


@pytest.fixture(params=CONFIGS)
def imported(request, tmp_path):
    """(layout, its folder, what import made of it)."""
    layout = request.param
    source = foreign(tmp_path / "theirs", layout)
    report = import_checkpoint(str(source), tmp_path / "ours", given(layout))
    assert report["layout"] == layout
    return layout, source, tmp_path / "ours"


@pytest.mark.parametrize("layout", PLAIN)
def test_logits_are_those_of_the_plain_model(layout, tmp_path):
    source = foreign(tmp_path / "theirs", layout)
    report = import_checkpoint(str(source), tmp_path / "ours", given(layout))
    ids, plain = masked_ids(), plain_model(layout)
    length = ids.shape[1]
    seen = visibility.block_causal(length, BLOCK) if layout in BLOCKS else visibility.full(length)
    with torch.no_grad():
        expected = plain(ids, attention_mask=seen[None, None].expand(2, 1, -1, -1)).logits
        for folder in (source, tmp_path / "ours"):  # as it is, and imported
            denoiser, _ = load(folder, given(layout))
            assert torch.equal(denoiser.rows(ids), expected)
    assert report["architecture"] == type(plain).__name__ and report["dropped"] == []
    record = denoiser.record
    assert (record.mask_token_id, record.shift, record.block_size) == (
        MASK, layout in SHIFT, BLOCK if layout in BLOCKS else None
    )  # fmt: skip
    assert record.bos_token_id == (1 if layout in SHIFT else None)
    assert not {"auto_map", "_name_or_path", "torch_dtype", "mask_token_id"} & set(read_config(tmp_path / "ours"))


@pytest.mark.parametrize("layout", ["MDLM", "SEDD"])
def test_diffusion_transformers_compute_what_gpt_neox_does(layout, tmp_path):
    """SEDD is told how much is masked, MDLM nothing: time 0."""
    import_checkpoint(str(foreign(tmp_path / "theirs", layout)), tmp_path / "ours")
    denoiser, _ = load(tmp_path / "ours")
    ids = torch.cat([masked_ids(), masked_ids(3)[2:]])
    with torch.no_grad():
        found = denoiser.rows(ids)
        chosen = denoiser(ids, where=ids == MASK)
        alone = torch.cat([denoiser.rows(row[None]) for row in ids])
    for row, one in zip(ids, found, strict=True):
        share = float((row == MASK).float().mean())
        sigma = -math.log(1 - (1 - 1e-3) * share) if layout == "SEDD" else 0.0
        # logits of deviation 3: the same sums in another order are off by up to 1e-5, another time by 0.1
        torch.testing.assert_close(one, neox_logits(dit_tensors(), row, sigma), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)  # a row knows nothing of its neighbours
    assert torch.equal(chosen[:, :MASK], found[ids == MASK][:, :MASK])
    assert bool((chosen[:, MASK] == -torch.inf).all())  # a hidden token is never the mask: scores become probabilities
    assert denoiser.record.bos_token_id == (1 if layout == "MDLM" else None)


def test_the_share_of_masks_leaves_out_padding(tmp_path):
    """A text says the same alone and in a tile with padding, though SEDD looks how much of it is masked."""
    import_checkpoint(str(foreign(tmp_path / "theirs", "SEDD")), tmp_path / "ours")
    denoiser, _ = load(tmp_path / "ours")
    ids = masked_ids(2, 9)
    where = ids == MASK
    with torch.no_grad():
        expected = denoiser(ids, where=where)
        padded = torch.nn.functional.pad(ids, (0, 5), value=MASK)  # masks there must not count
        real = torch.arange(14) < 9
        found = tiled(denoiser)(padded, torch.nn.functional.pad(where, (0, 5)), real.expand(2, -1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # rounding of logits of deviation 3
    assert not cacheable(denoiser)  # a window of the text does not say how much of it is masked
    with pytest.raises(ValueError, match="whole text at once"):
        noise_level(ids, torch.ones(2, 1, 9, 14, dtype=torch.bool), MASK)
    one = torch.tensor([[MASK]])
    assert float(noise_level(one, torch.ones(1, 1, 1, 1, dtype=torch.bool), MASK)) == pytest.approx(
        -math.log(1e-3), rel=1e-4
    )


def test_a_diffusion_transformer_that_knows_no_time_can_be_cached(tmp_path):
    assert cacheable(load(foreign(tmp_path / "theirs", "MDLM"))[0])


def test_generate_infill_and_score(imported):
    layout, _, folder = imported
    lm = DiffusionLM(load(folder)[0], own_tokenizer())
    assert len(lm.generate("w5 w6", length=6, steps=3, seed=0).ids) == 8 + (lm.record.bos_token_id is not None)
    scores = [lm.score("w7 w8 w9", context="w5", method=method) for method in ("bound", "left_to_right")]
    assert all(0 < one.nats < 100 and one.tokens == 3 for one in scores)
    if layout in BLOCKS:
        with bad("fills block by block and was never trained to see text to the right"):
            lm.infill("w5 <hole:2> w7")
    else:
        filled = lm.infill("w5 <hole:2> w7", steps=2)
        assert filled.text.startswith("w5 ") and filled.text.endswith(" w7") and "mask" not in filled.text


def test_what_is_imported_can_be_saved_again(imported, tmp_path):
    layout, _, folder = imported
    lm = load_lm(folder)
    lm.save(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "again")[0].rows(masked_ids()), lm.denoiser.rows(masked_ids()))
    if layout == "Dream":  # the one whose family is written as it was read
        assert export(str(folder), tmp_path / "out")["layout"] == "dream"
        return
    lines = {
        "LLaDA": "has no shift; the published code always shifts",
        "Fast-dLLM v2": "fills block by block; in dream",
    }
    with bad(lines.get(layout, "no released layout is known of the model type .* only of gpt2, llama, qwen2")):
        export(str(folder), tmp_path / "out")


def test_nothing_else_takes_them_for_a_parent(imported):
    layout, source, _ = imported
    with bad(f"it is a {layout}, a diffusion model already; `diffulm import` makes a plain folder of it"):
        adopt(str(source))


def test_the_command_says_what_it_found(tmp_path, run):
    source = foreign(tmp_path / "a2d", "A2D")
    code, said, _ = run("import", str(source), str(tmp_path / "ours"))
    assert code == 0 and "layout: A2D" in said and "give --block-size" in said
    code, said, _ = run("import", str(source), str(tmp_path / "blocks"), "--block-size", "4", "--json")
    told = json.loads(said)
    assert code == 0
    assert (told["layout"], told["attention"], told["shift"], told["notes"]) == ("A2D", "blocks of 4", False, [])
    assert not load_lm(tmp_path / "blocks").record.infills
    code, _, line = run("import", str(source), str(tmp_path / "none"), "--block-size", "0")
    assert code == 2 and "positive block_size" in line and not (tmp_path / "none").exists()


def test_inspect_knows_them(tmp_path, run):
    code, said, _ = run("inspect", str(foreign(tmp_path / "llada", "LLaDA")), "--json")
    told = json.loads(said)
    assert (code, told["kind"], told["mask_token_id"]) == (0, "diffusion", MASK)


# --- what does not fit ---


@pytest.mark.parametrize(
    ("layout", "changed", "line"),
    [
        ("Dream", {"block_size": 32}, "block_size = 32; only None was compared"),
        ("Dream", {"architectures": ["DreamForCausalLM"]}, "architectures = "),
        ("Dream", {"rope_theta": None}, "says nothing of rope_theta"),
        ("LLaDA", {"alibi": True}, "alibi = True; only False was compared with the published code"),
        ("LLaDA", {"block_type": "sequential"}, "block_type = 'sequential'; only 'llama'"),
        ("LLaDA", {"n_layers": "two"}, "n_layers = 'two', not a positive number"),
        ("LLaDA", {"n_heads": 5}, "cannot be opened as a model"),
        ("SDAR", {"block_size": None}, "block_size = None, not a positive number"),
        ("SDAR", {"rope_scaling": {"type": "yarn"}}, "rope_scaling = "),
        ("Fast-dLLM v2", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("MDLM", {"time_conditioning": True}, "time_conditioning = True; only False"),
        ("MDLM", {"hidden_dim": -3}, "hidden_dim = -3, not a positive number"),
        ("SEDD", {"graph": {"type": "uniform"}}, "graph.type = 'uniform'; only 'absorb'"),
        ("SEDD", {"noise": {"type": "geometric"}}, "noise.type = 'geometric'; only 'loglinear'"),
    ],
)
def test_settings_that_nobody_compared_are_refused(layout, changed, line, tmp_path):
    source = foreign(tmp_path / "theirs", layout, **changed)
    with bad(line):
        load(source)
    with bad(f"theirs.*{line}"):
        import_checkpoint(str(source), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("layout", "name"),
    [("LLaDA", "model.transformer.blocks.1.ff_out.weight"), ("MDLM", "backbone.blocks.0.attn_qkv.weight")],
)
def test_tensors_are_named_as_in_the_file(layout, name, tmp_path):
    source = foreign(tmp_path / "theirs", layout)
    file = source / "model.safetensors"
    held = load_file(file)
    save_file({key: value for key, value in held.items() if key != name}, file)
    with bad(f"tensors missing: {name}:"):
        load(source)
    save_file(held | {name: held[name][:5], f"{name}.odd": torch.ones(1)}, file)
    with bad(rf"unexpected: {name}.odd; misshapen: {name} \[5, "):
        load(source)


def test_pickled_weights_are_not_read(tmp_path, run):
    for layout in ("MDLM", "SEDD"):
        source = foreign(tmp_path / layout, layout)
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
        code, _, line = run("import", str(source), str(tmp_path / "ours"))
        assert code == 2 and "pytorch_model.bin is pickled, which is never read; convert it to safetensors" in line


def test_without_a_tokenizer(tmp_path):
    source = foreign(tmp_path / "theirs", "MDLM", words=False)
    notes = import_checkpoint(str(source), tmp_path / "ours")["notes"]
    assert any("there is no tokenizer" in note for note in notes) and any("GPT-2's" in note for note in notes)
    assert load(tmp_path / "ours")[0].record.bos_token_id is None
    with bad("neither its tokenizer nor its family says which token is the mask"):
        load(foreign(tmp_path / "a2d", "A2D", words=False))


def test_a_tokenizer_of_their_own_class(tmp_path):
    """Dream's folder has the files of GPT-2's kind of tokenizer, and a class that would need its code."""
    source = foreign(tmp_path / "theirs", "Dream", words=False, vocab_size=VOCABULARY)
    byte_pairs(source, tokenizer_class="DreamTokenizer", auto_map={"AutoTokenizer": ["tokenization_dream.X", None]})
    notes = import_checkpoint(str(source), tmp_path / "ours", bos_token_id=1)["notes"]
    assert any("it was read as a Qwen2Tokenizer" in note for note in notes)
    words = load(tmp_path / "ours")[1]
    assert words.decode(words(TEXT)["input_ids"]) == TEXT
