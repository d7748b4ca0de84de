"""Many callers on one model: what each gets is what it would get alone, and nobody waits for those who ask for more."""

import copy
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from diffulm.canvas import Hole
from diffulm.denoiser.pool import Pool
from diffulm.denoiser.tile import Wide, tiled
from diffulm.errors import BadInput
from diffulm.lm import DiffusionLM, adopt
from diffulm.serving.engine import Engine, Gone, Seat
from models import build, tokenizer

WORDS = [f"w{n}" for n in range(3, 20)]
KINDS = ("full", "block", "one")
"""Full attention, block-causal with a cache, and blocks of one: an AR parent."""


@lru_cache
def opened(kind: str) -> DiffusionLM:
    lm = adopt(build("llama", max_position_embeddings=192), tokenizer())
    if kind != "full":
        size = 4 if kind == "block" else 1
        lm.denoiser.record = replace(lm.record, attention="block", block_size=size, notes={"full_share": 0.5})
    return lm


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(4)
    yield made
    made.close()


def submit(engine: Engine, lm: DiffusionLM, expected: int, task: Callable[[DiffusionLM], Any]) -> Callable[[], Any]:
    """Start `task` on the model in company; calling what comes back waits for its result, and raises what it raised."""
    done, found = threading.Event(), []

    def run(seat: Seat) -> None:
        own = copy.copy(lm)
        own.denoiser = lm.denoiser.shared(seat)
        try:
            found.append(task(own))
        except BaseException as error:
            found.append(error)
        done.set()

    submit.seat = engine.submit(expected, run)  # pyright: ignore[reportFunctionMemberAccess]

    def result() -> Any:
        assert done.wait(60), "the job never ended"
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    return result


def some_task(chance: random.Random, kind: str) -> Callable[[DiffusionLM], Any]:
    """A job of any kind, length, order, commit rule and number of steps."""
    prompt = " ".join(chance.choices(WORDS, k=chance.choice([1, 5, 30, 50])))
    seed, length = chance.randrange(1000), chance.choice([1, 4, 9, 17])
    which = chance.random()
    if which < 0.1:
        return lambda lm: lm.score(prompt, samples=5, seed=seed)
    if which < 0.3 and kind != "one":
        parts: list[Any] = [prompt, Hole(length), " w5 w6"] if which < 0.25 else [prompt, Hole(1, 3), " w5 w6"]
        return lambda lm: lm.infill(parts, temperature=1.0, seed=seed)
    options: dict[str, Any] = {"temperature": chance.choice([0.0, 1.0]), "seed": seed}
    options |= chance.choice([{}, {"steps": 3}, {"threshold": 0.2}, {"steps": length + 3, "remask": 0.2}])
    options["sampler"] = chance.choice(["confidence", "random", "left_to_right", "entropy"])
    if chance.random() < 0.1:
        options = {"sampler": "verified", "temperature": 1.0, "seed": seed}
    elif kind == "full" and chance.random() < 0.2:
        options |= {"cache": "dual", "block": 8}
    return lambda lm: lm.generate(prompt, length=length, **options)


def plain(result: Any) -> Any:
    """A result without the time it took."""
    return replace(result, seconds=0.0) if hasattr(result, "seconds") else result


def same_alone_and_in_company(kind: str, mixes: int, jobs: int) -> int:
    """How many jobs were compared: each by itself on an engine that has seen nothing, and all at once on one that has."""
    lm, compared = opened(kind), 0
    busy = Engine(5)
    for mix in range(mixes):
        chance = random.Random(f"{kind} {mix}")
        tasks = [some_task(chance, kind) for _ in range(jobs)]
        together = [submit(busy, lm, chance.randrange(1, 30), task) for task in tasks]
        for task, result in zip(tasks, together, strict=True):
            fresh = Engine(5)
            alone = submit(fresh, lm, 1, task)()
            fresh.close()
            assert repr(plain(result())) == repr(plain(alone))  # repr, for scores may be NaN
            compared += 1
    assert busy.ran > busy.forwards  # they did run together
    busy.close()
    return compared


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_the_same_alone_and_in_company(kind):
    assert same_alone_and_in_company(kind, 1, 16) == 16


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_the_same_in_hundreds_of_mixes(kind):
    assert same_alone_and_in_company(kind, 200, 5) == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_are_those_of_the_library(engine, kind):
    # Not to the last bit for blocks: a prompt's columns are run in chunks here. A draw that differs for it is one in 10^6.
    lm = opened(kind)
    for n in range(4):
        asked: dict[str, Any] = {"length": 9, "temperature": 1.0, "seed": n}
        prompt = " ".join(WORDS * (n + 1))
        got = submit(engine, lm, 9, lambda own, prompt=prompt, asked=asked: own.generate(prompt, **asked))()
        assert got.text == lm.generate(prompt, **asked).text


def test_rows_wait_for_each_other_and_run_together(engine):
    lm = opened("full")
    results = [submit(engine, lm, 8, lambda own, n=n: own.generate("w3", length=8, seed=n)) for n in range(4)]
    for result in results:
        result()
    assert engine.ran == 32
    assert engine.forwards < 20  # 8 if nobody had been late


def test_a_short_job_overtakes_long_ones(engine):
    lm, order = opened("full"), []

    def job(name: str, length: int) -> Callable[[], Any]:
        def task(own: DiffusionLM) -> None:
            own.generate("w3", length=length, sampler="left_to_right")
            order.append(name)

        return submit(engine, lm, length, task)

    long = [job("long", 60) for _ in range(8)]
    while engine.forwards < 5:
        time.sleep(0.001)
    short = [job("short", 4) for _ in range(6)]
    for result in [*short, *long]:
        result()
    assert order[:6] == ["short"] * 6


def test_a_long_job_is_not_passed_for_ever(engine, monkeypatch):
    monkeypatch.setattr("diffulm.serving.engine.PATIENCE", 10**6)  # so that nothing depends on who is quick
    lm, ended = opened("full"), []

    def task(own: DiffusionLM) -> None:
        own.generate("w3", length=30, sampler="left_to_right")
        ended.append(engine.round)

    long, others = submit(engine, lm, 30, task), []
    while not ended and engine.round < 200:
        while engine.waiting < 8:  # two rounds full of short ones, all the time
            others.append(submit(engine, lm, 3, lambda own: own.generate("w4", length=3)))
        time.sleep(0.001)
    long()
    for result in others:
        result()
    # its deadline is round 30; from then on nobody who comes goes before it, and it needs at most 30 rounds more
    assert ended[0] < 30 + 30 + 10


def test_the_earliest_deadline_goes_first(monkeypatch):
    monkeypatch.setattr("diffulm.serving.engine.PATIENCE", 10**6)
    lone, lm, rounds = Engine(1), opened("full"), []

    def task(own: DiffusionLM) -> None:
        first = lone.round
        own.generate("w3", length=6)
        rounds.append(lone.round - first)

    long = submit(lone, lm, 60, lambda own: own.generate("w3", length=60, sampler="left_to_right"))
    while lone.round < 5:
        time.sleep(0.001)
    submit(lone, lm, 6, task)()
    long()
    lone.close()
    assert rounds[0] <= 6 + 1  # 12 if they took turns; the long one may be in a round when the short one comes


@pytest.mark.parametrize("kind", KINDS)
def test_who_leaves_frees_the_row_within_one_step(engine, kind):
    lm = opened(kind)
    steps = []
    result = submit(
        engine, lm, 60, lambda own: own.generate("w3", length=60, callback=lambda f: steps.append(engine.round))
    )
    seat = submit.seat  # pyright: ignore[reportFunctionMemberAccess]
    while len(steps) < 5:
        time.sleep(0.001)
    seat.cancel()
    at = engine.round
    with pytest.raises(Gone):
        result()
    assert engine.round <= at + 1
    while engine.running:
        time.sleep(0.001)
    assert submit(engine, lm, 2, lambda own: own.generate("w4", length=2).forwards)() == 2


def test_one_that_has_not_begun_never_does(engine):
    lm, begun = opened("full"), []
    long = [submit(engine, lm, 40, lambda own: own.generate("w3", length=40)) for _ in range(8)]
    submit(engine, lm, 50, begun.append)
    submit.seat.cancel()  # pyright: ignore[reportFunctionMemberAccess]
    for result in long:
        result()
    assert begun == [] and engine.waiting == 0


def test_a_mistake_of_one_is_its_own(engine):
    lm = opened("full")
    good = submit(engine, lm, 8, lambda own: own.generate("w3 w4", length=8).text)
    bad = submit(engine, lm, 8, lambda own: own.generate("w3", length=10**6))
    with pytest.raises(BadInput, match="context is"):
        bad()
    assert good() == lm.generate("w3 w4", length=8).text


def test_a_prompt_that_is_known_is_not_run_again(engine):
    lm = opened("block")
    prompt, size = " ".join(WORDS * 5), len(WORDS) * 5 + 1

    def run(own: DiffusionLM) -> list[int]:
        return own.generate(prompt, length=4, temperature=1.0, seed=7).ids

    first = submit(engine, lm, 4, run)()
    assert engine.reused == 0
    rounds = engine.round
    assert submit(engine, lm, 4, run)() == first
    assert engine.reused == (size - 1) // 32 * 32  # all whole chunks but that of the last fixed column
    assert engine.round - rounds == 4  # and no round for what is known
    many = [submit(engine, lm, 4, run) for _ in range(6)]  # more than one slot begins with it
    assert all(result() == first for result in many)


def test_slots_give_what_a_canvas_alone_gives():
    lm = opened("block")
    lm.denoiser.model.double()
    try:
        pool, alone = Pool(lm.denoiser, 3), tiled(lm.denoiser)
        chance = torch.Generator().manual_seed(0)
        for length, fixed in [(70, 66), (40, 35), (70, 65), (9, 3)]:
            ids = torch.arange(length) % 17 + 3
            ids[0] = 1
            ids[fixed:] = lm.mask_token_id
            slot = pool.take(ids)
            if pool.windows.shape:  # what was run in windows of other shapes is not taken over
                assert bool((pool.windows.seen[slot, pool.known[slot] :] == -1).all())
            while (ids == lm.mask_token_id).any():
                first = int((ids == lm.mask_token_id).nonzero()[0])
                where = (ids == lm.mask_token_id) & (torch.arange(length) // 4 == first // 4)
                logits = pool.run([(slot, ids, where)])[0]
                if logits is None:
                    continue
                # float64: what differs by more than rounding is wrong
                torch.testing.assert_close(logits, alone(ids[None], where[None]), rtol=0, atol=1e-9)
                ids[first] = torch.randint(3, 20, (), generator=chance)
            pool.give_back(slot)
        assert pool.reused == 32 + 64  # the second text begins as the first does, and so does the third
    finally:
        lm.denoiser.model.float()


def test_more_rows_at_once_only_where_that_changes_no_bit():
    calls: list[tuple[int, int]] = []

    def run(some: list[int], tile: int) -> list[torch.Tensor]:
        calls.append((len(some), tile))
        spoilt = 1e-7 if tile == 4 else 0.0  # a kernel for four rows that rounds otherwise
        return [torch.tensor(float(i)) + spoilt for i in some]

    wide = Wide()
    for _ in range(2):
        calls.clear()
        assert [float(one) for one in wide.run(run, list(range(7)), 1, "shape")] == list(range(7))
    assert wide.same["shape", 2] and not wide.same["shape", 4]
    assert calls == [(2, 2), (2, 2), (2, 2), (1, 1)]


def test_what_is_left_behind_counts_as_well():
    held: dict[int, float] = {}

    def run(some: list[int], tile: int) -> list[torch.Tensor]:
        held.update({i: i + (1e-7 if tile == 2 else 0.0) for i in some})
        return [torch.zeros(0) for _ in some]

    wide = Wide()
    wide.run(run, [1, 2], 1, "shape", lambda some: [torch.tensor(held[i], dtype=torch.float64) for i in some])
    assert not wide.same["shape", 2]
    assert held == {1: 1.0, 2: 2.0}
