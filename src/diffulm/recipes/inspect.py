"""`diffulm inspect`: what a model is, whether it can be adapted and why not, and what that would cost."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffulm.denoiser.adopt import examine
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.files import locate, read_config
from diffulm.denoiser.load import is_released, load
from diffulm.denoiser.opening import Refused, decoder_config, open_parent, parent_of, stored_dtype
from diffulm.denoiser.quiet import quietly
from diffulm.errors import BadInput


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
    """What a model is, whether it can be adapted and why not, by the same probe as `adopt`. tokens: for the cost estimate.

    Nothing is changed. A folder in bfloat16 is measured in bfloat16. Raises BadInput where there is no model; one that is
    there and cannot be adopted is reported with the reason.
    """
    with quietly():
        if isinstance(source, torch.nn.Module):
            return _inspect_parent(source, None, mask_token, tokens)
        place = locate(source)
        if isinstance(place, Path) and ("diffulm" in (config := read_config(place)) or _holds_released(place, config)):
            denoiser, tokenizer = load(source, dtype=stored_dtype(place))
            mask = f"id {denoiser.record.mask_token_id}, attention {denoiser.record.attention}"
            return Inspection(
                str(source), "diffusion", True, None, mask_token=mask, **_facts(denoiser, tokenizer, tokens)
            )
        try:
            decoder_config(place)
        except Refused as error:
            return Inspection(str(source), "unknown", False, error.reason)
        return _inspect_parent(source, place, mask_token, tokens)


def _holds_released(place: Path, config: dict[str, Any]) -> bool:
    try:
        return is_released(place, config)
    except BadInput:  # its weights cannot be read, whatever they are: said where they are opened
        return False


def _inspect_parent(source: Any, place: Path | str | None, mask_token: str | int, tokens: int) -> Inspection:
    name = str(source) if place is not None else parent_of(source) or type(source).__name__
    try:
        model, tokenizer, name = open_parent(source, None, None if place is None else stored_dtype(place))
        before = model.config._attn_implementation
        found = examine(model, tokenizer, mask_token, "keep", name)
    except BadInput as error:
        return Inspection(name, "unknown", False, error.reason if isinstance(error, Refused) else str(error))
    facts = _facts(Denoiser(model, found.record, found.record.additive_mask), tokenizer, tokens)
    model.set_attn_implementation(before)
    reason, policy = found.probe.reason, found.mask.policy
    measured = asdict(found.probe)
    return Inspection(name, "autoregressive", reason is None, reason, mask_token=policy, probe=measured, **facts)


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
