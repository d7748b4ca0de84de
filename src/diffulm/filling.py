"""Filling canvases: batches them, gives each row its random stream, and runs the sampler on the model.

Between the maths of `samplers` and the texts of `lm`: canvases and options in, ids out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffulm.canvas import Canvas
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.tile import tiled
from diffulm.errors import BadInput
from diffulm.options import GenerateOptions
from diffulm.samplers import Frame, sample

DEFAULT_STEPS = 32
"""Upper limit to the forwards of a text when `steps` is None; one with fewer free tokens takes a forward for each."""

Callback = Callable[[Frame], Any]


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
) -> list[Filled]:
    """Fill every canvas, `options.batch_size` at a time: memory depends on that, results do not.

    forbidden: ids that are never drawn. callback: called with a Frame before and after every forward; its `rows` number
    the canvases over all batches. BadInput if there are as many seeds as neither one nor the canvases; FloatingPointError if
    the model's logits are not finite.
    """
    seeds = _seeds(options.seed, len(canvases))
    results = []
    for start in range(0, len(canvases), options.batch_size):
        batch = canvases[start : start + options.batch_size]
        ids, fixed, present = (part.to(denoiser.device) for part in stacked(batch))
        began = time.perf_counter()
        filled, forwards = sample(
            tiled(denoiser),
            ids,
            fixed,
            present,
            mask_token_id=denoiser.record.mask_token_id,
            sampler=options.sampler,
            steps=options.steps or DEFAULT_STEPS,
            temperature=options.temperature,
            top_p=options.top_p,
            seeds=seeds[start : start + len(batch)],
            forbidden=forbidden,
            callback=callback and _renumbered(callback, start),
        )
        rows = filled.tolist()
        seconds = time.perf_counter() - began
        for one, row, count in zip(batch, rows, forwards.tolist(), strict=True):
            results.append(Filled(one, row[: len(one.ids)], count, seconds))
    return results


def _seeds(seed: int | list[int], count: int) -> list[tuple[int, int]]:
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


def _renumbered(callback: Callback, start: int) -> Callback:
    return lambda frame: callback(replace(frame, rows=tuple(start + row for row in frame.rows)))
