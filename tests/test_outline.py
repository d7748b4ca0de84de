"""A model without its weights: headers against architecture, and the sizes that are counted from it."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from diffulm.checkpoint.files import read_config
from diffulm.checkpoint.opening import decoder_config
from diffulm.checkpoint.outline import geometry, odd_ones, outline, size_on_disk, skeleton, stored_tensors
from models import bad, build

MIXTRAL_8X7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 32768, "sliding_window": None,
}  # fmt: skip


def saved(folder: Path, family: str = "llama", **shards) -> Path:
    build(family).save_pretrained(folder, **shards)
    return folder


def change(folder: Path, **tensors) -> None:
    """Replace tensors of a folder of one file; None removes one."""
    file = folder / "model.safetensors"
    found = {**load_file(file), **{name.replace("__", "."): value for name, value in tensors.items()}}
    save_file({name: value for name, value in found.items() if value is not None}, file, {"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_mixed", "gemma2", "opt"])
def test_what_was_saved_fits_and_is_counted(family, tmp_path):
    folder = saved(tmp_path, family)
    model, misfit = outline(decoder_config(folder), stored_tensors(folder))
    assert misfit.reason is None
    assert {p.device.type for p in model.parameters()} == {"meta"}
    real = build(family)
    assert geometry(model) == geometry(real) == geometry(skeleton(real.config))
    assert geometry(model).parameters == sum(p.numel() for p in real.parameters())
    assert size_on_disk(stored_tensors(folder)) == (folder / "model.safetensors").stat().st_size


def test_parameters_by_use():
    tied, untied = (geometry(build("llama", tie_word_embeddings=tie)) for tie in (True, False))
    assert (tied.tied, untied.tied) == (True, False)
    assert (tied.embedding_parameters, untied.embedding_parameters) == (64 * 32, 2 * 64 * 32)
    assert tied.parameters == untied.parameters - 64 * 32
    assert tied.parameters - tied.embedding_parameters == untied.parameters - untied.embedding_parameters
    assert (tied.heads, tied.kv_heads, tied.head_width, tied.intermediate) == (4, 2, 8, 48)
    gpt2 = geometry(build("gpt2"))
    assert gpt2.embedding_parameters == 64 * 32 + 64 * 32  # tokens and positions
    assert (gpt2.kv_heads, gpt2.intermediate, gpt2.context) == (4, 128, 64)
    assert geometry(build("mamba")).attention_layers == 0


def test_experts_take_turns():
    """Mixtral 8x7B as its makers count it: 46.7B parameters, of which a token passes 12.9B."""
    sizes = geometry(skeleton(transformers.MixtralConfig(**MIXTRAL_8X7B)))
    assert sizes.parameters == 46_702_792_704
    # all but six of eight experts of three matrices in each layer
    assert sizes.active_parameters == sizes.parameters - 32 * 6 * 3 * 4096 * 14336
    assert sizes.active_parameters == pytest.approx(12.9e9, rel=0.01)
    # the two experts that a token passes, and the router as if it were part of them
    assert sizes.intermediate == pytest.approx(2 * 14336, rel=1e-3)


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    folder = saved(tmp_path)
    change(
        folder, model__norm__weight=None, model__layers__1__mlp__up_proj__weight=None, other__weight=torch.ones(1),
        model__embed_tokens__weight=torch.ones(64, 30),
    )  # fmt: skip
    _, misfit = outline(decoder_config(folder), stored_tensors(folder))
    assert misfit.missing == ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    assert misfit.unexpected == ["other.weight"]
    assert misfit.misshapen == ["model.embed_tokens.weight"]
    assert misfit.reason == (
        "its tensors are not those of its architecture: 2 missing (model.layers.1.mlp.up_proj.weight, model.norm.weight); "
        "1 unexpected (other.weight); 1 of another shape (model.embed_tokens.weight)"
    )


def test_an_expert_that_is_missing_is_named(tmp_path):
    """Experts are stacked while they are loaded, so transformers itself cannot say which one made it fail."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    config = transformers.MixtralConfig(**MIXTRAL_8X7B | sizes | {"num_attention_heads": 4, "num_key_value_heads": 2})
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    stored = stored_tensors(tmp_path)
    assert outline(config, stored)[1].reason is None
    lost = next(name for name in stored if ".1." in name and ".experts.5." in name)
    whole = stored.pop(lost)
    assert outline(config, stored)[1].missing == [lost]
    stored[lost] = whole
    assert odd_ones(stored).reason is None


def test_the_files_are_those_that_transformers_reads(tmp_path):
    folder = saved(tmp_path, max_shard_size="20KB")
    whole = stored_tensors(folder)
    names = {item.file.name for item in whole.values()}
    assert len(names) > 1 and all(name.startswith("model-") for name in names)
    assert size_on_disk(whole) == sum((folder / name).stat().st_size for name in names)
    assert {name: item.shape for name, item in whole.items()} == {
        name: tuple(value.shape) for name, value in build("llama").state_dict().items()
    }
    # some folders carry the same weights a second time in another layout
    save_file({"tok_embeddings.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    assert stored_tensors(folder).keys() == whole.keys()
    (folder / "model.safetensors.index.json").unlink()
    with bad(r"neither model.safetensors nor model.safetensors.index.json"):
        stored_tensors(folder)


def test_an_architecture_that_cannot_be_built(tmp_path):
    config = decoder_config(saved(tmp_path))
    assert read_config(tmp_path)["num_attention_heads"] == 4
    config.hidden_act = "none such"
    with bad("its architecture cannot be built"):
        skeleton(config)
    with bad("its weights cannot be loaded"):
        outline(config, stored_tensors(tmp_path))
