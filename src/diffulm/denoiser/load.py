"""Open a diffusion model: our own folders and the released DiffuGPT / DiffuLLaMA layouts."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from diffulm import families
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.files import check_sums, headers, locate, read_config
from diffulm.denoiser.opening import (
    beginning,
    decoder_config,
    first_line,
    load_weights,
    open_tokenizer,
)
from diffulm.denoiser.quiet import quietly
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput

# Buffers that old files carry and models compute for themselves.
BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")


def load(
    source: str | Path, mask_token_id: int | None = None, dtype: torch.dtype | None = None
) -> tuple[Denoiser, Any]:
    """(denoiser, tokenizer or None) of a folder or hub id.

    A given mask id overrides record and tokenizer. dtype None: float32, whatever the file holds. Raises BadInput for a
    plain AR folder (adapt it first; known from its headers alone), a mask id outside the vocabulary, and files that are
    missing or damaged.
    """
    with quietly():
        place = locate(source)
        if isinstance(place, str):
            place = _download(place)
        config = read_config(place)
        if "diffulm" in config:
            record = Record.from_dict(config["diffulm"], str(place / "config.json"))
            model, tokenizer = load_weights(place, dtype), open_tokenizer(place)
        else:
            decoder_config(place)
            if mask_token_id is None and not is_released(place, config, str(source)):
                raise BadInput(
                    f"{source}: is a plain AR checkpoint, not a diffusion model; `diffulm adapt` makes one of it"
                )
            model, tokenizer, record = _released(place, config, mask_token_id, dtype)
        model.set_attn_implementation("eager" if record.additive_mask else "sdpa")
    record = _checked(record, mask_token_id, model.get_input_embeddings().weight.shape[0], source)
    model.config.diffulm = record.to_dict()
    return Denoiser(model.eval(), record, record.additive_mask), tokenizer


def _checked(record: Record, mask_token_id: int | None, vocabulary: int, source: str | Path) -> Record:
    """The record with the mask id asked for, every id in it inside the vocabulary."""
    mask = record.mask_token_id if mask_token_id is None else mask_token_id
    if not 0 <= mask < vocabulary:
        raise BadInput(
            f"{source}: mask token id {mask} lies outside its vocabulary of {vocabulary} rows; give another --mask-token-id"
        )
    if record.bos_token_id is not None and not 0 <= record.bos_token_id < vocabulary:
        raise BadInput(f"{source}: bos_token_id {record.bos_token_id} lies outside its vocabulary of {vocabulary} rows")
    return replace(record, mask_token_id=mask)


def is_released(place: Path, config: dict[str, Any], source: str = "") -> bool:
    """Whether a folder without a record holds a released checkpoint: told by its tensor names, DiffuLLaMA by its own."""
    names = f"{source} {place.name} {config.get('_name_or_path', '')}".lower()
    return "diffullama" in names or any(name.startswith("denoise_model.") for name in headers(place))


def _released(
    place: Path, config: dict[str, Any], mask_token_id: int | None, dtype: torch.dtype | None
) -> tuple[Any, Any, Record]:
    family = families.of(str(config.get("model_type", "")))
    if any(name.startswith("denoise_model.") for name in headers(place)):
        if family is None or not hasattr(family, "RELEASED_NAMES"):
            kind = config.get("model_type")
            raise BadInput(f"{place}: tensors named denoise_model.* are not known of the model type {kind!r}")
        model = _renamed(place, family.RELEASED_NAMES, dtype)
    else:
        model = load_weights(place, dtype)
    tokenizer = _released_tokenizer(place, family)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    mask = _released_mask(tokenizer, config, vocabulary, family) if mask_token_id is None else mask_token_id
    if mask is None:
        raise BadInput(
            f"{place}: neither its tokenizer nor its family says which token is the mask; give --mask-token-id"
        )
    bos = beginning(tokenizer, model.config, vocabulary, str(place))
    return model, tokenizer, Record(mask, bos, shift=True, emit_mask=True, parent=config.get("_name_or_path"))


def _released_mask(tokenizer: Any, config: dict[str, Any], vocabulary: int, family: ModuleType | None) -> int | None:
    """The tokenizer's mask token; else the last row if there is one more than the parent has; else the family's."""
    if getattr(tokenizer, "mask_token_id", None) is not None:
        return tokenizer.mask_token_id
    parent = getattr(family, "PARENT_VOCABULARY", None)
    if vocabulary > config.get("vocab_size", vocabulary) or (parent is not None and vocabulary == parent + 1):
        return vocabulary - 1
    return getattr(family, "RELEASED_MASK", None)


def _renamed(place: Path, names: tuple[tuple[str, str], ...], dtype: torch.dtype | None) -> Any:
    """The published training class's layout -> the transformers model; the vocabulary comes from the tensor."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    check_sums(place)
    tensors: dict[str, Tensor] = {}
    for file in sorted(place.glob("*.safetensors")):
        tensors.update(load_file(file))
    if "embed_tokens.weight" not in tensors:
        raise BadInput(f"{place}: has denoise_model.* tensors but no embed_tokens.weight")
    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    config.vocab_size = tensors["embed_tokens.weight"].shape[0]
    config.tie_word_embeddings = config.tie_word_embeddings or "lm_head.weight" not in tensors
    model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
    try:
        found = model.load_state_dict({_rename(name, names): t for name, t in tensors.items()}, strict=False)
    except RuntimeError as error:  # a misshapen tensor; its name stands in the last line
        raise BadInput(f"{place}: {str(error).strip().splitlines()[-1].strip()}") from None
    unexpected = [name for name in found.unexpected_keys if not name.endswith(BUFFERS)]
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = [name for name in found.missing_keys if name not in tied]
    if missing or unexpected:
        raise BadInput(
            f"{place}: tensors missing: {missing[:3]}, not expected: {unexpected[:3]}; not the released layout"
        )
    model.tie_weights()
    return model


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _released_tokenizer(place: Path, family: ModuleType | None) -> Any:
    """The folder's tokenizer; where its class is unknown to AutoTokenizer, the family's own BPE."""
    try:
        return open_tokenizer(place)
    except BadInput:
        import transformers

        fallback = getattr(transformers, getattr(family, "TOKENIZER", ""), None)
        if fallback is None:
            raise
        try:
            return fallback.from_pretrained(place)
        except Exception as error:  # as in `open_tokenizer`
            raise BadInput(f"{place}: its tokenizer cannot be opened ({first_line(error)})") from None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # offline, unknown repository, no permission: all the same to the caller
        raise BadInput(f"{name}: no such folder, and not on the hub ({first_line(error)})") from None
