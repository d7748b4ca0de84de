"""The cache of block-causal models for texts that come and go: each takes a slot, and begins with what the slots know already.

A text's fixed beginning is run in whole chunks, always of the same positions, before anything else of it. So the columns of
a prompt are the same to the last bit whether they were computed for this text or for one before it, and a text does not
depend on what was served before.
"""

import torch
from torch import Tensor

from diffulm.denoiser.cache import Windows
from diffulm.denoiser.denoiser import Denoiser, evaluating
from diffulm.denoiser.tile import BUCKET, Wide, bucket

Column = tuple[int, int]
"""(slot, the first position of a window)."""


class Pool:
    """`slots` canvases of a block-causal model. rows: canvases a forward, see `tile.tile_rows`."""

    def __init__(self, denoiser: Denoiser, slots: int, rows: int | None = None) -> None:
        block = denoiser.record.block_size
        assert block is not None
        self.chunk = -(-BUCKET // block) * block
        self.windows = Windows(denoiser, "exact", block, None, rows, Wide())
        self.ids = torch.zeros(slots, 0, dtype=torch.int64, device=denoiser.device)
        self.known = [0] * slots
        """Columns of each slot that were run as a prompt's: whole chunks from 0 on."""
        self.prompt = [0] * slots
        """Columns of each slot to be run as a prompt's."""
        self.free = list(range(slots))
        self.reused = 0
        """Columns that were not computed because some slot had them."""

    def take(self, ids: Tensor) -> int | None:
        """A slot for the canvas ids (L), None where all are taken."""
        if not self.free:
            return None
        self._make_room(len(ids))
        ids = ids.to(self.ids.device)
        masked = (ids == self.windows.denoiser.record.mask_token_id).nonzero()
        fixed = int(masked[0]) if len(masked) else len(ids)
        whole = max(0, fixed - 1) // self.chunk * self.chunk  # the last fixed column may be run again, for its logits
        shared = [self._shared(slot, ids, whole) for slot in range(len(self.known))]
        best = max(range(len(shared)), key=shared.__getitem__)
        # the one that knows most of it, if it knows no more than that; else the one that has been free for longest
        slot = best if best in self.free and self.known[best] == shared[best] else self.free[0]
        self.free.remove(slot)
        if slot != best:
            self.windows.copy(best, slot, shared[best])
        self.windows.forget(slot, shared[best])
        self.ids[slot] = 0
        self.ids[slot, : len(ids)] = ids
        self.known[slot], self.prompt[slot] = shared[best], whole
        self.reused += shared[best]
        return slot

    def give_back(self, slot: int) -> None:
        """What it knows of its text's beginning stays, for the next one that begins so."""
        self.free.append(slot)

    def run(self, rows: list[tuple[int, Tensor, Tensor]]) -> list[Tensor | None]:
        """One step of these texts, each (slot, ids (L), where (L)): its logits (where.sum(), V), or None where a chunk of
        its beginning was run instead: ask again."""
        found: list[Tensor | None] = [None] * len(rows)
        begun = [slot for slot, _, _ in rows if self.known[slot] < self.prompt[slot]]
        if begun:
            self._begin(begun)
        ready = {slot: i for i, (slot, _, _) in enumerate(rows) if slot not in begun}
        if ready:
            where = torch.zeros_like(self.ids, dtype=torch.bool)
            present = torch.zeros_like(where)
            for slot, i in ready.items():
                _, ids, wanted = rows[i]
                self.ids[slot, : len(ids)], where[slot, : len(ids)] = ids, wanted
                present[slot, : len(ids)] = True
            logits = self.windows.logits(self.ids, where, present)
            order = sorted(ready)
            parts = logits.split([int(where[slot].sum()) for slot in order])
            for slot, part in zip(order, parts, strict=True):
                found[ready[slot]] = part
        return found

    def _begin(self, slots: list[int]) -> None:
        """Run the next chunk of each of these slots."""
        windows = self.windows
        windows.prepare(self.ids)
        groups: dict[int, list[Column]] = {}
        for slot in slots:
            groups.setdefault(bucket(self.known[slot] + self.chunk, None), []).append((slot, self.known[slot]))
        nothing = torch.zeros_like(self.ids, dtype=torch.bool)
        with evaluating(windows.denoiser.model):
            for columns, members in groups.items():
                windows.run(self.ids, nothing, ~nothing, members, self.chunk, columns)
        for slot in slots:
            self.known[slot] += self.chunk

    def _shared(self, slot: int, ids: Tensor, most: int) -> int:
        """Columns of the slot's prompt that are those of `ids`, whole chunks, at most `most`."""
        size = min(self.known[slot], most)
        differs = (self.ids[slot, :size] != ids[:size]).nonzero()
        return (int(differs[0]) if len(differs) else size) // self.chunk * self.chunk

    def _make_room(self, length: int) -> None:
        more = bucket(length, None) - self.ids.shape[1]
        if more > 0:
            wider = torch.nn.functional.pad(self.ids, (0, more))
            self.windows.widen(wider)
            self.ids = wider  # last: what fails for want of memory is tried again
