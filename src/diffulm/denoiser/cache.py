"""Keys and values of a canvas, so that a forward runs only the rows that have something new to say.

`cached` gives the same `Denoise` protocol as `tile.tiled`, for one batch of canvases. It looks at the ids it is handed: a
column is taken from the cache as long as nothing that it can see has changed. Under block-causal attention that is exact:
what a finished block saw never changes, and the forward in which its last tokens were revealed (it saw masks) is repeated
together with the first forward of the next block. Under full attention every column sees every change, so `prefix` and
`dual` are approximations (Fast-dLLM, arXiv 2505.22618): columns outside the window of the current block stay as they were
at the last refresh.
"""

import copy
from collections import defaultdict
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache

from diffulm.bounds import Denoise
from diffulm.denoiser.denoiser import Denoiser, evaluating
from diffulm.denoiser.tile import Wide, bucket, by_tile, ends, joined, tile_rows, tiled
from diffulm.shapes import Int

Mode = Literal["exact", "prefix", "dual"]

WINDOW = 32
"""Positions that a prefix or dual cache runs at a time where nobody says how many."""


class CanvasCache(Cache):
    """Keys and values by position: column j of row i belongs to position j of canvas i, and a forward overwrites the
    columns of the positions it runs. Which columns hold something is for `visible` to say."""

    def __init__(self, canvases: int, length: int) -> None:
        super().__init__(layers=[])
        self.shape = canvases, length
        self.stores: list[tuple[Tensor, Tensor]] = []

    def window(self, canvases: list[int], start: Int[Tensor, " b"], size: int, columns: int) -> Tensor:
        """The next forward runs `size` positions of these canvases from `start` on, and sees the first `columns`."""
        self.columns = columns
        device = start.device
        self.canvases = torch.tensor(canvases, device=device)
        self.positions = start[:, None] + torch.arange(size, device=device)
        # One canvas, or all of them in their order, are seen in place; others are gathered.
        self._span = slice(canvases[0], canvases[-1] + 1) if _in_order(canvases) else None
        self._from = int(start[0]) if len(set(start.tolist())) == 1 and self._span is not None else None
        return self.positions

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        while len(self.stores) <= layer_idx:
            self.stores.append((self._empty(key_states), self._empty(value_states)))
        return tuple(self._put(*pair) for pair in zip(self.stores[layer_idx], (key_states, value_states), strict=True))

    def _empty(self, like: Tensor) -> Tensor:
        canvases, length = self.shape
        return like.new_zeros(canvases, like.shape[1], length, like.shape[3])

    def _put(self, store: Tensor, new: Tensor) -> Tensor:
        if self._span is not None and self._from is not None:
            store[self._span, :, self._from : self._from + new.shape[2]] = new
        else:
            store[self.canvases[:, None], :, self.positions] = new.transpose(1, 2)
        rows = self._span if self._span is not None else self.canvases
        return store[rows, :, : self.columns]

    def held(self, canvas: int, start: int, size: int) -> list[Tensor]:
        """Copies of the keys and values of these columns, layer by layer."""
        return [each[canvas, :, start : start + size].clone() for pair in self.stores for each in pair]

    def widen(self, length: int) -> None:
        """Room for more columns."""
        more = (0, 0, 0, length - self.shape[1])
        pad = torch.nn.functional.pad
        self.stores = [(pad(keys, more), pad(values, more)) for keys, values in self.stores]
        self.shape = self.shape[0], length

    def copy(self, source: int, target: int, columns: int) -> None:
        for store in (each for pair in self.stores for each in pair):
            store[target, :, :columns] = store[source, :, :columns]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        return self.columns, 0


def _in_order(rows: list[int]) -> bool:
    return rows == list(range(rows[0], rows[0] + len(rows)))


def cached(
    denoiser: Denoiser,
    mode: Mode = "exact",
    block: int | None = None,
    refresh: int | None = None,
    rows: int | None = None,
) -> Denoise:
    """The Denoise protocol on a real model, with a cache, for one batch of canvases that is handed over in the same order at
    every call (a canvas that is not to be run asks for nothing).

    mode: `exact` for block-causal models; `prefix` runs the current block and all after it, `dual` the block alone, both see
    the rest as it was at the last refresh. block: positions a block, default the record's, or WINDOW. A canvas is refreshed
    (run whole) when it comes to another block, and after every `refresh` forwards if that is given; with refresh=1 the
    result is that of `tiled`. rows: canvases a forward, see `tile_rows`. ValueError for `exact` with another attention than
    block-causal.
    """
    if mode == "exact" and denoiser.record.attention != "block":
        raise ValueError(
            "the exact cache is for block-causal attention: under full attention every column sees every change"
        )
    if mode == "exact" and rows is None and denoiser.company is not None:
        return denoiser.company.cached(denoiser)
    run = Windows(denoiser, mode, block or denoiser.record.block_size or WINDOW, refresh, rows)
    return run.logits


def cacheable(denoiser: Denoiser) -> bool:
    """Whether the family keeps keys and values by position, and a window of it says what the whole does: tried once, on a few
    tokens. Recurrent layers do not, nor does a family that is not told where a row stands."""
    if not denoiser.takes_clean_copy:
        return False
    if denoiser.model not in _tried:
        blocks = copy.copy(denoiser)
        blocks.record = replace(denoiser.record, attention="block", block_size=4)
        _tried[denoiser.model] = _same(blocks)
    return _tried[denoiser.model]


def _same(denoiser: Denoiser) -> bool:
    ids = torch.arange(12, device=denoiser.device)[None] % denoiser.vocabulary
    where = ids >= 9
    quick = cached(denoiser, rows=1)
    try:
        quick(ids, where.roll(-4, 1))  # the first eight, of which four are asked for
        by_windows = quick(ids, where)
    except Exception:  # a family may do anything with a cache that it does not know
        return False
    whole = tiled(denoiser, rows=1)(ids, where)
    finite = whole.isfinite()
    # float error is a small part of what logits differ by; a wrong position or column is all of it
    return bool((by_windows - whole)[finite].abs().max() < 0.05 * whole[finite].std())


_tried: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class Windows:
    """What a cached denoiser remembers of its batch."""

    cache: CanvasCache
    seen: Tensor  # (B, L) the ids that the columns were computed from; -1 where there is nothing, or nothing valid
    block_of: list[int]  # the block each canvas was last asked about
    age: list[int]  # forwards since the last refresh

    def __init__(
        self,
        denoiser: Denoiser,
        mode: Mode,
        block: int,
        refresh: int | None,
        rows: int | None,
        wide: Wide | None = None,
    ) -> None:
        self.denoiser, self.mode, self.block, self.refresh = denoiser, mode, block, refresh
        self.rows, self.wide = rows, wide
        self.shape: tuple[int, ...] | None = None

    def logits(self, ids: Tensor, where: Tensor, present: Tensor | None = None) -> Tensor:
        """(where.sum(), V), row-major."""
        home, device = ids.device, self.denoiser.device
        ids, where = ids.to(device), where.to(device)
        real = torch.ones_like(where) if present is None else present.to(device)
        self.prepare(ids)
        if tuple(ids.shape) != self.shape:
            raise ValueError(f"this cache is of canvases of shape {self.shape}, not {tuple(ids.shape)}")
        groups = defaultdict(list)
        for i, (start, end) in self._windows(ids, where, real).items():
            groups[end - start, bucket(end, None)].append((i, start))
        found: dict[int, Tensor] = {}
        with evaluating(self.denoiser.model):
            for (size, columns), members in groups.items():
                parts = self.run(ids, where, real, members, size, columns)
                found.update(zip((i for i, _ in members), parts, strict=True))
        if not found:
            return torch.zeros(0, self.denoiser.vocabulary, device=home)
        return joined([found[i] for i in sorted(found)]).to(home)

    def _windows(self, ids: Tensor, where: Tensor, real: Tensor) -> dict[int, tuple[int, int]]:
        """Which positions of which canvases have to be run."""
        windows, lengths = {}, ends(real)
        stale = _first(ids != self.seen)
        asked = zip(where.any(1).tolist(), _first(where), ends(where), stale, lengths, strict=True)
        for i, (any_at_all, first, last, changed, end) in enumerate(asked):
            if not any_at_all:
                continue
            first -= self.denoiser.record.shift
            stop = min(end, -(-last // self.block) * self.block)
            if self.mode == "exact":
                windows[i] = min(first, changed // self.block * self.block), stop
                continue
            start = min(first, (last - 1) // self.block * self.block - self.denoiser.record.shift)
            self.age[i] += 1
            if self.block_of[i] != stop or self.age[i] == self.refresh:
                start, stop, self.block_of[i], self.age[i] = 0, end, stop, 0
            windows[i] = max(0, start), stop if self.mode == "dual" else end
        return windows

    def prepare(self, ids: Tensor) -> None:
        """Make room for canvases of the shape of `ids` (B, L), once."""
        if self.shape is None:
            self.shape, (canvases, length) = tuple(ids.shape), ids.shape
            self.cache = CanvasCache(canvases, bucket(length, None))
            self.seen = torch.full_like(ids, -1, device=self.denoiser.device)
            self.block_of, self.age = [-1] * canvases, [0] * canvases

    def widen(self, ids: Tensor) -> None:
        """Make room for longer canvases; what is known stays."""
        if self.shape is not None:
            self.cache.widen(bucket(ids.shape[1], None))
            self.seen = torch.nn.functional.pad(self.seen, (0, ids.shape[1] - self.seen.shape[1]), value=-1)
            self.shape = tuple(ids.shape)

    def copy(self, source: int, target: int, columns: int) -> None:
        """The first columns of one canvas as those of another."""
        if columns:
            self.seen[target, :columns] = self.seen[source, :columns]
            self.cache.copy(source, target, columns)

    def forget(self, canvas: int, columns: int) -> None:
        """All of a canvas but its first columns."""
        if self.shape is not None:
            self.seen[canvas, columns:] = -1

    def run(
        self, ids: Tensor, where: Tensor, real: Tensor, members: list[tuple[int, int]], size: int, columns: int
    ) -> list[Tensor]:
        """The windows of `size` positions, each (canvas, its first one), which see the first `columns`: their logits."""

        def run(some: list[tuple[int, int]], tile: int) -> list[Tensor]:
            return self._run(ids, where, real, some, tile, size, columns)

        def left(some: list[tuple[int, int]]) -> list[Tensor]:
            return [each for i, start in some for each in self.cache.held(i, start, size)]

        tile = self.rows or tile_rows(self.denoiser, size, len(members))
        if self.wide is None:
            return by_tile(run, members, tile)
        return self.wide.run(run, members, tile, (size, columns), left)

    def _run(
        self, ids: Tensor, where: Tensor, real: Tensor, some: list[tuple[int, int]], tile: int, size: int, columns: int
    ) -> list[Tensor]:
        """One forward of the tile."""
        fill = [some[-1]] * (tile - len(some))  # the last one once more: what it writes twice is the same
        chosen = [i for i, _ in some + fill]
        start = torch.tensor([start for _, start in some + fill], device=ids.device)
        positions = self.cache.window(chosen, start, size, columns)
        window = ids[chosen].gather(1, positions)
        masked, seen = (_columns(part[chosen], columns) for part in (ids == self.denoiser.record.mask_token_id, real))
        visible = self.denoiser.default_visible(columns, ids.device, masked)
        visible = visible.expand(tile, -1, -1).gather(1, positions[..., None].expand(-1, -1, columns))
        itself = torch.arange(columns, device=ids.device) == positions[..., None]
        asked = where[chosen].gather(1, positions)
        asked[len(some) :] = False
        logits = self.denoiser(window, visible & seen[:, None] | itself, asked, positions, self.cache)
        for i, begin in some:
            self.seen[i, begin : begin + size] = ids[i, begin : begin + size]
            if self.mode == "exact":
                self.seen[i, begin + size :] = -1  # computed from what stood before this window until now
        return list(logits.split(asked.sum(1).tolist())[: len(some)])


def _columns(marks: Tensor, count: int) -> Tensor:
    """The first `count` columns of (B, L), False beyond its end."""
    return torch.nn.functional.pad(marks, (0, max(0, count - marks.shape[1])))[:, :count]


def _first(marks: Tensor) -> list[int]:
    """The first True of each row (B, L); L where there is none."""
    return torch.where(marks.any(1), marks.long().argmax(1), marks.shape[1]).tolist()
