"""Standard streams that are closed, full or of little use: a reader that has gone, a narrow terminal, no UTF-8."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forks import GONE, Forks, open_terminal, read_terminal
from runs import short, weights

ESCAPE = "\x1b"
CLOCK = re.compile(r'"?seconds"?: .*')


def verbs(folder: Path) -> dict[str, list[str]]:
    """Every verb that prints, on the model in `folder`, quickly."""
    model = str(folder)
    return {
        "help": ["--help"],
        "inspect": ["inspect", model],
        "generate": ["generate", model, "--prompt", "the", "--length", "3", "--steps", "2", "--watch"],
        "infill": ["infill", model, "--text", "the <hole:2> on", "--json"],
        "score": ["score", model, "--text", "the cat", "--samples", "2"],
    }


VERBS = [pytest.param(verb, marks=[pytest.mark.slow] * (verb == "score")) for verb in verbs(Path())]


@pytest.mark.parametrize("verb", VERBS)
def test_streams_that_nobody_reads(forks: Forks, verb):
    line = verbs(forks.whole)[verb]
    whole = forks.diffulm(*line)
    assert (whole.wait(), bool(whole.out)) == (0, True), whole.err
    closed = forks.diffulm(*line, stdout=None)
    assert (closed.wait(), closed.err) == (0, whole.err)
    gone = forks.diffulm(*line, stdout=GONE)
    assert (gone.wait(), gone.err) == (141, whole.err), "`| head` wants no more, which is no error"
    full = forks.diffulm(*line, stdout="/dev/full")
    assert full.wait() == 2
    assert full.err == whole.err + "diffulm: error: standard output: cannot be written (No space left on device)\n"
    for silent in ({"stderr": None}, {"stderr": GONE}, {"stdin": None}):
        child = forks.diffulm(*line, **silent)
        assert (child.wait(), CLOCK.sub("", child.out)) == (0, CLOCK.sub("", whole.out)), silent


def test_a_run_goes_on_though_nobody_reads_its_progress(forks: Forks, home, tmp_path):
    for number, settings in enumerate(({"stderr": GONE}, {"stderr": None, "stdin": None, "stdout": None})):
        out = tmp_path / str(number)
        child = forks.diffulm(*short(home, out), **settings)
        assert child.wait() == 0
        assert (out / "report.json").exists()


def test_an_error_that_nobody_reads_is_still_an_error(forks: Forks):
    for settings in ({"stderr": None}, {"stderr": GONE}, {"stdout": None, "stderr": None, "stdin": None}):
        child = forks.diffulm("score", "./nowhere", "--text", "a", **settings)
        assert (child.wait(), child.out) == (2, "")


def test_text_from_a_closed_standard_input_is_empty(forks: Forks):
    child = forks.diffulm("infill", str(forks.whole), "--text", "-", stdin=None)
    assert child.wait() == 2 and child.err.count("\n") == 1 and "hole" in child.err


@pytest.mark.parametrize("verb", [*VERBS, "adapt"])
def test_a_terminal_of_twenty_columns(forks: Forks, home, tmp_path, verb):
    for environment in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"})[: 2 if verb == "adapt" else 3]:
        ours, path = open_terminal(20)
        out = tmp_path / "-".join(environment)
        line = short(home, out) if verb == "adapt" else verbs(forks.whole)[verb]
        child = forks.diffulm(*line, terminal=path, env={"TERM": "xterm", "COLUMNS": "", **environment})
        seen = ""
        while (code := child.wait_some(0.02)) is None:
            seen += read_terminal(ours)
        seen += read_terminal(ours)
        os.close(ours)
        assert code == 0 and "Traceback" not in seen, seen
        assert seen.strip()
        if environment:
            assert ESCAPE not in seen, "escape codes although they were not wanted"
        elif verb in ("adapt", "generate"):
            assert seen.rfind("[?25h") > seen.rfind("[?25l") > 0, "it should have drawn, and given the cursor back"
            assert verb == "generate" or "8/8 loss 5." in seen


def test_ctrl_c_gives_the_terminal_back(forks: Forks, home, tmp_path):
    ours, path = open_terminal(80)
    stop = "when('diffulm.training.trainer:DiffusionTrainer.training_step', 5, 'os.kill(os.getpid(), 2)')"
    child = forks.diffulm(*short(home, tmp_path / "run"), first=stop, terminal=path, env={"TERM": "xterm"})
    assert child.wait() == 130
    seen = read_terminal(ours)
    os.close(ours)
    assert seen.rfind("[?25h") > seen.rfind("[?25l") > 0
    assert seen.endswith("diffulm: interrupted; the same command goes on from the last checkpoint\r\n")


TEXT = "é░ 日 <hole:1>"


@pytest.mark.parametrize("line", [["infill"], ["infill", "--json"], ["infill", "--watch"]], ids=" ".join)
def test_streams_that_are_ascii_get_utf_8_or_escapes(forks: Forks, line):
    verb, *flags = line
    right, ascii = (
        forks.diffulm(verb, str(forks.whole), "--text", TEXT, *flags, encoding=encoding)
        for encoding in ("utf-8", "ascii")
    )
    assert (right.wait(), ascii.wait()) == (0, 0), ascii.err
    assert CLOCK.sub("", ascii.out) == CLOCK.sub("", right.out) and TEXT[:4] in right.out
    assert ascii.err.isascii() and bool(ascii.err) == ("--watch" in flags)


ODD = os.fsdecode(b"caf\xe9")  # a name that is Latin-1, not UTF-8


def test_names_that_are_not_utf_8(forks: Forks, home, tmp_path):
    """A file of text may have such a name. Folders of models may not, for the libraries that read them take none."""
    data = tmp_path / f"{ODD}.jsonl"
    data.write_bytes((home / "text.jsonl").read_bytes())
    child = forks.diffulm(*short(home, tmp_path / "run", data=data))
    assert child.wait() == 0, child.err
    assert weights(tmp_path / "run") == weights(forks.whole)
    again = forks.diffulm(*short(home, tmp_path / "run", data=data))
    assert again.wait() == 0 and "finished already" in again.err, "config.yaml tells the name again"
    plan = forks.diffulm(*short(home, tmp_path / "x", data=data), "--plan", "--json")
    assert plan.wait() == 0 and json.loads(plan.out)["config"]["data"] == str(data)
    folder = tmp_path / ODD
    shutil.copytree(forks.whole, folder)
    for line in (["infill", str(folder), "--text", "a <hole:1>"], short(home, tmp_path / f"out-{ODD}")):
        refused = forks.diffulm(*line)
        assert (refused.wait(), refused.out, refused.err.count("\n")) == (2, "", 1)
        assert "is not UTF-8 text" in refused.err and "\\udce9" in refused.err and "rename" in refused.err
    assert not list(tmp_path.glob("out-*"))
    refused = forks.diffulm("infill", str(forks.whole), "--text", f"{ODD} <hole:1>")
    assert refused.wait() == 2 and refused.err == "diffulm: error: the text given is not UTF-8; convert it\n"


C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def plain(arguments: list[str]) -> tuple[int, bytes, bytes]:
    """A process of its own where nothing is UTF-8."""
    done = subprocess.run([sys.executable, "-m", "diffulm", *arguments], env=os.environ | C_LOCALE, capture_output=True)
    return done.returncode, done.stdout, done.stderr


def test_a_locale_without_utf_8():
    plan = ["adapt", "tiny", "model=é", "data=é.txt", "out=日", "--plan", "--json"]
    code, out, err = plain(plan)
    assert (code, err) == (0, b"") and json.loads(out)["config"]["model"].encode(
        "utf-8", "surrogateescape"
    ) == "é".encode()
    code, out, err = plain(["adapt", "tiny", "é=1"])
    assert (code, out) == (2, b"") and err.count(b"\n") == 1 and err.isascii()


@pytest.mark.slow
def test_a_model_in_a_locale_without_utf_8(forks: Forks):
    code, out, err = plain(["infill", str(forks.whole), "--text", TEXT])
    assert (code, err) == (0, b"") and out.decode("utf-8").startswith(TEXT[:4])
