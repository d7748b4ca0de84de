"""Checkpoints that others have published: the layouts of DiffuGPT and DiffuLLaMA, which carry no record."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffulm.denoiser.files import read_config, write_checksums
from diffulm.denoiser.load import load
from diffulm.denoiser.record import Record
from models import VOCABULARY, bad, build, flip, ids, tokenizer


@pytest.fixture
def plain(tmp_path) -> Path:
    build("llama").save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_plain_folder_with_a_mask_id_is_a_released_one(plain):
    denoiser, words = load(plain, mask_token_id=9)
    assert denoiser.record == Record(9, 1, emit_mask=True, parent=denoiser.record.parent)
    assert words is None
    with bad("mask token id 64 lies outside its vocabulary of 64 rows"):
        load(plain, mask_token_id=64)
    named = plain.rename(plain.with_name("DiffuLLaMA"))
    with bad("mask token id 811 lies outside"):  # the family's own
        load(named)
    tokenizer(special=("<mask>",), mask_token="<mask>").save_pretrained(named)
    assert load(named)[0].record.mask_token_id == 63


def released(folder: Path, vocabulary: int = VOCABULARY + 1, **tensors) -> Path:
    """A tiny GPT-2 in the released layout."""
    model = build("gpt2", vocab_size=vocabulary)
    state = {
        name.replace("transformer.wte.", "embed_tokens.").replace("transformer.", "denoise_model."): value.clone()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.config.vocab_size = VOCABULARY  # as the published code leaves it
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_file({k: v for k, v in (state | tensors).items() if v is not None}, folder / "model.safetensors")
    return folder


def test_the_layout_of_the_published_training_class(tmp_path):
    buffers = {"denoise_model.h.0.attn.bias": torch.ones(1), "denoise_model.h.0.attn.masked_bias": torch.ones(1)}
    denoiser, _ = load(released(tmp_path / "a", **buffers))
    model = build("gpt2", vocab_size=VOCABULARY + 1)
    with torch.no_grad():
        assert torch.equal(denoiser.causal_view(ids()), model(input_ids=ids()).logits)
    assert denoiser.record == Record(VOCABULARY, 1, emit_mask=True, parent=denoiser.record.parent)
    assert denoiser.model.lm_head.weight is denoiser.model.transformer.wte.weight
    for name, tensors, match in [
        ("b", {"denoise_model.ln_f.weight": None}, r"tensors missing: \['transformer.ln_f.weight'\]"),
        ("c", {"other.weight": torch.ones(1)}, r"not expected: \['other.weight'\]"),
        ("d", {"denoise_model.ln_f.weight": torch.ones(3)}, "transformer.ln_f.weight"),
        ("e", {"embed_tokens.weight": None}, "no embed_tokens.weight"),
    ]:
        with bad(match):
            load(released(tmp_path / name, **tensors))
    write_checksums(tmp_path / "a")
    flip(tmp_path / "a" / "model.safetensors")
    with bad("its sha256 is not the one"):
        load(tmp_path / "a")
    config = read_config(tmp_path / "a") | {"model_type": "gptj"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with bad("denoise_model.* are not known of the model type 'gptj'"):
        load(tmp_path / "a")


def test_a_released_parent_vocabulary_means_a_reused_token(tmp_path):
    """DiffuGPT-S: as many rows as its parent, an ordinary token as the mask."""
    folder = released(tmp_path / "s", vocabulary=VOCABULARY)
    with bad("mask token id 10541 lies outside"):
        load(folder)
    assert load(folder, mask_token_id=5)[0].record.mask_token_id == 5


# --- the released fixtures ---


@pytest.fixture(scope="session")
def reference(shared) -> tuple[Path, dict, dict[str, torch.Tensor]]:
    folder = shared / "fixtures"
    return folder, json.loads((folder / "fixtures.json").read_text()), load_file(folder / "fixtures.safetensors")


@pytest.mark.parametrize(
    ("name", "family"), [("gpt2_released", "gpt2"), ("llama_derived_released", "llama"), ("llama_released", "llama")]
)
def test_released_folders(reference, name, family):
    folder, told, tensors = reference
    mask = told["families"][family]["mask_id"]
    if family == "gpt2":
        denoiser, _ = load(folder / name)  # one row more than the parent: the mask's own
        assert denoiser.vocabulary == read_config(folder / name)["vocab_size"] + 1 == mask + 1
    else:
        denoiser, _ = load(folder / name, mask_token_id=mask)
    assert (denoiser.record.mask_token_id, denoiser.record.emit_mask, denoiser.record.shift) == (mask, True, True)
    canvas, shifted = (tensors[f"{family}/logits/b3l24/{key}"] for key in ("canvas", "shifted"))
    with torch.no_grad():
        found = denoiser(canvas).view(shifted.shape)
    # logits of deviation 2: another float32 kernel is off by up to 8e-6, one wrong bit in the mask by 0.5
    torch.testing.assert_close(found, shifted, atol=5e-5, rtol=0)


def test_released_folders_that_say_too_little(reference):
    folder = reference[0]
    with bad("mask token id 811 lies outside its vocabulary"):
        load(folder / "llama_derived_released")
    for name in ("llama_released", "llama_ar", "gpt2_ar"):
        with bad("is a plain AR checkpoint, not a diffusion model; `diffulm adapt`"):
            load(folder / name)
    with bad("mask token id 98 lies outside its vocabulary of 98 rows"):
        load(folder / "gpt2_released", mask_token_id=98)
