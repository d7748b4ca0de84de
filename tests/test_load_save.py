"""Folders: what is written, what comes back, what is refused before anything is loaded; the released layouts."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffulm import visibility
from diffulm.checkpoint import files, opening
from diffulm.checkpoint import save as saving
from diffulm.checkpoint.files import CHECKSUMS, locate, newest_checkpoint, read_config
from diffulm.checkpoint.load import load
from diffulm.checkpoint.save import save, write_model
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.record import Record
from models import VOCABULARY, bad, build, flip, ids, tokenizer


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def ours(tmp_path) -> Path:
    """A folder of ours, with a tokenizer."""
    save(*adopt(build("llama"), tokenizer()), tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def plain(tmp_path) -> Path:
    build("llama").save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


# --- there and back ---


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen3_mixed", "gemma2", "gptj"])
def test_there_and_back(family, tmp_path):
    denoiser, words = adopt(build(family), tokenizer())
    notes = denoiser.record.notes | {"trained_on": "nothing"}
    denoiser.record = replace(denoiser.record, attention="block", block_size=4, notes=notes)
    save(denoiser, words, tmp_path / "a")
    again, words = load(tmp_path / "a")
    assert again.record == denoiser.record
    assert again.additive == denoiser.additive == (family in ("gemma2", "gptj"))
    assert again.model.config.diffulm == denoiser.record.to_dict()
    assert words.mask_token_id == again.record.mask_token_id
    state = denoiser.model.state_dict()
    assert state.keys() == again.model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(ids()), denoiser(ids()))
        assert torch.equal(again(ids(), visibility.full(14)), denoiser(ids(), visibility.full(14)))
    save(again, words, tmp_path / "b")
    first, second = everything(tmp_path / "a"), everything(tmp_path / "b")
    # transformers notes in the one that it has read the tokenizer from a disk, the card names the folder
    assert {name for name in first if first[name] != second[name]} <= {"tokenizer_config.json", "README.md"}
    assert first.keys() == second.keys() >= {"model.safetensors", "config.json", CHECKSUMS, "tokenizer.json"}


def test_dtype(tmp_path):
    denoiser, _ = adopt(build("llama"))
    denoiser.model.to(torch.bfloat16)
    save(denoiser, None, tmp_path / "half")
    assert load(tmp_path / "half")[0].model.dtype == torch.float32
    assert load(tmp_path / "half", dtype=torch.bfloat16)[0].model.dtype == torch.bfloat16
    assert load(tmp_path / "half")[1] is None


def test_what_is_written(ours):
    with safe_open(ours / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    config = json.loads((ours / "config.json").read_text())
    assert config["diffulm"] == {
        "mask_token_id": VOCABULARY, "bos_token_id": 1, "shift": True, "attention": "full", "block_size": None,
        "emit_mask": False, "window": None, "parent": None,
    }  # fmt: skip
    assert config["vocab_size"] == VOCABULARY + 1
    assert list(json.loads((ours / CHECKSUMS).read_text())) == ["model.safetensors"]
    assert [path.name for path in ours.parent.iterdir()] == ["ours"]  # nothing half written is left


def test_writing_changes_nothing_in_memory(tmp_path):
    denoiser, _ = adopt(build("llama"))
    denoiser.model.config.is_causal = False  # lives in memory alone
    noted = {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}  # by transformers as it saves
    before = denoiser.model.config.to_dict() | noted
    write_model(denoiser.model, None, tmp_path / "plain", record=None)
    write_model(denoiser.model, None, tmp_path / "ours", denoiser.record.to_dict())
    assert denoiser.model.config.to_dict() == before
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "ours")]
    assert [("diffulm" in config, "is_causal" in config) for config in configs] == [(False, False), (True, False)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2"])
def test_others_see_a_plain_causal_checkpoint(family, tmp_path):
    model, tokens = build(family), ids()
    with torch.no_grad():
        own = model(input_ids=tokens).logits
    denoiser, _ = adopt(model)
    denoiser.model.config.is_causal = False
    save(denoiser, None, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = theirs(input_ids=tokens).logits[..., :VOCABULARY]
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        greedy = build(family).generate(tokens[:1, :9], **options)
        assert torch.equal(theirs.generate(tokens[:1, :9], suppress_tokens=[VOCABULARY], **options), greedy)
    # logits of deviation 0.5 through another attention kernel; a model that looked ahead would be off by 0.01
    torch.testing.assert_close(found, own, atol=5e-6, rtol=0)


def test_an_occupied_folder_is_left_alone(ours):
    before = everything(ours)
    denoiser, _ = adopt(build("llama", seed=1))
    with bad("exists and is not empty; nothing was written"):
        save(denoiser, None, ours)
    with bad("exists and is not empty"):
        save(denoiser, None, ours / "config.json")
    assert everything(ours) == before
    neighbour = ours.with_name("free.tmp")  # what another program may call its own
    neighbour.mkdir()
    (neighbour / "file").touch()
    (ours.parent / "free").mkdir()
    save(denoiser, None, ours.parent / "free")
    assert (neighbour / "file").exists()
    save(denoiser, None, ours.parent / "deep" / "down")
    load(ours.parent / "deep" / "down")


def test_overwrite_replaces_a_model_and_only_that(ours):
    other, _ = adopt(build("llama", seed=1))
    link = ours.with_name("link")
    link.symlink_to(ours, target_is_directory=True)
    save(other, None, link, overwrite=True)
    assert link.is_symlink() and torch.equal(load(ours)[0].causal_view(ids()), other.causal_view(ids()))
    assert not (ours / "tokenizer.json").exists(), "nothing of the old model is left among the new one's files"
    assert {path.name for path in ours.parent.iterdir()} == {"ours", "link"}
    save(other, None, ours.with_name("new"), overwrite=True)
    for name, match in [("notes.txt", "more than a model: notes.txt; move that"), ("checkpoint-5/x", "checkpoint-5")]:
        (ours / name).parent.mkdir(exist_ok=True)
        (ours / name).touch()
        before = sorted(ours.rglob("*"))
        with bad(match):
            save(other, None, ours, overwrite=True)
        assert sorted(ours.rglob("*")) == before
        (ours / name).unlink()
    for place in (ours.parent, ours / "config.json"):
        with bad("holds no checkpoint that could be replaced"):
            save(other, None, place, overwrite=True)


def test_overwrite_has_no_moment_without_a_model(ours, monkeypatch):
    """Whatever fails while the new model is written, and where folders cannot change places: the old one stays whole."""
    before = everything(ours)
    other, _ = adopt(build("llama", seed=1))

    def looking(folder):
        assert everything(ours) == before
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_checksums", looking)
        with pytest.raises(OSError, match="no space"):
            save(other, None, ours, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(saving.ctypes, "CDLL", lambda *a, **k: object())
        with bad("cannot be replaced at one stroke on this system .no renameat2.; save to a new folder"):
            save(other, None, ours, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "RENAME_EXCHANGE", 1 << 20)  # a flag that no kernel knows
        with bad("cannot be replaced at one stroke on this system .Invalid argument."):
            save(other, None, ours, overwrite=True)
    assert everything(ours) == before and [path.name for path in ours.parent.iterdir()] == ["ours"]


def test_overwrite_keeps_a_card_that_somebody_edited(ours):
    denoiser, words = adopt(build("llama", seed=1), tokenizer())
    save(denoiser, words, ours, overwrite=True)
    (ours / "README.md").write_text((ours / "README.md").read_text().replace("# ours", "# My own words"))
    save(denoiser, words, ours, overwrite=True)
    assert "# My own words" in (ours / "README.md").read_text()


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    denoiser, _ = adopt(build("llama"))

    def full(folder):
        assert not (tmp_path / "out").exists()
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "write_checksums", full)
    with pytest.raises(OSError, match="no space"):
        save(denoiser, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- the record ---


def test_record_round_trip_and_what_it_refuses():
    record = Record(5, 1, window="keep", parent="gpt2", notes={"additive_mask": True, "of_tomorrow": [1]})
    assert Record.from_dict(record.to_dict(), "here") == record
    assert record.to_dict()["of_tomorrow"] == [1]
    assert record.additive_mask
    assert Record.from_dict({"mask_token_id": 3, "bos_token_id": 1}, "here") == Record(3, 1)
    assert Record.from_dict({"mask_token_id": 3, "shift": False}, "here").bos_token_id is None
    for data, match in [
        ([], "no mask_token_id"),
        ({"bos_token_id": 1}, "no mask_token_id"),
        ({"mask_token_id": "5", "bos_token_id": 1}, "mask_token_id = '5'"),
        ({"mask_token_id": True, "bos_token_id": 1}, "mask_token_id = True"),
        ({"mask_token_id": 5, "bos_token_id": 1, "shift": 1}, "shift = 1"),
        ({"mask_token_id": 5}, "bos_token_id is needed"),
        ({"mask_token_id": 5, "bos_token_id": 1, "attention": "half"}, "'full' or 'block'"),
        ({"mask_token_id": 5, "bos_token_id": 1, "attention": "block", "block_size": 0}, "positive block_size"),
        ({"mask_token_id": 5, "bos_token_id": 1, "window": "wide"}, "'keep', 'lift' or null"),
    ]:
        with bad(f"^here: .*{match}"):
            Record.from_dict(data, "here")


# --- damage ---


def test_a_flipped_bit_is_seen(ours):
    flip(ours / "model.safetensors")
    with bad("its sha256 is not the one in sha256.json"):
        load(ours)
    (ours / CHECKSUMS).unlink()
    load(ours)  # nobody could know


def test_a_missing_shard_is_seen(ours):
    sums = json.loads((ours / CHECKSUMS).read_text())
    (ours / CHECKSUMS).write_text(json.dumps(sums | {"model-00002.safetensors": "0"}))
    with bad("model-00002.safetensors: is missing though sha256.json lists it"):
        load(ours)
    for text in ("{", "[1]", "3"):
        (ours / CHECKSUMS).write_text(text)
        with bad("is not a JSON object of checksums"):
            load(ours)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_torn_weights(ours, keep):
    weights = ours / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with bad("cannot be read as safetensors .*; copy or download it again"):
        load(ours)


def test_corrupt_headers(ours, plain):
    for folder in (ours, plain):
        weights = folder / "model.safetensors"
        data = bytearray(weights.read_bytes())
        for place, value in ((8, b"x"), (0, b"\xff" * 8)):
            weights.write_bytes(bytes(data[:place] + value + data[place + len(value) :]))
            for open_it in (load, adopt) if folder is plain else (load,):
                with bad("cannot be read as safetensors"):
                    open_it(folder)


def test_pickled_weights_are_never_read(plain):
    torch.save(load_file(plain / "model.safetensors"), plain / "pytorch_model.bin")
    (plain / "model.safetensors").unlink()
    for open_it in (load, adopt):
        with bad("pytorch_model.bin is pickled, which is never read; convert it"):
            open_it(plain)
    (plain / "pytorch_model.bin").unlink()
    with bad("has no .safetensors weights; copy or download them$"):
        adopt(plain)


def test_weights_of_another_architecture(plain):
    tensors = load_file(plain / "model.safetensors")
    for name, change, match in [
        ("missing", {"model.norm.weight": None}, "1 missing tensors .model.norm.weight"),
        ("more", {"extra.weight": torch.ones(2)}, "1 unexpected tensors .extra.weight"),
        ("misshapen", {"model.norm.weight": torch.ones(3)}, "model.norm.weight|weights cannot be loaded"),
    ]:
        folder = plain.with_name(name)
        shutil.copytree(plain, folder)
        changed = {k: v for k, v in (tensors | change).items() if v is not None}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with bad(match):
            adopt(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "\xff", '{"model_type": "llama", "hidden_size": "wide"}', "{}", '{"model_type": "no such"}']
)
def test_broken_configs(plain, text):
    (plain / "config.json").write_bytes(text.encode("latin-1"))
    for open_it in (load, adopt):
        with bad(f"^{plain}"):
            open_it(plain)


def test_broken_records_and_tokenizers(ours):
    config = json.loads((ours / "config.json").read_text())
    for record, match in [
        (None, "no mask_token_id"),
        ({"mask_token_id": 99, "bos_token_id": 1}, "mask token id 99 lies outside its vocabulary of 65 rows"),
        ({"mask_token_id": -1, "bos_token_id": 1}, "mask token id -1 lies outside"),
        ({"mask_token_id": 64, "bos_token_id": 65}, "bos_token_id 65 lies outside"),
    ]:
        (ours / "config.json").write_text(json.dumps(config | {"diffulm": record}))
        with bad(match):
            load(ours)
    (ours / "config.json").write_text(json.dumps(config))
    (ours / "tokenizer.json").write_text("{")
    with bad("its tokenizer cannot be opened"):
        load(ours)


def test_places(tmp_path, ours):
    with bad("no-such/thing: no such folder, and not on the hub"):
        load("no-such/thing")
    for place in (tmp_path / "no", Path("no-such"), "./no", "/no/such", "a/b/c", ""):
        with bad("no such folder|has no config.json"):
            load(place)
    with bad("is a file; give the folder"):
        load(ours / "config.json")
    assert locate("gpt2") == "gpt2"
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-9").mkdir()
    (tmp_path / "run" / "checkpoint-11.tmp").mkdir()
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-10"
    with bad("the run in it is not finished, its newest checkpoint is .*checkpoint-10"):
        load(tmp_path / "run")


def test_a_shipped_model_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "files", lambda package: tmp_path)
    with bad("^pocket: the shipped model is not part of this installation"):
        load("pocket")


def test_no_remote_code(plain):
    config = read_config(plain) | {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    }
    (plain / "config.json").write_text(json.dumps(config))
    (plain / "code.py").write_text("import os\nos.environ['DIFFULM_RAN'] = '1'\n")
    with bad("cannot be opened as a model"):
        adopt(plain)
    assert "DIFFULM_RAN" not in os.environ


# --- what `load` opens ---


def test_a_plain_ar_folder_is_refused_from_its_headers(plain, monkeypatch):
    def never(*args, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(files, "digest", never)
    write = (plain / CHECKSUMS).write_text
    write(json.dumps({"model.safetensors": "0"}))
    with bad("is a plain AR checkpoint, not a diffusion model; `diffulm adapt` makes one of it"):
        load(plain)
    assert issubclass(opening.BadInput, ValueError)


def test_a_given_mask_id_overrides_the_record(ours):
    assert load(ours, mask_token_id=9)[0].record == replace(load(ours)[0].record, mask_token_id=9)
    for wrong in (65, -1):
        with bad(f"mask token id {wrong} lies outside its vocabulary of 65 rows"):
            load(ours, mask_token_id=wrong)
    with bad("is its BOS token"):
        load(ours, mask_token_id=load(ours)[0].record.bos_token_id)
