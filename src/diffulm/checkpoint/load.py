"""Open a diffusion model: our own folders, the released DiffuGPT / DiffuLLaMA layouts, those of other projects."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffulm import families
from diffulm.checkpoint import adapter, released
from diffulm.checkpoint.files import absent, headers, hub_answers, locate, read_config
from diffulm.checkpoint.opening import first_line, load_weights, open_tokenizer
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.quiet import quietly
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*"]


def load(
    source: str | Path, mask_token_id: int | None = None, dtype: torch.dtype | None = None, quantise: str = "none"
) -> tuple[Denoiser, Any]:
    """(denoiser, tokenizer or None) of a folder or hub id.

    A given mask id overrides record and tokenizer. dtype None: float32, whatever the file holds. An adapter is opened on its
    parent, whose checksum must be the one it was trained on. quantise: as in `load_weights`, for our own plain folders. Raises
    BadInput for a plain AR folder (adapt it first; known from its headers alone), a mask id outside the vocabulary, tensors
    that are not the architecture's, a parent that was moved or altered, and files that are missing or damaged.
    """
    with quietly():
        place = folder_of(source)
        config = read_config(place)
        ours = "diffulm" in config and not adapter.is_adapter(place) and not released.is_exported(place, config)
        if quantise != "none" and not ours:
            raise BadInput(
                f"quantise={quantise}: {source} is no plain checkpoint; `diffulm merge` or `import` makes one"
            )
        if "diffulm" in config and adapter.is_adapter(place):
            record = Record.from_dict(config["diffulm"], str(place / "config.json"))
            record = record if mask_token_id is None else replace(record, mask_token_id=mask_token_id)
            model, tokenizer = adapter.opened(place, _parent(place), record, dtype), open_tokenizer(place)
        elif ours:
            record = Record.from_dict(config["diffulm"], str(place / "config.json"))
            model, tokenizer = load_weights(place, dtype, quantise), open_tokenizer(place)
        else:
            model, tokenizer, record = _released(place, config, mask_token_id, dtype, str(source))
        model.set_attn_implementation("eager" if record.additive_mask else "sdpa")
    record = checked(record, mask_token_id, rows(model), source)
    model.config.diffulm = record.to_dict()
    return Denoiser(model.eval(), record, record.additive_mask), tokenizer


def _parent(place: Path) -> Path:
    """Where the parent of an adapter lies."""
    name = adapter.parent_name(place)
    try:
        return folder_of(name)
    except BadInput as error:
        where = f"write where it is as {adapter.BASE} into {place / adapter.CONFIG}"
        raise BadInput(f"{place}: the parent of this adapter is not there ({error}); put it back, or {where}") from None


def rows(model: Any) -> int:
    """The ids that the model can read; the mask token of an adapter has one, though no row of the embedding."""
    embedding = model.get_input_embeddings()
    return max(len(embedding.weight), getattr(embedding, "mask_token_id", -1) + 1)


def folder_of(source: str | Path) -> Path:
    """The folder that a path, a shipped name or a hub id leads to; what the hub has is downloaded."""
    place = locate(source)
    return _download(place) if isinstance(place, str) else place


def checked(record: Record, mask_token_id: int | None, vocabulary: int, source: str | Path) -> Record:
    """The record with the mask id asked for, every id in it inside the vocabulary."""
    mask = record.mask_token_id if mask_token_id is None else mask_token_id
    if not 0 <= mask < vocabulary:
        raise BadInput(
            f"{source}: mask token id {mask} lies outside its vocabulary of {vocabulary} rows; give another --mask-token-id"
        )
    if record.bos_token_id is not None and not 0 <= record.bos_token_id < vocabulary:
        raise BadInput(f"{source}: bos_token_id {record.bos_token_id} lies outside its vocabulary of {vocabulary} rows")
    if mask == record.bos_token_id:
        raise BadInput(f"{source}: mask token id {mask} is its BOS token; give another --mask-token-id")
    return replace(record, mask_token_id=mask)


def is_plain(place: Path, config: dict[str, Any], source: str) -> bool:
    """Whether nothing in a checkpoint says that it is a diffusion model."""
    return "diffulm" not in config and not released.is_released(place, config, source)


def refuse_plain(place: Path, config: dict[str, Any], mask_token_id: int | None, source: str) -> None:
    """BadInput for an AR checkpoint: nothing in it says that it is a diffusion model, nor did the caller."""
    if mask_token_id is None and is_plain(place, config, source):
        raise BadInput(f"{source}: is a plain AR checkpoint, not a diffusion model; `diffulm adapt` makes one of it")


def _released(
    place: Path, config: dict[str, Any], mask_token_id: int | None, dtype: torch.dtype | None, source: str
) -> tuple[Any, Any, Record]:
    released.decoder_of(place, config)
    refuse_plain(place, config, mask_token_id, source)
    family, theirs = families.of(str(config.get("model_type", ""))), released.foreign(place, config)
    if family is None and theirs is None and not released.is_derived(headers(place)):
        model = load_weights(place, dtype)  # transformers' own names, of a family that was never released
    else:
        model = released.build(released.plan(place, config), dtype)
    tokenizer, _ = released.open_released_tokenizer(place, config)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    record, _ = released.make_record(place, config, vocabulary, tokenizer, mask_token_id)
    return model, tokenizer, record


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    there = hub_answers()  # without a network the cache is all there is, and nobody need wait for it
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, local_files_only=not there))
    except Exception as error:  # unknown repository, no permission: all the same to the caller
        raise absent(name, first_line(error) if there else "which cannot be reached") from None
