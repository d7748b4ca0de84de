"""LoRA on a frozen parent: what is trained, the parent that comes back bit for bit, the folder it leaves, and merging."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import diffulm
from diffulm.checkpoint import adapter
from diffulm.checkpoint.load import load
from diffulm.checkpoint.save import save
from diffulm.cli import main
from diffulm.denoiser.adapter import adapter_off, merge, parent_view
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Denoiser
from diffulm.options import checked
from diffulm.recipes.adapt import AdaptConfig
from models import VOCABULARY, bad, build, flip, ids, tokenizer
from models import with_adapter as trained
from runs import short, timeless

PARENTS = {
    "gpt2": ("gpt2", {}),  # transposed linear layers, tied
    "llama": ("llama", {}),
    "tied llama": ("llama", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {}),  # scales its embedding and caps its logits
}
# "auto" brings a new token here; w5 is an ordinary one, reused
CASES = [("gpt2", "auto"), ("gpt2", "w5"), ("llama", "auto"), ("tied llama", "w5"), ("gemma2", "auto")]
KEEP = {"adapter": "lora", "train_embeddings": "false", "keep_adapter": "true", "lora_rank": 4}
# What differs between unmerged and merged is the order of one sum: some units in the last place of logits of size 10.
MERGED = 2e-5


@pytest.fixture(scope="module")
def parents(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    for name, (family, changes) in PARENTS.items():
        build(family, **changes).save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    return root


def canvas(denoiser: Denoiser) -> torch.Tensor:
    return ids().index_fill(1, torch.arange(4, 9), denoiser.record.mask_token_id)


@pytest.mark.parametrize(("name", "mask_token"), CASES)
@torch.no_grad()
def test_with_the_adapter_off_the_parent_is_there_bit_for_bit(parents, name, mask_token):
    denoiser, _ = trained(parents / name, mask_token)
    own = AutoModelForCausalLM.from_pretrained(parents / name)
    own.set_attn_implementation(denoiser.model.config._attn_implementation)
    plain = Denoiser(own.eval(), denoiser.record, denoiser.additive)
    causal = torch.ones(14, 14, dtype=torch.bool).tril()
    text = ids().index_fill(1, torch.tensor([3]), 5)  # the reused token among them, as text
    before = denoiser(canvas(denoiser))
    with parent_view(denoiser) as parent:
        assert torch.equal(parent.causal_view(text), plain.rows(text, causal))
        assert torch.equal(parent(text), plain.rows(text, causal)[:, :-1].flatten(0, 1))  # `visible=None` is causal
        with pytest.raises(ZeroDivisionError), adapter_off(denoiser.model):  # off is off, and stays so
            _ = 1 / 0
        assert parent.causal_view(text).shape[-1] == VOCABULARY
        assert torch.equal(parent.causal_view(text), plain.rows(text, causal))
    assert torch.equal(denoiser(canvas(denoiser)), before)
    assert not torch.allclose(denoiser.rows(text, causal)[..., :VOCABULARY], plain.rows(text, causal), atol=0.1)
    mine, theirs = dict(denoiser.model.named_parameters()), dict(own.named_parameters())
    frozen = {key.replace(".base_layer", ""): value for key, value in mine.items() if not value.requires_grad}
    assert frozen.keys() == theirs.keys() and all(torch.equal(frozen[key], theirs[key]) for key in theirs)


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing_but_how_a_mask_reads(parents):
    plain, _ = adopt(str(parents / "llama"))
    first, second = (adopt(str(parents / "llama"), frozen=True)[0] for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        for one in (first, second):
            torch.rand(1)  # whatever the global generator has come to
            adapter.begin(one, parents / "llama", 4, 8.0, seed=3, embeddings=False)
    drawn = [dict(one.model.named_parameters()) for one in (first, second)]
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0]), "a function of the seed"
    found, expected = first(canvas(first)), plain(canvas(plain))
    assert found.shape == expected.shape and bool((found[:, VOCABULARY] == -torch.inf).all())
    # one kernel reads 64 rows, the other 65
    assert torch.allclose(found[:, :VOCABULARY], expected[:, :VOCABULARY], rtol=0, atol=1e-5)
    targets, where = torch.full((26,), 7), first.predictable(ids())
    assert torch.allclose(first.cross_entropy(canvas(first), targets, where), -found.log_softmax(-1)[:, 7], atol=1e-5)


@pytest.mark.parametrize(("name", "mask_token"), CASES)
@torch.no_grad()
def test_saved_opened_and_merged_it_says_the_same(parents, tmp_path, name, mask_token):
    denoiser, words = trained(parents / name, mask_token)
    text = canvas(denoiser)
    said = denoiser(text)
    save(denoiser, words, tmp_path / "adapter")
    again, _ = load(tmp_path / "adapter")
    assert torch.equal(again(text), said)
    stored = load_file(tmp_path / "adapter" / adapter.WEIGHTS)
    assert sum(key.endswith("mask_vector") for key in stored) == 1
    assert all("lora_" in key or key.endswith("mask_vector") for key in stored)
    assert main_ok(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")])
    assert not (tmp_path / "merged" / adapter.CONFIG).exists()
    whole, _ = load(tmp_path / "merged")
    assert type(whole.model) is type(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    told = whole(text)
    assert told.shape == said.shape and torch.equal(told.isinf(), said.isinf())
    assert torch.allclose(told, said, rtol=0, atol=MERGED)


def main_ok(arguments: list[str]) -> bool:
    try:
        main(arguments)
    except SystemExit as end:
        return end.code == 0
    return True


@torch.no_grad()
def test_peft_opens_the_folder_as_a_lora_of_the_parent(parents, tmp_path):
    from peft import PeftModel

    denoiser, words = trained(parents / "gpt2")
    save(denoiser, words, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(parents / "gpt2")
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    causal = torch.ones(14, 14, dtype=torch.bool).tril()
    ours = denoiser.rows(ids(), causal)
    # its own causal kernel against ours with a mask
    assert torch.allclose(theirs(input_ids=ids()).logits, ours, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="no adapter"), parent_view(adopt(str(parents / "gpt2"))[0]):
        pass


# -- runs


@pytest.fixture(scope="module")
def kept(forks, home, tmp_path_factory) -> Path:
    """The folder of a run in adapter mode."""
    out = tmp_path_factory.mktemp("runs") / "kept"
    child = forks.diffulm(*short(home, out, **KEEP))
    assert child.wait() == 0, child.err
    return out


def test_a_run_in_adapter_mode_publishes_an_adapter_of_an_unchanged_parent(kept, home, tmp_path):
    names = {path.name for path in kept.iterdir()}
    assert {adapter.CONFIG, adapter.WEIGHTS, "config.json", "tokenizer.json", "README.md", "sha256.json"} <= names
    assert not names & {"model.safetensors", "generation_config.json"}
    config = json.loads((kept / "config.json").read_text())
    assert config["model_type"] == "llama" and config["diffulm"]["parent"] == str(home / "parent")
    assert "An adapter by which `parent` becomes" in (kept / "README.md").read_text()
    lm = diffulm.load(kept)
    assert lm.infill("the cat <hole:2> a mat").text.startswith("the cat ")
    assert lm.generate("the cat", length=4, steps=2).completion
    assert lm.score("the cat sat").nats > 0
    own = AutoModelForCausalLM.from_pretrained(home / "parent")
    causal = torch.ones(14, 14, dtype=torch.bool).tril()
    with torch.no_grad(), parent_view(lm.denoiser) as parent:
        assert torch.equal(parent.causal_view(ids()), Denoiser(own, lm.record).rows(ids(), causal))
    values = [value for name, value in load_file(kept / adapter.WEIGHTS).items() if "lora_B" in name]
    assert len(values) == 14 and all(value.abs().max() > 0 for value in values), "every linear layer has learnt"
    lm.save(tmp_path / "copy")
    assert (tmp_path / "copy" / adapter.WEIGHTS).read_bytes() == (kept / adapter.WEIGHTS).read_bytes()
    assert main_ok(["inspect", str(kept)])


def test_a_killed_run_goes_on_and_keeps_nothing_of_the_parent(forks, kept, home, tmp_path):
    out, command = tmp_path / "run", short(home, tmp_path / "run", **KEEP)
    place = "diffulm.training.trainer:DiffusionTrainer.training_step"
    child = forks.diffulm(*command, first=f"when({place!r}, 6, 'os.kill(os.getpid(), 9)')")
    assert child.wait() == -9
    checkpoint = max(out.glob("checkpoint-*"))
    moments = load_file(checkpoint / "optimizer.safetensors")
    learnt = load_file(checkpoint / adapter.WEIGHTS)
    size = sum(value.numel() for value in learnt.values())
    assert sum(value.numel() for value in moments.values() if value.dim()) == 2 * size, "moments of the adapter alone"
    assert not (checkpoint / "model.safetensors").exists()
    child = forks.diffulm(*command)
    assert child.wait() == 0, child.err
    assert (out / adapter.WEIGHTS).read_bytes() == (kept / adapter.WEIGHTS).read_bytes()
    assert timeless(out) == timeless(kept)


def test_what_is_trained_is_what_was_asked_for(forks, home, tmp_path):
    """Merged: with the embeddings, without them, and the same from a parent that was held in another way."""
    lora = {"adapter": "lora", "lora_rank": 4}
    runs = {"whole": lora, "layers": lora | {"train_embeddings": "false"}, "held": lora | {"quantise": "4bit"}}
    held = "import diffulm.checkpoint.opening as o; o._quantised = lambda bits: {}"  # there is no such library here
    for name, more in runs.items():
        child = forks.diffulm(*short(home, tmp_path / name, **more), first=held)
        assert child.wait() == 0, child.err
    parent = load_file(home / "parent" / "model.safetensors")
    found = {name: load_file(tmp_path / name / "model.safetensors") for name in runs}
    mask = load(tmp_path / "whole")[0].record.mask_token_id
    for name, tensors in found.items():
        moved = {key for key, value in parent.items() if not torch.equal(tensors[key][: len(value)], value)}
        linear = {key for key in parent if "_proj" in key}
        ends = {"model.embed_tokens.weight", "lm_head.weight"}
        assert moved - ends == linear, name
        for end in ends:
            rows = (tensors[end][: len(parent[end])] != parent[end]).any(1).nonzero().flatten().tolist()
            assert set(rows) <= {mask} if name == "layers" else len(rows) > mask / 2, (name, end)
    assert all(torch.equal(found["held"][key], found["whole"][key]) for key in parent)
    with bad("whole: holds no adapter; only a run with keep_adapter=true"):
        from diffulm.recipes.merge import merge as run

        run(str(tmp_path / "whole"), tmp_path / "out")


@pytest.mark.slow
def test_sharded_over_two_processes_it_learns_the_same(forks, kept, home, tmp_path):
    """Begun on one process, gone on with on two, ended on one: files hold nothing of the parent on any of them."""
    out, command = tmp_path / "run", short(home, tmp_path / "run", **KEEP)
    place = "diffulm.training.trainer:DiffusionTrainer.training_step"
    assert forks.diffulm(*command, first=f"when({place!r}, 4, 'os.kill(os.getpid(), 9)')").wait() == -9
    stops = f"when({place!r}, 4, 'os.kill(os.getpid(), 9)')\n"
    codes = [child.wait() for child in forks.launched(2, *command, "sharding=full", first=stops)]
    assert 0 not in codes
    checkpoint = max(out.glob("checkpoint-*"))
    assert list(checkpoint.glob("shard-*")) and not (checkpoint / adapter.WEIGHTS).exists()
    parts = sum(file.stat().st_size for file in checkpoint.glob("shard-*"))
    assert parts < 4 * (kept / adapter.WEIGHTS).stat().st_size, "weights and two moments of the adapter"
    child = forks.diffulm(*command)
    assert child.wait() == 0, child.err
    found, expected = (load_file(folder / adapter.WEIGHTS) for folder in (out, kept))
    assert found.keys() == expected.keys()
    # sums over processes come in another order
    assert all(torch.allclose(found[key], expected[key], rtol=0, atol=2e-5) for key in found)


# -- bad input


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep_adapter": True}, "keep_adapter=True: there is no adapter; set adapter=lora"),
        ({"quantise": "8bit"}, "quantise=8bit: there is no adapter; set adapter=lora"),
        ({"adapter": "lora", "scratch": True}, "adapter=lora: there is no parent to adapt when scratch=true"),
        (
            {"adapter": "lora", "keep_adapter": True},
            "keep_adapter=true: with train_embeddings=true there is more to keep",
        ),
        (
            {"adapter": "lora", "keep_adapter": True, "train_embeddings": False, "objective": "autoregressive"},
            "with objective=autoregressive",
        ),
    ],
)
def test_settings_that_do_not_go_together(given, said):
    with bad(said):
        checked(AdaptConfig, model="m", data="d", out="o", tokens=1, **given)


def test_libraries_that_are_not_installed(parents, monkeypatch):
    find = importlib.util.find_spec
    gone = {"peft", "bitsandbytes"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else find(name, *rest))
    denoiser, _ = adopt(str(parents / "llama"), frozen=True)
    with bad("adapter=lora: needs peft, which is not installed; pip install diffulm.lora."):
        adapter.begin(denoiser, parents / "llama", 4, 8.0, 0, False)
    with bad("quantise=4bit: needs bitsandbytes, which is not installed; pip install diffulm.quantised."):
        adopt(str(parents / "llama"), quantise="4bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with bad("quantise=8bit: needs a GPU; leave it out"):
        adopt(str(parents / "llama"), quantise="8bit")


def test_a_parent_that_was_moved_or_altered(parents, tmp_path):
    home, folder = tmp_path / "parent", tmp_path / "adapter"
    shutil.copytree(parents / "llama", home)
    save(*trained(home), folder)
    os.rename(home, tmp_path / "elsewhere")
    with bad("adapter: the parent of this adapter is not there .*no such folder.*; put it back, or write where it is"):
        load(folder)
    told = json.loads((folder / adapter.CONFIG).read_text())
    (folder / adapter.CONFIG).write_text(json.dumps(told | {adapter.BASE: str(tmp_path / "elsewhere")}))
    load(folder)
    flip(tmp_path / "elsewhere" / "model.safetensors")
    with bad("elsewhere: is not the parent that the adapter .*adapter was trained on: its weights have another sha256"):
        load(folder)
    (folder / adapter.CONFIG).write_text(json.dumps(told | {adapter.BASE: str(parents / "gpt2")}))
    with bad("gpt2: is not the parent"):
        load(folder)
    (folder / adapter.CONFIG).write_text(json.dumps(told | {adapter.BASE: None}))
    with bad("adapter_config.json: names no parent"):
        load(folder)
    (folder / adapter.CONFIG).write_text(json.dumps(told | {adapter.BASE: str(parents / "llama"), "r": 5}))
    with bad("adapter_model.safetensors: does not fit its parent"):
        load(folder)
    (folder / adapter.CONFIG).write_text(json.dumps(told | {adapter.BASE: str(parents / "llama"), "r": "x"}))
    with bad("not of a LoRA"):
        load(folder)
    flip(folder / adapter.WEIGHTS)
    (folder / adapter.CONFIG).write_text(json.dumps(told | {adapter.BASE: str(parents / "llama")}))
    with bad("adapter_model.safetensors: its sha256 is not the one"):
        load(folder)


def test_an_adapter_is_no_parent_and_another_parent_no_place_to_resume(parents, tmp_path):
    denoiser, words = trained(parents / "llama")
    save(denoiser, words, tmp_path / "adapter")
    with bad("adapter: cannot be used: it is a diffusion model already, an adapter of another"):
        adopt(str(tmp_path / "adapter"))
    denoiser.model.config.diffulm = denoiser.model.config.diffulm | {adapter.PARENT: "0" * 64}
    with bad("was trained on a parent with other weights"):
        adapter.fill(denoiser.model, tmp_path / "adapter")
    merge(denoiser.model, denoiser.record)
    with pytest.raises(ValueError, match="no adapter"), adapter_off(denoiser.model):
        pass
