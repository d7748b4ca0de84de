"""Is my loss normal? Each rule on a run that is really broken, and silent on one that is not; the report; utilisation."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffulm import noise, visibility
from diffulm.cli import main
from diffulm.denoiser.denoiser import Denoiser
from diffulm.evaluation.charts import Line, axis, chart, thinned
from diffulm.recipes import measure
from diffulm.recipes.adapt import run
from diffulm.training import curriculum, health, pace, step, trainer
from diffulm.training.report import remade
from diffulm.training.run_folder import read_metrics
from models import bad
from runs import settings

STEP = 12 * 32  # tokens


@pytest.fixture(scope="module")
def parent(home, tmp_path_factory) -> Path:
    """An AR model that has learnt the sentences of `home`: a random one has nothing that an adaptation could keep."""
    out = tmp_path_factory.mktemp("parent") / "ar"
    more = {"objective": "autoregressive", "scratch": True, "eval_every": "50%", "save_seconds": 600}
    run("tiny", settings(home, out, tokens=120 * STEP, learning_rate=1e-2, **more))
    return out


def adapted(home: Path, parent: Path, out: Path, **more: Any) -> dict[str, Any]:
    """The report of 36 steps of adaptation, open to the future from the 9th on, measured every 12."""
    made = settings(
        home, out, model=str(parent), tokens=36 * STEP, learning_rate=3e-3, anneal_steps="25%", eval_every=12
    )
    return run("tiny", made | {"eval_blocks": 40, "eval_samples": 2, "save_seconds": 600, **more})


@pytest.fixture(scope="module")
def healthy(home, parent, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("healthy") / "run"
    adapted(home, parent, out)
    return out


# --- broken on purpose ---


def test_nothing_looks_wrong_with_a_healthy_run(healthy):
    report = json.loads((healthy / "report.json").read_text())
    assert report["warnings"] == {}
    assert report["verdict"].startswith(("healthy: ", "nothing looks wrong"))


def test_a_parent_that_was_trained_looks_healthy_too(parent):
    report = json.loads((parent / "report.json").read_text())
    assert report["warnings"] == {} and report["verdict"].startswith("healthy: held-out loss")


def after_adoption(change):
    """Broken once the parent is adopted: what adoption itself would refuse."""

    def break_it(monkeypatch):
        original = measure.judge_of
        monkeypatch.setattr(
            "diffulm.recipes.pretraining.judge_of", lambda *args: (change(monkeypatch), original(*args))[1]
        )

    return break_it


def rows_unshifted(monkeypatch):
    monkeypatch.setattr(Denoiser, "_rows", lambda self, ids, where, clean=None: where.flatten().nonzero()[:, 0])


def nothing_masked(monkeypatch):
    def none(free, *args, **options):
        drawn = noise.count(free, *args, **options)
        return replace(drawn, masked=torch.zeros_like(free))

    monkeypatch.setattr(curriculum.noise, "by_name", lambda name: none)


def answers_shown(monkeypatch):
    original = step.prepared
    monkeypatch.setattr(
        trainer, "prepared", lambda *args: [{**inputs, "canvas": inputs["ids"]} for inputs in original(*args)]
    )


def matrix_ignored(monkeypatch):
    original = Denoiser._mask
    monkeypatch.setattr(
        Denoiser, "_mask", lambda self, v, rows, *rest: original(self, visibility.causal(rows.shape[-1]), rows, *rest)
    )


def never_opened(monkeypatch):
    monkeypatch.setattr(curriculum.Curriculum, "visible", lambda self, step, length, device: visibility.causal(length))


def mostly_eos(monkeypatch):
    original = curriculum.Samples.__getitem__

    def padded(self, n):
        made = original(self, n)
        made["ids"][6:] = 0  # the EOS of these runs
        return made

    monkeypatch.setattr(curriculum.Samples, "__getitem__", padded)


def other_weights_in_the_optimizer(monkeypatch):
    original = trainer.DiffusionTrainer.create_optimizer

    def wrong(self, *args):
        optimizer = original(self, *args)
        for group in optimizer.param_groups:
            group["params"] = [nn.Parameter(weight.detach().clone()) for weight in group["params"]]
        return optimizer

    monkeypatch.setattr(trainer.DiffusionTrainer, "create_optimizer", wrong)


SHORT = {"tokens": 4 * STEP, "eval_every": 2, "logging_steps": 1}  # what is wrong shows at once
BROKEN = {
    "labels not shifted": (after_adoption(rows_unshifted), SHORT, "labels"),
    "nothing masked": (nothing_masked, SHORT, "masking"),
    "the answers in sight": (answers_shown, {"eval_samples": 4}, "masking"),
    "attention left causal": (after_adoption(matrix_ignored), SHORT, "future"),
    "attention never opened in training": (never_opened, {}, "future"),
    "learning rate 100 times too high": (lambda patch: None, {"learning_rate": 0.3}, "learning_rate"),
    "EOS everywhere": (mostly_eos, {}, "eos"),
    "frozen weights": (other_weights_in_the_optimizer, SHORT, "frozen"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if broken[1] is SHORT else pytest.mark.slow) for one, broken in BROKEN.items()]
)
def test_a_run_broken_on_purpose_is_told(home, parent, tmp_path, monkeypatch, capsys, name):
    break_it, more, rule = BROKEN[name]
    monkeypatch.setattr(measure, "FINAL_SAMPLES", 2)
    monkeypatch.setattr(measure, "LEFT_TO_RIGHT_BLOCKS", 1)
    break_it(monkeypatch)
    report = adapted(home, parent, tmp_path / "run", **more)
    said = capsys.readouterr().err
    assert list(report["warnings"]) == [rule]
    assert report["verdict"] == f"something looks wrong: {report['warnings'][rule]}"
    assert f"verdict: {report['verdict']}" in said
    assert said.count("looks wrong: ") == 2, "once at the evaluation that found it, once at the end"


# --- the verdict ---

FIRST = {"step": 0, "eval_parent": 2.0, "eval_unigram": 5.0, "eval_bound": 8.0, "eval_data_eos": 0.02}


def rows_of(*bounds: float, **last: float) -> list[dict[str, Any]]:
    """A log with an evaluation every 10 steps; `last` is added to the last one."""
    rows: list[dict[str, Any]] = [dict(FIRST)]
    for number, bound in enumerate(bounds, 1):
        for at in (5, 0):
            step, rate = 10 * number - at, 1e-3 / number
            rows.append({"step": step, "loss": bound, "learning_rate": rate, "anneal_ratio": min(1, step / 10)})
        rows.append({"step": 10 * number, "eval_bound": bound, "eval_bound_stderr": 0.1})
    rows[-1] |= last
    return rows


def verdict(*bounds: float, config: dict[str, Any] | None = None, **last: float) -> health.Verdict:
    return health.examine(rows_of(*bounds, **last), {"objective": "bound", **(config or {})})


def test_verdicts():
    assert verdict().line.startswith("too early")
    assert health.examine([], {}).line.startswith("too early")
    assert verdict(4.0).line.startswith("too early")
    assert (
        verdict(7.0, 5.1).line == "too early to say: the bound, 5.10, has not come below the unigram entropy 5.00 yet"
    )
    good = {"eval_noise_05": 1.5, "eval_noise_95": 4.9}
    assert verdict(4.0, 3.5, **good).line.startswith("healthy: with 5% of the text masked a token costs 1.50")
    assert verdict(4.0, 3.5, **good | {"eval_noise_05": 2.1}).line.startswith("nothing looks wrong")
    assert verdict(4.0, 3.5, config={"scratch": True}).line == "healthy: bound 8.00 -> 3.50"


@pytest.mark.parametrize(
    ("bounds", "last", "config", "rule"),
    [
        ((5.2, 5.2), {}, {}, "learning_rate"),
        ((6.0, 5.2), {}, {}, None),  # it is falling
        ((5.2, 5.2), {}, {"scratch": True}, "learning_rate"),
        ((8.0, 8.0), {}, {}, "frozen"),
        ((4.0, 3.5), {"eval_eos": 0.5}, {}, "eos"),
        ((4.0, 3.5), {"eval_eos": 0.1}, {}, None),  # five times the text's, and one sample may do that
        ((4.0, 3.5), {"eval_future": 0.0, "eval_future_stderr": 0.0}, {}, "future"),
        ((4.0, 3.5), {"eval_future": -0.1, "eval_future_stderr": 0.01, "eval_noise_05": 2.9}, {}, "future"),
        ((4.0, 3.5), {"eval_future": -0.1, "eval_future_stderr": 0.01, "eval_noise_05": 3.1}, {}, None),  # too early
        ((4.0, 3.5), {"eval_future": -0.1, "eval_future_stderr": 0.05, "eval_noise_05": 2.9}, {}, None),  # two errors
        ((4.0, 4.5), {"eval_bound": 4.9, "eval_noise_95": 6.0}, {}, "masking"),
        ((4.0, 4.5), {"eval_bound": 4.9, "eval_noise_95": 5.3}, {}, None),
        ((4.0, 4.5), {"eval_bound": 4.9, "eval_noise_95": 6.0}, {"noise_ceiling": 0.5}, None),
        ((4.0, math.nan), {"eval_bound": 4.0}, {}, "learning_rate"),
    ],
)
def test_where_a_rule_begins(bounds, last, config, rule):
    assert list(verdict(*bounds, config=config, **last).warnings) == ([] if rule is None else [rule])


REPLIES = {"eval_empty": 0.1, "eval_ended": 0.9}
TUNING = {"eval_rows": 64, "too_long": "drop"}


@pytest.mark.parametrize(
    ("bounds", "replies", "config", "said"),
    [
        ((4.0, 3.5), {}, {}, None),
        ((4.0, 3.5), {"eval_empty": 0.6}, {}, "60% of the replies .* are empty: EOS collapse; .* fewer padding_tokens"),
        ((4.0, 3.5), {"eval_empty": 0.5}, {}, None),
        ((4.0, 3.5), {"eval_ended": 0.2}, {}, "80% of the replies .* do not end; usually padding=none"),
        ((4.0, 3.5), {"eval_ended": 0.2}, {"too_long": "cut"}, None),  # so were those that it learnt from
        ((7.0, 6.0), {"eval_empty": 1.0, "eval_ended": 0.0}, {}, None),  # nothing learnt yet
        ((4.0,), {"eval_empty": 1.0}, {}, None),
    ],
)
def test_replies_that_are_empty_or_never_end(bounds, replies, config, said):
    found = verdict(*bounds, config=TUNING | config, **REPLIES | replies).warnings
    assert list(found) == ([] if said is None else ["replies"])
    assert said is None or re.search(said, found["replies"])


def test_replies_of_an_ar_model():
    rows = rows_of(4.0, 3.5, **REPLIES | {"eval_empty": 0.9})
    rows = [{key.replace("bound", "ar"): value for key, value in row.items()} for row in rows]
    found = health.examine(rows, TUNING | {"objective": "autoregressive"}).warnings
    assert list(found) == ["replies"] and "padding" not in found["replies"] and "too few tokens" in found["replies"]


def test_rules_for_text_are_silent_on_replies():
    """Their words may be few, and new to the parent; few tokens at a low rate teach slowly."""
    for parent, rule in ((6.0, "labels"), (2.0, "learning_rate")):
        slow = [FIRST | {"eval_parent": parent}, *rows_of(5.6, 5.5, 5.4, **REPLIES)[1:]]
        assert list(health.examine(slow, {"objective": "bound"}).warnings) == [rule]
        found = health.examine(slow, {"objective": "bound"} | TUNING)
        assert found.warnings == {} and found.line.startswith("too early to say: the bound, 5.40, has not come below")
    lost = rows_of(5.6, 5.5, 5.5, **REPLIES)
    assert list(health.examine(lost, {"objective": "bound"} | TUNING).warnings) == ["learning_rate"]
    fine = verdict(4.0, 3.5, config=TUNING | {"scratch": True}, **REPLIES).line
    assert fine == "healthy: bound 8.00 -> 3.50; 10% of its replies are empty, 90% end"


def test_before_the_last_stage_held_out_figures_do_not_count():
    """They are measured under the attention that the model will end with, and that has not been trained yet."""
    rows = rows_of(5.5, 5.4, eval_future=-1.0, eval_future_stderr=0.01, eval_noise_05=2.9)
    assert list(health.examine(rows, {"objective": "bound"}).warnings) == ["future", "learning_rate"]
    found = health.examine([row | {"stages_left": 1} for row in rows], {"objective": "bound"})
    assert found.line.startswith("too early") and not found.warnings


# --- the report ---


def test_the_report_of_a_run(healthy, capsys):
    page = (healthy / "report.html").read_text()
    report = json.loads((healthy / "report.json").read_text())
    assert report["verdict"][:60] in page and 'class="verdict"' in page and "http" not in page
    titles = (
        "Loss, nats",
        "share of masked",
        "Gradient norm",
        "Learning rate",
        "Annealing",
        "right side",
        "Samples: EOS",
    )
    for title in (*titles, "Samples: entropy", "Samples: perplexity", "Tokens a second", "Utilisation"):
        assert f"{title}" in page, title
    assert page.count("<svg") == 11 and page.count('class="how"') == 11
    assert "unigram entropy 3." in page and "the parent as it was" in page
    (healthy / "report.html").unlink()
    with pytest.raises(SystemExit):
        main(["report", str(healthy), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == report["verdict"] and (healthy / "report.html").read_text() == page
    assert not list(healthy.glob("*.tmp"))


def test_a_run_under_way_has_a_report_and_says_what_it_does(home, parent, tmp_path, monkeypatch, capsys):
    class Died(BaseException):
        pass

    def die(*args):
        raise Died

    monkeypatch.setattr("diffulm.recipes.train.published", die)
    with pytest.raises(Died):
        adapted(home, parent, tmp_path / "run", **SHORT)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Step 4" in page and 'class="verdict"' in page
    monkeypatch.undo()
    monkeypatch.setattr(measure, "JUDGE_PARAMETERS", 0)
    capsys.readouterr()
    adapted(home, parent, tmp_path / "run", **SHORT)
    said = capsys.readouterr().err
    assert "measuring what training has made" in said
    assert f"next: diffulm generate {tmp_path / 'run'} --prompt" in said
    assert "eval_perplexity" in read_metrics(tmp_path / "run" / "metrics.jsonl")[0], "written while there was a judge"


def test_a_folder_that_holds_no_run(tmp_path):
    with bad("holds no run"):
        remade(tmp_path)


def test_charts():
    assert chart("x", [Line("nothing", [])]) == "" and chart("x", [Line("nan", [(0, math.nan)])]) == ""
    drawn = chart("x", [Line("a<b", [(0, 1.0), (1, 2.0)])], {"parent": 1.5})
    assert "a&lt;b" in drawn and "parent 1.5" in drawn and drawn.count("<polyline") == 1
    place, marks = axis(0.0, 9.3, 0, 100)
    assert marks == [0, 5] and 0 < place(0) < place(9.3) < 100
    place, marks = axis(0.02, 30, 100, 0, log=True)
    assert marks == pytest.approx([0.01, 0.1, 1, 10, 100]) and place(1) == pytest.approx(50)
    assert axis(3.0, 3.0, 0, 100)[0](3.0) == pytest.approx(50)  # a flat line lies in the middle
    many = thinned([(float(i), float(i)) for i in range(1000)])
    assert len(many) == 200 and many[0] == (2.0, 2.0)


# --- utilisation, trackers ---


def test_utilisation_is_logged(healthy):
    rows = [row for row in read_metrics(healthy / "metrics.jsonl") if "loss" in row]
    assert all(0 < row["utilisation"] < 1 for row in rows)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA H100 PCIe", None),  # slower than the card of the list
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_gpu_by_its_name(monkeypatch, name, known):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert pace.peak("cuda", bf16=True) == known
    assert pace.peak("cuda", bf16=False) is None


def test_the_peak_of_a_cpu_is_measured():
    assert 1e8 < (pace.peak("cpu", bf16=False) or 0) < 1e14
    assert pace.peak("mps", bf16=False) is None


def test_trackers_get_the_evaluations(home, parent, tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    seen: list[tuple[int, dict[str, Any]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, dict(logs or {})))

    with bad("unknown tracker"):
        adapted(home, parent, tmp_path / "run", report_to=["tensorbord"])
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    with bad("report_to=wandb: is not installed here"):
        adapted(home, parent, tmp_path / "run", report_to=["wandb"])
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    adapted(home, parent, tmp_path / "run", report_to=["wandb"], **SHORT)
    assert [step for step, logs in seen if "eval_bound" in logs] == [0, 2, 4]
    assert [step for step, logs in seen if "loss" in logs] == [1, 2, 3, 4]
    assert "eval_unigram" in seen[0][1]
