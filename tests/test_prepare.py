"""`diffulm prepare`: parts, packing, mixtures, kills, and the folder it leaves; what a run makes of that folder."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from diffulm.checkpoint.files import digest, newest_checkpoint
from diffulm.data import blocks, packed, parts, prepared
from diffulm.data.documents import Column, Skips, read, sources
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput
from diffulm.recipes import adapt
from diffulm.recipes.config import resolve
from diffulm.recipes.prepare import PrepareConfig, carry_out, run
from diffulm.recipes.pretraining import blocks as run_blocks
from diffulm.training.curriculum import Samples
from models import bad
from runs import WORDS, short, timeless, weights
from runs import settings as of_run

LENGTH = 16


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 40 words, shorter and longer than a block."""
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=drawn.randint(1, 40))) for _ in range(count)]


def write(path: Path, documents: list[str], column: str = "text") -> str:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in documents), "utf-8")
    return str(path)


def settings_of(home: Path, data: Any, out: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(home / "parent"), "data": data, "out": str(out), "length": LENGTH, "workers": 1} | more


def make(home: Path, data: Any, out: Path, **more: Any) -> dict[str, Any]:
    """The manifest of what `prepare` makes in this process."""
    run(None, settings_of(home, data, out, **more))
    return json.loads((out / "manifest.json").read_text("utf-8"))


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 3,000 bytes, so that little text has many."""
    monkeypatch.setattr(parts, "SMALLEST", 3000)


@pytest.fixture(scope="module")
def tokenizer(home):
    words = AutoTokenizer.from_pretrained(home / "parent")
    if words.mask_token is None:
        words.add_special_tokens({"mask_token": "<|mask|>"})
    return words


# -- parts


@given(st.lists(st.integers(0, 9), max_size=6), st.booleans())
@settings(max_examples=25, deadline=None)
def test_stretches_of_a_file_hold_each_row_once(tmp_path_factory, lengths, newline):
    lines = [json.dumps({"text": f"{n}" + "x" * n}) if n % 7 else "" for n in lengths]
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("\n".join(lines) + "\n" * newline)
    size, whole = path.stat().st_size, list(read(path))
    assert len(whole) == sum(1 for n in lengths if n % 7)
    ends = [sum(len(line) + 1 for line in lines[:n]) for n in range(1, len(lines))]
    cuts = [[min(max(0, end + off), size)] for end in ends for off in (-2, -1, 0, 1)] + [ends]
    for cut in cuts:
        assert [text for at in pairwise([0, *cut, size]) for text in read(path, stretch=at)] == whole


def test_a_bad_row_in_a_stretch_has_the_line_of_the_whole_file(tmp_path):
    path = Path(write(tmp_path / "a.jsonl", texts(30)))
    path.write_text(path.read_text() + "broken\n" + path.read_text())
    size = path.stat().st_size
    with pytest.raises(BadInput, match=r"a.jsonl, line 31: not JSON"):
        list(read(path, stretch=(size // 3, size)))
    skips = Skips()
    assert list(read(path, skips)) == texts(30) * 2
    assert skips.count == 1 and skips.places[0].startswith(f"{path}, line 31: not JSON")


def test_row_groups_of_parquet_are_stretches(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"code": [*texts(70), None]}), path, row_group_size=10)
    assert [text for n in range(7) for text in read(path, None, Column("code"), (n, n + 1))] == texts(70)
    with pytest.raises(BadInput, match=r"a.parquet, row 71: `code` is NoneType"):
        list(read(path, None, Column("code"), (7, 8)))


def test_a_corpus_is_cut_by_its_files_alone(tmp_path, small_parts, monkeypatch):
    (tmp_path / "notes").mkdir()
    for n in range(5):
        (tmp_path / "notes" / f"{n}.txt").write_text("one " * 300)
    large = write(tmp_path / "large.jsonl", texts(100))
    table = pyarrow.table({"text": texts(200)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    mixture = [parts.Source((str(tmp_path / "notes"), large)), parts.Source((str(tmp_path / "a.parquet"),))]
    (found,) = parts.parts(mixture, seed=0)
    cut = Counter((part.source, part.files[0].suffix, len(part.files)) for part in found)
    stretched = -(-Path(large).stat().st_size // 3000)
    assert stretched > 3
    assert cut[0, ".txt", 2] == 2 and cut[0, ".txt", 1] == 1 and cut[0, ".jsonl", 1] == stretched
    assert cut[1, ".parquet", 1] > 3
    read_again = [text for part in found if part.source for text in read(part.files[0], stretch=part.stretch)]
    assert sorted(read_again) == sorted(texts(200))
    order = [part.identity for part in found]
    assert [part.identity for part in parts.parts(mixture, seed=0)[0]] == order
    other = [part.identity for part in parts.parts(mixture, seed=1)[0]]
    assert other != order and sorted(map(repr, other)) == sorted(map(repr, order))
    assert (
        len(parts.parts([parts.Source(s.data, weight=1.0) for s in mixture], seed=0)) == 2
    )  # a weighted source has its own


def test_a_hub_data_set_is_cut_by_its_files(home, tmp_path, monkeypatch):
    def rows(files):
        for file in files:
            yield from ({"content": f"{WORDS[file]} {text}"} for text in texts(20, file))

    def load_dataset(*_, **__):
        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": [0, 1, 2]})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("diffulm.data.documents.hub_answers", lambda: True)
    found = parts.parts([parts.Source(("owner/corpus",), "content")], 0)[0]
    assert sorted(part.stretch for part in found) == [(0, 3), (1, 3), (2, 3)]
    manifest = make(home, [{"data": "owner/corpus", "column": "content"}], tmp_path / "out")
    assert manifest["documents"] == 60 and len(manifest["shards"]) == 3


# -- what is packed


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_one_part_is_packed_as_adapt_packs_it(home, tokenizer, tmp_path, packing):
    path, out = write(tmp_path / "a.jsonl", texts(200)), tmp_path / "deep" / "out"
    manifest = make(home, path, out, packing=packing)
    expected = blocks.build(path, tokenizer, 0, 0, LENGTH, tmp_path / "blocks", packing)
    found = datasets.load_from_disk(str(out))
    assert found.column_names == ["ids", "document"][: 1 + (packing == "documents")]
    assert all(found[name][:] == expected[name][:] for name in found.column_names)
    assert found.features["ids"].feature.dtype == "uint16"
    assert manifest["blocks"] == len(found) and manifest["tokens"] == len(found) * LENGTH
    shards = {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
    assert {name: digest(out / name) for name in shards} == shards
    assert set(files(out)) == {"manifest.json", "dataset_info.json", "state.json", *shards}
    assert not (tmp_path / "deep" / "out.tmp").exists()


def by_hand(pieces: list[list[int]], bos: int, length: int) -> list[tuple[list[int], list[int]]]:
    """The layout of packing=documents, a position at a time; the last block may not be full."""
    made: list[tuple[list[int], list[int]]] = [([], [])]

    def put(token: int, new: bool) -> None:
        if len(made[-1][0]) == length:
            made.append(([], []))
        ids, numbers = made[-1]
        ids.append(token)
        numbers.append(numbers[-1] + new if numbers else 0)

    for piece in pieces:
        put(bos, True)
        for token in piece:
            if len(made[-1][0]) == length:
                put(bos, True)
            put(token, False)
    return made


@given(st.lists(st.integers(0, 12), max_size=12), st.integers(2, 9))
@settings(max_examples=150, deadline=None)
def test_layout_of_documents(lengths, length):
    pieces = [[100 * n + at for at in range(size + 1)] for n, size in enumerate(lengths, 1)]
    counts = blocks.Counts()
    made = list(blocks._by_document(pieces, 7, length, counts))
    every = by_hand(pieces, 7, length)
    *whole, last = every if len(every[-1][0]) < length else [*every, ([], [])]
    assert made == whole
    blocks_of = Counter(n for ids, _ in every for n in {token // 100 for token in ids if token != 7})
    assert (counts.documents, counts.left_over) == (len(pieces), len(last[0]))
    assert counts.cut == sum(number > 1 for number in blocks_of.values())
    document = torch.tensor([numbers for _, numbers in made], dtype=torch.int16).reshape(-1, length)
    begins, positions = packed.begins(document), packed.positions(document)
    for (ids, numbers), first, at in zip(made, begins.tolist(), positions.tolist(), strict=True):
        assert [token == 7 for token in ids] == first
        assert at == [n - numbers.index(number) for n, number in enumerate(numbers)]


def test_documents_without_bos_are_refused(tokenizer):
    with bad("packing=documents: each document begins with a BOS"):
        blocks.packed(["text"], tokenizer, None, 0, LENGTH, "documents")


def test_documents_that_are_cut_are_counted(home, tokenizer, tmp_path):
    documents = [text[:12] for text in texts(200)]  # short ones, of which some end where a block does
    manifest = make(home, write(tmp_path / "a.jsonl", documents), tmp_path / "out")
    size, at, cut = LENGTH - 1, 0, 0
    for text in documents:
        end = at + len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
        cut += at // size != (end - 1) // size
        at = end
    assert manifest["documents"] == 200 and manifest["cut_documents"] == round(cut / 200, 6)
    assert manifest["left_over_tokens"] == at % size


MIXTURE = [("a", "text", 3.0, 150), ("b", "content", 1.0, 150)]


def mixture(folder: Path) -> list[dict[str, Any]]:
    return [
        {"data": write(folder / f"{name}.jsonl", texts(count, int(weight)), column), "column": column, "weight": weight}
        for name, column, weight, count in MIXTURE
    ]


def test_the_bytes_do_not_depend_on_the_number_of_workers(home, tmp_path, small_parts, capfd):
    data = mixture(tmp_path)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"text": 5}\n' * 7)
    more = {"packing": "documents", "bad_rows": "skip"}
    one = make(home, data, tmp_path / "one", workers=1, **more)
    two = make(home, data, tmp_path / "two", workers=2, **more)
    assert one["skipped_rows"] == 7 and len(one["sources"][0]["skipped_places"]) == 5
    assert "7 bad rows left out: " in capfd.readouterr().err
    assert len(one["shards"]) > 6
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert one == two


def test_a_mixture_has_its_shares_of_the_tokens(home, tmp_path, small_parts):
    data = mixture(tmp_path)
    everything = [make(home, [{**source, "weight": None}], tmp_path / source["data"][-7]) for source in data]
    whole = make(home, data, tmp_path / "all")
    a, b = (source["blocks"] for source in whole["sources"])
    # the first is exhausted first, which is what the weights allow at most; 0.5: shares are rounded to blocks
    assert a == everything[0]["blocks"] and abs(a / 3 - b) <= 0.5
    assert whole["sources"][0]["share"] == round(a / (a + b), 6)
    some = make(home, data, tmp_path / "some", tokens=100 * LENGTH)
    assert [source["blocks"] for source in some["sources"]] == [75, 25]
    # each begins as the whole of it does: what is taken is a question of the seed
    full, part = (datasets.load_from_disk(str(tmp_path / name))["ids"][:] for name in ("all", "some"))
    assert part == full[:75] + full[a : a + 25]
    other = make(home, data, tmp_path / "other", tokens=100 * LENGTH, seed=1)
    assert other["sha256"] != some["sha256"]


def test_too_little_text_is_told_and_what_is_packed_is_kept(home, tmp_path, small_parts):
    data, out = mixture(tmp_path), tmp_path / "out"
    with pytest.raises(
        BadInput, match=r"a.jsonl: packs into [\d,]+ blocks of 16 tokens, and its share is 750; .*tokens=(\d+);"
    ) as told:
        make(home, data, out, tokens=1000 * LENGTH)
    assert not out.exists()
    before = times(tmp_path / "out.tmp")
    most = str(told.value).partition("at most tokens=")[2].partition(";")[0]
    manifest = make(home, data, out, tokens=most)
    assert abs(manifest["tokens"] - int(most)) <= LENGTH
    kept = {name: at for name, at in times(out).items() if name in before and name.endswith("arrow")}
    assert len(kept) > 4 and all(before[name] == at for name, at in kept.items())
    with bad("short.txt: has less text than one block of 16 tokens"):
        (tmp_path / "short.txt").write_text("the cat")
        make(home, str(tmp_path / "short.txt"), tmp_path / "short")


def test_a_bad_row_is_fatal_unless_it_is_to_be_skipped(home, tmp_path):
    path = write(tmp_path / "a.jsonl", texts(50))
    with open(path, "a") as file:
        file.write("{broken\n")
    with bad("a.jsonl, line 51: not JSON"):
        make(home, path, tmp_path / "out")
    manifest = make(home, path, tmp_path / "skipping", bad_rows="skip")
    assert manifest["skipped_rows"] == 1 and manifest["skipped_places"][0].startswith(f"{path}, line 51: not JSON")
    assert manifest["documents"] == 50
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    with bad("damaged gzip"):  # nobody knows what follows
        make(home, str(tmp_path / "b.jsonl.gz"), tmp_path / "damaged", bad_rows="skip")


# -- the folder


def test_a_finished_folder_is_left_as_it_is(home, tmp_path, small_parts):
    path, out = write(tmp_path / "a.jsonl", texts(60)), tmp_path / "out"
    first = make(home, path, out)
    before = times(out)
    assert make(home, path, out, workers=3) == first
    for change, told in (
        ({"length": 32}, "length is 16 there, 32 here"),
        ({"packing": "documents"}, "packing is 'stream' there"),
        ({"tokens": 64}, "tokens is None there"),
        ({"model": "pocket-ar"}, "the tokenizer is another one there"),
    ):
        with bad(f"out={out}: holds other prepared data: {told}"):
            make(home, path, out, **change)
    os.utime(path, ns=(0, 0))
    with bad("the text is another one there"):
        make(home, path, out)
    assert times(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with bad("exists and holds no prepared data"):
        make(home, path, tmp_path / "mine")


def test_what_is_unfinished_is_not_mixed_with_other_settings(home, tmp_path, small_parts):
    path, out = write(tmp_path / "a.jsonl", [*texts(60), "x"]), tmp_path / "out"
    with open(path, "a") as file:
        file.write("{broken\n")
    with bad("line 62"):
        make(home, path, out)
    with bad("holds what a `prepare` with other settings has begun: length is 16 there, 32 here"):
        make(home, path, out, length=32)
    with bad("out: is not whole yet; the `diffulm prepare` that makes it, given again, goes on"):
        sources(str(out))


KILLED_AT = ("diffulm.data.preparing:_pack", 4), ("diffulm.data.parts:digest", 3), ("pathlib:Path.rename", 1)


def test_a_killed_prepare_keeps_what_it_has(forks, home, tmp_path):
    path = write(tmp_path / "a.jsonl", texts(200))
    small = "import diffulm.data.parts as parts\nparts.SMALLEST = 3000\n"
    line = [f"{key}={value}" for key, value in settings_of(home, path, tmp_path / "whole").items()]
    child = forks.diffulm("prepare", *line, "--json", first=small)
    assert child.wait() == 0, child.err
    assert json.loads(child.out)["documents"] == 200
    line = [f"{key}={value}" for key, value in settings_of(home, path, tmp_path / "out").items()]
    folder, kept = tmp_path / "out.tmp", {}
    for place, call in KILLED_AT:
        child = forks.diffulm("prepare", *line, first=f"{small}when({place!r}, {call}, 'os.kill(os.getpid(), 9)')")
        assert child.wait() == -signal.SIGKILL, child.err
        assert not (tmp_path / "out").exists()
        done = {json.loads(file.read_text())["shards"][0]["file"] for file in folder.glob("*.json.part")}
        found = {name: at for name, at in times(folder).items() if name in done}
        assert len(found) > len(kept) and kept.items() <= found.items(), "what was finished is not packed again"
        kept = found
    child = forks.diffulm("prepare", *line, first=small)
    assert child.wait() == 0, child.err
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert kept.items() <= times(tmp_path / "out").items()
    assert not folder.exists()


def test_ctrl_c_says_how_to_go_on(forks, home, tmp_path):
    path = write(tmp_path / "a.jsonl", texts(20))
    line = [f"{key}={value}" for key, value in settings_of(home, path, tmp_path / "out").items()]
    stop = "when('diffulm.data.preparing:_pack', 1, 'os.kill(os.getpid(), signal.SIGINT)')"
    child = forks.diffulm("prepare", *line, first=stop)
    assert child.wait() == 130
    assert child.err.splitlines()[-1] == "diffulm: interrupted; the same command keeps what is packed and goes on"


@pytest.mark.slow
def test_workers_end_with_the_process_that_is_killed(home, tmp_path):
    path = write(tmp_path / "a.jsonl", texts(20_000) * 4)
    line = [f"{key}={value}" for key, value in settings_of(home, path, tmp_path / "out", workers=2).items()]
    # parts of some seconds, so that it can be killed between two
    code = "import sys, diffulm.data.parts as p; p.SMALLEST = 2**18; from diffulm.cli import main; main()"
    command = [sys.executable, "-c", code, "prepare", *line]

    def group(number: int) -> list[str]:
        found = subprocess.run(["ps", "-o", "pid=,stat=", "-g", str(number)], capture_output=True, text=True).stdout
        return [line for line in found.splitlines() if "Z" not in line]

    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list((tmp_path / "out.tmp").glob("*.json.part"))) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    end = time.monotonic() + 60  # the workers end at once; the server that forks them takes its leave
    while group(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert group(process.pid) == []
    records = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out.tmp").glob("*.json.part")}
    arrows = {name: at for name, at in times(tmp_path / "out.tmp").items() if f"{name[:-8]}.json.part" in records}
    assert len(arrows) >= 3 and not (tmp_path / "out").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert arrows.items() <= times(tmp_path / "out").items()


# -- in a run


def small_run(home: Path, out: Path, **more: Any) -> dict[str, Any]:
    return of_run(
        home, out, **{"tokens": 8 * 4 * LENGTH, "length": LENGTH, "global_batch": 4, "eval_blocks": 2, **more}
    )


def test_a_run_on_prepared_data_is_the_run_on_the_text(forks, home, tmp_path):
    """`forks.whole` is the same run, on the text itself."""
    manifest = make(home, str(home / "text.jsonl"), tmp_path / "prepared")
    before, out = times(tmp_path / "prepared"), tmp_path / "run"
    child = forks.diffulm(*short(home, out, data=str(tmp_path / "prepared")))
    assert child.wait() == 0, child.err
    assert timeless(out) == timeless(forks.whole)
    assert weights(out) == weights(forks.whole)
    assert not (out / "data").exists() and times(tmp_path / "prepared") == before
    marks = json.loads((newest_checkpoint(out) / "data.json").read_text())
    assert marks == {"train": manifest["sha256"], "eval": ""}


def test_prepared_data_that_does_not_fit_is_refused(home, tmp_path):
    out, data = tmp_path / "prepared", str(home / "text.jsonl")
    manifest = make(home, data, out)
    wanted = {name: manifest["settings"][name] for name in prepared.LAYOUT}
    assert len(prepared.open_prepared(out, manifest, wanted)) == manifest["blocks"]
    for change, told in (
        ({"length": 32}, "prepared: was prepared with length=16, and this run has 32; set length=16, or"),
        ({"packing": "documents"}, "prepared with packing=stream, and this run has documents; set packing=stream"),
        ({"bos_token_id": 5}, "prepared with bos_token_id=0, and this run has 5; take .*parent, or prepare"),
        ({"tokenizer": "?"}, "with the tokenizer of .*parent and mask_token=auto, which is not this run's"),
    ):
        with bad(told):
            prepared.open_prepared(out, manifest, wanted | change)
    with bad("prepared data stands alone"):
        prepared.manifest_of([str(out), data])
    for more, told in (
        ({"length": 32}, "prepared with length=16, and this run has 32"),
        ({"model": "pocket-ar"}, "which is not this run's"),
    ):
        with bad(told):
            adapt.adapt("tiny", **small_run(home, tmp_path / "run", **{"data": str(out), **more}))
        assert not (tmp_path / "run").exists()
    shard = out / manifest["shards"][0]["file"]
    content = shard.read_bytes()
    for broken, told in (
        (content[:-1], f"{shard.name}: has {len(content) - 1:,} bytes, and had {len(content):,}"),
        (b"\0" * len(content), "its blocks cannot be opened"),
        (None, f"{shard.name}: is missing"),
    ):
        shard.unlink() if broken is None else shard.write_bytes(broken)
        with bad(told):
            prepared.open_prepared(out, manifest, wanted)


def test_held_out_blocks_come_from_every_source(home, tmp_path):
    make(home, mixture(tmp_path), tmp_path / "out")
    manifest = prepared.manifest_of(str(tmp_path / "out"))
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    a, b = (source["blocks"] for source in manifest["sources"])
    kept, held = prepared.split(rows, manifest, 8)
    ids = rows["ids"][:]
    assert held["ids"][:] == ids[a - 6 : a] + ids[a + b - 2 :]
    assert kept["ids"][:] == ids[: a - 6] + ids[a : a + b - 2]
    one, last = prepared.split(rows, None, 8)
    assert one["ids"][:] + last["ids"][:] == ids and len(last) == 8


def test_a_run_skips_bad_rows_and_says_so(home, tokenizer, tmp_path, capfd):
    path, folder = tmp_path / "a.jsonl", tmp_path / "run"
    path.write_text((home / "text.jsonl").read_text() + '{"txt": "x"}\n')
    given = small_run(home, folder, data=str(path))

    def packed(**more: Any) -> Any:
        config = resolve("adapt", adapt.AdaptConfig, "tiny", given | more)
        return run_blocks(config, Record(mask_token_id=1, bos_token_id=0), tokenizer, folder / "data")

    with bad("a.jsonl, line 120: no field `text`"):
        packed()
    for _ in range(2):  # packed, and used again
        training, held_out = packed(bad_rows="skip", packing="documents")
        assert f"diffulm: 1 bad row left out: {path}, line 120: no field `text`, it has txt;" in capfd.readouterr().err
    assert held_out.shape == (2, LENGTH) and training.column_names == ["ids", "document"]
    found = json.loads((folder / "data" / "train" / "manifest.json").read_text())
    assert found["skipped"] == 1 and found["places"] == [f"{path}, line 120: no field `text`, it has txt"]


def test_the_billionth_sample_costs_nothing(tmp_path):
    """A data set of a billion rows (one file, over and over), in record batches as `prepare` writes them: what
    is not asked for is not read, and a number far into the run is found as fast as the first."""
    size = 2**20  # 64 MB; ids say which row they are of
    column = pyarrow.list_(pyarrow.int32(), LENGTH)
    ids = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(torch.arange(size * LENGTH).int().numpy()), type=column)
    path = tmp_path / "rows.arrow"
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, pyarrow.schema({"ids": column})) as stream:
        stream.write_table(pyarrow.table({"ids": ids}), max_chunksize=2**17)
    one = datasets.Dataset.from_file(str(path)).with_format("torch")
    rows = datasets.concatenate_datasets([one] * 1000)
    assert len(rows) > 10**9
    samples = Samples(rows, True, seed=3, global_batch=256, steps=10**7)
    samples[0]
    start = time.process_time()
    for n in (1, 10**9, 2 * 10**9, 10**9 + 1):
        sample = samples[n]
        first = blocks.row(rows, 3, n) % size * LENGTH
        assert sample["ids"].tolist() == list(range(first, first + LENGTH))
        assert (int(sample["step"]), int(sample["row"])) == divmod(n, 256)
    assert time.process_time() - start < 0.5  # a walk over the samples before would take hours
    if sys.platform == "linux":
        lines = Path("/proc/self/smaps").read_text().split(str(path))[1:]
        resident = sum(int(line.partition("Rss:")[2].split()[0]) for line in lines)  # KB
        assert 0 < resident < 16_000  # headers of the batches and the rows asked for, with the pages around them


# -- the settings


def test_presets_and_settings(tmp_path):
    config = resolve("prepare", PrepareConfig, "diffullama-7b", {"out": "x"})
    trained = resolve("adapt", adapt.AdaptConfig, "diffullama-7b", {"data": "x", "out": "y"})
    shares = {source.data: source.weight for source in config.data}
    assert shares == {"cerebras/SlimPajama-627B": 69.36, "bigcode/starcoderdata": 30.64}  # the paper's
    for key in ("model", "length", "mask_token", "packing", "tokens"):
        assert getattr(config, key) == getattr(trained, key), key
    assert (
        PrepareConfig(model="m", data="a.txt", out="o").data == PrepareConfig(model="m", data=["a.txt"], out="o").data
    )
    for data, told in (
        ([{"data": "a", "weight": 1}, {"data": "b"}], "some sources have a weight and some have none"),
        ([{"data": "a", "weigth": 1}], "unknown key 'weigth'; did you mean 'weight'"),
        ([{"data": "a", "weight": 0}], "weight should be greater than 0"),
        ([{"weight": 1}], "data is missing"),
        ([3], "data should be names, or a list of lines such as"),
        ([], "data "),
    ):
        with bad(told):
            resolve("prepare", PrepareConfig, None, {"model": "m", "out": "o", "data": data})


def test_the_command_line(home, tmp_path, capsys):
    from diffulm.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["prepare", *arguments])
        return int(end.value.code or 0), *capsys.readouterr()

    data = write(tmp_path / "a.jsonl", texts(50))
    line = [f"{key}={value}" for key, value in settings_of(home, data, tmp_path / "out").items()]
    code, out, err = call(*line, "--json")
    assert code == 0 and json.loads(out)["sources"] == {data: "100.00%"}
    assert err.startswith("preparing: ")
    assert call(*line)[:2] == (0, out_of := call(*line)[1]) and f"out: {tmp_path / 'out'}" in out_of
    (tmp_path / "mine.yaml").write_text(f"model: {home / 'parent'}\nlength: 16\nworkers: 1\ndata: {data}\n")
    assert call(str(tmp_path / "mine.yaml"), f"out={tmp_path / 'again'}")[0] == 0
    assert files(tmp_path / "again") == files(tmp_path / "out")
    for arguments, told in (
        (["worker=2", *line], "unknown key 'worker'; did you mean 'workers'?"),
        (["tiny", *line], "'tiny' is a preset of `adapt`, not of `prepare`"),
        ([], "is missing"),
        ([*line, "data=none.txt"], "none.txt: no such file"),
        ([*line, "packing=best"], "packing should be"),
    ):
        code, out, err = call(*arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1) and told in err, err


def test_the_manifest_is_read_as_it_was_written(home, tmp_path):
    config = PrepareConfig(**settings_of(home, write(tmp_path / "é\u2028.jsonl", texts(20)), tmp_path / "out"))
    report = carry_out(config)
    assert prepared.manifest_of([str(tmp_path / "out")])["sha256"] == report["sha256"]
    assert hashlib.sha256().digest_size * 2 == len(report["sha256"])
    assert prepared.manifest_of(None) is None and prepared.manifest_of(str(tmp_path)) is None
