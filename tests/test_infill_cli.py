"""`diffulm infill MODEL FILE --hole LINE:COL-LINE:COL`: places in a file, the file afterwards, and what is refused."""

import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffulm.cli._editing import Editing, editing, hole_of, offsets
from diffulm.errors import BadInput

CODE = "class Reader:\r\n    def clo(self):\r\n        self.file.close()\r\n\n# é 😀\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "reader.py"
    path.write_bytes(CODE.encode())
    return path


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=6), min_size=1),
       end=st.sampled_from(["\n", "\r\n", "\r"]), data=st.data())  # fmt: skip
def test_a_place_is_so_many_lines_and_characters_in(lines, end, data):
    text = end.join(lines)
    line = data.draw(st.integers(0, len(lines) - 1))
    column = data.draw(st.integers(0, len(lines[line])))
    [(start, stop)] = offsets(text, [f"{line + 1}:{column + 1}-{len(lines)}:{len(lines[-1]) + 1}"])
    assert text[:start] == "".join(each + end for each in lines[:line]) + lines[line][:column]
    assert stop == len(text)


def test_holes_are_sorted_and_may_touch_or_be_empty():
    assert offsets("ab\ncd", ["2:1-2:3", "1:2"]) == [(1, 1), (3, 5)]
    assert offsets("abc", ["1:1-1:2", "1:2-1:4"]) == [(0, 1), (1, 3)]
    assert offsets("\ufeffabc", ["1:1-1:2"]) == [(1, 2)]  # a byte order mark is no column
    assert offsets("a\n", ["2:1"]) == [(2, 2)]


@pytest.mark.parametrize(
    ("hole", "says"),
    [
        ("3:1", "there is no line 3; the text has 2"), ("0:1", "there is no line 0"),
        ("1:4", "there is no column 4 in line 1: it has 2 characters"), ("1:0", "there is no column 0"),
        ("2:1-1:1", "ends before it begins"), ("2", "is no range: write LINE:COL-LINE:COL"),
        ("1:1-2", "is no range"), ("a:b-c:d", "is no range"),
    ],
)  # fmt: skip
def test_a_place_that_is_not_there(hole, says):
    with pytest.raises(BadInput, match=says):
        offsets("ab\ncd", [hole])


def test_overlapping_holes_and_lengths_that_are_none():
    with pytest.raises(BadInput, match="overlap"):
        offsets("abcd", ["1:1-1:3", "1:2-1:4"])
    assert [hole_of(length, None, None).longest for length in (None, "3", "1-24")] == [16, 3, 24]
    for length in ("", "0", "x", "3-", "4-2", "-1"):
        with pytest.raises(BadInput, match="token"):
            hole_of(length, None, None)


def test_a_hole_in_a_file_is_filled_and_the_rest_stays(run, file):
    flags = ("--hole", "2:12-2:12", "--length", "1-2")
    code, out, err = run("infill", "pocket", str(file), *flags)
    assert (code, err) == (0, "") and out == CODE.replace("clo(", "close(")
    assert file.read_bytes() == CODE.encode()
    os.chmod(file, 0o640)
    link = file.with_name("link.py")
    link.symlink_to(file)
    code, out, err = run("infill", "pocket", str(link), *flags, "--in-place")
    assert (code, out, err) == (0, "", "")
    assert file.read_bytes() == CODE.replace("clo(", "close(").encode() and link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(file.parent.iterdir()) == [link, file]  # no half of a file beside it


def test_json_says_where_the_fills_go(run, file):
    flags = ("--hole", "3:19-3:24", "--hole", "2:9-2:12", "--choices", "close,open", "--n", "2", "--json")
    code, out, _ = run("infill", "pocket", str(file), *flags)
    document = json.loads(out)
    text = CODE
    for edit in reversed(document["edits"]):
        text = text[: edit["start"]] + edit["text"] + text[edit["end"] :]
    assert code == 0 and document["text"] == text == CODE.replace("clo(", "close(")
    assert [edit["text"] for edit in document["edits"]] == document["fills"] == ["close", "close"]
    scores = [one["score"] for one in document["candidates"]]
    assert len(scores) == 2 and scores == sorted(scores) and document["candidates"][0]["text"] == text


def test_a_long_file_is_filled_too(run, file):
    long = "x = 1\n" * 500 + CODE + "y = 2\n" * 500
    file.write_bytes(long.encode())
    code, out, _ = run("infill", "pocket", str(file), "--hole", "502:12", "--choices", "se,wn")
    assert code == 0 and out == long.replace("clo(", "close(")


WRONG = {
    "nothing to fill": (["pocket"], "Missing option '--text'. For example: diffulm infill pocket"),
    "two texts": (["pocket", "FILE", "--text", "a"], "a file and --text are two texts"),
    "in place of nothing": (
        ["pocket", "--text", "a<hole>", "--in-place"],
        "--in-place writes one text to one file: name it",
    ),
    "many in one place": (["pocket", "FILE", "--in-place", "--n", "2"], "leave out --n"),
    "no such file": (["pocket", "FILE.txt", "--hole", "1:1"], "cannot be read (No such file"),
    "a folder": (["pocket", "FOLDER", "--hole", "1:1"], "cannot be read (Is a directory)"),
    "no hole": (["pocket", "FILE"], "there is no hole in the text"),
    "a place outside": (["pocket", "FILE", "--hole", "99:1"], "there is no line 99"),
    "a length": (["pocket", "FILE", "--hole", "1:1", "--length", "many"], "is no number of tokens"),
    "two conditions": (["pocket", "FILE", "--hole", "1:1", "--choices", "a,b", "--length", "3"], "neither a length"),
    "method": (
        ["pocket", "FILE", "--hole", "1:1", "--length-method", "guess"],
        "length_method should be 'rank' or 'grow'",
    ),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_what_is_refused_is_one_line_and_the_file_stays(arguments, run, file):
    flags, says = arguments
    flags = [word.replace("FILE", str(file)).replace("FOLDER", str(file.parent)) for word in flags]
    code, out, err = run("infill", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err, err
    assert file.read_bytes() == CODE.encode()


def test_a_file_that_is_no_text_or_was_changed_in_the_meantime_is_left_alone(run, file):
    edit = editing(str(file), CODE, ["1:1"], hole_of(None, None, None), True)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not UTF-8"):
        edit.save(CODE, "new")
    assert "is not UTF-8" in run("infill", "pocket", str(file), "--hole", "1:1")[2]
    file.write_text("another")
    with pytest.raises(BadInput, match="was changed in the meantime and is left as it is"):
        edit.save(CODE, "new")
    assert file.read_text() == "another"


def test_a_file_that_cannot_be_replaced_is_left_as_it_is(file, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BadInput, match=r"cannot be written .No space left on device. and is left as it is"):
        Editing([], str(file), True).save(CODE, "new")
    assert file.read_bytes() == CODE.encode() and list(file.parent.iterdir()) == [file]
