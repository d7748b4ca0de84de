"""Released checkpoints: what their tensors are called, what of a folder fits and what does not, which token is the mask.

The published training class keeps the model as `embed_tokens.*`, `denoise_model.*` and `lm_head.*`; families/*.py say how
that reads in the names of transformers, and how the checkpoints of other projects do. `load`, `import` and `export` all go
through `plan`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from diffulm import families
from diffulm.checkpoint.files import check_sums, headers
from diffulm.checkpoint.opening import beginning, check_finite, decoder_config, first_line, foreign, open_tokenizer
from diffulm.checkpoint.tensors import Stored, is_zero, metadata, same_bits, stored
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput
from diffulm.families._foreign import Names

PREFIX, EMBEDDING = "denoise_model.", "embed_tokens.weight"
# Buffers that old files carry and models compute for themselves.
BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
# Keys of config.json that a plain checkpoint of today does without.
NOT_PLAIN = ("_name_or_path", "torch_dtype", "auto_map", "is_causal", "diffulm")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Misfit(BadInput):
    """Tensors that are not those of the architecture; all of them are named, as the files name them."""

    def __init__(self, place: Path, **tensors: list[str]) -> None:
        self.tensors = tensors
        parts = [f"{kind}: {', '.join(names)}" for kind, names in tensors.items() if names]
        super().__init__(
            f"{place}: tensors {'; '.join(parts)}: not what its config.json describes; check that the files belong together"
        )


@dataclass(frozen=True)
class Plan:
    """A released folder read as a plain checkpoint; no weight has been touched.

    config: config.json of the plain checkpoint, without record. decoder: the same as transformers' config object.
    tensors: plain name -> where it lies. dropped: name in the file -> why it is left out. tied: the names that share
    another's weights, and whose. layout: whose names they were.
    """

    place: Path
    layout: str
    config: dict[str, Any]
    decoder: Any
    tensors: dict[str, Stored]
    dropped: dict[str, str]
    tied: dict[str, str]
    vocabulary: int


def renamed(name: str, table: Names, back: bool = False) -> str:
    """A released tensor name in the plain layout; back=True: the other way."""
    for pair in table:
        old, new = reversed(pair) if back else pair
        if found := re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name):
            return new.format(*found.groups()) + name[found.end() :]
    return name


def is_derived(names: Iterable[str]) -> bool:
    """Whether tensors carry the names of the published training class."""
    return any(name.startswith(PREFIX) for name in names)


def is_exported(place: Path, config: dict[str, Any]) -> bool:
    """Whether a folder has the names of published code, in its tensors or its config, whatever its record says."""
    return foreign(place, config) is not None or is_derived(headers(place))


def is_released(place: Path, config: dict[str, Any], source: str = "") -> bool:
    """Whether a folder without a record holds a released checkpoint: told by its tensor names, DiffuLLaMA by its own, those
    of other projects by their config."""
    names = f"{source} {place.name} {config.get('_name_or_path', '')}".lower()
    return "diffullama" in names or is_exported(place, config)


def decoder_of(place: Path, config: dict[str, Any]) -> Any:
    """The config of the decoder that a folder holds, as `decoder_config`; also of another project's."""
    if (theirs := foreign(place, config)) is None:
        return decoder_config(place)
    from transformers import AutoConfig

    from diffulm.denoiser.dit import register

    register()
    try:
        return AutoConfig.for_model(**theirs.config)
    except Exception as error:  # whatever a config makes its own class raise
        raise BadInput(f"{place / 'config.json'}: cannot be opened as a model ({first_line(error)})") from None


def family_of(place: Path, config: dict[str, Any]) -> ModuleType:
    """The family's module with its name table, or BadInput."""
    kind = config.get("model_type")
    family = families.of(str(kind))
    if family is None or not hasattr(family, "LAYOUTS"):
        raise BadInput(
            f"{place}: no released layout is known of the model type {kind!r}, only of {', '.join(families.known())}"
        )
    return family


def plan(place: Path, config: dict[str, Any]) -> Plan:
    """Compare a folder in a released or a plain layout with its architecture, from headers alone (one exception: a head
    that is stored though tied is compared with the embedding, bit by bit).

    config: the folder's config.json. The vocabulary is that of the embedding, whatever config.json says. Raises Misfit
    with every tensor that is unexpected, missing or misshapen, and BadInput for what else cannot be.
    """
    decoder, theirs = decoder_of(place, config), foreign(place, config)
    family = None if theirs else family_of(place, config)
    files = stored(place)
    layout, table = (theirs.layout, theirs.names) if theirs else _layout(family, is_derived(files))
    plain: dict[str, Stored] = {}
    unexpected: list[str] = []
    dropped: dict[str, str] = {}
    for name, tensor in files.items():
        if name.endswith(BUFFERS):
            dropped[name] = "a buffer that the model computes"
        elif theirs and name.endswith(theirs.zeros) and is_zero(tensor):
            dropped[name] = "zeros, where the architecture has nothing"
        elif renamed(name, table) in plain:
            unexpected.append(name)
        else:
            plain[renamed(name, table)] = tensor
    embedding = plain.get(renamed(EMBEDDING, family.RELEASED_NAMES)) if family else None
    rows = embedding.shape[0] if embedding is not None and embedding.shape else decoder.vocab_size
    head = metadata(place).get("lm_head.weight")
    tie = bool(decoder.tie_word_embeddings) or (head is not None and "lm_head.weight" not in plain)
    decoder.vocab_size, decoder.tie_word_embeddings = rows, tie
    kind, expected, tied = _architecture(decoder, place)
    unexpected += [tensor.name for name, tensor in plain.items() if name not in expected]
    missing = [renamed(name, table, back=True) for name in expected if name not in plain and name not in tied]
    misshapen = [
        f"{tensor.name} {list(tensor.shape)} instead of {list(expected[name])}"
        for name, tensor in plain.items()
        if name in expected and tensor.shape != expected[name]
    ]
    if unexpected or missing or misshapen:
        raise Misfit(place, unexpected=sorted(unexpected), missing=sorted(missing), misshapen=sorted(misshapen))
    dropped |= _without_repeats(place, plain, tied)
    told = {key: value for key, value in (theirs.config if theirs else config).items() if key not in NOT_PLAIN}
    told |= {"architectures": [kind], "vocab_size": rows, "dtype": dtype_of(plain.values())}
    if tie != bool(config.get("tie_word_embeddings", tie)):
        told["tie_word_embeddings"] = tie
    return Plan(place, layout, told, decoder, plain, dropped, tied, rows)


def _layout(family: Any, derived: bool) -> tuple[str, Names]:
    """(name, table of tensor names) of a family's own layout."""
    table = family.RELEASED_NAMES if derived else ()
    return next((name for name, its in family.LAYOUTS.items() if its == table), "plain"), table


def _without_repeats(place: Path, plain: dict[str, Stored], tied: dict[str, str]) -> dict[str, str]:
    """Take tensors that are stored though tied out of `plain`; they must be what they are tied to, or BadInput."""
    dropped = {}
    for name in [name for name in tied if name in plain]:
        repeat, original = plain.pop(name), plain[tied[name]]
        if not same_bits(repeat, original):
            raise BadInput(
                f"{place}: {repeat.name} differs from {original.name} though config.json ties them; set "
                "tie_word_embeddings to false there if the model has a head of its own"
            )
        dropped[repeat.name] = f"tied: the same bits as {original.name}"
    return dropped


def _architecture(decoder: Any, place: Path) -> tuple[str, dict[str, tuple[int, ...]], dict[str, str]]:
    """(class name, name -> shape, tied name -> whose weights it shares) of the model; nothing is allocated."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(decoder)
    except Exception as error:  # whatever a config makes its own model raise
        raise BadInput(f"{place}: cannot be opened as a model ({first_line(error)})") from None
    first: dict[int, str] = {}
    tied = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(weight), name) != name:
            tied[name] = first[id(weight)]
    return type(model).__name__, {name: tuple(value.shape) for name, value in model.state_dict().items()}, tied


def dtype_of(tensors: Iterable[Stored]) -> str:
    """The dtype that most bytes have, as config.json spells it."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in DTYPES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return DTYPES[max(sizes, key=lambda dtype: sizes[dtype])] if sizes else "float32"


def build(found: Plan, dtype: torch.dtype | None) -> Any:
    """The transformers model of a plan. dtype None: float32."""
    from safetensors import safe_open
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    check_sums(found.place)
    state = {}
    for file in {tensor.file for tensor in found.tensors.values()}:
        with safe_open(file, "pt") as opened:
            state |= {name: opened.get_tensor(t.name) for name, t in found.tensors.items() if t.file == file}
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(found.decoder)]
    model = kind.from_pretrained(None, config=found.decoder, state_dict=state, dtype=dtype or torch.float32)
    check_finite(model, str(found.place))
    model.name_or_path = model.config.name_or_path = str(found.place)  # as if it had opened the folder itself
    return model


def open_released_tokenizer(place: Path, config: dict[str, Any]) -> tuple[Any, bool]:
    """(the folder's tokenizer or None, whether it is the family's own BPE because its class is unknown to transformers)."""
    theirs = foreign(place, config)
    try:
        return open_tokenizer(place, decoder_of(place, config) if theirs else None), False
    except BadInput:
        import transformers

        family = families.of(str(config.get("model_type", "")))
        known = theirs.tokenizer if theirs is not None else getattr(family, "TOKENIZER", "")
        fallback = getattr(transformers, known, None)
        if fallback is None:
            raise
        try:
            return fallback.from_pretrained(place), True
        except Exception as error:  # as in `open_tokenizer`
            raise BadInput(f"{place}: its tokenizer cannot be opened ({first_line(error)})") from None


def make_record(
    place: Path, config: dict[str, Any], vocabulary: int, tokenizer: Any,
    mask_token_id: int | None = None, bos_token_id: int | None = None,
) -> tuple[Record, str]:  # fmt: skip
    """(the record of a released folder, where its mask id comes from); a record that an export left there stands.

    BadInput when nothing says which token is the mask, or which is the first.
    """
    if "diffulm" in config:
        record = Record.from_dict(config["diffulm"], str(place / "config.json"))
        return record if bos_token_id is None else replace(record, bos_token_id=bos_token_id), "its record"
    theirs = foreign(place, config)
    mask, why = mask_token_id, "given"
    if mask is None and theirs is not None and theirs.mask is not None:
        mask, why = theirs.mask, f"what {theirs.layout} uses"
    if mask is None:
        mask, why = _mask(tokenizer, config, vocabulary)
    if mask is None:
        raise BadInput(
            f"{place}: neither its tokenizer nor its family says which token is the mask; give --mask-token-id"
        )
    bos = bos_token_id
    if bos is None and (theirs is None or theirs.shift):
        bos = beginning(tokenizer, decoder_of(place, config), vocabulary, str(place))
    elif bos is None and theirs is not None and theirs.begins:
        bos = getattr(tokenizer, "bos_token_id", None)
    if theirs is not None:
        attention = "full" if theirs.block_size is None else "block"
        return Record(mask, bos, theirs.shift, attention, theirs.block_size), why
    parent = config.get("_name_or_path")
    parent = parent if isinstance(parent, str) and parent else None
    return Record(mask, bos, shift=True, emit_mask=True, parent=parent), why


def _mask(tokenizer: Any, config: dict[str, Any], vocabulary: int) -> tuple[int | None, str]:
    """The tokenizer's mask token; else the last row if there is one more than the parent has; else the family's."""
    if getattr(tokenizer, "mask_token_id", None) is not None:
        return tokenizer.mask_token_id, f"the tokenizer's mask token {tokenizer.mask_token!r}"
    family = families.of(str(config.get("model_type", "")))
    parent = getattr(family, "PARENT_VOCABULARY", None)
    if vocabulary > config.get("vocab_size", vocabulary) or (parent is not None and vocabulary == parent + 1):
        return vocabulary - 1, "the row behind the parent's vocabulary"
    return getattr(family, "RELEASED_MASK", None), "the one its family is known to use"
