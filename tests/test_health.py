"""Is my loss normal? Each rule on a run that is really broken, and silent on one that is not; the report; utilisation."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffulm import noise, visibility
from diffulm.denoiser.denoiser import Denoiser
from diffulm.recipes import measure
from diffulm.recipes.adapt import run
from diffulm.training import curriculum, health, pace, step, trainer
from diffulm.training.charts import Line, axis, chart, thinned
from diffulm.training.report import refresh
from diffulm.training.run_folder import read_metrics
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


def test_nothing_looks_wrong_with_a_healthy_run(healthy, capsys):
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
        monkeypatch.setattr("diffulm.recipes.train.judge_of", lambda *args: (change(monkeypatch), original(*args))[1])

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
        Denoiser, "_mask", lambda self, v, p, ids, past: original(self, visibility.causal(ids.shape[1]), p, ids, past)
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


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_broken_on_purpose_is_told(home, parent, tmp_path, monkeypatch, capsys, name):
    break_it, more, rule = BROKEN[name]
    monkeypatch.setattr(measure, "FINAL_SAMPLES", 2)
    monkeypatch.setattr(measure, "LEFT_TO_RIGHT_BLOCKS", 1)
    break_it(monkeypatch)
    import time

    t = time.process_time()
    report = adapted(home, parent, tmp_path / "run", **more)
    said = capsys.readouterr().err
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for row in rows:
        print(
            {
                k: (round(v, 3) if isinstance(v, float) else v)
                for k, v in row.items()
                if k not in ("seconds", "tokens", "time_to_go", "tokens_per_second", "utilisation")
            }
        )
    print(time.process_time() - t, report["verdict"], report["warnings"])
    assert list(report["warnings"]) == [rule]
    assert report["verdict"].startswith("something looks wrong: ")
    assert said.count("looks wrong: ") == 2, "once at the evaluation that found it, once at the end"
    assert report["warnings"][rule] in said and "verdict: something looks wrong" in said
