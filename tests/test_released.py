"""Checkpoints that others have published: the layouts of DiffuGPT and DiffuLLaMA, which carry no record."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffulm.checkpoint import load as loading
from diffulm.checkpoint.files import read_config, write_checksums
from diffulm.checkpoint.load import load
from diffulm.checkpoint.released import Misfit, is_released
from diffulm.denoiser.record import Record
from layouts import TEXT, TIED_NOTE, byte_pairs, released
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


def test_a_family_that_was_never_released_opens_in_its_own_names(tmp_path):
    build("mistral").save_pretrained(tmp_path / "m")
    assert load(tmp_path / "m", mask_token_id=9)[0].record.mask_token_id == 9
    assert not is_released(tmp_path / "m", read_config(tmp_path / "m"))


def test_the_layout_of_the_published_training_class(tmp_path):
    buffers = {"denoise_model.h.0.attn.bias": torch.ones(1), "denoise_model.h.0.attn.masked_bias": torch.ones(1)}
    denoiser, _ = load(released(tmp_path / "a", note=TIED_NOTE, **buffers))
    model = build("gpt2", vocab_size=VOCABULARY + 1)
    with torch.no_grad():
        assert torch.equal(denoiser.causal_view(ids()), model(input_ids=ids()).logits)
    assert denoiser.record == Record(VOCABULARY, 1, emit_mask=True, parent="parent")
    assert denoiser.model.lm_head.weight is denoiser.model.transformer.wte.weight
    assert denoiser.model.name_or_path == str(tmp_path / "a")
    assert load(tmp_path / "a", dtype=torch.bfloat16)[0].model.dtype == torch.bfloat16
    write_checksums(tmp_path / "a")
    flip(tmp_path / "a" / "model.safetensors")
    with bad("its sha256 is not the one"):
        load(tmp_path / "a")
    config = read_config(tmp_path / "a") | {"model_type": "gptj"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with bad("no released layout is known of the model type 'gptj'"):
        load(tmp_path / "a")


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    """As the files name them; nothing is cut short."""
    gone = {
        f"denoise_model.h.1.{name}": None for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "attn.c_attn.bias")
    }
    more = {f"other.{i}.weight": torch.ones(1) for i in range(9)}
    changed = {"denoise_model.ln_f.weight": torch.ones(3), "denoise_model.wpe.weight": torch.ones(32, 64)}
    with pytest.raises(Misfit) as caught:
        load(released(tmp_path / "a", **gone, **more, **changed))
    shapes = ["denoise_model.ln_f.weight [3] instead of [32]", "denoise_model.wpe.weight [32, 64] instead of [64, 32]"]
    assert caught.value.tensors == {"unexpected": sorted(more), "missing": sorted(gone), "misshapen": shapes}
    line = str(caught.value)
    assert "\n" not in line and all(name in line for name in (*gone, *more, *shapes))
    with bad("missing: embed_tokens.weight: not what its config.json describes"):
        load(released(tmp_path / "b", vocabulary=VOCABULARY, **{"embed_tokens.weight": None}))
    # the same tensor under both of its names
    with bad("unexpected: denoise_model.wte.weight|unexpected: embed_tokens.weight"):
        load(released(tmp_path / "c", **{"denoise_model.wte.weight": torch.ones(65, 32)}))


def test_a_head_that_is_stored_though_tied(tmp_path):
    weight = build("gpt2", vocab_size=VOCABULARY + 1).transformer.wte.weight.detach().clone()
    with torch.no_grad():
        expected = build("gpt2", vocab_size=VOCABULARY + 1)(input_ids=ids()).logits
        found = load(released(tmp_path / "same", **{"lm_head.weight": weight}))[0]
        assert torch.equal(found.causal_view(ids()), expected)
    weight[3, 3] += 1
    with bad("lm_head.weight differs from embed_tokens.weight though config.json ties them; set tie_word_embeddings"):
        load(released(tmp_path / "other", **{"lm_head.weight": weight}))
    untied = {"tie_word_embeddings": False}
    own = load(released(tmp_path / "own", config=untied, **{"lm_head.weight": weight}))[0]
    assert (
        torch.equal(own.model.lm_head.weight, weight)
        and own.model.lm_head.weight is not own.model.transformer.wte.weight
    )
    with bad("missing: lm_head.weight"):
        load(released(tmp_path / "none", config=untied, **{"lm_head.weight": None}))


def test_a_note_in_the_file_ties_what_the_config_does_not(tmp_path):
    """The writer of the published class leaves out a tied head, and says so there."""
    note = {"note": TIED_NOTE, "vocabulary": VOCABULARY, "lm_head.weight": None}
    model = load(released(tmp_path / "a", "llama", **note), mask_token_id=9)[0].model
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.config.tie_word_embeddings


def test_a_released_parent_vocabulary_means_a_reused_token(tmp_path):
    """DiffuGPT-S: as many rows as its parent, an ordinary token as the mask."""
    folder = released(tmp_path / "s", vocabulary=VOCABULARY)
    with bad("mask token id 10541 lies outside"):
        load(folder)
    assert load(folder, mask_token_id=5)[0].record.mask_token_id == 5


# --- shards ---


def test_shards_are_read_together(tmp_path):
    whole, cut = released(tmp_path / "whole"), released(tmp_path / "cut", shards=3)
    with torch.no_grad():
        assert torch.equal(load(cut)[0](ids()), load(whole)[0](ids()))


def test_shards_that_disagree(tmp_path):
    folder = released(tmp_path / "cut", shards=3)
    index = folder / "model.safetensors.index.json"
    told = index.read_text()
    second = folder / "model-00002-of-00003.safetensors"
    moved = second.rename(folder / "elsewhere")
    with bad("model-00002-of-00003.safetensors: is missing though model.safetensors.index.json names it"):
        load(folder)
    moved.rename(second)
    places = json.loads(told)["weight_map"]
    unlisted = {name: file for name, file in places.items() if not name.startswith("denoise_model.ln_f")}
    index.write_text(json.dumps({"weight_map": unlisted}))
    with bad(
        r"in the files, not in the index: denoise_model.ln_f.(bias|weight) \(.*denoise_model.ln_f.(bias|weight) \("
    ):
        load(folder)
    index.write_text(json.dumps({"weight_map": {**places, "denoise_model.ghost": second.name}}))
    with bad("not in the file it names: denoise_model.ghost"):
        load(folder)
    for text in ("{", "[]", "{}", '{"weight_map": 3}', "\xff"):
        index.write_bytes(text.encode("latin-1"))
        with bad("index.json: (is not valid JSON|holds no JSON object|has no weight_map)"):
            load(folder)
    index.write_text(told)
    extra = load_file(second)
    save_file({name: extra[name] for name in list(extra)[:2]}, folder / "more.safetensors")
    with bad(f"tensors that lie in two files: ({'|'.join(extra)}) .*({'|'.join(extra)}) "):
        load(folder)
    (folder / "more.safetensors").unlink()
    save_file({"denoise_model.stray": torch.ones(1)}, folder / "more.safetensors")
    with bad(r"not in the index: denoise_model.stray \(more.safetensors\)"):
        load(folder)


def test_files_without_an_index_are_taken_together(tmp_path):
    folder = released(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    with torch.no_grad():
        expected = load(folder)[0](ids())
    (folder / "model.safetensors").unlink()
    half = len(tensors) // 2
    save_file(dict(list(tensors.items())[:half]), folder / "model-1.safetensors")
    save_file(dict(list(tensors.items())[half:]), folder / "model-2.safetensors")
    with torch.no_grad():
        assert torch.equal(load(folder)[0](ids()), expected)


# --- tokenizers ---


def test_a_tokenizer_of_an_unknown_class_is_read_as_the_family_s(tmp_path):
    folder = released(tmp_path / "a", vocabulary=300)
    byte_pairs(folder, tokenizer_class="MaskTokenWrapper")
    _, words = load(folder, mask_token_id=9)
    assert words.decode(words(TEXT)["input_ids"]) == TEXT and len(words) < 300
    (folder / "merges.txt").write_text("nothing that merges")
    with bad("its tokenizer cannot be opened"):
        load(folder, mask_token_id=9)


def test_the_hub_gives_cards_and_licences_too(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kw: asked.update(kw) or str(tmp_path))
    assert loading.folder_of("owner/name") == tmp_path
    assert {"*.safetensors", "*.json", "README.md", "LICENSE*"} <= set(asked["allow_patterns"])
    assert not any(pattern == "*" or pattern.endswith((".py", ".bin")) for pattern in asked["allow_patterns"])


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
