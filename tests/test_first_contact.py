"""What somebody meets who types `diffulm` for the first time: the overview, help in all its spellings, tab completion."""

import ast
import importlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import diffulm
from diffulm import cli
from diffulm.cli import _overview, application, main, verbs
from diffulm.recipes.adapt import AdaptConfig

PROGRAM = Path(sys.executable).with_name("diffulm")


def parses(words: list[str]) -> None:
    group = typer.main.get_command(application())
    name, verb, rest = group.resolve_command(group.make_context("diffulm", list(words)), list(words))
    verb.make_context(name, list(rest))


@pytest.mark.parametrize("columns", ["20", "300"])
def test_the_overview_fits_a_screen_of_any_width(columns):
    code = f"import sys; from diffulm.cli import main\ntry: main([])\nfinally: print({HEAVY} & set(sys.modules))"
    environment = os.environ | {"COLUMNS": columns, "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    *lines, loaded = done.stdout.splitlines()
    assert (done.returncode, done.stderr, loaded) == (0, "", "set()")
    assert lines == _overview.overview(diffulm.__version__, verbs()).splitlines()


HEAVY = {"torch", "transformers", "datasets", "numpy", "pydantic", "yaml"}


def test_the_overview_is_short_and_names_everything():
    lines = _overview.overview(diffulm.__version__, [*verbs(), "export", "import", "serve"]).splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    assert set(verbs()) <= set(re.findall(r"[\w-]+", " ".join(lines[-4:])))
    assert len(_overview.EXAMPLES) == 3
    assert all(any(line.strip().startswith(example) for line in lines) for example in _overview.EXAMPLES)


@pytest.mark.parametrize("example", _overview.EXAMPLES)
def test_the_examples_of_the_overview_parse(example):
    parses(shlex.split(example)[1:])


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("help", "--help"),
        ("-h", "--help"),
        ("help help", "--help"),
        ("help infill", "infill --help"),
        ("infill -h", "infill --help"),
        ("-V", "--version"),
    ],
)
def test_what_people_type_for_help(typed, means, run):
    meant = run(*means.split())
    assert meant[0] == 0
    assert meant[1]
    assert run(*typed.split()) == meant


def test_help_for_what_does_not_exist(run):
    code, out, err = run("help", "infil")
    assert (code, out) == (2, "")
    assert "Did you mean 'infill'" in err


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_begins_with_how_it_is_called(verb):
    file = Path(cli.__file__).with_name(verbs()[verb].rpartition(".")[2] + ".py")
    example = re.match(r"`diffulm (.+?)`", ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "")
    assert example
    words = shlex.split(example[1].replace("MODEL", "pocket"))
    assert words[0] == verb
    parses(words)


def test_a_verb_alone_says_how_it_is_called(run):
    needy = 0
    for verb, command in typer.main.get_command(application()).commands.items():
        if any(param.required for param in command.params):
            needy += 1
            code, out, err = run(verb)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert re.search(rf"Missing .*For example: diffulm {verb} .*\(see diffulm {verb} --help\)$", err)
    assert needy >= 4  # adapt, generate, infill, inspect, score: otherwise nothing was looked at


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "No module named 'torch'; `diffulm doctor` says",
        ),
        (ImportError("cannot import name\n'x' from 'transformers'", name="transformers"), "`diffulm doctor` says"),
    ],
)
def test_a_package_that_is_missing_is_one_line(error, says, run, monkeypatch):
    monkeypatch.setitem(vars(diffulm), "load", lambda *_, **__: (_ for _ in ()).throw(error))
    code, out, err = run("generate", "m")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch):
    error = ModuleNotFoundError("No module named 'diffulm.lm'", name="diffulm.lm")
    monkeypatch.setitem(vars(diffulm), "load", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(ModuleNotFoundError):
        main(["generate", "m"])


@pytest.fixture
def tab(run, monkeypatch, tmp_path):
    """What a shell is offered after these words; the last one is being typed."""
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpus.txt").touch()
    monkeypatch.chdir(tmp_path)

    def press(*words: str, shell: str = "bash") -> list[str]:
        monkeypatch.setenv("_DIFFULM_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["diffulm", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(["diffulm", *words]))
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        code, out, err = run()
        assert (code, err) == (0, "")
        return [line.partition("\t")[0] for line in out.splitlines() if line]

    return press


def test_verbs_are_completed(tab):
    assert tab("") == sorted(verbs())
    assert tab("in") == [verb for verb in sorted(verbs()) if verb.startswith("in")]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["--ver"], ["--version"]),
        (["infill", "pocket", "--ste"], ["--steps"]),
        (["infill", ""], ["pocket", "pocket-ar"]),
        (["inspect", "runs/x"], []),  # the shell looks for files
        (["generate", "pocket", "--sampler", "conf"], ["confidence"]),
        (["generate", "pocket", "--dtype", "b"], ["bfloat16"]),
        (["infill", "pocket", "--schedule", ""], ["linear", "cosine"]),
        (["generate", "pocket", "--cache", "d"], ["dual"]),
        (["score", "pocket", "--method", ""], ["bound", "left_to_right"]),
        (["adapt", "diffu"], ["diffugpt-m", "diffugpt-s", "diffullama-7b"]),
        (["adapt", "tiny", ""], [f"{key}=" for key in AdaptConfig.model_fields]),
        (["adapt", "tiny", "seed=1", "le"], ["length=", "learning_rate="]),
        (["adapt", "tiny", "leng"], ["length=", "length=512"]),
        (["adapt", "tiny", "ann"], ["annealing=", "anneal_steps="]),
        (["adapt", "tiny", "annealing=n"], ["annealing=near", "annealing=none"]),
        (["adapt", "tiny", "scr"], ["scratch=", "scratch=false", "scratch=true"]),
        (["adapt", "tiny", "micro"], ["micro_batch=", "micro_batch=null"]),
        (["adapt", "tiny", "model=p"], ["model=pocket", "model=pocket-ar"]),
        (["adapt", "tiny", "data=cor"], ["data=corpora/", "data=corpus.txt"]),
        (["adapt", "tiny", "dat"], ["data=", "data=corpora/", "data=corpus.txt"]),
        (["adapt", "tiny", "nothing="], []),
        (["sft", "gsm8k-diffug"], ["gsm8k-diffugpt"]),
        (["sft", "tiny", "padding=n"], ["padding=none"]),
        (["sft", "tiny", "packing=t"], ["packing=true"]),
        (["sft", "tiny", "template=p"], ["template=paper", "template=plain"]),
        (["sft", "tiny", "data=s"], ["data=simple", "data=simple:test"]),
        (["sft", "tiny", "eval_a"], ["eval_answers=", "eval_answers=16"]),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_what_is_offered(words, offered, shell, tab):
    assert tab(*words, shell=shell) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["annealing", "="], ["bernoulli", "near", "none"]),
        (["annealing", "=", "n"], ["near", "none"]),
        (["model", "=", "p"], ["pocket", "pocket-ar"]),
        (["data", "=", "cor"], []),  # the shell looks for files
        (["model", "=", "pocket", "leng"], ["length=", "length=512"]),
    ],
    ids=" ".join,
)
def test_bash_takes_a_setting_apart_at_its_equals_sign(words, offered, tab):
    assert tab("adapt", "tiny", *words) == offered


def test_zsh_is_offered_help_as_well(tab):
    assert any('"infill":"Fill the holes in a text or a file."' in line for line in tab("inf", shell="zsh"))


def test_a_completion_that_fails_says_nothing(run, monkeypatch):
    monkeypatch.setenv("_DIFFULM_COMPLETE", "complete_bash")
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert run() == (1, "", "")


def test_completion_loads_nothing_heavy():
    code = "import sys; from diffulm.cli import main\ntry: main([])\nfinally: print('torch' in sys.modules)"
    words = {"_DIFFULM_COMPLETE": "complete_bash", "COMP_WORDS": "diffulm\nadapt\ntiny\nleng", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | words)
    assert done.stdout.splitlines() == ["length=", "length=512", "False"]


@pytest.fixture
def undetected(monkeypatch):
    """`main` sets this variable when a shell is named; known to monkeypatch, it is gone again after the test."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "")
    monkeypatch.delenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION")


@pytest.mark.usefixtures("undetected")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(shell, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = run("--install-completion", shell)
    assert (code, out.splitlines()[0].split(" completion")[0]) == (0, shell)
    written = [file.read_text("utf-8") for file in tmp_path.rglob("*") if file.is_file()]
    assert any(f"_DIFFULM_COMPLETE=complete_{shell}" in text for text in written)
    assert run("--show-completion", shell)[1].strip() in [text.strip() for text in written]


@pytest.mark.usefixtures("undetected")
def test_an_unknown_shell_is_one_line(run):
    code, out, err = run("--show-completion", "tcsh")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "bash" in err


@pytest.mark.skipif(not (PROGRAM.exists() and shutil.which("bash")), reason="needs bash and the installed program")
def test_in_a_real_bash():
    script = f"""
eval "$({PROGRAM} --show-completion bash)"
COMP_WORDS=(diffulm infill po) COMP_CWORD=2
_diffulm_completion {PROGRAM}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["pocket", "pocket-ar"], "")


@pytest.mark.skipif(not (PROGRAM.exists() and shutil.which("fish")), reason="needs fish and the installed program")
def test_in_a_real_fish(tmp_path):
    script = "diffulm --show-completion fish | source; complete -C 'diffulm adapt tiny leng'"
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["length=", "length=512"]


def test_what_a_package_says_at_its_import_is_not_heard(caplog):
    from diffulm.denoiser import quiet

    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
    importlib.reload(quiet)
    logging.getLogger("bitsandbytes.backends").warning("no kernels")
    assert caplog.records == []
    logging.getLogger("another.package").warning("this is")
    assert len(caplog.records) == 1
