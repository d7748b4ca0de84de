"""A corpus of any size to a folder of packed blocks: by many processes, resumable, the same bytes however many they are.

Layout of the folder: `manifest.json`, and files of blocks that `datasets.load_from_disk` opens as one memory-mapped data set,
source after source. The unit of work is a part (`parts.py`): it is packed by itself, and its last block, which nothing fills,
is left out (a block in some millions of tokens). The parts of a source are taken in an order drawn from the seed, as many as
its share needs; the last of them is packed again up to what is missing. None of that depends on who packs what when.

Until it is whole the folder is called `OUT.tmp`. A part that is finished lies there with a record of its own, last written;
the same command keeps it. `datasets` has no part of that: its `from_generator` starts again from nothing and cuts the result
by the number of processes.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import Any

from diffulm.checkpoint import disk
from diffulm.data.blocks import tokenizer_hash
from diffulm.data.parts import Packer, Part, Source, key, parts
from diffulm.data.prepared import manifest_of, write_manifest
from diffulm.errors import BadInput

RESUMES = "the same command keeps what is packed and goes on"
Progress = Callable[[int, float], None]  # tokens made by this process and its workers, share of the parts that are done
Job = tuple[Part, str, int | None]  # a part, the stem of its files, at most so many blocks of it
Work = Callable[[Iterable[Job]], Iterator[tuple[Job, dict[str, Any]]]]


def prepare(
    mixture: list[Source], packer: Packer, out: Path, *, seed: int = 0, tokens: int | None = None, workers: int = 1,
    about: dict[str, Any], progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Pack `mixture` into the folder `out`, or go on with that, or find it done; returns the manifest.

    tokens: canvas positions in all, each source its weight of them; None: all there is, with weights as much as the source
    that is exhausted first allows. about: what the manifest should say besides.

    Raises:
        BadInput: as `documents` does; too little text; a folder that holds something else, or is in use; a full disk.
    """
    settings = _settings(packer, seed)
    groups = parts(mixture, seed)
    wanted = settings | {
        "tokens": tokens,
        "sources": [[list(source.data), source.column, source.weight] for source in mixture],
        "text": hashlib.sha256(json.dumps([p.identity for group in groups for p in group]).encode()).hexdigest(),
    }
    found = manifest_of(out)
    if found is not None:
        return _the_same(out, found, wanted)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"out={out}: exists and holds no prepared data; name another folder")
    packing = _Packing(mixture, groups, packer, settings, out.with_name(out.name + ".tmp"), tokens)
    with disk.writing(packing.folder, advice=RESUMES), packing.claimed():
        with _workers(packer, packing.folder, settings, workers, lambda made: progress(made, packing.share)) as work:
            packing.finish_parts(work)
        manifest = write_manifest(packing.folder, wanted, packing.taken(), mixture, packer, about)
        packing.folder.rename(out)
    for left in (*out.glob("*.json.part*"), *out.glob("settings.json*"), out / ".lock"):
        left.unlink(missing_ok=True)
    return manifest


def _settings(packer: Packer, seed: int) -> dict[str, Any]:
    """What every part depends on."""
    return {
        "tokenizer": tokenizer_hash(packer.tokenizer),
        "length": packer.length,
        "bos_token_id": packer.bos_token_id,
        "eos_token_id": packer.eos_token_id,
        "packing": packer.packing,
        "bad_rows": packer.bad_rows,
        "seed": seed,
    }


def _the_same(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a finished folder that holds what is wanted."""
    if name := _difference(found["settings"], wanted):
        raise BadInput(f"out={out}: holds other prepared data: {name}; name another folder")
    return found


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    for name, value in wanted.items():
        if found.get(name) != value:
            if name in ("tokenizer", "text"):
                return f"the {name} is another one there"
            return f"{name} is {found.get(name)!r} there, {value!r} here"
    return None


@dataclass
class _Group:
    """The parts that share one quota, in the order in which they are taken, and the records of those that are packed."""

    parts: list[Part]
    weight: float
    quota: int | None
    records: dict[int, dict[str, Any]]
    last: dict[str, Any] | None = None  # the record of the part that is packed only in part

    @property
    def rows(self) -> int:
        return sum(record["rows"] for record in self.records.values())

    def within(self) -> tuple[list[dict[str, Any]], int | None, int]:
        """(records of the parts that are taken whole, number of the part of which some is taken, how many of its rows)."""
        whole: list[dict[str, Any]] = []
        missing = self.rows if self.quota is None else self.quota
        for number in range(len(self.parts)):
            if not missing:
                break
            record = self.records[number]
            if record["rows"] > missing:
                return whole, number, missing
            whole.append(record)
            missing -= record["rows"]
        return whole, None, 0


class _Packing:
    """One folder in the making."""

    def __init__(
        self, mixture: list[Source], groups: list[list[Part]], packer: Packer, settings: dict[str, Any], folder: Path,
        tokens: int | None,
    ) -> None:  # fmt: skip
        self.folder, self.settings, self.length, self.mixture = folder, settings, packer.length, mixture
        weights = [source.weight or 0.0 for source in mixture] if len(groups) == len(mixture) else [1.0]
        weights = [weight / (sum(weights) or 1.0) for weight in weights] if any(weights) else [1.0]
        blocks = None if tokens is None else -(-tokens // packer.length)
        self.groups = [
            _Group(cut, weight, None if blocks is None else round(blocks * weight), {})
            for cut, weight in zip(groups, weights, strict=True)
        ]

    @property
    def share(self) -> float:
        """How much of the work is done."""
        shares = [
            min(1.0, group.rows / group.quota) if group.quota else len(group.records) / max(1, len(group.parts))
            for group in self.groups
        ]
        return sum(share * group.weight for share, group in zip(shares, self.groups, strict=True))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder if need be, and keep others out of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self.folder / "settings.json"
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"{self.folder}: another process is at work in it") from None
            if known.exists() and (name := _difference(json.loads(known.read_text("utf-8")), self.settings)):
                raise BadInput(
                    f"{self.folder}: holds what a `prepare` with other settings has begun: {name}; give it the same settings, "
                    "or delete that folder"
                )
            _write(known, self.settings)
            yield

    def finish_parts(self, work: Work) -> None:
        """Pack what is not packed yet, as far as it is needed."""
        for (_, stem, _), record in work(self._missing()):
            group, number = map(int, stem.split("-")[1:3])
            self.groups[group].records[number] = record
        self._set_quotas()
        cut = [(number, *group.within()[1:]) for number, group in enumerate(self.groups)]
        jobs = [
            (self.groups[group].parts[number], f"part-{group}-{number:06}-cut", rows)
            for group, number, rows in cut
            if number is not None
        ]
        for (_, stem, _), record in work(job for job in jobs if not self._kept(job)):
            self.groups[int(stem.split("-")[1])].last = record
        for job in jobs:
            group = self.groups[int(job[1].split("-")[1])]
            group.last = group.last or self._kept(job)

    def taken(self) -> list[dict[str, Any]]:
        """The records of all that belongs to the result, in its order; the files of the rest are deleted."""
        records: list[dict[str, Any]] = []
        for group in self.groups:
            records += group.within()[0] + ([group.last] if group.last else [])
        names = {shard["file"] for record in records for shard in record["shards"]}
        for file in self.folder.glob("*.arrow"):
            if file.name not in names:
                file.unlink()
        return records

    def _missing(self) -> Iterator[Job]:
        """The parts that are to be packed; a group's end where those that are packed fill its quota."""
        for number, group in enumerate(self.groups):
            for at, part in enumerate(group.parts):
                if group.quota is not None and group.rows >= group.quota:
                    break
                job = (part, f"part-{number}-{at:06}", None)
                if record := self._kept(job):
                    group.records[at] = record
                else:
                    yield job

    def _kept(self, job: Job) -> dict[str, Any] | None:
        """The record of a part that an earlier command has packed."""
        part, stem, limit = job
        try:
            record = json.loads((self.folder / f"{stem}.json.part").read_text("utf-8"))
            sizes = [(self.folder / shard["file"]).stat().st_size for shard in record["shards"]]
        except (OSError, ValueError):
            return None
        same = record["key"] == key(self.settings, part, limit)
        return record if same and sizes == [shard["bytes"] for shard in record["shards"]] else None

    def _set_quotas(self) -> None:
        """How many blocks each group gives, now that it is known how many it has. BadInput where they are too few."""
        names = [", ".join(s.data) for s in self.mixture] if len(self.groups) == len(self.mixture) else []
        for n, group in enumerate(self.groups):
            name = names[n] if names else ", ".join(name for source in self.mixture for name in source.data)
            if not group.rows:
                raise BadInput(
                    f"{name}: has less text than one block of {self.length} tokens; give more, or a smaller length"
                )
            possible = min(int(other.rows / other.weight) for other in self.groups) * self.length
            if group.quota is not None and group.rows < group.quota:
                raise BadInput(
                    f"{name}: packs into {group.rows:,} blocks of {self.length} tokens, and its share is {group.quota:,}; "
                    f"give more text, or at most tokens={possible}; {RESUMES}"
                )
        if all(group.quota is None for group in self.groups):
            most = min(group.rows / group.weight for group in self.groups)
            for group in self.groups:
                group.quota = min(group.rows, round(most * group.weight))


# -- the processes


@contextmanager
def _workers(
    packer: Packer, folder: Path, settings: dict[str, Any], count: int, progress: Callable[[int], None]
) -> Iterator[Work]:
    """What packs parts: this process, or `count` others, which end when it ends."""
    if count == 1:
        made = [0]

        def tick(tokens: int) -> None:
            made[0] += tokens
            progress(made[0])

        yield lambda jobs: ((job, _pack(packer, folder, settings, job, tick)) for job in jobs)
        return
    # A server that is forked before this process has threads: quicker than to start each worker from nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    tokens = context.Value("q", 0)
    pool = ProcessPoolExecutor(count, context, _begin_worker, (packer, folder, settings, tokens))
    try:
        yield lambda jobs: _shared_out(pool, jobs, count, lambda: progress(tokens.value))
    except BaseException:
        with tokens.get_lock():
            tokens.value = -(2**62)  # tells them to stop
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _shared_out(
    pool: ProcessPoolExecutor, jobs: Iterable[Job], count: int, progress: Callable[[], None]
) -> Iterator[tuple[Job, dict[str, Any]]]:
    jobs, waiting = iter(jobs), dict[Future[dict[str, Any]], Job]()
    try:
        while True:
            waiting |= {pool.submit(_work, job): job for job in islice(jobs, count - len(waiting))}
            if not waiting:
                return
            done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            progress()
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        raise BadInput(f"workers={count}: one of them was killed, perhaps for memory; give fewer; {RESUMES}") from None


_mine: list[Any] = []  # in a worker: packer, folder, settings, the counter of all workers' tokens


def _begin_worker(*given: Any) -> None:
    _mine[:] = given
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many workers as cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    packer, folder, settings, counter = _mine

    def tick(tokens: int) -> None:
        with counter.get_lock():
            if counter.value < 0:
                raise InterruptedError("told to stop")
            counter.value += tokens

    return _pack(packer, folder, settings, job, tick)


def _pack(
    packer: Packer, folder: Path, settings: dict[str, Any], job: Job, tick: Callable[[int], None]
) -> dict[str, Any]:
    part, stem, limit = job
    for old in folder.glob(f"{stem}-[0-9]*.arrow"):  # of an attempt that was killed
        old.unlink()
    record = {"key": key(settings, part, limit), **packer.pack(part, folder / stem, limit, tick)}
    _write(folder / f"{stem}.json.part", record)
    return record


def _write(file: Path, content: dict[str, Any]) -> None:
    partial = file.with_name(file.name + ".new")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
