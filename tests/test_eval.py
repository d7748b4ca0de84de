"""`diffulm eval`: what is asked and refused, one table with errors, a document that repeats itself, going on where it was."""

import functools
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

import diffulm
from diffulm.errors import BadInput
from diffulm.evaluation import paper, subject, suite, table
from diffulm.evaluation.cells import Cell, absent, mean_cell
from diffulm.evaluation.document import Measured, document, interval, mcnemar
from diffulm.recipes import evaluate
from diffulm.recipes.evaluation_progress import Overall

# A part of a suite that costs nothing: a question has an answer that depends on model and number alone.
MADE_UP = """
from pathlib import Path

from diffulm.evaluation.cells import Cell, absent, mean_cell

TITLE = "made up"


def run(trial):
    log, parent = Path(__file__).with_name("asked"), trial.subject.autoregressive

    def ask(group):
        with log.open("a") as file:
            for one in group:
                print(trial.subject.name, one, file=file)
        if (stop := Path(__file__).with_name("stop")).exists() and len(log.read_text().splitlines()) >= 3:
            stop.unlink()
            raise KeyboardInterrupt
        return [float(one % 2 == 0 or parent) for one in group]

    items = trial.journal.map(f"made up of {trial.subject.name}", range(trial.limit or 6), ask, together=2)
    how = {"steps": 4, "order": "random", "batch_size": trial.batch_size}
    length = "none" if parent else "oracle"
    speed = 1.0 / trial.batch_size
    return [
        mean_cell("hellaswag", "accuracy", items, length=length, settings=how, counts={"memory_bytes": trial.batch_size}),
        mean_cell("hellaswag", "nats a token", [one + 1 for one in items], better="lower", normalisation="token"),
        Cell("speed", "seconds a text", speed, 0.1 * speed, 1, settings=how, better="lower"),
        Cell("speed", "peak memory, bytes", 7.0),
        Cell("overflow", "nats", float("nan"), note="not a number"),
        absent("piqa", "accuracy", "no data"),
    ]
"""
BROKEN = """
from diffulm.errors import BadInput

def run(trial):
    raise BadInput("rows.jsonl, line 3: no field 'label'; mend or delete this row")
"""


@pytest.fixture(scope="session")
def opened():
    """`subject.opened`, each model once."""
    return functools.cache(subject.opened)


@pytest.fixture
def here(opened, tmp_path, monkeypatch):
    """An empty folder to work in, models that are open already."""
    monkeypatch.setattr(subject, "opened", opened)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made_up(here, monkeypatch):
    """A suite of one part, `choices`, that is made up, and one whose data is broken, `lambada`; their folder."""
    folder = here / "suite"
    folder.mkdir()
    (folder / "choices.py").write_text(MADE_UP)
    (folder / "lambada.py").write_text(BROKEN)
    monkeypatch.setattr(suite, "__path__", [str(folder)])
    for name in ("choices", "lambada"):
        monkeypatch.delitem(sys.modules, f"diffulm.evaluation.suite.{name}", raising=False)
    yield folder
    for name in ("choices", "lambada"):
        sys.modules.pop(f"diffulm.evaluation.suite.{name}", None)
        vars(suite).pop(name, None)


def asked(*more: str) -> list[str]:
    return ["eval", "pocket", "--parent", "pocket-ar", "--suite", "paper", *more]


def strict(text: str):
    """JSON that has no NaN and no infinity in it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def timeless(value):
    """A document without clock readings."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "seconds" not in k and "per_second" not in k}
    return [timeless(one) for one in value] if isinstance(value, list) else value


# --- what is printed ---


def test_one_table_with_errors(made_up, run):
    code, out, err = run(*asked("--out", "out"))
    assert code == 0 and "results: out" in err
    assert max(map(len, out.splitlines())) <= 80, "a pipe has no width of its own, and a terminal at least 80 columns"
    rows = {line[:10].strip(): line for line in out.splitlines()}
    head = next(line for line in out.splitlines() if line.startswith("model"))
    assert [name for name in ("SIQA", "PIQA", "GSM8K", "ROCStories", "Code") if name in head] == head.split()[5:]
    at = head.index("Swag")
    assert rows["pocket"][at:].startswith("50.0") and rows["pocket-ar"][at:].startswith("100.0")
    assert "±" in out and "oracle" in out and "no data" in out
    assert rows["DiffuGPT-S"][at:].startswith("33.4") and "37.0" in rows["DiffuGPT-S"], "the paper's row"
    assert "7.8/0.8/7.4*" in rows["GPT2-S"] and "11.9/0.7/10.9 " in rows["SEDD-S"], "*: prefix only"
    assert "[1] rows.jsonl, line 3: no field 'label'" in out, "what could not be measured says why"
    assert re.search(r"hellaswag +accuracy +100% ±0 +50% ±22.4 +-50", out)
    assert "p=0.25" in out


def test_on_a_narrow_terminal_and_a_wide_one(made_up):
    found = evaluate.run(evaluate.EvalConfig(model="pocket", parent="pocket-ar", suite="paper", out="out"))
    for width in (40, 60, 80, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        table.show(found, console)
        drawn = console.export_text()
        assert max(map(len, drawn.splitlines())) <= width
        assert "hellaswag" in drawn.lower().replace("-\n", "") and "50.0" in drawn


def test_the_document(made_up, run):
    code, out, _ = run(*asked("--out", "out", "--limit", "4", "--json"))
    assert code == 0
    found = strict(out)
    assert found == strict(Path("out/results.json").read_text())
    cells = {(one["role"], one["task"], one["metric"]): one for one in found["cells"]}
    child = cells["child", "hellaswag", "accuracy"]
    assert (child["value"], child["length"], child["count"], child["items"]) == (0.5, "oracle", 4, [1, 0, 1, 0])
    told = child["settings"]
    assert (told["steps"], told["order"], told["draws"], told["seed"]) == (4, "random", None, 0)
    assert told["precision"] == "float32" and told["versions"].keys() >= {"diffulm", "torch", "transformers"}
    assert told["command"] == "diffulm eval pocket --suite choices --parent pocket-ar --limit 4"
    for cell in found["cells"]:
        wanted = {"steps", "order", "draws", "seed", "precision", "versions", "length", "command"}
        assert cell["settings"].keys() >= wanted
    clock = cells["child", "speed", "seconds a text"]
    assert clock["value"] is None and clock["seconds"] == 1 / 16 and clock["seconds_stderr"] == 0.1 / 16
    assert "memory" not in json.dumps(found), "memory readings are left out"
    assert cells["child", "overflow", "nats"]["value"] is None, "JSON has no NaN"
    (accuracy,) = [one for one in found["differences"] if one["metric"] == "accuracy"]
    assert accuracy["difference"] == -0.5 and accuracy["p"] == 0.5 and accuracy["count"] == 4
    measured, printed = found["table"][1], found["table"][2]
    assert measured["columns"]["HellaSwag"]["values"] == [50.0] and measured["source"] == "measured"
    assert measured["columns"]["PIQA"] == {"values": [None], "stderrs": [None], "length": "none", "note": "no data"}
    assert printed["role"] == "paper" and printed["columns"]["ROCStories"]["values"] == [7.8, 0.8, 7.4]


def test_nothing_depends_on_the_batch_size(made_up, run):
    found = [strict(run(*asked("--batch-size", n, "--out", f"out{n}", "--json"))[1]) for n in ("1", "64")]
    assert timeless(found[0]) == timeless(found[1])
    assert found[0] != found[1], "its clock readings do, so that something was compared"


def test_what_it_leaves(made_up, run):
    assert run(*asked())[0] == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"eval-pocket-paper-[0-9a-f]{8}", folder.name)
    text = (folder / "results.md").read_text()
    assert "| pocket (child) | - | - [1] | 50.0 ±22.4 oracle |" in text
    assert "    diffulm eval pocket --suite choices --parent pocket-ar" in text
    page = (folder / "report.html").read_text()

    class Links(HTMLParser):
        found: list = []

        def handle_starttag(self, tag, attrs):
            self.found += [value for name, value in attrs if name in ("src", "href")]

    Links().feed(page)
    assert [link for link in Links.found if not link.startswith("data:")] == [] and "url(" not in page
    assert "<svg" in page and "prefers-color-scheme:dark" in page and "33.4" in page
    assert page.count("<details>") == len(json.loads((folder / "results.json").read_text())["cells"])
    assert run(*asked())[0] == 0 and len(list(Path("runs").iterdir())) == 1, "the same command finds its folder again"
    assert run(*asked("--limit", "2"))[0] == 0 and len(list(Path("runs").iterdir())) == 2, "another one does not"


# --- going on ---


def test_an_interrupted_one_goes_on(made_up, run):
    whole = strict(run(*asked("--out", "whole", "--json"))[1])
    log = made_up / "asked"
    assert len(log.read_text().splitlines()) == 12
    log.write_text("")
    (made_up / "stop").touch()
    code, out, err = run(*asked("--out", "out", "--json"))
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "diffulm: interrupted; the same command goes on where it was"
    assert not Path("out/results.json").exists()
    done = log.read_text().splitlines()
    assert strict(run(*asked("--out", "out", "--json"))[1]) == whole
    again = log.read_text().splitlines()[len(done) :]
    assert done[:2] == ["pocket 0", "pocket 1"] and "pocket 0" not in again, "what was finished is not asked again"
    assert again[0] == "pocket 2", "what was not is"


def test_a_folder_of_another_run(made_up, run):
    assert run(*asked("--out", "out"))[0] == 0
    before = Path("out/results.json").read_bytes()
    code, out, err = run(*asked("--out", "out", "--limit", "3", "--seed", "1"))
    assert (code, out) == (2, "") and "limit is None there, 3 here; name another folder" in err
    assert Path("out/results.json").read_bytes() == before
    assert run(*asked("--out", "out", "--batch-size", "3", "--device", "cpu"))[0] == 0, "these may differ"
    models = json.loads(Path("out/models.json").read_text())
    Path("out/models.json").write_text(json.dumps(models | {"weights of child": "0"}))
    code, _, err = run(*asked("--out", "out"))
    assert code == 2 and "weights of child is '0' there" in err, "the model was trained on"
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    assert run(*asked("--out", "full"))[0] == 2


# --- what is refused ---

WRONG = {
    "nothing asked": ([], "nothing is asked: give --suite paper, parts of it (lambada, choices), or --tasks"),
    "a part": (["--suite", "choises"], "unknown part of the suite 'choises'; did you mean 'choices'?"),
    "limit": (["--suite", "paper", "--limit", "0"], "limit should be greater than or equal to 1, not 0"),
    "batch size": (["--suite", "paper", "--batch-size", "0"], "batch_size should be"),
    "a folder": (["--suite", "paper", "--data-dir", "nowhere"], "data_dir=nowhere: no such folder"),
    "a method": (["--suite", "paper", "--method", "exact"], "method should be"),
    "a parent": (["--suite", "paper", "--parent", "pocket"], "it is a diffusion model already"),
    "no parent": (["--suite", "paper", "--parent", "nowhere"], "nowhere: no such folder"),
    "out": (["--suite", "paper", "--out", "suite/choices.py"], "out=suite/choices.py: is a file"),
}


@pytest.mark.parametrize(("more", "words"), WRONG.values(), ids=WRONG)
def test_bad_input(made_up, run, more, words):
    code, out, err = run("eval", "pocket", *more)
    assert (code, out) == (2, "") and words in err
    assert err.count("\n") == 1 and err.startswith("diffulm: error: ")


def test_an_ar_model_is_no_child(made_up, run):
    code, _, err = run("eval", "pocket-ar", "--suite", "choices")
    assert code == 2 and "is a plain AR checkpoint" in err and "can be given as --parent" in err


def test_no_tokenizer(made_up, run, here):
    whole = Path(diffulm.__file__).parent / "assets" / "pocket"
    (here / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (here / "bare" / name).symlink_to(whole / name)
    code, _, err = run("eval", "bare", "--suite", "choices")
    assert code == 2 and "bare: has no tokenizer" in err


def test_a_suite_that_cannot_be_measured_at_all(made_up, run):
    code, out, _ = run("eval", "pocket", "--suite", "lambada", "--data-dir", "suite", "--out", "out")
    assert code == 0 and "no field 'label'" in out, "a cell says why"
    code, out, err = run("eval", "pocket", "--suite", "lambada", "--out", "hub")
    assert (code, out) == (2, "") and "nothing could be measured: rows.jsonl, line 3" in err, "no hub, most likely"
    assert not Path("hub").exists()


# --- tasks of lm-eval ---


def test_tasks_stand_in_the_same_table(made_up, run, monkeypatch):
    harness = ModuleType("diffulm.evaluation.harness")

    def check(names, folder=None):
        if "nothing" in names:
            raise BadInput("unknown task 'nothing'; did you mean 'something'?")

    def measured(one, names, trial):
        items = [1.0, 0.0, float(one.autoregressive)]
        return [mean_cell(names[0], "acc", items)], {"results": {names[0]: {"acc,none": math.nan}}}

    harness.check, harness.run = check, measured
    monkeypatch.setitem(sys.modules, harness.__name__, harness)
    monkeypatch.setattr("diffulm.evaluation.harness", harness, raising=False)
    code, out, err = run("eval", "pocket", "--parent", "pocket-ar", "--tasks", "a,b", "--out", "out")
    assert code == 0 and re.search(r"a +acc +0\.667 ±0\.333 +0\.333 ±0\.333", out), out
    assert strict(Path("out/lm-eval-child.json").read_text())["results"] == {"a": {"acc,none": None}}
    cell = strict(Path("out/results.json").read_text())["cells"][0]
    assert cell["settings"]["command"] == "diffulm eval pocket --tasks a,b --parent pocket-ar"
    code, _, err = run("eval", "pocket", "--tasks", "nothing")
    assert code == 2 and "did you mean 'something'?" in err


# --- the real parts ---


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    lines = {
        "hellaswag": [{"ctx": "def f(x):", "endings": [" return x", " import os", " = 1", " pass"], "label": 0}] * 2,
        "piqa": [{"goal": "Close a file", "sol1": "file.close()", "sol2": "file.open()", "label": 0}] * 2,
        "lambada": [{"text": "import os, sys", "context": "import os,", "target": "sys"}] * 2,
        "triviaqa": [{"question": "What is self?", "answer": "the instance", "aliases": ["instance"]}] * 2,
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_real_parts(here, questions):
    how = {"parent": "pocket-ar", "suite": "triviaqa,lambada,choices", "data_dir": str(questions), "limit": 2}
    found, other = (
        evaluate.evaluate("pocket", batch_size=size, out=str(here / f"out{size}"), **how) for size in (1, 64)
    )
    assert timeless(found) == timeless(other)
    columns = found["table"][1]["columns"]
    for name in ("TriviaQA", "LAMBADA", "HellaSwag", "PIQA"):
        assert 0 <= columns[name]["values"][0] <= 100 and columns[name]["stderrs"][0] > 0
    assert columns["Winogrande"]["note"] == columns["SIQA"]["note"] == "no data"
    assert columns["Code"] == {"values": [], "stderrs": [], "length": None, "note": "not asked"}


# --- pieces ---


def test_the_paper_s_rows():
    named = {row.model: row.values for row in paper.TABLE_1}
    assert list(named["DiffuLLaMA"]) == list(paper.COLUMNS) and len(named) == 9
    assert named["DiffuGPT-S"]["LAMBADA"] == (21.6,) and named["DiffuLLaMA"]["LAMBADA"] == (53.9,), "not counted twice"
    assert {row.model for row in paper.TABLE_1 if row.prefix_only} == {"GPT2-S", "GPT2-M", "LLaMA2-7B"}


def test_intervals():
    none = Cell("t", "accuracy", 0.0, 0.1, 10, items=(0.0,) * 10)
    low, high = interval(none) or (1, 0)
    assert (low, high) == pytest.approx((0, 0.2775), abs=1e-4), "Wilson's of 0 in 10"
    half = Cell("t", "accuracy", 0.5, 0.1, 10, items=(0.0, 1.0) * 5)
    drawn = Cell("t", "accuracy", 0.5, 0.1, 10, items=(0.0, 1.0) * 5, monte_carlo=0.2)
    assert (interval(drawn) or (1,))[0] < (interval(half) or (0,))[0], "draws make it wider"
    assert interval(Cell("t", "nats", 2.0, 0.1)) == pytest.approx((1.804, 2.196), abs=1e-3)
    assert interval(absent("t", "nats", "no data")) is None and interval(Cell("t", "nats", 2.0)) is None


@pytest.mark.parametrize(("won", "lost", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 6, 2 / 64), (1, 7, 18 / 256)])
def test_mcnemar(won, lost, p):
    assert mcnemar(won, lost) == mcnemar(lost, won) == pytest.approx(p)


def rows_of(*measured: Measured):
    names = dict.fromkeys(("child", "parent"), "float32")
    run = {"seed": 0, "versions": {}, "precision": names, "command": {"part": "diffulm eval"}}
    return document(measured, {"model": "m", "parent": "p"}, run)


def test_a_parent_with_one_cell_stands_beside_all_of_the_child_s():
    def cell(role, value, **settings):
        items = (value, value + 2)
        return Measured(role, role, "part", Cell("t", "nats", value + 1, 1.0, 2, items=items, settings=settings))

    found = rows_of(
        cell("child", 1.0, steps=8, forwards=8), cell("child", 2.0, steps=16, forwards=9), cell("parent", 0.5)
    )
    assert [one["variant"] for one in found["cells"]] == ["steps 8", "steps 16", ""], "as few words as tell them apart"
    assert [(one["variant"], one["difference"]) for one in found["differences"]] == [
        ("steps 8", 0.5),
        ("steps 16", 1.5),
    ]
    grid = table.others(found)
    assert grid and [row[2][0] for row in grid.rows] == ["1.5 ±1", "1.5 ±1"]


def test_no_difference_of_what_is_no_mean():
    cells = [Cell("t", "perplexity", math.exp(mean), 1.0, 2, items=(mean - 1, mean + 1)) for mean in (1.0, 2.0)]
    found = rows_of(Measured("child", "m", "part", cells[0]), Measured("parent", "p", "part", cells[1]))
    assert found["differences"] == []


def test_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("diffulm.recipes.evaluation_progress.time.monotonic", lambda: now[0])
    overall = Overall(["a", "b", "c", "d"])
    overall.next(0)
    overall.told("known", 5, 5)
    assert overall.left() is None, "a journal knew it: nothing is learnt of how long things take"
    overall.next(1)
    now[0] = 10.0
    overall.told("new", 0, 4)
    assert overall.left() is None
    now[0] = 20.0
    overall.told("new", 4, 4)
    assert overall.left() == pytest.approx(20 / 0.5 * 2.5), "half a unit took 20 s, two and a half are left"
    overall.next(2)
    overall.told("new", 0, 4)
    assert overall.left() == pytest.approx(40.0), "one unit took 20 s, two are left"


def test_help_loads_nothing_heavy_and_the_shell_completes():
    code = (
        "import sys\nfrom diffulm.cli._complete import COMPLETIONS\nfrom types import SimpleNamespace\n"
        "print(COMPLETIONS['suite']('lambada,'), COMPLETIONS['method'](SimpleNamespace(info_name='eval')))\n"
        "print([m for m in ('torch', 'numpy', 'lm_eval') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "'lambada,choices'" in first and "'lambada,lambada'" not in first and "'multi_order'" in first
    assert second == "[]"
