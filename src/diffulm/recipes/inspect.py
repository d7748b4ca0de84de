"""`diffulm inspect`: what a model is, whether it can be adapted and why not, and what that would cost.

    diffulm inspect pocket-ar --tokens 50M

Weights up to READ_LIMIT are opened and probed. Of larger ones only config and headers are read, every tensor is checked
against the architecture, and a tiny random twin of it is probed instead; the report says which.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from diffulm import costs
from diffulm.checkpoint import released
from diffulm.checkpoint.adapter import is_adapter
from diffulm.checkpoint.files import locate, read_config
from diffulm.checkpoint.load import checked as within_vocabulary
from diffulm.checkpoint.load import load
from diffulm.checkpoint.opening import (
    Refused,
    decoder_config,
    open_parent,
    open_tokenizer,
    parent_of,
    stored_dtype,
)
from diffulm.checkpoint.outline import Misfit, geometry, outline, size_on_disk, skeleton, stored_tensors
from diffulm.checkpoint.tensors import Stored
from diffulm.denoiser.adopt import Examined, choose, examine
from diffulm.denoiser.quiet import quietly
from diffulm.denoiser.record import Record
from diffulm.denoiser.twin import twin_of
from diffulm.errors import BadInput
from diffulm.options import Options, checked
from diffulm.recipes.config import Tokens
from diffulm.recipes.inspection import Inspection, Seen, facts, serves

READ_LIMIT = 10**9  # bytes of weights: seconds to read and to probe
USUAL_LENGTH = 2048  # positions, the paper's


class InspectOptions(Options):
    """What the estimates are for."""

    tokens: Tokens = 10**9
    length: Annotated[int, Field(ge=2, le=2**31)] | None = None
    """Positions of a canvas; None: the context, at most 2048."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the peak that a run gets."""
    probe: bool | None = None
    """True: on the weights, however large; False: not at all; None: on the weights if they are small, else on a twin."""


def inspect(
    source: Any,
    mask_token: str | int = "auto",
    tokens: int | str = 10**9,
    length: int | None = None,
    utilisation: float = 0.4,
    probe: bool | None = None,
) -> Inspection:
    """What a model is, whether it can be adapted and why not, by the same probe as `adopt`, and what it would cost.

    source: folder, hub id or instance. The other arguments: see `InspectOptions`. Nothing is changed. A folder in bfloat16
    is measured in bfloat16. Raises BadInput where there is no model, and for values out of range; a model that is there and
    cannot be adopted is reported with the reason.
    """
    asked = checked(InspectOptions, tokens=tokens, length=length, utilisation=utilisation, probe=probe)
    with quietly():
        if isinstance(source, torch.nn.Module):
            return _parent(source, None, None, mask_token, asked)
        place = locate(source)
        if isinstance(place, Path) and ("diffulm" in (raw := read_config(place)) or _holds_released(place, raw)):
            return _diffusion(str(source), place, raw, mask_token, asked)
        try:
            config = decoder_config(place)
        except Refused as error:
            return Inspection(str(source), "unknown", False, error.reason)
        if isinstance(place, str) and getattr(config, "diffulm", None):
            return _diffusion(str(source), place, config.to_dict(), mask_token, asked)
        return _parent(source, place, config, mask_token, asked)


# -- a parent ---------------------------------------------------------------------------------------------------------


def _parent(
    source: Any, place: Path | str | None, config: Any, mask_token: str | int, asked: InspectOptions
) -> Inspection:
    name = str(source) if place is not None else parent_of(source) or type(source).__name__
    try:
        seen = _look(source, place, config, name, asked)
    except BadInput as error:
        return Inspection(name, "unknown", False, _reason(error))
    reason = seen.misfit.reason if seen.misfit else None
    found: Examined | None = None
    probed = evidence = None
    chosen: dict[str, Any] = {}
    before = seen.model.config._attn_implementation
    try:
        if reason is None:
            chosen = _chosen(seen, mask_token)
            subject, probed, evidence = _subject(seen, config, mask_token, asked.probe)
            found = None if subject is None else examine(*subject, "keep", name)
            reason = found.probe.reason if found else None
    except BadInput as error:
        reason = _reason(error)
    if place is None:
        seen.model.set_attn_implementation(before)
    known = facts(seen) | chosen
    adoptable = False if reason else None if found is None else True
    if adoptable is not False:
        known |= _estimates(seen, asked, found.record.additive_mask if found else False)
        known["serves"] = serves(seen, None)
    measured = asdict(found.probe) if found else None
    return Inspection(name, "autoregressive", adoptable, reason, evidence, probed=probed, probe=measured, **known)


def _look(source: Any, place: Path | str | None, config: Any, name: str, asked: InspectOptions) -> Seen:
    """Open what is small or was asked for; of anything else read the headers, or of a hub id the config. BadInput."""
    if place is None:
        model, tokenizer, name = open_parent(source, None, None)
        return Seen(name, model, tokenizer, "weights", _named(model.dtype))
    if isinstance(place, str):
        model, told = skeleton(config), getattr(config, "dtype", None)
        dtype = told if isinstance(told, torch.dtype) else torch.float32
        if not _opens(sum(p.numel() for p in model.parameters()) * dtype.itemsize, asked):
            return Seen(name, model, open_tokenizer(place), "config", _named(dtype))
        model, tokenizer, name = open_parent(source, None, None)
        return Seen(name, model, tokenizer, "weights", _named(dtype))
    stored = stored_tensors(place)
    dtype, size = released.dtype_of(stored.values()), size_on_disk(stored)
    wrong = None
    if _opens(size, asked):
        try:
            model, tokenizer, name = open_parent(source, None, stored_dtype(place))
            return Seen(name, model, tokenizer, "weights", dtype, size)
        except BadInput as error:
            wrong = error
    try:
        model, misfit = outline(config, stored)
        tokenizer = open_tokenizer(place)
    except BadInput as error:
        raise wrong or error from None
    if wrong and misfit.reason is None:  # that some tensors do not fit would explain it better
        raise wrong
    return Seen(name, model, tokenizer, "headers", dtype, size, misfit)


def _opens(size: int, asked: InspectOptions) -> bool:
    """Whether so many bytes of weights are read."""
    return asked.probe or (asked.probe is None and size <= READ_LIMIT)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _chosen(seen: Seen, mask_token: str | int) -> dict[str, Any]:
    """Mask token and BOS as `adopt` would choose them. BadInput where it would refuse."""
    if seen.model.get_output_embeddings() is None:
        raise Refused(seen.name, "it is not a decoder with a language-model head")
    tokenizer = seen.tokenizer
    record, mask = choose(tokenizer, seen.text, seen.vocabulary, mask_token, "keep", seen.name)
    keys, owner = ("bos_token_id", "eos_token_id"), "config" if tokenizer is None else "tokenizer"
    giver = seen.text if tokenizer is None else tokenizer
    key = next(key for key in keys if getattr(giver, key, None) is not None)
    return {
        "mask_token": mask.policy,
        "mask_token_id": mask.id,
        "bos_token_id": record.bos_token_id,
        "bos_from": f"the {owner}'s {key}",
    }


def _subject(
    seen: Seen, config: Any, mask_token: str | int, wanted: bool | None
) -> tuple[tuple[Any, Any, str | int] | None, str | None, str]:
    """(what to hand to `examine`: model, tokenizer, mask token, or None), what it is, what that is worth as evidence."""
    if wanted is False:
        return None, None, "nothing was measured; --probe does, on the weights"
    if seen.read == "weights":
        return (seen.model, seen.tokenizer, mask_token), "weights", "measured on these weights"
    try:
        twin = twin_of(config)
    except BadInput as error:
        return None, None, f"nothing was measured: {error}; --probe does, on the weights"
    twin.config.get_text_config(decoder=True).bos_token_id = 0  # that of the large model may be its tokenizer's
    worth = "measured on a tiny random twin of this architecture; the weights were not read: --probe reads them"
    return (twin, None, "new"), "twin", worth


def _reason(error: BadInput) -> str:
    return error.reason if isinstance(error, Refused) else str(error)


# -- a diffusion model ------------------------------------------------------------------------------------------------


def _holds_released(place: Path, config: dict[str, Any]) -> bool:
    try:
        return released.is_released(place, config)
    except BadInput:  # its weights cannot be read, whatever they are: said where they are opened
        return False


def _diffusion(
    name: str, place: Path | str, raw: dict[str, Any], mask_token: str | int, asked: InspectOptions
) -> Inspection:
    """A model that is adapted already; nothing is probed. A mask token that is a number overrides, as in `load`."""
    digits = str(mask_token).removeprefix("-")
    given = int(mask_token) if digits.isdecimal() and len(digits) < 19 else None
    alone = isinstance(place, Path) and is_adapter(place)  # an adapter is opened with its parent, however large that is
    stored = stored_tensors(place) if isinstance(place, Path) and not alone else {}
    size = size_on_disk(stored) if stored else None
    dtype = released.dtype_of(stored.values()) if stored else str(raw.get("dtype") or "float32")
    if isinstance(place, Path) and size and not _opens(size, asked):
        model, misfit, tokenizer, record = _adapted(place, raw, stored, given)
        seen = Seen(name, model, tokenizer, "headers", dtype, size, misfit)
        record = within_vocabulary(record, given, seen.vocabulary, name)
    else:
        denoiser, tokenizer = load(name, given, dtype=stored_dtype(place))
        record = denoiser.record
        seen = Seen(name, denoiser.model, tokenizer, "weights", dtype, size)
    reason = seen.misfit.reason if seen.misfit else None
    told = "its config.json has a record" if "diffulm" in raw else "its tensors or name are a released checkpoint's"
    found = facts(seen) | _estimates(seen, asked, record.additive_mask)
    if reason is None:
        found["serves"] = serves(seen, record)
    return Inspection(
        name, "diffusion", reason is None, reason, f"{told}; nothing was measured",
        mask_token=f"id {record.mask_token_id}, attention {record.attention}", mask_token_id=record.mask_token_id,
        bos_token_id=record.bos_token_id, bos_from="the record", record=record.to_dict(), **found,
    )  # fmt: skip


def _adapted(
    folder: Path, raw: dict[str, Any], stored: dict[str, Stored], given: int | None
) -> tuple[Any, Misfit | None, Any, Record]:
    """(model on the meta device, what does not fit, tokenizer, record) of a folder too large to open unasked. BadInput."""
    if "diffulm" in raw and not released.is_exported(folder, raw):
        record = Record.from_dict(raw["diffulm"], str(folder / "config.json"))
        return *outline(decoder_config(folder), stored), open_tokenizer(folder), record
    plan = released.plan(folder, raw)
    tokenizer, _ = released.open_released_tokenizer(folder, raw)
    record, _ = released.make_record(folder, raw, plan.vocabulary, tokenizer, given)
    return skeleton(plan.decoder), None, tokenizer, record


# -- sizes ----------------------------------------------------------------------------------------------------------


def _estimates(seen: Seen, asked: InspectOptions, attention_matrix: bool) -> dict[str, Any]:
    """Memory and cost. BadInput for a length that the model does not take."""
    sizes = replace(geometry(seen.model), attention_matrix=attention_matrix)
    if asked.length and sizes.context and asked.length > sizes.context:
        raise BadInput(f"length={asked.length}: {seen.name} takes at most {sizes.context} positions")
    length = asked.length or min(sizes.context or USUAL_LENGTH, USUAL_LENGTH)
    return costs.estimates(sizes, asked.tokens, length, asked.utilisation)
