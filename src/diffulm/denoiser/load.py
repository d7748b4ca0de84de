"""Open a diffusion model: our own folders and the released DiffuGPT / DiffuLLaMA layouts."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffulm import families
from diffulm.denoiser.adopt import beginning, decoder_config, load_weights, open_tokenizer
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.files import check_weights, locate, read_config
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput


def load(
    source: str | Path, mask_token_id: int | None = None, dtype: torch.dtype | None = None
) -> tuple[Denoiser, Any]:
    """(denoiser, tokenizer or None) of a folder or hub id.

    A given mask id overrides record and tokenizer. dtype None: float32 on a CPU, whatever the file holds. Raises BadInput
    for a plain AR folder (adapt it first), a mask id outside the vocabulary, and files that are missing or damaged.
    """
    place = locate(source)
    if isinstance(place, str):
        place = _download(place)
    config = read_config(place)
    if "diffulm" in config:
        model, record = _own(place, Record.from_dict(config["diffulm"], str(place / "config.json")), dtype)
        tokenizer = open_tokenizer(place)
    else:
        model, tokenizer, record = _released(place, config, mask_token_id, dtype)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if mask_token_id is not None:
        record = Record.from_dict({**record.to_dict(), "mask_token_id": mask_token_id}, str(source))
    if not 0 <= record.mask_token_id < vocabulary:
        raise BadInput(
            f"{source}: mask token id {record.mask_token_id} lies outside its vocabulary of {vocabulary} rows; give --mask-token-id"
        )
    model.config.diffulm = record.to_dict()
    return Denoiser(model.eval(), record, additive=model.config._attn_implementation == "eager"), tokenizer


def _own(place: Path, record: Record, dtype: torch.dtype | None) -> tuple[Any, Record]:
    from transformers import AutoModelForCausalLM

    model = load_weights(AutoModelForCausalLM, place, dtype)
    if record.notes.get("additive_mask"):
        model.set_attn_implementation("eager")
    return model, record


def _released(
    place: Path, config: dict[str, Any], mask_token_id: int | None, dtype: torch.dtype | None
) -> tuple[Any, Any, Record]:
    """A released checkpoint carries no record: it is told by its tensor names, or by the mask id that the caller gives."""
    check_weights(place)
    names = _tensor_names(place)
    family = families.of(str(config.get("model_type", "")))
    renamed = any(name.startswith("denoise_model.") for name in names)
    known = "diffullama" in f"{place.name} {config.get('_name_or_path', '')}".lower()
    if not renamed and mask_token_id is None and not known:
        raise BadInput(f"{place}: is a plain AR checkpoint, not a diffusion model; `diffulm adapt` makes one of it")
    if renamed and not hasattr(family, "RELEASED_NAMES"):
        raise BadInput(
            f"{place}: tensors named denoise_model.* for model type {config.get('model_type')!r} are not known"
        )
    if renamed:
        model = _renamed(place, family, dtype)
    else:
        from transformers import AutoModelForCausalLM

        decoder_config(place)
        model = load_weights(AutoModelForCausalLM, place, dtype)
    tokenizer = _released_tokenizer(place, family)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    mask = mask_token_id if mask_token_id is not None else _released_mask(tokenizer, config, vocabulary, family)
    bos = beginning(tokenizer, model.config, vocabulary, str(place))
    return model, tokenizer, Record(mask, bos, shift=True, emit_mask=True, parent=config.get("_name_or_path"))


def _released_mask(tokenizer: Any, config: dict[str, Any], vocabulary: int, family: Any) -> int:
    if getattr(tokenizer, "mask_token_id", None) is not None:
        return tokenizer.mask_token_id
    parent = getattr(family, "PARENT_VOCABULARY", None)
    if vocabulary > config.get("vocab_size", vocabulary) or (parent is not None and vocabulary == parent + 1):
        return vocabulary - 1  # one row more than the parent: the mask token's own
    return getattr(family, "RELEASED_MASK", -1)


def _renamed(place: Path, family: Any, dtype: torch.dtype | None) -> Any:
    """The published training class's layout -> the transformers model; the vocabulary comes from the tensor."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    tensors: dict[str, Tensor] = {}
    for file in sorted(place.glob("*.safetensors")):
        tensors.update(load_file(file))
    state = {_rename(name, family.RELEASED_NAMES): tensor for name, tensor in tensors.items()}
    config = AutoConfig.from_pretrained(place)
    if "embed_tokens.weight" not in tensors:
        raise BadInput(f"{place}: has denoise_model.* tensors but no embed_tokens.weight")
    config.vocab_size = tensors["embed_tokens.weight"].shape[0]
    config.tie_word_embeddings = "lm_head.weight" not in tensors or config.tie_word_embeddings
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype or torch.float32)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BadInput(f"{place}: {str(error).splitlines()[-1].strip()}") from None
    buffers = (
        ".attn.bias",
        ".attn.masked_bias",
        "rotary_emb.inv_freq",
    )  # recomputed by the model, harmless in old files
    unexpected = [name for name in unexpected if not name.endswith(buffers)]
    missing = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if missing or unexpected:
        raise BadInput(
            f"{place}: tensors missing {missing[:3]}, not expected {unexpected[:3]}: not the released layout"
        )
    model.tie_weights()
    return model


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _tensor_names(place: Path) -> list[str]:
    from safetensors import safe_open

    names: list[str] = []
    for file in sorted(place.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names += opened.keys()
    return names


def _released_tokenizer(place: Path, family: Any) -> Any:
    """The folder's tokenizer; where its class is unknown to AutoTokenizer, the family's own BPE."""
    try:
        return open_tokenizer(place)
    except BadInput:
        import transformers

        fallback = getattr(transformers, getattr(family, "TOKENIZER", ""), None)
        if fallback is None:
            raise
        return fallback.from_pretrained(place)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # offline, unknown repository, no permission: all the same to the caller
        raise BadInput(f"{name}: no such folder, and not on the hub ({str(error).splitlines()[0]})") from None
