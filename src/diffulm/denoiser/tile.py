"""Rows in a fixed internal tile, so that a result depends neither on its batch nor on its neighbours.

Every forward has the shape (tile, length rounded up to BUCKET), and the vocabulary projection is done row by row: a row
meets the same kernels alone and in company. A batch size above this changes memory, never a result.
"""

import torch
from torch import Tensor

from diffulm import visibility
from diffulm.bounds import Denoise
from diffulm.denoiser.denoiser import Denoiser, evaluating

BUCKET = 32
TILE = 8
SMALL = (
    2**25
)  # parameters x positions of a row below which eight rows cost little more than one on a CPU (calls rule there)


def tile_rows(denoiser: Denoiser, positions: int, waiting: int) -> int:
    """Rows a forward: eight where they are nearly free (accelerators, small models on short texts), else one.

    positions: of a row, padding included. waiting: rows to be run; below float32, where no result is promised to the bit,
    they are run together, and no more than those.
    """
    some = next(denoiser.model.parameters())
    if some.element_size() < 4:
        return min(waiting, TILE)
    small = denoiser.parameters * positions <= SMALL
    return TILE if small or some.device.type != "cpu" else 1


def tiled(denoiser: Denoiser, rows: int | None = None) -> Denoise:
    """The Denoise protocol of `bounds` and the samplers on a real model: (ids, where, present) -> logits.

    ids (B, L), where (B, L) and present (B, L) may be of any B; present is False for padding, which nobody sees.
    """
    limit = denoiser.context

    def denoise(ids: Tensor, where: Tensor, present: Tensor | None = None) -> Tensor:
        home = ids.device
        ids, where = ids.to(denoiser.device), where.to(denoiser.device)
        real = torch.ones_like(where) if present is None else present.to(denoiser.device)
        lengths = [bucket(n, limit) for n in ends(real)]
        found: dict[int, Tensor] = {}
        with evaluating(denoiser.model):
            for length in sorted(set(lengths)):
                members = [i for i, n in enumerate(lengths) if n == length and bool(where[i].any())]
                size = rows or tile_rows(denoiser, length, len(members))
                for start in range(0, len(members), max(1, size)):
                    chosen = members[start : start + size]
                    parts = _run(denoiser, ids[chosen], where[chosen], real[chosen], length, size)
                    found.update(zip(chosen, parts, strict=False))
        if not found:
            return torch.zeros(0, denoiser.vocabulary, device=home)
        return joined([found[i] for i in sorted(found)]).to(home)

    return denoise


def ends(marks: Tensor) -> list[int]:
    """One behind the last True of each row (B, L)."""
    return (marks.long() * torch.arange(1, marks.shape[1] + 1, device=marks.device)).amax(1).tolist()


def joined(parts: list[Tensor]) -> Tensor:
    """All rows, without a copy where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def bucket(length: int, limit: int | None) -> int:
    """`length` rounded up to a multiple of BUCKET, not beyond the limit unless it already is."""
    rounded = -(-length // BUCKET) * BUCKET
    return max(length, min(rounded, limit)) if limit is not None else rounded


def _run(denoiser: Denoiser, ids: Tensor, where: Tensor, real: Tensor, length: int, size: int) -> tuple[Tensor, ...]:
    """One forward of the tile; logits of each row that was asked for."""
    ids, where, real = (_fit(t, size, length) for t in (ids, where, real))
    base = denoiser.default_visible(length, ids.device, ids == denoiser.record.mask_token_id)
    logits = denoiser(ids, base & visibility.present(real), where)
    return logits.split(where.sum(1).tolist())  # rows that only fill the tile give empty parts at the end


def _fit(t: Tensor, rows: int, length: int) -> Tensor:
    """Pad (b, l) to (rows, length) with zeros, or cut columns beyond it (they are padding)."""
    t = t[:, :length]
    return torch.nn.functional.pad(t, (0, length - t.shape[1], 0, rows - t.shape[0]))
