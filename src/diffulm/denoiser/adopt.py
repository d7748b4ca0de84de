"""An AR decoder becomes a denoiser: mask token, BOS, visibility as an argument, and proof that it works, before a cent is spent."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffulm.denoiser import mask_token as masks
from diffulm.denoiser.denoiser import Denoiser, layer_windows
from diffulm.denoiser.files import check_weights, locate, read_config
from diffulm.denoiser.probe import LENGTH, Probe, evaluating, probe
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput


def adopt(
    source: Any,
    tokenizer: Any = None,
    mask_token: str | int = "auto",
    window: str = "keep",
    dtype: torch.dtype | None = None,
    scratch: int | None = None,
) -> tuple[Denoiser, Any]:
    """Take an AR checkpoint (folder, hub id) or a model instance as a diffusion model; nothing is trained yet.

    mask_token: see `mask_token.choose`. window: "keep" makes a sliding window symmetric, "lift" drops it.
    dtype None: float32 on a CPU. scratch: draw fresh weights of the same architecture from this seed (a baseline).
    An instance is changed in place: a mask row may be added to its embedding, its attention implementation is set,
    its config gets the record. Returns (denoiser, tokenizer). Raises BadInput when the probe refuses the model.
    """
    model, tokenizer, name = open_parent(source, tokenizer, dtype, scratch)
    denoiser, _, found = prepare(model, tokenizer, mask_token, window, name)
    if found.reason:
        raise BadInput(f"{name}: cannot be adopted: {found.reason}")
    return denoiser, tokenizer


def prepare(model: Any, tokenizer: Any, mask_token: str | int, window: str, name: str) -> tuple[Denoiser, str, Probe]:
    """Turn the opened parent into a denoiser and measure it. Returns (denoiser, the mask policy in words, the probe)."""
    if getattr(model.config, "diffulm", None):
        raise BadInput(f"{name}: is a diffusion model already; open it with `diffulm.load`")
    if window not in ("keep", "lift"):
        raise BadInput(f"window={window!r}: it can be 'keep' or 'lift'")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if tokenizer is not None and len(tokenizer) > vocabulary:
        raise BadInput(f"{name}: its tokenizer has {len(tokenizer)} tokens, its embedding only {vocabulary} rows")
    mask = masks.choose(tokenizer, vocabulary, mask_token)
    text = model.config.get_text_config(decoder=True)
    slides = any(size is not None for size in layer_windows(text).values())
    record = Record(
        mask_token_id=mask.id,
        bos_token_id=beginning(tokenizer, text, vocabulary, name),
        emit_mask=mask.emit,
        window=window if slides else None,
        parent=name,
    )
    length = min(LENGTH, getattr(text, "max_position_embeddings", None) or LENGTH)
    ids = (torch.arange(1, length + 1)[None] * 7919 % (vocabulary - 1)).to(model.get_input_embeddings().weight.device)
    with evaluating(model):
        own = model(input_ids=ids).logits
    _give_mask_row(model, tokenizer, mask)
    denoiser, found = _measured(model, record, own, ids)
    model.config.diffulm = record.to_dict()
    return denoiser, mask.policy, found


def _measured(model: Any, record: Record, own: Tensor, ids: Tensor) -> tuple[Denoiser, Probe]:
    """The first attention route that the model obeys: sdpa with a boolean mask, else eager with an additive float one."""
    tried: list[tuple[Denoiser, Probe]] = []
    errors: list[str] = []
    for implementation, additive in (("sdpa", False), ("eager", True)):
        try:
            model.set_attn_implementation(implementation)
            denoiser = Denoiser(model, record, additive)
            tried.append((denoiser, probe(denoiser, own, ids)))
        except Exception as error:  # whatever a foreign forward raises on a 4-D mask is the reason to report
            errors.append(
                f"{implementation}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            continue
        if tried[-1][1].reason is None:
            return tried[-1]
    if not tried:
        raise BadInput(
            f"{record.parent}: cannot be adopted: its forward takes no 4-D attention mask ({'; '.join(errors)})"
        )
    return tried[0]


def _give_mask_row(model: Any, tokenizer: Any, mask: masks.MaskToken) -> None:
    """A new mask row starts as the mean of the others, written by hand: transformers would draw it at random."""
    before = model.get_input_embeddings().weight.shape[0]
    if not mask.policy.startswith("a new row"):
        return
    if mask.rows > before:
        model.resize_token_embeddings(mask.rows, mean_resizing=False)
    used = min(before, mask.id)
    with torch.no_grad():
        for layer in {id(m): m for m in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            layer.weight[mask.id] = layer.weight[:used].float().mean(0).to(layer.weight.dtype)
            if getattr(layer, "bias", None) is not None:
                layer.bias[mask.id] = layer.bias[:used].mean()
    if tokenizer is not None:
        tokenizer.add_special_tokens({"mask_token": masks.NEW_TOKEN})
        if tokenizer.mask_token_id != mask.id:
            raise BadInput(f"the tokenizer already has a token {masks.NEW_TOKEN!r}; name a mask token")


def beginning(tokenizer: Any, config: Any, vocabulary: int, name: str) -> int:
    """BOS: the tokenizer's bos, else its eos; without a tokenizer the config's bos, else eos (the first, if a list)."""
    source = config if tokenizer is None else tokenizer
    for key in ("bos_token_id", "eos_token_id"):
        found = getattr(source, key, None)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            if 0 <= found < vocabulary:
                return found
            raise BadInput(f"{name}: its {key} {found} lies outside the vocabulary of {vocabulary} rows")
    raise BadInput(f"{name}: has neither a BOS nor an EOS token, and position 0 needs one")


def open_parent(
    source: Any, tokenizer: Any, dtype: torch.dtype | None, scratch: int | None = None
) -> tuple[Any, Any, str]:
    """(model, tokenizer or None, name) of a folder, hub id or instance; BadInput in one line for what cannot be opened."""
    if isinstance(source, torch.nn.Module):
        if not hasattr(source, "get_output_embeddings"):
            raise BadInput(f"{type(source).__name__} is not a transformers model")
        return source, tokenizer, getattr(source, "name_or_path", "") or type(source).__name__
    place = locate(source)
    config = decoder_config(place)
    from transformers import AutoModelForCausalLM

    if scratch is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scratch)
            model = AutoModelForCausalLM.from_config(config).to(dtype or torch.float32)
    else:
        model = load_weights(AutoModelForCausalLM, place, dtype)
    return model, tokenizer if tokenizer is not None else open_tokenizer(place), str(source)


def decoder_config(place: Path | str) -> Any:
    """The config of an AR decoder, or BadInput saying what else it is."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if isinstance(place, Path):
        found = read_config(place)
        if "diffulm" in found:
            raise BadInput(f"{place}: is a diffusion model already; open it with `diffulm.load`")
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{place}: cannot be opened as a model ({_first_line(error)})") from None
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(
            f"{place}: is a {config.model_type} model, not a decoder with a language-model head; give an AR decoder"
        )
    return config


def load_weights(auto: Any, place: Path | str, dtype: torch.dtype | None) -> Any:
    """from_pretrained that accepts no missing, unexpected or misshapen tensor."""
    if isinstance(place, Path):
        check_weights(place)
    try:
        model, found = auto.from_pretrained(
            place,
            dtype=dtype or torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadInput(f"{place}: its weights cannot be loaded ({_first_line(error)})") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            names = ", ".join(sorted(map(str, found[what]))[:3])
            raise BadInput(
                f"{place}: {len(found[what])} {what.replace('_keys', '')} tensors ({names}, ...): not this architecture"
            )
    return model


def open_tokenizer(place: Path | str) -> Any:
    """The tokenizer of a folder or hub id; None when a folder has none."""
    if isinstance(place, Path) and not any(
        (place / n).exists() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # tokenizers raise bare Exception for a broken file
        raise BadInput(f"{place}: its tokenizer cannot be opened ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class Inspection:
    """What `diffulm inspect` reports. kind: "autoregressive" or "diffusion"; sizes in tokens, memory in bytes."""

    model: str
    kind: str
    adoptable: bool
    reason: str | None
    architecture: str | None = None
    parameters: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    layers: dict[str, int | None] = field(default_factory=dict)
    tokenizer: str | None = None
    mask_token: str | None = None
    bos_token_id: int | None = None
    probe: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(source: Any, mask_token: str | int = "auto", tokens: int = 1_000_000_000) -> Inspection:
    """What a model is, whether it can be adapted and why not, by the same probe as `adopt`. tokens: for the cost estimate."""
    name = str(source) if not isinstance(source, torch.nn.Module) else type(source).__name__
    if (
        not isinstance(source, torch.nn.Module)
        and isinstance(place := locate(source), Path)
        and "diffulm" in read_config(place)
    ):
        return _inspect_diffusion(name, source)
    try:
        model, tokenizer, name = open_parent(source, None, None)
        denoiser, policy, found = prepare(model, tokenizer, mask_token, "keep", name)
    except BadInput as error:
        return Inspection(name, "unknown", False, str(error))
    return Inspection(
        model=name,
        kind="autoregressive",
        adoptable=found.reason is None,
        reason=found.reason,
        mask_token=policy,
        probe=asdict(found),
        **_facts(denoiser, tokenizer, tokens),
    )


def _inspect_diffusion(name: str, source: Any) -> Inspection:
    from diffulm.denoiser.load import load

    denoiser, tokenizer = load(source)
    mask = f"id {denoiser.record.mask_token_id}, attention {denoiser.record.attention}"
    return Inspection(name, "diffusion", True, None, mask_token=mask, **_facts(denoiser, tokenizer, 0))


def _facts(denoiser: Denoiser, tokenizer: Any, tokens: int) -> dict[str, Any]:
    parameters = sum(p.numel() for p in denoiser.model.parameters())
    # 6 FLOPs a parameter and token; float32 weights, gradients and two AdamW moments; activations come on top
    cost = {"tokens": tokens, "flops": 6 * parameters * tokens, "training_state_bytes": 16 * parameters}
    return {
        "architecture": type(denoiser.model).__name__,
        "parameters": parameters,
        "vocabulary": denoiser.vocabulary,
        "context": denoiser.context,
        "layers": denoiser.windows,
        "tokenizer": None if tokenizer is None else f"{type(tokenizer).__name__}, {len(tokenizer)} tokens",
        "bos_token_id": denoiser.record.bos_token_id,
        "cost": cost,
    }
