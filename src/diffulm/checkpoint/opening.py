"""Open what Hugging Face wrote: config, weights, tokenizer. Whatever is wrong with them ends in one line."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from diffulm import families
from diffulm.checkpoint.files import absent, check_sums, headers, hub_answers, locate, read_config, read_object
from diffulm.errors import BadInput, shown
from diffulm.families._foreign import Foreign

STORED = {"BF16": torch.bfloat16, "F16": torch.float16}


class Refused(BadInput):
    """A model that is there but cannot be a denoiser; `reason` says why, without its name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: cannot be used: {reason}")
        self.reason = reason


def first_line(error: BaseException, width: int = 200) -> str:
    """What a foreign exception says, short enough for a line of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return line if len(line) <= width else line[: width - 3] + "..."


def open_parent(
    source: Any, tokenizer: Any, dtype: torch.dtype | None, scratch: int | None = None, quantise: str = "none"
) -> tuple[Any, Any, str]:
    """(model, tokenizer or None, name) of a folder, hub id or instance.

    scratch: fresh weights of the same architecture from this seed. quantise: see `load_weights`. Raises BadInput for what
    cannot be opened, Refused for what is no AR decoder.
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
        model = load_weights(place, dtype, quantise)
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
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

    if isinstance(place, Path):
        _check_kind(place)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **_from_hub(place))
    except Exception as error:  # whatever a config makes its own class raise
        if isinstance(place, Path):
            raise BadInput(f"{place / 'config.json'}: cannot be opened as a model ({first_line(error)})") from None
        raise absent(place, first_line(error) if hub_answers() else "which cannot be reached") from None
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Refused(str(place), f"it is a {config.model_type} model, not a decoder with a language-model head")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True):
        raise Refused(
            str(place), f"it is a {config.model_type} model, an encoder that looks both ways already, not a decoder"
        )
    return config


def foreign(folder: Path, config: dict[str, Any]) -> Foreign | None:
    """What another project's checkpoint is, see `families.foreign`. BadInput, with the folder's name, as there."""
    try:
        return families.foreign(config)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None


def _from_hub(place: Path | str) -> dict[str, bool]:
    """Options of `from_pretrained`: without a network the cache is all there is, and nobody need wait for it."""
    return {} if isinstance(place, Path) else {"local_files_only": not hub_answers()}


def _check_kind(folder: Path) -> None:
    """BadInput for a config.json that is broken, or of a kind of model that transformers itself cannot build."""
    from transformers import CONFIG_MAPPING, __version__

    from diffulm.denoiser.dit import MODEL_TYPE, register

    config, file = read_config(folder), folder / "config.json"
    if (folder / "adapter_config.json").is_file() and not any(folder.glob("model*.safetensors")):
        raise Refused(
            str(folder), "it is a diffusion model already, an adapter of another; `diffulm merge` makes one of both"
        )
    kind = config.get("model_type")
    if kind == MODEL_TYPE:
        register()
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    if (theirs := foreign(folder, config)) is not None:
        reason = f"it is a {theirs.layout}, a diffusion model already; `diffulm import` makes a plain folder of it"
        raise Refused(str(folder), reason)
    if config.get("auto_map"):
        reason = "it needs code of its own (auto_map), which is never run; take a model that transformers knows itself"
    elif kind is None:
        reason = "it has no model_type; copy or download it again"
    else:
        reason = f"transformers {__version__} knows no model_type {shown(kind)}; upgrade it, or mend the name"
    raise BadInput(f"{file}: cannot be opened as a model: {reason}")


def load_weights(place: Path | str, dtype: torch.dtype | None, quantise: str = "none") -> Any:
    """The causal language model in `place`. BadInput for missing, unexpected or misshapen tensors, NaN and infinity.

    quantise: "8bit" or "4bit" hold its linear layers so, on this process's GPU; needs bitsandbytes.
    """
    from transformers import AutoModelForCausalLM

    if isinstance(place, Path):
        headers(place)
        check_sums(place)
        _check_size(place, decoder_config(place))
    held = _quantised(quantise)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below; transformers' own error names none
            **held,
            **_from_hub(place),
        )
    except Exception as error:  # transformers raises many kinds for files that do not fit
        raise BadInput(f"{place}: its weights cannot be loaded ({first_line(error)})") from None
    model, found = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            kind, names = what.removesuffix("_keys"), ", ".join(sorted(map(_spelt, found[what]))[:3])
            raise BadInput(
                f"{place}: {len(found[what])} {kind} tensors ({names}, ...): not this architecture; are config.json and "
                "the weights of one model?"
            )
    check_finite(model, str(place))
    return model


def _quantised(bits: str) -> dict[str, Any]:
    """Options of `from_pretrained`; 4 bits as QLoRA has them: normal floats, their scales quantised as well."""
    if bits == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(f"quantise={bits}: needs bitsandbytes, which is not installed; pip install diffulm[quantised]")
    if not torch.cuda.is_available():  # on CPUs bitsandbytes packs weights for inference, and then has no gradients
        raise BadInput(f"quantise={bits}: needs a GPU; leave it out, or run this where there is one")
    from transformers import BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    how: Any = {"load_in_8bit": True} if bits == "8bit" else four | {"bnb_4bit_compute_dtype": torch.bfloat16}
    return {"quantization_config": BitsAndBytesConfig(**how), "device_map": {"": torch.cuda.current_device()}}


def _spelt(tensor: Any) -> str:
    """A tensor's name; of a mismatched one also its shape in the file and the one that the config asks for."""
    if isinstance(tensor, str):
        return tensor
    name, *shapes = tensor
    return f"{name} {' instead of '.join(str(list(shape)) for shape in shapes)}"


def _check_size(folder: Path, config: Any) -> None:
    """BadInput where the config describes a model far larger than what is stored, before memory is taken for it."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            described: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # what a class says to numbers that do not fit each other
        raise BadInput(f"{folder / 'config.json'}: no model can be built from it ({first_line(error)})") from None
    wanted = sum(p.numel() for p in described.parameters())
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if wanted > 8 * stored:  # a byte holds two numbers at most, as far as anybody quantises
        raise BadInput(
            f"{folder}: config.json describes {wanted:,} parameters, its weights take {stored:,} bytes: not of one model"
        )


def check_finite(model: Any, name: str) -> None:
    """BadInput where a weight is NaN or infinite, see `not_finite`."""
    if reason := not_finite(model):
        raise BadInput(f"{name}: {reason}")


def not_finite(model: Any) -> str | None:
    """What to say of the first tensor with a NaN or an infinity; None where there is none. Quantised ones pass.

    Reads every weight once: 20 GB a second on one core, far less than a checksum costs.
    """
    for name, value in model.named_parameters():
        if value.is_meta or not value.numel() or not value.is_floating_point() or value.element_size() < 2:
            continue
        if not bool(torch.stack(value.detach().aminmax()).isfinite().all()):
            count = value.numel() - int(value.isfinite().sum())
            return (
                f"its tensor {name} has {count} of {value.numel()} numbers NaN or infinite: its training diverged, or the file "
                "is damaged; take an earlier checkpoint, or copy it again"
            )
    return None


def stored_dtype(place: Path | str) -> torch.dtype | None:
    """bfloat16 or float16 for a folder stored in it, else None: what `inspect` opens as it is, to halve time and memory."""
    found = set(headers(place).values()) if isinstance(place, Path) else set()
    return STORED.get(found.pop()) if len(found) == 1 else None


def open_tokenizer(place: Path | str, config: Any = None) -> Any:
    """The tokenizer of a folder or hub id; None when a folder has none. config: of the model, where transformers does not
    know that of the folder. BadInput when it is damaged."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if isinstance(place, Path) and not any((place / name).exists() for name in names):
        return None
    from transformers import AutoTokenizer

    try:
        options = _from_hub(place) if config is None else {"config": config}
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        reason = (isinstance(place, Path) and _broken(place)) or first_line(error)
        raise BadInput(f"{place}: its tokenizer cannot be opened ({reason}); copy its files again") from None


def _broken(folder: Path) -> str | None:
    """What is wrong with the first of a tokenizer's files that is no JSON object."""
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        try:
            if file.is_file():
                read_object(file)
        except BadInput as error:
            return str(error).partition(";")[0]
    return None


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
