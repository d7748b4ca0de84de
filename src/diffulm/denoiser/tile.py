"""Rows in a fixed internal tile, so that a result depends neither on its batch nor on its neighbours.

Every forward has the shape (tile, length rounded up to BUCKET), and the vocabulary projection is done row by row: a row
meets the same kernels alone and in company. A batch size above this changes memory, never a result.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from diffulm import visibility
from diffulm.bounds import Denoise
from diffulm.denoiser.denoiser import Denoiser, evaluating

Run = Callable[[list[Any], int], list[Tensor]]
"""(members, rows of the tile) -> what each of them gets, one forward."""

BUCKET = 32
TILE = 8
WIDTHS = (16, 8, 4, 2, 1)
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


def by_tile(run: Run, members: list[Any], tile: int) -> list[Tensor]:
    """`run` of all members, a full tile at a time: what each gets."""
    return [part for first in range(0, len(members), tile) for part in run(members[first : first + tile], tile)]


class Wide:
    """Runs as many rows at once as wait, where that gives each row what the tile gives it, to the last bit.

    Whether it does is a fact of the machine's kernels and of the shape, not of the numbers: it is tried on the first rows
    of every shape, and remembered.
    """

    def __init__(self) -> None:
        self.same: dict[Hashable, bool] = {}

    def run(
        self,
        run: Run,
        members: list[Any],
        tile: int,
        shape: Hashable,
        left: Callable[[list[Any]], list[Tensor]] | None = None,
    ) -> list[Tensor]:
        """`by_tile(run, members, tile)`. shape: of the rows. left: what `run` leaves behind for these members, besides."""
        found: list[Tensor] = []
        while members:
            sizes = (n for n in WIDTHS if n <= len(members) and self.same.get((shape, n), True))
            size = next(sizes, min(tile, len(members)))
            some, members = members[:size], members[size:]
            if (shape, size) not in self.same:
                narrow = by_tile(run, some, tile)
                before = left(some) if left else []
                wide = list(run(some, size))
                after = left(some) if left else []
                pairs = zip([*narrow, *before], [*wide, *after], strict=True)
                self.same[shape, size] = all(torch.equal(a, b) for a, b in pairs)
                if not self.same[shape, size]:
                    narrow = by_tile(run, some, tile)  # once more, for what it leaves behind
                found += narrow
            else:
                found += run(some, size) if self.same[shape, size] else by_tile(run, some, tile)
        return found


def tiled(denoiser: Denoiser, rows: int | None = None, wide: Wide | None = None) -> Denoise:
    """The Denoise protocol of `bounds` and the samplers on a real model: (ids, where, present) -> logits.

    ids (B, L), where (B, L) and present (B, L) may be of any B; present is False for padding, which nobody sees.
    rows: a forward; None: see `tile_rows`, in company of others if there are any. wide: run more at once where it may be.
    """
    if rows is None and denoiser.company is not None:
        return denoiser.company.tiled(denoiser)
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

                def run(some: list[int], tile: int, length: int = length) -> list[Tensor]:
                    parts = _run(denoiser, ids[some], where[some], real[some], length, tile)
                    return list(parts[: len(some)])

                parts = (
                    wide.run(run, members, size, length) if wide and members else by_tile(run, members, max(1, size))
                )
                found.update(zip(members, parts, strict=True))
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
