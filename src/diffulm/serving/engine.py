"""Texts of many callers on one machine: every round takes the most urgent rows of all of them one forward further.

A job is a plain function that fills or scores by the library, in a thread of its own, on a denoiser that is `shared` with a
`Seat`. There it asks for logits and waits; the engine gathers what all jobs ask for and runs it in the fixed tile. So rows
of any length, sampler and number of steps go together, they join and leave between any two forwards, and since a row's
result does not depend on its tile, a text is the same alone and in company.

The most urgent row is that of the earliest deadline: the round in which its job came and the forwards it may need. A short
job overtakes long ones, and a long one is passed only by jobs that came before its deadline.
"""

import contextlib
import copy
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffulm.bounds import Denoise
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.pool import Pool
from diffulm.denoiser.tile import TILE, Wide, joined, tiled

PATIENCE = 0.5
"""Of the last round's time: so long a round waits for jobs that are busy with what the last one gave them."""
SLOTS = 2
"""Texts, for each row of a round, that may have begun: those beyond the rows were overtaken."""


class Gone(Exception):
    """Nobody waits for this job any more."""


@dataclass(eq=False)
class _Row:
    """One canvas whose logits are asked for."""

    asked: "_Asked"
    ids: Tensor
    where: Tensor
    present: Tensor
    slot: int | None = None
    logits: Tensor | None = None


@dataclass(eq=False)
class _Asked:
    """One call of a job: done when all its rows are."""

    seat: "Seat"
    denoiser: Denoiser
    left: int = 0
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Seat:
    """A job's place in the engine: the `Company` of its denoiser. forwards: rounds its rows took part in."""

    def __init__(self, engine: "Engine", number: int, deadline: int, run: Callable[["Seat"], Any]) -> None:
        self.engine, self.run = engine, run
        self.order = deadline, number
        self.gone = self.waiting = False
        self.saw: Callable[[Tensor, Tensor], Any] | None = None
        """Called with (where (B, L), logits) of every forward."""
        self.slots: list[int] = []
        self.pools: list[tuple[Pool, int]] = []

    def cancel(self) -> None:
        """End the job: what it asks for is dropped, and `Gone` raised in it; one that has not begun never does."""
        self.engine._cancel(self)

    def check(self) -> None:
        """Gone where nobody waits any more."""
        if self.gone:
            raise Gone

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        self.check()
        self.waiting = True  # a round need not wait for this job
        _threads(self.engine.threads)
        try:
            with self.engine.model:
                yield
        finally:
            _threads(1)
            self.waiting = False

    def tiled(self, denoiser: Denoiser) -> Denoise:
        def denoise(ids: Tensor, where: Tensor, present: Tensor | None = None) -> Tensor:
            return self._ask(denoiser, ids, where, present, [None] * len(ids))

        return denoise

    def cached(self, denoiser: Denoiser) -> Denoise:
        slots: list[int | None] = []

        def denoise(ids: Tensor, where: Tensor, present: Tensor | None = None) -> Tensor:
            if not slots:
                slots.extend(self.engine._slots(self, denoiser, ids))
            return self._ask(denoiser, ids, where, present, slots)

        return denoise

    def _ask(
        self, denoiser: Denoiser, ids: Tensor, where: Tensor, present: Tensor | None, slots: list[int | None]
    ) -> Tensor:
        self.check()
        present = torch.ones_like(where) if present is None else present
        asked = _Asked(self, denoiser)
        wanted = where.any(1).tolist()
        rows = [_Row(asked, *each) for i, each in enumerate(zip(ids, where, present, slots, strict=True)) if wanted[i]]
        if not rows:
            return torch.zeros(0, denoiser.vocabulary, device=ids.device)
        asked.left = len(rows)
        self.engine._wait_for(asked, rows)
        if asked.error is not None:
            raise asked.error
        logits = joined([row.logits for row in rows if row.logits is not None]).to(ids.device)
        if self.saw is not None:
            self.saw(where, logits)
        return logits


class Engine:
    """rows: canvases a round. Threads are daemons: a process ends when its main thread does."""

    def __init__(self, rows: int = 16) -> None:
        self.rows = rows
        self.threads = torch.get_num_threads()
        """Of a forward. What a job reckons besides has one: teams of as many jobs would stand in each other's way."""
        self.model = threading.RLock()
        """Held by whoever runs a model."""
        self.round = 0
        self.forwards = self.ran = 0
        """Rounds that ran anything, and rows in them."""
        self._changed = threading.Condition()
        self._pending: list[_Row] = []
        self._waiting: list[Seat] = []
        self._seated: set[Seat] = set()
        self._numbers = itertools.count()
        self._pools: dict[Hashable, Pool] = {}
        self._alone: dict[Hashable, Denoiser] = {}
        self._wide: dict[Hashable, Wide] = {}
        self._last = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def submit(self, expected: int, run: Callable[[Seat], Any]) -> Seat:
        """Start `run(seat)` in a thread of its own when its turn comes. expected: forwards it may need.

        Whatever `run` raises is its own business: it should raise nothing.
        """
        with self._changed:
            number = next(self._numbers)
            seat = Seat(self, number, self.round + expected, run)
            self._waiting.append(seat)
            self._begin()
        return seat

    @property
    def running(self) -> int:
        with self._changed:  # who asks finds out whether this engine still lets go of its lock
            return len(self._seated)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def reused(self) -> int:
        """Columns of prompts that were not computed because an earlier text began with them."""
        return sum(pool.reused for pool in list(self._pools.values()))  # an engine may be making one

    def close(self) -> None:
        """Cancel everything and stop."""
        for seat in [*self._waiting, *self._seated]:
            seat.cancel()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _begin(self) -> None:
        """Start waiting jobs that are among the most urgent. Called with the lock held."""
        self._waiting.sort(key=lambda seat: seat.order)
        while self._waiting and len(self._seated) < SLOTS * self.rows:
            before = sum(seat.order < self._waiting[0].order for seat in self._seated)
            if before >= self.rows:
                return
            seat = self._waiting.pop(0)
            self._seated.add(seat)
            threading.Thread(target=self._live, args=(seat,), daemon=True).start()

    def _live(self, seat: Seat) -> None:
        _threads(1)
        try:
            seat.run(seat)
        finally:
            with self._changed:
                self._seated.discard(seat)
                for pool, slot in seat.pools:
                    pool.give_back(slot)
                self._begin()
                self._changed.notify_all()

    def _cancel(self, seat: Seat) -> None:
        with self._changed:
            seat.gone = True
            if seat in self._waiting:
                self._waiting.remove(seat)
            for row in [row for row in self._pending if row.asked.seat is seat]:
                self._pending.remove(row)
                self._settle(row.asked, Gone())
            self._changed.notify_all()

    def _wait_for(self, asked: _Asked, rows: list[_Row]) -> None:
        with self._changed:
            asked.seat.check()
            asked.seat.waiting = True
            self._pending += rows
            self._changed.notify_all()
        asked.done.wait()

    def _settle(self, asked: _Asked, error: BaseException | None = None) -> None:
        """Called with the lock held."""
        asked.error = asked.error or error
        asked.seat.waiting = False
        asked.done.set()

    def _serve(self) -> None:
        _threads(self.threads)
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                self._gather()
                most = self._most()
                chosen, self._pending = self._pending[:most], self._pending[most:]
            self._run(chosen)

    def _gather(self) -> None:
        """Put the most urgent rows first; wait for the jobs whose rows will be among them in a moment, for a part of the time
        that a round takes."""
        until = time.perf_counter() + PATIENCE * self._last
        while True:
            self._pending.sort(key=lambda row: row.asked.seat.order)
            enough = self._most()
            last = self._pending[enough - 1].asked.seat.order if len(self._pending) >= enough else None
            awaited = any(not seat.waiting and (last is None or seat.order < last) for seat in self._seated)
            left = until - time.perf_counter()
            if not awaited or left <= 0 or self._closed:
                return
            self._changed.wait(left)

    def _most(self) -> int:
        """Rows of a round. On a CPU more than a tile's are no cheaper together, and short rounds let urgent rows in sooner."""
        on_cpu = all(row.asked.denoiser.device.type == "cpu" for row in self._pending[:1])
        return min(self.rows, TILE) if on_cpu else self.rows

    def _run(self, chosen: list[_Row]) -> None:
        groups: dict[tuple[Hashable, bool], list[_Row]] = {}
        for row in chosen:
            groups.setdefault((_key(row.asked.denoiser), row.slot is None), []).append(row)
        began = time.perf_counter()
        for (key, plain), rows in groups.items():
            error = None
            try:
                with self.model:
                    (self._tiled if plain else self._cached)(key, rows)
            except Exception as raised:  # of the model: it is the jobs' to report
                if _broken(raised):
                    raise  # the process ends, and another is started
                error = raised
            self._finish(rows, error)
        self._last = time.perf_counter() - began

    def _finish(self, rows: list[_Row], error: Exception | None) -> None:
        with self._changed:
            self.round, self.forwards, self.ran = self.round + 1, self.forwards + 1, self.ran + len(rows)
            for row in rows:
                asked = row.asked
                if error is not None or asked.seat.gone:
                    self._pending = [each for each in self._pending if each.asked is not asked]
                    self._settle(asked, error or Gone())
                elif row.logits is None:
                    self._pending.append(row)
                else:
                    asked.left -= 1
                    if asked.left == 0:
                        self._settle(asked)

    def _tiled(self, key: Hashable, rows: list[_Row]) -> None:
        denoiser = self._unshared(key, rows[0].asked.denoiser)
        ids, where, present = (_stacked([getattr(row, name) for row in rows]) for name in ("ids", "where", "present"))
        logits = tiled(denoiser, _tile(denoiser), self._wide.setdefault(key, Wide()))(ids, where, present)
        for row, part in zip(rows, logits.split(where.sum(1).tolist()), strict=True):
            row.logits = part

    def _cached(self, key: Hashable, rows: list[_Row]) -> None:
        size = [int(row.present.sum()) for row in rows]
        asked = [
            (row.slot, row.ids[:n], row.where[:n]) for row, n in zip(rows, size, strict=True) if row.slot is not None
        ]
        for row, logits in zip(rows, self._pools[key].run(asked), strict=True):
            row.logits = logits

    def _slots(self, seat: Seat, denoiser: Denoiser, ids: Tensor) -> list[int | None]:
        """A slot for each canvas, or None for all where there are not enough: they do without a cache."""
        key = _key(denoiser)
        with self.model, self._changed:
            if key not in self._pools:
                alone = self._unshared(key, denoiser)
                self._pools[key] = Pool(alone, SLOTS * self.rows, _tile(alone))
            pool = self._pools[key]
            if len(pool.free) < len(ids):
                return [None] * len(ids)
            slots = [pool.take(each) for each in ids]
            seat.pools += [(pool, slot) for slot in slots if slot is not None]
            return slots

    def _unshared(self, key: Hashable, denoiser: Denoiser) -> Denoiser:
        if key not in self._alone:
            self._alone[key] = copy.copy(denoiser)
            self._alone[key].company = None
        return self._alone[key]


def _key(denoiser: Denoiser) -> Hashable:
    """Denoisers of one key give the same logits."""
    record = denoiser.record
    return id(denoiser.model), record.attention, record.block_size, record.shift, record.mask_token_id


def _tile(denoiser: Denoiser) -> int | None:
    """Rows of a tile; the same for every round, also below float32."""
    return TILE if next(denoiser.model.parameters()).element_size() < 4 else None


def _threads(count: int) -> None:
    """Of this thread's arithmetic."""
    torch.get_num_threads()  # the first call in a thread takes the process's number, which would undo ours later
    torch.set_num_threads(count)


def _broken(error: Exception) -> bool:
    """Whether an accelerator's context is lost: nothing more can be run by this process."""
    kind = getattr(torch, "AcceleratorError", None)
    return kind is not None and isinstance(error, kind) and not isinstance(error, torch.OutOfMemoryError)


def _stacked(rows: list[Tensor]) -> Tensor:
    """(B, L) of rows of different length, zeros behind them."""
    if len(rows) == 1:
        return rows[0][None]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
