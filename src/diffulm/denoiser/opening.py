"""Open what Hugging Face wrote: config, weights, tokenizer. Whatever is wrong with them ends in one line."""

from pathlib import Path
from typing import Any

import torch

from diffulm.denoiser.files import check_sums, headers, locate
from diffulm.errors import BadInput

STORED = {"BF16": torch.bfloat16}


class Refused(BadInput):
    """A model that is there but cannot be a denoiser; `reason` says why, without its name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: cannot be used: {reason}")
        self.reason = reason


def first_line(error: BaseException, width: int = 200) -> str:
    """What a foreign exception says, short enough for a line of ours."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= width else line[: width - 3] + "..."


def open_parent(
    source: Any, tokenizer: Any, dtype: torch.dtype | None, scratch: int | None = None
) -> tuple[Any, Any, str]:
    """(model, tokenizer or None, name) of a folder, hub id or instance.

    scratch: fresh weights of the same architecture from this seed. Raises BadInput for what cannot be opened, Refused for
    what is no AR decoder.
    """
    if isinstance(source, torch.nn.Module):
        if scratch is not None:
            raise BadInput("scratch needs a folder or hub id; an instance has its weights already")
        model: Any = source
        name = parent_of(model) or type(model).__name__
        if not callable(getattr(model, "get_output_embeddings", None)):
            raise BadInput(f"{name}: is not a model of transformers")
        if getattr(model.config, "is_encoder_decoder", False) or model.get_output_embeddings() is None:
            raise Refused(name, "it is not a decoder with a language-model head")
        return model, tokenizer, name
    place = locate(source)
    config = decoder_config(place)
    from transformers import AutoModelForCausalLM

    if scratch is None:
        model = load_weights(place, dtype)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scratch)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
    return model, open_tokenizer(place) if tokenizer is None else tokenizer, str(source)


def parent_of(model: Any) -> str | None:
    """Where an instance was loaded from; None when it was made in memory."""
    return getattr(model, "name_or_path", None) or None


def decoder_config(place: Path | str) -> Any:
    """The config of an AR decoder. BadInput when it cannot be read, Refused when it is of something else."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # whatever a config makes its own class raise
        what = "cannot be opened as a model" if isinstance(place, Path) else "no such folder, and not on the hub"
        raise BadInput(f"{place}: {what} ({first_line(error)})") from None
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Refused(str(place), f"it is a {config.model_type} model, not a decoder with a language-model head")
    return config


def load_weights(place: Path | str, dtype: torch.dtype | None) -> Any:
    """The causal language model in `place`; no missing, unexpected or misshapen tensor is let through. BadInput."""
    from transformers import AutoModelForCausalLM

    if isinstance(place, Path):
        headers(place)
        check_sums(place)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for files that do not fit
        raise BadInput(f"{place}: its weights cannot be loaded ({first_line(error)})") from None
    model, found = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            kind, names = what.removesuffix("_keys"), ", ".join(sorted(map(str, found[what]))[:3])
            raise BadInput(f"{place}: {len(found[what])} {kind} tensors ({names}, ...): not this architecture")
    return model


def stored_dtype(place: Path | str) -> torch.dtype | None:
    """bfloat16 for a folder stored in it, else None: what `inspect` opens as it is, to halve time and memory."""
    found = set(headers(place).values()) if isinstance(place, Path) else set()
    return STORED.get(found.pop()) if len(found) == 1 else None


def open_tokenizer(place: Path | str) -> Any:
    """The tokenizer of a folder or hub id; None when a folder has none. BadInput when it is damaged."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if isinstance(place, Path) and not any((place / name).exists() for name in names):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise BadInput(f"{place}: its tokenizer cannot be opened ({first_line(error)})") from None


def beginning(tokenizer: Any, config: Any, vocabulary: int, name: str) -> int:
    """BOS: the tokenizer's bos, else its eos; without a tokenizer the config's bos, else eos (the first, if a list)."""
    source = config if tokenizer is None else tokenizer
    for key in ("bos_token_id", "eos_token_id"):
        found = getattr(source, key, None)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            if 0 <= found < vocabulary:
                return found
            raise Refused(name, f"its {key} {found} lies outside the vocabulary of {vocabulary} rows")
    raise Refused(name, "it has neither a BOS nor an EOS token, and position 0 needs one")
