"""Filling canvases: batches them, gives each row its random stream, and runs the sampler on the model.

Between the maths of `samplers` and the texts of `lm`: canvases and options in, ids out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffulm.bounds import Denoise
from diffulm.canvas import Canvas
from diffulm.constraints import Constraint, constrained
from diffulm.denoiser.cache import WINDOW, cacheable, cached
from diffulm.denoiser.denoiser import Denoiser, evaluating
from diffulm.denoiser.drafting import affinity, reader
from diffulm.denoiser.kernels import hasten
from diffulm.denoiser.tile import tiled
from diffulm.errors import BadInput
from diffulm.options import GenerateOptions
from diffulm.samplers import Frame, Rule, sample
from diffulm.samplers.verified import verified

Callback = Callable[[Frame], Any]

# Those of the options that are the sampler's own business.
_SAMPLER_OPTIONS = {
    "sampler", "steps", "schedule", "threshold", "entropy_bound", "factor", "temperature", "top_p", "top_k", "min_p", "remask"
}  # fmt: skip


@dataclass(frozen=True)
class Filled:
    """A canvas after sampling."""

    canvas: Canvas
    ids: list[int]
    """(L,): nothing is masked any more."""
    forwards: int
    """Denoiser calls the row took part in."""
    seconds: float
    """Wall-clock seconds of its batch."""


def fill(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    options: GenerateOptions,
    forbidden: Sequence[int] = (),
    callback: Callback | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    seeds: Sequence[tuple[int, int]] | None = None,
    constraint: Constraint | None = None,
    order: Rule | None = None,
    around: Callable[[Denoise], Denoise] | None = None,
) -> list[Filled]:
    """Fill every canvas, `options.batch_size` at a time: memory depends on that, results do not.

    forbidden: ids that are never drawn. eos_token_id: ends a text; what is free after it becomes pad_token_id (default the
    same). seeds: (seed, stream) of each canvas; default by `options.seed`. constraint: see `diffulm.constraints`. order: in the
    place of `options.sampler`. around: what is run in the place of the model, made of it. callback: called with a Frame before
    and after every forward; its `rows` number the canvases over all batches.
    BadInput for options that this model cannot follow, and for seeds that are neither one nor as many as canvases;
    FloatingPointError if the model's logits are not finite.
    """
    seeds = streams(options.seed, len(canvases)) if seeds is None else seeds
    asked: dict[str, Any] = options.model_dump(include=_SAMPLER_OPTIONS) | ({"sampler": order} if order else {})
    results = []
    for start in range(0, len(canvases), options.batch_size):
        batch = canvases[start : start + options.batch_size]
        ids, fixed, present = (part.to(denoiser.device) for part in stacked(batch))
        began = time.perf_counter()
        common: dict[str, Any] = {
            "seeds": seeds[start : start + len(batch)],
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
            "callback": callback and renumbered(callback, range(start, start + len(batch))),
        }
        if options.sampler == "verified":
            filled, forwards = _verified(denoiser, ids, fixed, present, options, forbidden, constraint, common)
        else:
            denoise, block = denoising(denoiser, options)
            denoise = around(denoise) if around else denoise
            denoise = constrained(denoise, constraint) if constraint else denoise
            mask = denoiser.record.mask_token_id
            filled, forwards = sample(
                denoise, ids, fixed, present, mask_token_id=mask, block=block, forbidden=forbidden, **common, **asked
            )
        rows = filled.tolist()
        seconds = time.perf_counter() - began
        for one, row, count in zip(batch, rows, forwards.tolist(), strict=True):
            results.append(Filled(one, row[: len(one.ids)], count, seconds))
    return results


def _verified(
    denoiser: Denoiser, ids: Tensor, fixed: Tensor, present: Tensor, options: GenerateOptions, forbidden: Sequence[int],
    constraint: Constraint | None, common: dict[str, Any],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Exactly the causal view's text, by drafts. BadInput for options that would make it another."""
    for name in ("threshold", "entropy_bound", "factor", "remask", "block"):
        if getattr(options, name):
            raise BadInput(f"{name}={getattr(options, name)}: sampler=verified goes from left to right; leave it out")
    if constraint:
        raise BadInput("sampler=verified keeps to no pattern or list of choices; take another sampler")
    hasten(denoiser.model)
    drawing = options.model_dump(include={"temperature", "top_p", "top_k", "min_p", "draft"})
    banned = (denoiser.record.mask_token_id, *forbidden)
    with evaluating(denoiser.model):
        hints = affinity(denoiser) if options.draft else None
        return verified(
            lambda: reader(denoiser), ids, fixed, present, forbidden=banned, affinity=hints, **drawing, **common
        )


def denoising(denoiser: Denoiser, options: GenerateOptions) -> tuple[Denoise, int | None]:
    """(how to run the model on one batch of canvases, positions a block or None for all at once).

    Block-causal models are filled block by block, with the exact cache where their family can be given one. BadInput for
    options that this model cannot follow.
    """
    hasten(denoiser.model)
    record = denoiser.record
    if record.attention == "block":
        if options.block not in (None, record.block_size):
            raise BadInput(
                f"block={options.block}: this model was trained with blocks of {record.block_size}; leave it out"
            )
        if options.cache in ("prefix", "dual"):
            raise BadInput(
                f"cache={options.cache} is for full attention; a block-causal model has an exact cache by itself"
            )
        keeps = options.cache == "auto" and cacheable(denoiser)
        return cached(denoiser) if keeps else tiled(denoiser), record.block_size
    if options.cache in ("prefix", "dual"):
        if not cacheable(denoiser):
            raise BadInput(
                f"cache={options.cache}: this model's layers keep no keys and values by position; leave it out"
            )
        block = options.block or WINDOW
        return cached(denoiser, options.cache, block, options.refresh), block
    return tiled(denoiser), options.block


def streams(seed: int | list[int], count: int) -> list[tuple[int, int]]:
    """(seed, stream) of each of `count` texts. BadInput for seeds that are neither one nor as many."""
    if isinstance(seed, int):
        return [(seed, row) for row in range(count)]
    if len(seed) != count:
        raise BadInput(f"{count} texts need one seed, or as many, not {len(seed)}")
    return [(one, 0) for one in seed]


def stacked(canvases: Sequence[Canvas]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, fixed and present (B, L): rows of different length, padded on the right with what nobody sees."""
    shape = len(canvases), max(len(one.ids) for one in canvases)
    ids, fixed, present = torch.zeros(shape, dtype=torch.int64), *torch.zeros(2, *shape, dtype=torch.bool)
    for row, one in enumerate(canvases):
        ids[row, : len(one.ids)], fixed[row, : len(one.ids)], present[row, : len(one.ids)] = one.ids, one.fixed, True
    return ids, fixed | ~present, present


def renumbered(callback: Callback, numbers: Sequence[int]) -> Callback:
    """The callback, told of row i as text numbers[i]."""
    return lambda frame: callback(replace(frame, rows=tuple(numbers[row] for row in frame.rows)))
