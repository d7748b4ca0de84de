"""`diffulm inspect`: the verdict and its evidence."""

import json

import torch

from diffulm.denoiser import probe as probing
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.save import save
from diffulm.recipes.inspect import inspect
from models import bad, build, tokenizer


def test_inspect_changes_nothing_and_tells_all(tmp_path):
    model = build("mistral")
    model.set_attn_implementation("eager")
    before, rows = json.dumps(model.config.to_dict(), default=str), len(model.get_input_embeddings().weight)
    found = inspect(model)
    assert (found.kind, found.adoptable, found.reason) == ("autoregressive", True, None)
    assert json.dumps(model.config.to_dict(), default=str) == before
    assert model.config._attn_implementation == "eager"
    assert len(model.get_input_embeddings().weight) == rows
    build("gemma2").save_pretrained(tmp_path)
    tokenizer(special=("<unused0>",)).save_pretrained(tmp_path)
    facts = inspect(str(tmp_path), tokens=1000).as_dict()
    json.dumps(facts)  # what the command line prints
    assert facts["model"] == str(tmp_path)
    assert facts["architecture"] == "Gemma2ForCausalLM"
    assert facts["parameters"] == sum(p.numel() for p in build("gemma2").parameters())
    assert facts["layers"] == {"full_attention": None, "sliding_attention": 5}
    assert facts["mask_token"] == "the reserved special token '<unused0>'"
    assert facts["cost"]["flops"] == 6 * facts["parameters"] * 1000
    assert facts["probe"]["backend"] == "eager, additive float mask"
    assert all(facts["probe"][key] for key in ("full", "causal", "mirrored", "where", "window"))


def test_inspect_does_not_convert_a_bfloat16_folder(tmp_path, monkeypatch):
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    seen = []
    monkeypatch.setattr(
        "diffulm.denoiser.adopt.probe", lambda d, own, ids: seen.append(own.dtype) or probing.probe(d, own, ids)
    )
    assert inspect(tmp_path).adoptable
    assert seen == [torch.bfloat16]
    denoiser, _ = adopt(tmp_path)
    assert denoiser.model.dtype == torch.float32


def test_inspect_of_what_is_there_and_what_is_not(tmp_path):
    for missing in (tmp_path / "no", str(tmp_path / "no"), "no-such-model", "no/such-model"):
        with bad("no such folder"):
            inspect(missing)
    (tmp_path / "empty").mkdir()
    with bad("has no config.json"):
        inspect(tmp_path / "empty")
    build("bloom").save_pretrained(tmp_path / "bloom")
    found = inspect(tmp_path / "bloom")
    assert not found.adoptable
    assert found.reason.startswith("its forward takes no 4-D attention mask (")
    build("llama").save_pretrained(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    found = inspect(tmp_path / "torn")
    assert not found.adoptable
    assert "cannot be read as safetensors" in found.reason
    save(*adopt(build("llama")), tmp_path / "ours")
    found = inspect(tmp_path / "ours")
    assert (found.kind, found.adoptable, found.mask_token) == ("diffusion", True, "id 64, attention full")
    with bad("is a diffusion model already"):
        adopt(tmp_path / "ours")
