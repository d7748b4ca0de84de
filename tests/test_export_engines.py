"""`diffulm export --format dream` and `llada`: layouts that other engines run.

What was exported was run once by the published code and by llama.cpp: see docs/importing.md for versions and differences.
Here are the names, shapes and settings that came of it, and the way back through our own import.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffulm.checkpoint import tensors
from diffulm.checkpoint.files import CHECKSUMS, read_config, write_checksums
from diffulm.checkpoint.load import load
from diffulm.checkpoint.save import save
from diffulm.denoiser.adopt import adopt
from diffulm.lm import load as load_lm
from diffulm.recipes.convert import export, import_checkpoint
from diffulm.recipes.inspect import inspect
from foreign import llada_name, own_tokenizer
from models import VOCABULARY, bad, build, ids, with_adapter

MASK = VOCABULARY - 1


def ours(folder: Path, family: str = "qwen2", shift: bool = True, record: Any = None, **changes: Any) -> str:
    """A folder of ours with a tokenizer whose last token is the mask; biases and norms are no longer zeros and ones."""
    model = build(family, **changes)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    save(*adopt(model, own_tokenizer(), shift=shift), folder)
    if record:
        config = read_config(folder)
        (folder / "config.json").write_text(json.dumps(config | {"diffulm": config["diffulm"] | record}))
    return str(folder)


def logits(folder: Path | str) -> torch.Tensor:
    with torch.no_grad():
        return load(folder)[0].rows(ids())


# --- there and back ---


@pytest.mark.parametrize(
    ("family", "layout", "tied"),
    [("qwen2", "dream", False), ("qwen2", "llada", True), ("llama", "dream", True), ("llama", "llada", False)],
)
def test_export_opens_and_comes_back_as_the_same_model(family, layout, tied, tmp_path):
    source = ours(tmp_path / "ours", family, layout == "dream", tie_word_embeddings=tied)
    report = export(source, tmp_path / "out", layout)
    imported = import_checkpoint(str(tmp_path / "out"), tmp_path / "back")
    assert report["layout"] == layout and imported["layout"].lower() == layout
    assert torch.equal(logits(tmp_path / "out"), logits(source))  # opened as it lies
    held, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", tmp_path / "ours"))
    assert held.keys() == before.keys() and all(torch.equal(held[name], before[name]) for name in held)
    keys = ("model_type", "architectures", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "diffulm")
    told, first = (load(folder)[0].model.config.to_dict() for folder in (tmp_path / "back", source))
    assert {key: told[key] for key in keys} == {key: first[key] for key in keys}
    words, read = (
        load(tmp_path / "back")[1],
        [5, 7] if family == "llama" else [],
    )  # transformers reads Qwen2's as its own
    assert words("w5 w7")["input_ids"] == load(source)[1]("w5 w7")["input_ids"] == read and words.mask_token_id == MASK


def test_the_dtype_stays(tmp_path):
    denoiser, words = adopt(build("llama"), own_tokenizer())
    denoiser.model.to(torch.bfloat16)
    save(denoiser, words, tmp_path / "ours")
    export(str(tmp_path / "ours"), tmp_path / "out", "dream")
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert read_config(tmp_path / "out")["torch_dtype"] == "bfloat16"


# --- the layouts, as they are published ---


def shapes(folder: Path) -> dict[str, list[int]]:
    with safe_open(folder / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # without it transformers 4 reads no file
        return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_what_a_dream_is(family, tmp_path):
    """LLaMA too has the biases that Dream's code asks for: zeros."""
    export(ours(tmp_path / "ours", family, num_hidden_layers=1), tmp_path / "out", "dream")
    block = {
        "self_attn.q_proj.weight": [32, 32], "self_attn.k_proj.weight": [16, 32], "self_attn.v_proj.weight": [16, 32],
        "self_attn.q_proj.bias": [32], "self_attn.k_proj.bias": [16], "self_attn.v_proj.bias": [16],
        "self_attn.o_proj.weight": [32, 32], "mlp.gate_proj.weight": [48, 32], "mlp.up_proj.weight": [48, 32],
        "mlp.down_proj.weight": [32, 48], "input_layernorm.weight": [32], "post_attention_layernorm.weight": [32],
    }  # fmt: skip
    assert shapes(tmp_path / "out") == {f"model.layers.0.{name}": shape for name, shape in block.items()} | {
        "model.embed_tokens.weight": [64, 32], "model.norm.weight": [32], "lm_head.weight": [64, 32],
    }  # fmt: skip
    biases = [value for name, value in load_file(tmp_path / "out" / "model.safetensors").items() if "bias" in name]
    assert all(bool((value == 0).all()) == (family == "llama") for value in biases)
    config = read_config(tmp_path / "out")
    assert config.pop("diffulm")["shift"] is True
    assert config.pop("zero_qkv_bias", False) == (family == "llama")
    assert config == {
        "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None,
        "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.1, "tie_word_embeddings": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 1, "use_cache": False,
        "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "mask_token_id": MASK,
    }  # fmt: skip
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())  # its code does not open without
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "mask_token_id": MASK}


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_what_a_llada_is(family, tmp_path):
    source = ours(tmp_path / "ours", family, shift=False, num_hidden_layers=1, pad_token_id=None, rms_norm_eps=1e-5)
    export(source, tmp_path / "out", "llada")
    block = {
        "q_proj.weight": [32, 32], "k_proj.weight": [16, 32], "v_proj.weight": [16, 32], "attn_out.weight": [32, 32],
        "ff_proj.weight": [48, 32], "up_proj.weight": [48, 32], "ff_out.weight": [32, 48], "attn_norm.weight": [32],
        "ff_norm.weight": [32],
    }  # fmt: skip
    block |= {"q_proj.bias": [32], "k_proj.bias": [16], "v_proj.bias": [16]} if family == "qwen2" else {}
    assert shapes(tmp_path / "out") == {f"model.transformer.blocks.0.{name}": its for name, its in block.items()} | {
        "model.transformer.wte.weight": [64, 32], "model.transformer.ln_f.weight": [32],
        "model.transformer.ff_out.weight": [64, 32],
    }  # fmt: skip
    config = read_config(tmp_path / "out")
    assert config.pop("diffulm")["shift"] is False
    assert config == {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 32, "n_heads": 4, "n_kv_heads": 2,
        "n_layers": 1, "mlp_hidden_size": 48, "mlp_ratio": 4, "vocab_size": 64, "embedding_size": 64,
        "max_sequence_length": 64, "rms_norm_eps": 1e-5, "rope": True, "rope_theta": 10000.0, "rope_full_precision": True,
        "weight_tying": False, "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms",
        "layer_norm_with_affine": True, "include_bias": False, "include_qkv_bias": family == "qwen2",
        "bias_for_layer_norm": False, "alibi": False, "attention_layer_norm": False, "input_emb_norm": False,
        "scale_logits": False, "multi_query_attention": None, "block_group_size": 1, "flash_attention": False,
        "attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0, "init_std": 0.1, "use_cache": False,
        "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "mask_token_id": MASK,
    }  # fmt: skip


def test_weights_under_published_names_are_the_same_bits(tmp_path):
    """By a table of names that is not the one under test."""
    source = ours(tmp_path / "ours", "llama", shift=False)
    export(source, tmp_path / "out", "llada")
    written, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(Path(source) / "model.safetensors")
    assert written.keys() == {llada_name(name) for name in before}
    assert all(torch.equal(written[llada_name(name)], value) for name, value in before.items())


def test_large_models_lie_in_shards(tmp_path, monkeypatch):
    source = ours(tmp_path / "ours", "llama")
    monkeypatch.setattr(tensors, "SHARD_BYTES", 20_000)
    files = export(source, tmp_path / "out", "dream")["files"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    layer = "model.layers.1.self_attn.k_proj"
    assert len(files) > 2 and index[f"{layer}.bias"] == index[f"{layer}.weight"]  # zeros lie with their layer
    assert set(json.loads((tmp_path / "out" / CHECKSUMS).read_text())) == set(files[:-1])
    assert torch.equal(logits(tmp_path / "out"), logits(source))


def test_zeros_must_be_zeros(tmp_path):
    export(ours(tmp_path / "ours", "llama"), tmp_path / "out", "dream")
    report = import_checkpoint(str(tmp_path / "out"), tmp_path / "back")
    assert len(report["dropped"]) == 6 and len(report["notes"]) == 1
    assert "k_proj.bias and 5 more were left out: zeros" in report["notes"][0]
    file = tmp_path / "out" / "model.safetensors"
    held = load_file(file)
    held["model.layers.1.self_attn.k_proj.bias"][3] = 1e-3
    save_file(held, file, {"format": "pt"})
    write_checksums(tmp_path / "out")
    with bad(r"unexpected: model.layers.1.self_attn.k_proj.bias:"):
        load(tmp_path / "out")


# --- the tokens ---


def test_ids_and_notes(tmp_path):
    """The ids of the layout come from the record, then the model, then the tokenizer; an AR parent's sampling stays behind."""
    source = ours(tmp_path / "ours", record={"bos_token_id": 5, "parent": "org/parent"}, eos_token_id=[7, 8])
    (Path(source) / "generation_config.json").write_text('{"temperature": 0.7, "do_sample": true}')
    notes = export(source, tmp_path / "out")["notes"]
    config, said = read_config(tmp_path / "out"), (tmp_path / "out" / "generation_config.json").read_text()
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad", "mask")] == [5, 7, 0, MASK]
    assert "temperature" not in said and config["_name_or_path"] == "org/parent"
    assert any("texts begin with id 5" in note for note in notes)
    assert any("do not forbid the mask token, id 63" in note for note in notes)
    assert notes[0] in (tmp_path / "out" / "README.md").read_text()


def test_a_mask_without_a_token(tmp_path):
    """These layouts have the mask as a number, so a row of its own behind the tokenizer's tokens will do."""
    denoiser, _ = adopt(build("qwen2"))
    save(denoiser, None, tmp_path / "bare")
    assert denoiser.record.mask_token_id == VOCABULARY
    assert not any("no tokenizer" in note for note in export(str(tmp_path / "bare"), tmp_path / "1")["notes"])
    own_tokenizer().save_pretrained(tmp_path / "bare")
    assert export(str(tmp_path / "bare"), tmp_path / "2")["mask_token_id"] == VOCABULARY
    assert load(tmp_path / "2")[0].record.mask_token_id == VOCABULARY
    assert torch.equal(logits(tmp_path / "2"), logits(tmp_path / "bare"))


# --- what reads them here ---


def test_an_export_is_used_as_any_model(tmp_path):
    export(ours(tmp_path / "ours", "llama"), tmp_path / "out", "dream")
    lm, before = load_lm(tmp_path / "out"), load_lm(tmp_path / "ours")
    assert lm.infill("w5 <hole:2> w7", steps=2).text == before.infill("w5 <hole:2> w7", steps=2).text
    found = inspect(str(tmp_path / "out"))
    assert (found.kind, found.adoptable, found.mask_token_id) == ("diffusion", True, MASK)
    with bad("it is a Dream, a diffusion model already"):
        adopt(str(tmp_path / "out"))
    with bad("quantise=4bit: .* is no plain checkpoint; `diffulm merge` or `import` makes one"):
        load(tmp_path / "out", quantise="4bit")


def test_the_command(tmp_path, run):
    source = ours(tmp_path / "ours")
    code, said, _ = run("export", source, str(tmp_path / "out"), "--format", "dream")
    assert code == 0 and "layout: dream\n" in said
    assert run("export", source, str(tmp_path / "default"), "--json")[1].count('"layout": "dream"') == 1
    code, _, line = run("export", source, str(tmp_path / "out"), "--format", "dream")
    assert code == 2 and "exists and is not empty; nothing was written" in line
    code, _, line = run("export", source, str(tmp_path / "no"), "--format", "lada")
    assert code == 2 and "did you mean 'llada'?" in line and not (tmp_path / "no").exists()


# --- what does not fit ---


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
LLAMA3 |= {"original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("family", "layout", "how", "line"),
    [
        ("gpt2", "dream", {}, "is a gpt2 model, which has no layout 'dream'; it can be diffugpt or denoise-model"),
        (
            "gpt2",
            "diffugpt",
            {"shift": False},
            "published code always shifts by one, .* Qwen2 and LLaMA there is .* llada",
        ),
        ("mistral", "llada", {}, "no released layout is known of the model type 'mistral', only of gpt2, llama, qwen2"),
        ("qwen2", "diffullama", {}, "is a qwen2 model, which has no layout 'diffullama'; it can be dream or llada"),
        (
            "qwen2",
            "dream",
            {"shift": False},
            "has no shift; the published code always shifts .* there is --layout llada",
        ),
        ("llama", "llada", {}, "has a shift; the published code never shifts, .* there is --layout dream"),
        (
            "qwen2",
            "dream",
            {"record": {"attention": "block", "block_size": 4}},
            "block by block; in dream every position",
        ),
        ("qwen2", "dream", {"record": {"lora_rows": "masked"}}, "acts on masks alone; no layout says that"),
        (
            "qwen2_windowed",
            "dream",
            {},
            "some of its layers see a sliding window; in dream every layer sees everything",
        ),
        ("llama", "dream", {"hidden_act": "gelu"}, "hidden_act = 'gelu', where this layout has 'silu' only"),
        ("llama", "dream", {"rope_parameters": LLAMA3}, "rope_type = 'llama3', where this layout has 'default' only"),
        ("llama", "dream", {"head_dim": 16}, "head_dim = 16, where this layout has 8 only"),
        ("llama", "dream", {"attention_bias": True}, "attention_bias = True, where this layout has False only"),
        ("llama", "llada", {"shift": False, "mlp_bias": True}, "mlp_bias = True, where this layout has False only"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(family, layout, how, line, tmp_path):
    source = ours(tmp_path / "ours", family, **how)
    with bad(f"ours: .*{line}"):
        export(source, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_lifted_window_is_none(tmp_path):
    denoiser, words = adopt(build("qwen2_windowed"), own_tokenizer(), window="lift")
    save(denoiser, words, tmp_path / "ours")
    export(str(tmp_path / "ours"), tmp_path / "out", "dream")
    import_checkpoint(str(tmp_path / "out"), tmp_path / "back")
    assert load(tmp_path / "back")[0].record.window is None
    assert torch.equal(logits(tmp_path / "back"), logits(tmp_path / "ours"))


def test_an_adapter_is_merged_first(tmp_path):
    parent = tmp_path / "parent"
    build("qwen2").save_pretrained(parent)
    own_tokenizer().save_pretrained(parent)
    save(*with_adapter(parent), tmp_path / "adapter")
    with bad("it is a diffusion model already, an adapter of another; `diffulm merge` makes one of both"):
        export(str(tmp_path / "adapter"), tmp_path / "out", "dream")
