"""An AR decoder becomes a denoiser: mask token, BOS, visibility as an argument, and proof that it works.

The proof comes before a cent is spent on training: see probe.py.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffulm.checkpoint.opening import Refused, beginning, first_line, not_finite, open_parent, parent_of
from diffulm.denoiser import adapter, layers
from diffulm.denoiser import mask_token as masks
from diffulm.denoiser.denoiser import Denoiser, evaluating, input_device
from diffulm.denoiser.probe import LENGTH, Probe, moved, probe
from diffulm.denoiser.quiet import quietly
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput
from diffulm.randomness import uniform


def adopt(
    source: Any,
    tokenizer: Any = None,
    mask_token: str | int = "auto",
    window: str = "keep",
    dtype: torch.dtype | None = None,
    scratch: int | None = None,
    shift: bool = True,
    frozen: bool = False,
    quantise: str = "none",
) -> tuple[Denoiser, Any]:
    """Take an AR checkpoint (folder, hub id) or a model instance as a diffusion model; nothing is trained yet.

    mask_token: see `mask_token.choose`. window: "keep" makes a sliding window symmetric, "lift" drops it.
    dtype None: float32. scratch: draw fresh weights of the same architecture from this seed (a baseline).
    shift: row i predicts token i + 1, as in the parent; False unlearns that (the paper's ablation). frozen: for an adapter:
    no weight is touched, a vector beside the embedding stands for the mask token (adapter.py). quantise: "8bit" or "4bit".
    An instance is changed in place: a mask row may be added to its embedding (and the token to the tokenizer given), its
    attention implementation is set, its config gets the record; one that is refused stays as it was. Returns (denoiser,
    tokenizer). Raises BadInput for what cannot be opened and when the probe refuses the model.
    """
    with quietly():
        model, tokenizer, name = open_parent(source, tokenizer, dtype, scratch, quantise)
        before = model.config._attn_implementation
        found = examine(model, tokenizer, mask_token, window, name)
        if found.probe.reason:
            model.set_attn_implementation(before)
            raise Refused(name, found.probe.reason)
        if found.mask.new and tokenizer is not None:
            _give_mask_token(tokenizer, found.mask.id)
        if frozen:
            adapter.give_mask_vector(model, found.mask.id, found.mask.new)
            if reason := adapter.check_mask_vector(model, found.mask.id):
                raise Refused(name, reason)
        elif found.mask.new:
            masks.give_row(model, found.mask.id)
    parent = parent_of(model) if isinstance(source, torch.nn.Module) else name
    record = replace(found.record, parent=parent, shift=shift)
    model.config.diffulm = record.to_dict()
    return Denoiser(model, record, record.additive_mask), tokenizer


@dataclass(frozen=True)
class Examined:
    """What a parent would be as a denoiser, and how it did in the probe. It has no mask row yet."""

    record: Record
    probe: Probe
    mask: masks.MaskToken


def choose(
    tokenizer: Any, text: Any, vocabulary: int, mask_token: str | int, window: str, name: str
) -> tuple[Record, masks.MaskToken]:
    """The record and mask token that a parent would get, from its tokenizer and decoder config (`text`) alone.

    Raises Refused for a tokenizer larger than the vocabulary and without BOS, BadInput for arguments that do not fit.
    """
    if window not in ("keep", "lift"):
        raise BadInput(f"window={window!r}: it can be 'keep' or 'lift'")
    if tokenizer is not None and len(tokenizer) > vocabulary:
        raise Refused(name, f"its tokenizer has {len(tokenizer)} tokens, its embedding only {vocabulary} rows")
    mask = masks.choose(tokenizer, vocabulary, mask_token)
    slides = any(size is not None for size in layers.windows(text).values())
    bos = beginning(tokenizer, text, vocabulary, name)
    return Record(mask.id, bos, emit_mask=mask.emit, window=window if slides else None), mask


def examine(model: Any, tokenizer: Any, mask_token: str | int, window: str, name: str) -> Examined:
    """Choose mask token and BOS and measure the model, which is left as it is but for its attention implementation.

    Raises Refused for a model that cannot even be measured, BadInput for arguments that do not fit it.
    """
    if getattr(model.config, "diffulm", None):
        raise Refused(name, "it is a diffusion model already; open it with `diffulm.load`")
    embedding = model.get_input_embeddings().weight
    vocabulary, text = embedding.shape[0], model.config.get_text_config(decoder=True)
    record, mask = choose(tokenizer, text, vocabulary, mask_token, window, name)
    if mask.new and (embedding.device.type == "meta" or not embedding.is_floating_point()):
        where = "offloaded" if embedding.device.type == "meta" else "quantised"
        raise Refused(
            name, f"its embedding is {where}, so it cannot be given a mask row; name a token it has as mask_token"
        )
    length = min(LENGTH, getattr(text, "max_position_embeddings", None) or LENGTH)
    ids = (uniform(0, torch.arange(length)) * vocabulary).long()[None].to(input_device(model))
    pair = ids.repeat(2, 1)
    pair[1, -1] = (pair[1, -1] + 1) % vocabulary
    try:
        with evaluating(model):
            own = model(input_ids=pair).logits
    except Exception as error:  # whatever a foreign forward raises is the reason to report
        raise Refused(name, f"its forward does not run on token ids alone ({first_line(error)})") from None
    if not bool(own.isfinite().all()) and (reason := not_finite(model)):
        raise Refused(name, reason)
    if moved(own[1].float(), own[0].float(), embedding.dtype)[:-1].any():
        raise Refused(
            name, "its own forward looks at tokens to the right: it is not autoregressive, there is nothing to adapt"
        )
    own = own[:1]
    record, found = _measured(model, record, own, ids, name)
    if found.left_layers:
        record = replace(record, notes=record.notes | {"left_layers": found.left_layers})
    return Examined(record, found, mask)


def _measured(model: Any, record: Record, own: Tensor, ids: Tensor, name: str) -> tuple[Record, Probe]:
    """The first attention route that the model obeys: sdpa with a boolean mask, else eager with an additive float one."""
    before = model.config._attn_implementation
    tried: list[tuple[Record, Probe]] = []
    reason = ""
    for implementation, additive in (("sdpa", False), ("eager", True)):
        try:
            model.set_attn_implementation(implementation)
            noted = replace(record, notes={"additive_mask": True} if additive else {})
            tried.append((noted, probe(Denoiser(model, noted, additive), own, ids)))
        except Exception as error:  # of the two the second speaks of the mask; the first may lack a kernel
            what = "it is recurrent, and its" if getattr(model, "_is_stateful", False) else "its"
            reason = f"{what} forward takes no 4-D attention mask ({first_line(error)})"
            continue
        if tried[-1][1].reason is None:
            return tried[-1]
    if not tried:
        model.set_attn_implementation(before)
        raise Refused(name, reason)
    return tried[0]


def _give_mask_token(tokenizer: Any, index: int) -> None:
    tokenizer.add_special_tokens({"mask_token": masks.NEW_TOKEN})
    if tokenizer.mask_token_id != index:
        raise BadInput(
            f"the tokenizer gave {masks.NEW_TOKEN!r} the id {tokenizer.mask_token_id}, not {index}; name a token"
        )
