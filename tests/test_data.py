"""Text to blocks: every reader and every kind of bad row, the layout of blocks, the order of samples, the library."""

import glob
import gzip
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from diffulm.data import blocks, stdlib
from diffulm.data.documents import Skips, documents, takes_in
from diffulm.errors import BadInput
from diffulm.recipes import pocket

TEXTS = ["def add(a, b):\n    return a + b\n", "naïve café, 漢字 🙂\r\n\ttab", ""]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(texts)).encode()


def parquet(column: pyarrow.Array, name: str = "text") -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"n": pyarrow.array(range(len(column))), name: column}), file)
    return file.getvalue()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], str]:
    """Writes a file of this name and content below the test's folder; a name ending in .gz is compressed."""

    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """As `pocket`'s, with 400 tokens, trained on one module in a tenth of a second."""
    return pocket.tokenizer([Path(pocket.__file__).read_text(encoding="utf-8")], vocabulary=400)


# -- documents


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_reads_every_kind_of_file(put, kind: str, suffix: str):
    content = {"txt": TEXTS[1].encode(), "jsonl": jsonl(TEXTS), "parquet": parquet(pyarrow.array(TEXTS))}
    expected = TEXTS[1:2] if kind == "txt" else TEXTS
    assert list(documents(put(f"data.{kind}{suffix}", content[kind]))) == expected


@pytest.mark.parametrize("type_", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
def test_reads_other_string_columns_of_parquet(put, type_):
    assert list(documents(put("data.parquet", parquet(pyarrow.array(TEXTS).cast(type_))))) == TEXTS


def test_several_sources_in_the_order_given_and_folders_and_globs_sorted(put, tmp_path: Path):
    for name in ("b/2.txt", "b/1.txt", "b/deeper/3.txt", "a.txt", "c.jsonl"):
        put(name, jsonl([name]) if name.endswith("jsonl") else name.encode())
    put("b/README.md", b"not text of the corpus")
    assert list(documents([str(tmp_path / "c.jsonl"), str(tmp_path / "b"), str(tmp_path / "a.txt")])) == [
        "c.jsonl",
        "b/1.txt",
        "b/2.txt",
        "a.txt",
    ]
    assert list(documents(str(tmp_path / "**" / "*.txt"))) == ["a.txt", "b/1.txt", "b/2.txt", "b/deeper/3.txt"]


def test_a_blank_line_is_no_row_but_counts_as_a_line(put):
    path = put("data.jsonl", b'{"text": "one"}\n\n{"text": "two"}')
    assert list(documents(path)) == ["one", "two"]
    broken = put("broken.jsonl", b'{"text": "one"}\n\n{"text": }\n')
    with pytest.raises(BadInput, match=re.escape(f"{broken}, line 3: not JSON")):
        list(documents(broken))


BAD_LINES = {
    "not UTF-8": b'{"text": "\xff"}',
    "not JSON": b'{"text": "cut o',
    "not an object": b'["text"]',
    "no field `text`, it has txt": b'{"txt": "x"}',
    "`text` is int": b'{"text": 5}',
    "`text` is NoneType": b'{"text": null}',
    "`text` is not Unicode": b'{"text": "\\ud800"}',
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("message", BAD_LINES)
def test_a_bad_line_is_named(put, message: str, suffix: str):
    path = put(f"data.jsonl{suffix}", b'{"text": "good"}\n' + BAD_LINES[message] + b'\n{"text": "good"}\n')
    rows = documents(path)
    assert next(rows) == "good"
    with pytest.raises(BadInput, match=re.escape(f"{path}, line 2: ") + ".*" + re.escape(message)):
        next(rows)


def test_a_bad_line_of_plain_text_is_named(put):
    path = put("data.txt", b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(BadInput, match=re.escape(f"{path}, line 3: not UTF-8")):
        list(documents(path))


def test_bad_rows_of_parquet_are_named(put):
    missing = put("missing.parquet", parquet(pyarrow.array(["one", "two", None])))
    with pytest.raises(BadInput, match=re.escape(f"{missing}, row 3: `text` is NoneType")):
        list(documents(missing))
    bytes_ = pyarrow.array([b"one", b"\xff"]).view(pyarrow.string())
    invalid = put("invalid.parquet", parquet(bytes_))
    with pytest.raises(BadInput, match=re.escape(f"{invalid}, row 2: not UTF-8")):
        list(documents(invalid))
    other = put("other.parquet", parquet(pyarrow.array(["one"]), name="content"))
    with pytest.raises(BadInput, match=r"no column `text`, it has n, content"):
        list(documents(other))


def test_bad_rows_are_left_out_and_counted_where_asked_for(put):
    lines = b'{"text": "one"}\n' + b"\n".join(BAD_LINES.values()) + b'\n{"text": "two"}\n'
    data = [
        put("a.jsonl", lines),
        put("b.jsonl.gz", lines),
        put("c.parquet", parquet(pyarrow.array([b"one", b"\xff", b"two"]).view(pyarrow.string()))),
        put("d.txt", b"thr\xe9e"),
    ]
    skips = Skips()
    assert list(documents(data, skips)) == ["one", "two"] * 3
    assert skips.count == 2 * len(BAD_LINES) + 2
    assert skips.places[:2] == [f"{data[0]}, line 2: not UTF-8 (invalid start byte)", skips.places[1]]
    assert len(skips.places) == 5 and str(skips).startswith("16 bad rows left out: ")
    assert str(skips).endswith("; and 11 more")
    with pytest.raises(BadInput, match="no text in it"):
        list(documents(data[3], Skips()))
    cut = put("cut.jsonl", gzip.compress(lines)[:-20])
    os.rename(cut, cut := cut + ".gz")
    with pytest.raises(BadInput, match="damaged gzip"):
        list(documents(cut, Skips()))


def test_damaged_files_are_named(put):
    whole = gzip.compress(jsonl(["some text"] * 100))
    for name, content, message in (
        ("cut.jsonl", whole[:-20], "damaged gzip"),
        ("plain.jsonl", b'{"text": "not compressed"}\n', "damaged gzip"),
        ("flipped.jsonl", whole[:30] + bytes([whole[30] ^ 255]) + whole[31:], "damaged gzip"),
    ):
        path = put(name, content)
        os.rename(path, path := path + ".gz")
        with pytest.raises(BadInput, match=re.escape(path) + ".*" + message):
            list(documents(path))
    cut = put("cut.parquet", parquet(pyarrow.array(TEXTS))[:-10])
    with pytest.raises(BadInput, match=re.escape(cut) + ".*damaged Parquet"):
        list(documents(cut))


def test_what_is_not_there_is_named_at_once(put, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    odd = put("folder/data.csv", b"text\nx\n")
    for data, message in (
        (str(tmp_path / "none.txt"), "none.txt: no such file"),
        ("no/such/folder", "no such file"),
        ("data/trian.jsonl", "no such file"),  # one slash, but no name of a data set
        ("data/trian.csv.gz", "no such file"),
        ("folder/corpus", "no such file"),  # nor is this, below a folder that is here
        (str(tmp_path / "*.parquet"), "no file matches"),
        (str(tmp_path / "empty"), "a folder without"),
        (str(tmp_path / "folder"), "a folder without"),
        (odd, "unknown kind of file"),
        (str(tmp_path / "folder" / "*"), "unknown kind of file"),
        ([], "no data given"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            documents(data)


def test_what_a_name_would_take_in(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Path("runs/mine/metrics.jsonl")
    for name in (
        "runs/mine",
        "runs/*/*.jsonl",
        "**/*.jsonl",
        "runs/**/metrics.*",
        str(log),
        f"{tmp_path}/r*/**/mine/*",
    ):
        assert takes_in(name, log), name
    for name in ("runs", "*.jsonl", "*/*.jsonl", "runs/*/*.txt", "corpus/**/*.jsonl", "owner/corpus", "runs/**"):
        # `**` alone stands for folders, as in `glob`
        assert takes_in(name, log) == (name == "runs/**"), name
    log.parent.mkdir(parents=True)
    log.write_text("{}")
    for name in ("runs/*/*.jsonl", "**/*.jsonl", "runs/**/metrics.*", "*.jsonl", "*/*.jsonl", "corpus/**/*.jsonl"):
        assert takes_in(name, log) == (str(log) in glob.glob(name, recursive=True)), name


def test_a_mark_of_the_encoding_is_not_text(put):
    assert list(documents(put("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}\n'))) == ["one", "two"]


def test_an_error_stays_short(put):
    wide = json.dumps({f"field number {n}" * 9: n for n in range(3000)})
    with pytest.raises(BadInput) as caught:
        list(documents(put("a.jsonl", wide.encode())))
    assert "field number 0" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("name", "content"), [("a.txt", b""), ("a.jsonl", b"\n"), ("a.jsonl.gz", jsonl(["", ""]))])
def test_no_text_at_all_is_bad_input(put, name: str, content: bytes):
    with pytest.raises(BadInput, match="no text in it"):
        list(documents(put(name, content)))


def test_hub_data_sets_are_streamed_and_their_bad_rows_named(monkeypatch):
    asked = []

    def load_dataset(*arguments, **keywords):
        asked.append((arguments, keywords))
        return iter([{"text": "one"}, {"text": None}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("diffulm.data.documents.hub_answers", lambda: True)
    rows = documents("owner/corpus:small")
    assert next(rows) == "one"
    assert asked == [(("owner/corpus", "small"), {"split": "train", "streaming": True})]
    with pytest.raises(BadInput, match="owner/corpus:small, row 2: `text` is NoneType"):
        next(rows)


def test_an_unknown_hub_data_set_is_bad_input(monkeypatch):
    def load_dataset(*_, **__):
        raise FileNotFoundError("not on the hub\nmore lines")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("diffulm.data.documents.hub_answers", lambda: True)
    with pytest.raises(BadInput, match=r"owner/corpus: no such file.*\(not on the hub\)$"):
        list(documents("owner/corpus"))

    def broken():
        yield {"text": "one"}
        raise LookupError("the line went dead\nmore lines")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: broken())
    rows = documents("owner/corpus")
    assert next(rows) == "one"
    with pytest.raises(BadInput, match=r"owner/corpus, row 2: cannot be read \(the line went dead\); the same command"):
        next(rows)
    monkeypatch.setattr("diffulm.data.documents.hub_answers", lambda: False)
    monkeypatch.setattr("datasets.load_dataset", pytest.fail)
    with pytest.raises(BadInput, match=r"owner/corpus: no such file, and the hub,.*cannot be reached"):
        list(documents("owner/corpus"))


# -- blocks


@pytest.mark.parametrize("bos", [0, None])
@pytest.mark.parametrize("batch", [1, 1000])
def test_layout_of_blocks(tokenizer, monkeypatch, bos: int | None, batch: int):
    monkeypatch.setattr(blocks, "_BATCH_DOCUMENTS", batch)
    texts = [f"{text} {n}" for n in range(9) for text in TEXTS]
    stream = [token for text in texts for token in [*tokenizer.encode(text, add_special_tokens=False), 7]]
    head = [] if bos is None else [bos]
    tails = 0
    for length in range(14, 19):
        size = length - len(head)
        expected = [head + stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
        assert len(expected) > 10
        assert list(blocks.pack(texts, tokenizer, bos, 7, length)) == expected
        tails += len(stream) % size > 0
    assert tails  # at some lengths there was a tail to drop


def test_no_special_token_comes_from_the_tokenizer(tokenizer):
    class Adds(type(tokenizer)):
        def __call__(self, *arguments, add_special_tokens=True, **keywords):
            encoded = super().__call__(*arguments, add_special_tokens=add_special_tokens, **keywords)
            if add_special_tokens:
                encoded["input_ids"] = [[1, *ids] for ids in encoded["input_ids"]]
            return encoded

    adds = Adds(tokenizer_object=tokenizer.backend_tokenizer, bos_token=pocket.END)
    assert adds(["a"])["input_ids"][0][0] == 1
    assert not any(1 in block for block in blocks.pack(TEXTS * 3, adds, 0, 0, 8))


def test_pack_reads_no_further_than_it_must(tokenizer, monkeypatch):
    monkeypatch.setattr(blocks, "_BATCH_CHARACTERS", 100)
    seen = []
    stream = (seen.append(n) or "text " * 10 for n in range(10**9))
    assert len(next(blocks.pack(stream, tokenizer, 0, 0, 64))) == 64
    assert len(seen) < 30  # 50 characters each: two a batch, a few batches for one block


@pytest.mark.parametrize(("bos", "length"), [(0, 1), (0, 0), (None, 0), (None, -3)])
def test_a_block_without_room_is_bad_input(tokenizer, bos: int | None, length: int):
    with pytest.raises(BadInput, match="room"):
        blocks.pack(TEXTS, tokenizer, bos, 0, length)


def test_build_equals_pack_and_is_mapped_into_memory(put, tokenizer, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(blocks, "_BATCH_ROWS", 7)  # several record batches
    path = put("data.jsonl", jsonl(TEXTS * 40))
    built = blocks.build(path, tokenizer, 0, 0, 16, tmp_path / "deep" / "blocks")
    assert built["ids"][:] == list(blocks.pack(TEXTS * 40, tokenizer, 0, 0, 16))
    assert len(built) > 50
    assert built.features["ids"].length == 16
    assert [Path(file["filename"]) for file in built.cache_files] == [tmp_path / "deep" / "blocks" / "blocks.arrow"]


def test_build_is_used_again_until_something_changes(put, tokenizer, tmp_path: Path, monkeypatch):
    path, folder = put("data.jsonl", jsonl(TEXTS * 20)), tmp_path / "blocks"
    packed = []
    pack = blocks.packed
    monkeypatch.setattr(blocks, "packed", lambda *arguments: packed.append(1) or pack(*arguments))

    def build(**changed) -> list[list[int]]:
        settings = {"data": path, "tokenizer": tokenizer, "bos_token_id": 0, "eos_token_id": 0, "length": 16}
        return blocks.build(**(settings | changed), folder=folder)["ids"][:]

    def rebuilds(**changed) -> bool:
        before = len(packed)
        build(**changed)
        first = len(packed) > before
        build(**changed)
        assert len(packed) == before + first  # the second time it is always used again
        return first

    first = build()
    assert build() == first
    assert len(packed) == 1
    tokenizer("a b", truncation=True, max_length=1)  # leaves its settings behind in the tokenizer
    assert not rebuilds()
    assert rebuilds(length=32)
    assert rebuilds(bos_token_id=None)
    assert rebuilds(eos_token_id=1)
    assert rebuilds(packing="documents")
    assert rebuilds(skips=Skips())
    assert rebuilds(tokenizer=pocket.tokenizer(TEXTS, vocabulary=300))
    assert rebuilds()
    put("data.jsonl", jsonl(TEXTS * 20 + ["more"]))
    assert rebuilds()
    os.utime(path, ns=(0, 0))
    assert rebuilds()


def test_a_build_that_is_used_again_says_again_what_it_left_out(put, tokenizer, tmp_path: Path):
    path = put("data.jsonl", jsonl(TEXTS * 20) + b"broken\n")
    told = []
    for _ in range(2):
        skips = Skips()
        blocks.build(path, tokenizer, 0, 0, 16, tmp_path / "blocks", skips=skips)
        told.append(str(skips))
    assert told[0].startswith(f"1 bad row left out: {path}, line 61: not JSON") and told[0] == told[1]


def test_what_a_killed_build_left_is_ignored(put, tokenizer, tmp_path: Path, monkeypatch):
    path, folder = put("data.jsonl", jsonl(TEXTS * 20)), tmp_path / "blocks"
    put("bad.jsonl", jsonl(TEXTS * 20) + b"torn")
    monkeypatch.setattr(blocks, "_BATCH_DOCUMENTS", 1)
    with pytest.raises(BadInput, match=r"bad.jsonl, line 61"):
        blocks.build(str(tmp_path / "bad.jsonl"), tokenizer, 0, 0, 16, folder)
    assert not folder.exists()
    assert (tmp_path / "blocks.tmp" / "blocks.arrow").exists()  # so far it had come
    (tmp_path / "blocks.tmp" / "manifest.json").write_text("{}")
    whole = blocks.build(path, tokenizer, 0, 0, 16, folder)
    assert whole["ids"][:] == list(blocks.pack(TEXTS * 20, tokenizer, 0, 0, 16))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.jsonl", "blocks", "data.jsonl"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["blocks.arrow", "manifest.json"]
    with pytest.raises(BadInput):  # a failed rebuild leaves the old blocks as they were
        blocks.build(str(tmp_path / "bad.jsonl"), tokenizer, 0, 0, 16, folder)
    assert blocks.build(path, tokenizer, 0, 0, 16, folder)["ids"][:] == whole["ids"][:]


def test_a_folder_of_something_else_is_left_alone(put, tokenizer, tmp_path: Path):
    path = put("data.jsonl", jsonl(TEXTS * 20))
    put("mine/notes.txt", b"keep")
    for folder in ("mine", "mine/notes.txt"):
        with pytest.raises(BadInput, match="holds no packed blocks"):
            blocks.build(path, tokenizer, 0, 0, 16, tmp_path / folder)
    assert (tmp_path / "mine" / "notes.txt").read_bytes() == b"keep"


def test_less_than_one_block_is_bad_input(put, tokenizer, tmp_path: Path):
    with pytest.raises(BadInput, match="less text than one block of 128"):
        blocks.build(put("data.txt", b"short"), tokenizer, 0, 0, 128, tmp_path / "blocks")
    assert not (tmp_path / "blocks").exists()


# -- the order of samples


@given(size=st.integers(1, 400), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_an_epoch_visits_every_row_once(size: int, seed: int, epoch: int):
    order = [blocks.row(range(size), seed, epoch * size + n) for n in range(size)]
    assert sorted(order) == list(range(size))


def test_the_order_depends_on_seed_and_epoch():
    size = 1000
    orders = [
        [blocks.row(range(size), seed, epoch * size + n) for n in range(size)]
        for seed in (0, 1, 2**64 + 1)
        for epoch in (0, 1, 2)
    ]
    for i, first in enumerate(orders):
        for second in [*orders[:i], list(range(size))]:
            # independent orders agree at 1 place in the mean (Poisson): beyond 10 with probability 1e-8
            same = sum(a == b for a, b in zip(first, second, strict=True))
            assert same <= 10 or (i % 3 == orders.index(second) % 3 and abs(i - orders.index(second)) == 3)


def test_the_order_is_even():
    """Where each of 10 rows lands in 1000 epochs: chi-squared, df = 81, above 137 once in 10,000 seeds."""
    size, epochs = 10, 1000
    counts = [[0] * size for _ in range(size)]
    for epoch in range(epochs):
        for n in range(size):
            counts[n][blocks.row(range(size), 3, epoch * size + n)] += 1
    expected = epochs / size
    assert sum((count - expected) ** 2 / expected for line in counts for count in line) < 137


def test_the_order_is_pinned():
    """A run that is resumed by a newer version must go on with the rows that the older one had not seen."""
    assert [blocks.row(range(10), 0, n) for n in range(20)] == [
        8,
        0,
        7,
        3,
        6,
        9,
        1,
        4,
        5,
        2,
        3,
        2,
        0,
        9,
        8,
        4,
        5,
        7,
        1,
        6,
    ]


# -- the library


@pytest.fixture(scope="session")
def library() -> dict[str, dict[str, str]]:
    return {split: dict(stdlib.modules(split)) for split in ("train", "heldout")}


def test_the_library_is_split_by_path_alone(library):
    train, heldout = library["train"], library["heldout"]
    assert not train.keys() & heldout.keys()
    assert all(stdlib.held_out(path) for path in heldout)
    assert not any(stdlib.held_out(path) for path in train)
    assert list(train) == sorted(train)
    assert list(heldout) == sorted(heldout)
    # a binomial share of some 650 modules at 5% has a standard deviation of 0.9%: four of them
    share = len(heldout) / (len(train) + len(heldout))
    assert 0.015 < share < 0.085
    # 5% of paths over many: 4 standard deviations of 0.15%
    assert 0.044 < sum(stdlib.held_out(f"{n}.py") for n in range(20_000)) / 20_000 < 0.056
    # pinned: the split never changes, or shipped models would have seen what is called held out
    assert [stdlib.held_out(path) for path in ("traceback.py", "sched.py", "argparse.py")] == [True, True, False]


def test_the_library_is_code_that_every_machine_has(library):
    everything = library["train"] | library["heldout"]
    assert {"argparse.py", "json/decoder.py", "encodings/utf_8.py", "traceback.py"} <= everything.keys()
    left_out = re.compile(
        r"(^|/)(tests?|idle_test|site-packages|__pycache__)/|sysconfigdata|encodings/cp1252|topics\.py"
    )
    assert not [path for path in everything if left_out.search(path)]
    assert not any(source == "" or "\r" in source for source in everything.values())
    assert 6e6 < sum(map(len, everything.values())) < 16e6  # about 10 MB in 3.11, less where parts are packaged apart


def test_the_fingerprint_follows_the_source(library, monkeypatch):
    found = stdlib.fingerprint()
    everything = library["train"] | library["heldout"]
    assert found["modules"] == len(everything)
    assert found["bytes"] == sum(len(source.encode()) for source in everything.values())
    assert found == stdlib.fingerprint()
    path = "argparse.py"
    monkeypatch.setattr(stdlib, "_all", lambda: iter(sorted((everything | {path: everything[path] + " "}).items())))
    assert stdlib.fingerprint()["sha256"] != found["sha256"]


def test_a_library_without_source_is_bad_input(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(BadInput, match="no source of the standard library"):
        next(stdlib.modules("train"))


# -- the tokenizer of `pocket`, and `prepare`


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


CODE = [*" \t\n\r\f_ab1.,=()#'é\u3000", "return ", "in", "not ", "__"]


@given(words=st.lists(st.sampled_from(CODE), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_code_comes_back(tokenizer, words: list[str]):
    text = "".join(words)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in split]


def test_pieces_of_code(tokenizer):
    text = "def f(self, x):\n\n    return x.__in__ + 1234  # not in here\n"
    assert "|".join(pieces(tokenizer, text)) == (
        "def |f|(|self|, |x|):|\n\n    |return |x|.|__in__| + |123|4| | # |not |in |here|\n"
    )


@pytest.mark.parametrize("left", ["    return ", "x = ", "f(a, ", "for ", "x.", "if not ", "# ", "class "])
def test_what_stands_left_of_a_hole_in_code_is_split_as_if_the_code_went_on(tokenizer, left: str):
    for name in ("name", "_name", "__name__"):
        assert pieces(tokenizer, left + name) == [*pieces(tokenizer, left), name]


def test_the_tokenizer_depends_on_the_texts_but_not_on_their_order():
    texts = [Path(path).read_text(encoding="utf-8") for path in (pocket.__file__, blocks.__file__, stdlib.__file__)]
    first, second = (pocket.tokenizer(order, 600).backend_tokenizer.to_str() for order in (texts, texts[::-1]))
    assert first == second


def test_prepare_writes_the_same_bytes_again(tmp_path: Path, monkeypatch, library, capsys):
    few = {split: list(modules.items())[:20] for split, modules in library.items()}
    monkeypatch.setattr(stdlib, "modules", lambda split: iter(few[split]))
    for folder in ("one", "two"):
        assert pocket.main(["prepare", str(tmp_path / folder)]) == 0
    figures = json.loads(capsys.readouterr().out.split("\n}\n")[0] + "}")
    assert 2.5e6 < figures["parameters"] < 6e6  # at most 12 MB in bfloat16, the room in the package
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {"train.jsonl.gz", "heldout.jsonl.gz", "parent/config.json", "parent/tokenizer.json"} <= set(map(str, files))
    assert not [file for file in files if file.suffix in (".safetensors", ".bin")]
    assert [(tmp_path / "one" / file).read_bytes() for file in files] == [
        (tmp_path / "two" / file).read_bytes() for file in files
    ]
    assert list(documents(str(tmp_path / "one" / "train.jsonl.gz"))) == [source for _, source in few["train"]]
    tokens = sum(figures[split]["tokens"] for split in few)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "one" / "parent")
    assert tokens == sum(len(loaded.encode(source)) for split in few.values() for _, source in split)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.mask_token_id, len(loaded)) == (0, 0, 1, pocket.VOCABULARY)
    assert loaded.model_max_length == 256
    config = AutoConfig.from_pretrained(tmp_path / "one" / "parent")
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (pocket.VOCABULARY, 0, 0)


def test_the_command_says_how_it_is_used(capsys):
    assert pocket.main(["prepare"]) == 2
    assert "prepare OUT" in capsys.readouterr().err
