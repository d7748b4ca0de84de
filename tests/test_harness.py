"""lm-eval: its three kinds of request on a diffusion model and its parent, the same numbers as its own class gives the
parent, its command line, and the cells that come of it."""

import json
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import diffulm
from diffulm import scoring
from diffulm.evaluation import discovery, tasks
from diffulm.evaluation.journal import Journal
from diffulm.evaluation.subject import opened
from diffulm.evaluation.trial import Trial
from models import bad

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what lm-eval and its libraries warn of when they are imported is theirs
    import lm_eval.evaluator
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model, model_registry
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from diffulm.evaluation import harness
    from diffulm.evaluation.harness_model import DiffuLM

CODE = [("def close(self):", "\n    self.file.close()"), ("import os", "\n"), ("", "class A:\n"), ("x = [1", ", 2]")]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """lm-eval asks a dozen commands about the machine, for seconds."""
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda storage: None)


def asked(kind, *arguments, task="code", document=0):
    return Instance(kind, {}, arguments, 0, metadata=(task, document, 1))


def likelihoods(model, pairs=CODE):
    return model.loglikelihood([asked("loglikelihood", *pair, document=i) for i, pair in enumerate(pairs)])


def test_the_parent_gets_what_lm_eval_s_own_class_gives_it():
    """Log-likelihoods, documents and greedy texts. In float64: in float32 theirs alone moves by 1e-4 nats."""
    folder = Path(diffulm.__file__).parent / "assets" / "pocket-ar"
    words = AutoTokenizer.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
        theirs = HFLM(pretrained=model, tokenizer=words, batch_size=3, device="cpu", max_length=256)
    ours = DiffuLM(subject=opened("pocket-ar", dtype=torch.float64, parent=True))
    # Theirs has no BOS in front of a context, ours always. No token spans the place where context and text meet: theirs
    # would lose it.
    bos = words.bos_token
    marked = [asked("loglikelihood", bos + context, text) for context, text in CODE]
    for (mine, greedy), (want, likeliest) in zip(likelihoods(ours), theirs.loglikelihood(marked, True), strict=True):
        assert mine == pytest.approx(want, abs=1e-5) and greedy == likeliest
    documents = [asked("loglikelihood_rolling", "".join(pair), document=i) for i, pair in enumerate(CODE)]
    mine, want = (each.loglikelihood_rolling(documents, True) for each in (ours, theirs))
    assert mine == pytest.approx(want, abs=1e-5)
    how = {"until": ["]"], "max_gen_toks": 8, "do_sample": False}
    texts = ours.generate_until([asked("generate_until", context, dict(how)) for context, _ in CODE[::3]])
    theirs_too = [asked("generate_until", bos + context, dict(how)) for context, _ in CODE[::3]]
    assert texts == theirs.generate_until(theirs_too, True) and all(texts)


def test_a_diffusion_model_is_scored_as_the_library_scores_it(child):
    exact = likelihoods(DiffuLM(subject=child, method="left_to_right"))
    for (nats, _), (context, text) in zip(exact, CODE, strict=True):
        score = child.lm.score(text, context=context, method="left_to_right")
        assert -nats == pytest.approx(score.nats, abs=1e-3)
    drawn = likelihoods(DiffuLM(subject=child, method="bound", draws=16))
    assert all(a[0] != b[0] for a, b in zip(exact, drawn, strict=True))
    # a text asked for by itself is also asked whether it is the likeliest: no bound says so
    assert [one[1] for one in drawn] == [one[1] for one in exact]


@pytest.mark.parametrize("method", ["left_to_right", "bound"])
def test_likelihoods_depend_on_nothing_beside_them(child, method):
    """Batch sizes and order change float error alone: 1e-4 nats a token, of 10 tokens at the most here."""
    one = likelihoods(DiffuLM(subject=child, method=method, draws=4, batch_size="1"))
    alone = [DiffuLM(subject=child, method=method, draws=4, batch_size=64) for _ in CODE]
    backwards = [
        model.loglikelihood([asked("loglikelihood", *CODE[i], document=i)])[0]
        for i, model in reversed([*enumerate(alone)])
    ][::-1]
    assert [a for a, _ in one] == pytest.approx([a for a, _ in backwards], abs=1e-3)


def test_choices_of_a_question_share_their_random_numbers(child, monkeypatch):
    seen, real = [], scoring.scores
    monkeypatch.setattr(
        scoring, "scores", lambda its, requests, *rest: seen.extend(requests) or real(its, requests, *rest)
    )
    model = DiffuLM(subject=child, method="bound", draws=2)
    pairs = [("self, name):", 0), ("self, key):", 0), ("self, name):", 1)]
    found = model.loglikelihood([asked("loglikelihood", "def f(", text, document=i) for text, i in pairs])
    keys = [one.key for one in seen[:3]]
    assert keys[0] == keys[1] != keys[2] and found[0][0] != found[2][0]
    again = DiffuLM(subject=child, method="bound", draws=2, seed=1)
    assert again.loglikelihood([asked("loglikelihood", "def f(", "self, name):")])[0][0] != found[0][0]


def test_what_cannot_be_asked_is_counted_and_never_the_likeliest(child):
    model = DiffuLM(subject=child)
    long = "x = 1\n" * 200
    pairs = [("def f(", ""), ("", long), (long, "y"), ("def f(", "self")]
    found = likelihoods(model, pairs)
    assert [nats for nats, _ in found[:2]] == [float("-inf")] * 2 and all(nats > -100 for nats, _ in found[2:])
    known = [model.scored["code", i][0] for i in range(4)]
    assert [one["why"] for one in known] == ["answers empty", "beyond the context", "", ""]
    assert known[2]["cut"] > 0 == known[3]["cut"]
    assert model.loglikelihood_rolling([asked("loglikelihood_rolling", "", document=9)]) == [0.0]
    assert model.scored["code", 9] == [{"why": "texts empty"}]


def test_repeats_are_draws_of_their_own(child, parent):
    for subject, drawn in ((child, True), (parent, True), (child, False)):
        how = {"until": [], "max_gen_toks": 6, "do_sample": drawn, "temperature": 1.0}
        requests = [asked("generate_until", "class A", how)] * 3
        texts = DiffuLM(subject=subject, steps=3).generate_until(requests)
        assert len(set(texts)) == (3 if drawn else 1)
        assert texts == DiffuLM(subject=subject, steps=3, batch_size=1).generate_until(requests)


def test_texts_end_where_a_task_says(child):
    def text(**how):
        return DiffuLM(subject=child, steps=8).generate_until(
            [asked("generate_until", "    def close(self):\n        ", how)]
        )[0]

    whole = text(max_gen_toks=16)
    assert text(max_new_tokens=16, until="(") == whole.split("(")[0] != whole
    assert len(text(max_gen_toks=4)) < len(whole)
    # a task that asks for more than the window holds gets half of it, not an error
    assert DiffuLM(subject=child)._how({"max_gen_toks": 10**6}) == (128, (), 0.0)
    assert DiffuLM(subject=child, temperature=0.5)._how({"do_sample": False}) == (256 // 2, (), 0.5)


def test_a_chat_template_s_special_tokens_are_meant(child, monkeypatch):
    subject = opened("pocket")
    template = "{{bos_token}}{% for m in messages %}<|reserved_0|>{{m.content}}<|reserved_1|>{% endfor %}"
    subject.tokenizer.chat_template = template
    model = DiffuLM(subject=subject)
    prompt = model.apply_chat_template([{"role": "user", "content": "x"}])
    assert prompt == "<|endoftext|><|reserved_0|>x<|reserved_1|>" and model.chat_template(True) == template
    seen, real = [], scoring.scores
    monkeypatch.setattr(
        scoring, "scores", lambda denoiser, requests, *rest: seen.extend(requests) or real(denoiser, requests, *rest)
    )
    model.loglikelihood([asked("loglikelihood", prompt, "y")])
    names = ("<|endoftext|>", "<|reserved_0|>", "x", "<|reserved_1|>", "y")
    assert seen[0].ids == tuple(subject.tokenizer.convert_tokens_to_ids(names)) and seen[0].start == 4
    assert isinstance(model.generate_until([asked("generate_until", prompt, {"max_gen_toks": 2})])[0], str)
    with bad("no chat template"):
        DiffuLM(subject=child).apply_chat_template([{"role": "user", "content": "x"}])


def test_wrong_arguments_are_named():
    for arguments, said in [
        ({"pretrained": "pocket", "drawz": 3}, "unknown model argument 'drawz'; did you mean 'draws'"),
        ({"pretrained": "pocket", "method": "bond"}, "unknown method 'bond'; did you mean 'bound'"),
        ({"pretrained": "pocket", "dtype": "float64"}, "unknown dtype"),
        ({}, "which model"),
    ]:
        with bad(said):
            DiffuLM(**arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with a few rows of some tasks; SIQA's second row is bad, PIQA's file is not there."""
    root = tmp_path_factory.mktemp("eval")
    stories = [{"sentences": ["a"] * 5, "endings": ["x = 1", "import os"], "label": n % 2} for n in range(4)]
    names = [
        {"sentence": f"Ann met Bo, so _ {verb}.", "option1": "Ann", "option2": "Bo", "answer": 1} for verb in "abcd"
    ]
    quiz = [{"question": f"What is {n}?", "answer": "no", "aliases": []} for n in range(4)]
    social = {"context": "c", "question": "q", "answers": ["a", "b", "c"], "label": 0}
    for name, rows in {
        "rocstories": stories,
        "winogrande": names,
        "triviaqa": quiz,
        "siqa": [social, social | {"label": 9}],
        "tinystories": [{"text": "def f(self):\n    return 1\n"}, {"text": "import os\n" * 3}],
        "lambada": [{"context": "import numpy as", "target": word} for word in ("np", "os")],
    }.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "text" / "tinystories").mkdir(parents=True)
    (root / "tinystories.jsonl").rename(root / "text" / "tinystories" / "valid.jsonl")
    return root


ALL = ["rocstories_cloze", "winogrande", "triviaqa", "tinystories", "lambada", "piqa", "siqa"]


def test_a_run_gives_a_cell_for_each_figure(child, parent, folder, tmp_path, monkeypatch, capsys):
    journal = tmp_path / "journal"
    found = {}
    for subject in (child, parent):
        trial = Trial(subject, data=folder, limit=3, draws=4, steps=4, journal=Journal(journal))
        found[subject.name] = harness.run(subject, ALL, trial)
    assert capsys.readouterr() == ("", "")
    for cells, results in found.values():
        by_name = {(one.task, one.metric, one.normalisation): one for one in cells}
        assert by_name["piqa", "", "none"].note == "no data"
        assert "siqa.jsonl, row 2" in by_name["siqa", "", "none"].note
        choice = by_name["rocstories_cloze", "accuracy", "none"]
        assert choice.count == len(choice.items) == 3 and choice.value == sum(choice.items) / 3 and choice.stderr
        assert by_name["rocstories_cloze", "accuracy", "character"].count == 3
        assert by_name["winogrande", "accuracy", "none"].count == 3
        assert by_name["triviaqa", "exact match", "none"].value == 0 and choice.value in (0.0, 1 / 3, 2 / 3, 1.0)
        story = by_name["tinystories", "bits a byte", "byte"]
        assert story.better == "lower" and 0 < story.value < 20 and story.settings["eos"] == "appended, scored"
        assert set(results) >= {"results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"}
        assert "samples" not in results and results["n-samples"]["winogrande"] == {"original": 4, "effective": 3}
        json.dumps(results, default=str)
    mine, theirs = ({(one.task, one.metric): one for one in cells} for cells, _ in found.values())
    assert mine["tinystories", "bits a byte"].note == "an upper bound" and not theirs["tinystories", "bits a byte"].note
    assert mine["tinystories", "bits a byte"].monte_carlo > 0 == theirs["tinystories", "bits a byte"].monte_carlo
    assert [mine[key].length for key in (("lambada", "accuracy"), ("triviaqa", "exact match"))] == ["oracle", "free"]
    assert {one.length for one in theirs.values()} == {"none"}
    # what was interrupted goes on: nothing is asked again, and the figures are the same
    monkeypatch.setattr(scoring, "scores", None)
    monkeypatch.setattr(type(child), "complete", None)
    trial = Trial(child, data=folder, limit=3, draws=4, steps=4, journal=Journal(journal))
    again, _ = harness.run(child, ALL, trial)
    assert again == found[child.name][0]


def test_a_question_that_cannot_be_asked_is_in_no_cell_and_counted(child, tmp_path):
    row = {"context": "c", "question": "q", "answers": ["a", "b", "c"], "label": 0}
    rows = [row, row | {"answers": ["a", "b", "x = 1\n" * 200]}, row | {"context": "x = 1\n" * 200}]
    (tmp_path / "siqa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    for cell in harness.run(child, ["siqa"], Trial(child, data=tmp_path, draws=2, method="bound"))[0]:
        assert cell.count == 2 and cell.counts == {"beyond the context": 1, "contexts cut": 1}


def test_the_bits_of_a_document_are_those_of_the_suite(child, folder):
    from diffulm.evaluation.suite import bits_per_byte

    trial = Trial(child, data=folder, draws=4)
    ours = next(one for one in harness.run(child, ["tinystories"], trial)[0] if one.metric == "bits a byte")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits_per_byte, "TASKS", ("tinystories",))
        (want,) = bits_per_byte.run(trial)
    assert (ours.value, ours.count, ours.stderr) == pytest.approx((want.value, want.count, want.stderr), rel=1e-6)


def test_the_noise_of_draws_is_in_the_error(child, folder):
    """With two draws a choice the bound is not sure which of two texts is likelier; exact scores are."""
    for method, noisy in (("bound", True), ("left_to_right", False)):
        trial = Trial(child, data=folder, draws=2, method=method)
        cell = harness.run(child, ["rocstories_cloze"], trial)[0][0]
        assert (cell.monte_carlo > 0) == noisy and cell.settings["method"] == method


def test_shots_are_rows_that_are_not_asked(child, folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        DiffuLM, "generate_until", lambda self, requests: [seen.append(one.args[0]) or "" for one in requests]
    )
    trial = Trial(child, data=folder, limit=2, shots=1)
    monkeypatch.setattr(DiffuLM, "_how", lambda self, settings: (1, (), 0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.harness_results, "cells", lambda *rest: [])
        harness.run(child, ["triviaqa"], trial)
    assert len(seen) == 2
    for number, prompt in enumerate(seen):
        shot, question = prompt.split("\n\n")
        assert question == f"Question: What is {number}?\nAnswer:"
        assert shot in [f"Question: What is {other}?\nAnswer: no" for other in (2, 3)]
    cells, _ = harness.run(child, ["triviaqa"], Trial(child, data=folder, shots=9))
    assert "9 shots wanted" in cells[0].note


def test_a_name_that_is_no_task_names_the_nearest(folder, monkeypatch):
    monkeypatch.setattr(harness, "TaskManager", lambda **how: TaskManager(**how | {"include_defaults": False}))
    with bad("unknown task 'hellaswagg'; did you mean 'hellaswag"):
        harness.check(["piqa", "hellaswagg"], folder)
    with bad("unknown task 'xyzxyz'; `lm-eval ls tasks`"):
        harness.check(["xyzxyz"], folder)
    harness.check(["piqa", "*cloze"], folder)


def test_lm_eval_finds_the_class_by_its_name(monkeypatch):
    assert {(one.name, one.value) for one in entry_points(group="lm_eval.models")} >= {("diffulm", discovery.MODEL)}
    hooks = {one.name: one.load() for one in entry_points(group="torch.backends")}
    known = dict(model_registry._objs)
    monkeypatch.setattr(model_registry, "_objs", {key: value for key, value in known.items() if key != "diffulm"})
    with pytest.raises(ValueError, match="diffulm"):
        get_model("diffulm")
    hooks["diffulm"]()
    assert get_model("diffulm").__name__ == "DiffuLM" and get_model("dummy")
    monkeypatch.delitem(sys.modules, "lm_eval.models")
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)  # an lm-eval that is otherwise than expected
    hooks["diffulm"]()


def test_the_command_line_of_lm_eval(folder, tmp_path, monkeypatch, capsys):
    """In this process: a made-up task of one's own, its results file, and the cache of answers."""
    from lm_eval.__main__ import cli_evaluate

    one = tmp_path / "mine" / "mine.yaml"
    one.parent.mkdir()
    base = Path(tasks.__path__[0]) / "_choices.yaml"
    one.write_text(f"include: {base}\ntask: mine\ndataset_kwargs: {{definition: rocstories_cloze}}\n")
    monkeypatch.setattr(TaskManager.__init__, "__defaults__", (None, None, False, None))  # not lm-eval's ten thousand
    monkeypatch.setenv("DIFFULM_DATA_DIR", str(folder))
    line = "lm_eval --model diffulm --model_args pretrained=pocket,draws=4,method=bound --tasks mine --limit 2".split()
    line += ["--include_path", str(one.parent), "--use_cache", str(tmp_path / "cache")]
    for arguments in ["--output_path", str(tmp_path / "out")], []:
        monkeypatch.setattr(sys, "argv", [*line, *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli_evaluate()
        assert "|mine" in capsys.readouterr().out.replace(" ", "")
        monkeypatch.setattr(scoring, "scores", None)  # the second time all answers are in the cache
    (path,) = (tmp_path / "out").rglob("results_*.json")
    kept = json.loads(path.read_text())
    assert (
        kept["results"]["mine"]["acc,none"] in (0.0, 0.5, 1.0)
        and kept["config"]["model_args"]["pretrained"] == "pocket"
    )


@pytest.mark.slow
def test_the_command_itself(folder, tmp_path):
    """The plain command in a process of its own finds the model and, given the folder, our tasks."""
    import os
    import subprocess

    place = Path(tasks.__path__[0])
    command = [Path(sys.executable).with_name("lm_eval"), "--model", "diffulm", "--model_args", "pretrained=pocket"]
    command += ["--tasks", "rocstories_cloze", "--include_path", place, "--limit", "2"]
    environment = os.environ | {"DIFFULM_DATA_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rocstories_cloze" in done.stdout
