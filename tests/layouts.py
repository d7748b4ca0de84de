"""Tiny checkpoints in the layouts that others have published, written without a word of the code under test."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer

from models import VOCABULARY, build

RENAMED = {
    "gpt2": {"transformer.wte.": "embed_tokens.", "transformer.": "denoise_model."},
    "llama": {"model.embed_tokens.": "embed_tokens.", "model.": "denoise_model."},
}
TEXT = "the cat's hat, 12 and the dog"
TIED_NOTE = {"lm_head.weight": "embed_tokens.weight"}  # what the published writer leaves in a file of tied weights


def published_name(name: str, family: str) -> str:
    for plain, published in RENAMED[family].items():
        if name.startswith(plain):
            return published + name.removeprefix(plain)
    return name


def released(
    folder: Path,
    family: str = "gpt2",
    vocabulary: int = VOCABULARY + 1,
    plain: bool = False,
    dtype: torch.dtype = torch.float32,
    norms: torch.dtype | None = None,
    shards: int = 1,
    config: dict[str, Any] | None = None,
    note: dict[str, str] | None = None,
    **tensors: torch.Tensor | None,
) -> Path:
    """A tiny model as the published code leaves it; config.json has the parent's vocabulary and version 4's keys.

    norms: another dtype for the layer norms. note: the metadata of the files. tensors: added or, if None, left out.
    """
    told = config or {}
    model = build(family, vocab_size=vocabulary, **{k: v for k, v in told.items() if k == "tie_word_embeddings"})
    tied = model.config.tie_word_embeddings
    state: dict[str, Any] = {
        name if plain else published_name(name, family): value.to(norms if norms and "norm" in name else dtype).clone()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    model.config.vocab_size = vocabulary if plain else VOCABULARY
    keys = model.config.to_dict()
    keys |= {"architectures": [type(model).__name__ if plain else "DiscreteDiffusionModel"], "_name_or_path": "parent"}
    keys.pop("dtype", None)
    keys["torch_dtype"] = str(dtype).removeprefix("torch.")
    if rope := keys.pop("rope_parameters", None):
        keys |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(keys | told))
    write(folder, {k: v for k, v in (state | tensors).items() if v is not None}, shards, note or {"format": "pt"})
    return folder


def byte_pairs(folder: Path, **told: Any) -> None:
    """GPT-2's own files of a byte-level BPE (fewer than 300 tokens), and what tokenizer_config.json says."""
    bpe = ByteLevelBPETokenizer()
    special = ["<|endoftext|>"]
    bpe.train_from_iterator([TEXT] * 5, vocab_size=300, min_frequency=1, special_tokens=special, show_progress=False)
    bpe.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def write(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1, note: dict[str, str] | None = None) -> None:
    """The weights of a folder, with an index when there are several files."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=note)
        return
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file, metadata=note)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
