"""Training: the loss of the whole global batch, exact resume, run folders that lose nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from diffulm import visibility
from diffulm.data.blocks import build
from diffulm.denoiser.adopt import adopt
from diffulm.errors import BadInput
from diffulm.evaluation import likelihood
from diffulm.lm import load
from diffulm.recipes.adapt import adapt, run
from diffulm.recipes.config import steps_or_share, tokens
from diffulm.training.curriculum import Curriculum, Samples
from diffulm.training.run_folder import RunFolder, read_metrics
from runs import settings, timeless, weights


@pytest.fixture(scope="module")
def finished(home, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    run("tiny", settings(home, out))
    return out


def test_a_run_leaves_what_it_promises(finished):
    rows = read_metrics(finished / "metrics.jsonl")
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == list(range(4, 25, 4))
    assert {"loss", "grad_norm", "learning_rate", "tokens", "anneal_ratio", "tokens_per_second"} <= set(logged[0])
    assert all("loss" not in row for row in rows if any(key.startswith("eval_") for key in row))
    assert [row["step"] for row in rows if "eval_bound" in row] == [0, 8, 16, 24]
    report = json.loads((finished / "report.json").read_text())
    assert report["steps"] == 24 and report["tokens"] == 24 * 12 * 32
    assert report["bound"] < rows[0]["eval_bound"], "24 steps on 119 sentences of 20 words must help"
    config = json.loads((finished / "config.json").read_text())
    assert config["use_cache"], "Trainer switches it off in the config of the model that it trains"
    record = config["diffulm"]
    assert record["shift"] and record["attention"] == "full" and record["bos_token_id"] == 0
    assert not list(finished.rglob("*.tmp")) and not list(finished.rglob("*.bin"))
    assert not {file.suffix for file in finished.rglob("*")} & {".pt", ".pth", ".pkl"}, "nothing here is pickled"
    assert load(finished).infill("the cat <hole:2> on a mat").fills


def test_config_yaml_reproduces_the_run(finished, tmp_path):
    run(str(finished / "config.yaml"), {"out": str(tmp_path / "again")})
    assert weights(tmp_path / "again") == weights(finished)
    assert timeless(tmp_path / "again") == timeless(finished)


class Died(BaseException):
    """Stands for a power cut: nothing gets to tidy up after it."""


def test_a_run_that_dies_anywhere_resumes_exactly(home, finished, tmp_path, monkeypatch):
    """In a step, in an evaluation, in a save: bit-identical weights and log lines."""
    from diffulm.training import trainer

    out, calls = tmp_path / "run", {"n": 0}

    def dying(name: str, at: int) -> None:
        original = getattr(trainer.DiffusionTrainer, name)
        calls["n"] = 0

        def call(self, *args, **kwargs):
            calls["n"] += 1
            if calls["n"] == at:
                raise Died
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.DiffusionTrainer, name, call)
            with pytest.raises(Died):
                run("tiny", settings(home, out))

    dying("compute_loss", 2)  # before the first checkpoint
    dying("compute_loss", 8)
    dying("evaluate", 1)
    dying("_save_optimizer_and_scheduler", 2)  # the model of that checkpoint is written, its optimizer is not
    assert not (out / "report.json").exists()
    with pytest.raises(BadInput, match="not finished"):
        load(out)
    run("tiny", settings(home, out))
    assert weights(out) == weights(finished)
    assert timeless(out) == timeless(finished)


@pytest.mark.slow
def test_sigkill_and_the_same_command_again(home, finished, tmp_path):
    out = tmp_path / "run"
    pairs = [f"{key}={value}" for key, value in settings(home, out).items()]
    command = [sys.executable, "-m", "diffulm", "adapt", "tiny", *pairs]
    # the thread count is part of what makes a sum come out the same
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoint-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.json").exists(), "it was too fast to be killed"
    subprocess.run(
        command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=180
    )
    assert weights(out) == weights(finished)
    assert timeless(out) == timeless(finished)


def test_a_finished_run_is_left_alone(home, finished, capsys):
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*") if file.is_file()}
    report = run("tiny", settings(home, finished))
    assert report == json.loads((finished / "report.json").read_text())
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("*") if file.is_file()}
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("learning_rate", 1e-4), ("tokens", "1M")])
def test_another_run_is_refused_and_the_key_named(home, finished, key, value):
    with pytest.raises(BadInput, match=f"another run: {key} is"):
        run("tiny", settings(home, finished, **{key: value}))


def test_foreign_folders_are_refused_untouched(home, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="is a file"):
        run("tiny", settings(home, tmp_path / "file"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds no run"):
        run("tiny", settings(home, tmp_path / "full"))
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("what", [{"data": "nowhere.jsonl"}, {"model": "./nowhere"}])
def test_a_missing_input_leaves_no_folder(home, tmp_path, what):
    with pytest.raises(BadInput):
        run("tiny", settings(home, tmp_path / "run", **what))
    assert not (tmp_path / "run").exists()


def test_two_processes_in_one_folder(tmp_path):
    first, second = RunFolder(tmp_path / "run", {"a": 1}), RunFolder(tmp_path / "run", {"a": 1})
    with first.claimed(), pytest.raises(BadInput, match="another process"), second.claimed():
        pass
    with second.claimed():
        pass


def test_resuming_restores_the_log_and_clears_away_what_a_killed_run_left(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.data = {"train": "a", "eval": ""}
    for step in (0, 4, 8):
        folder.log({"step": step})
        if step:
            (tmp_path / f"checkpoint-{step}").mkdir()
            folder.complete(tmp_path / f"checkpoint-{step}")
    with folder.metrics.open("a") as stream:
        stream.write('{"step": 12, "lo')
    (tmp_path / "saving.tmp" / "checkpoint-12").mkdir(parents=True)
    (tmp_path / "config.yaml.tmp").write_text("a:")
    assert folder.resume_point() == tmp_path / "checkpoint-8"
    assert read_metrics(folder.metrics) == [{"step": 0}, {"step": 4}, {"step": 8}]
    assert not list(tmp_path.glob("*.tmp"))
    folder.data = {"train": "b", "eval": ""}
    with pytest.raises(BadInput, match="other blocks"):
        folder.resume_point()


@pytest.mark.parametrize(
    "objective",
    ["bound", *(pytest.param(one, marks=pytest.mark.slow) for one in ("row_mean", "unweighted", "autoregressive"))],
)
def test_the_micro_batch_does_not_change_the_loss(home, tmp_path, objective):
    """Sums and denominators run over the global batch: 12 at once or 3 at a time. Only float error is left, 2e-5 nats
    after a few steps in float32."""
    rows = []
    for micro in (12, 3):
        out = tmp_path / f"{objective}-{micro}"
        run("tiny", settings(home, out, micro_batch=micro, objective=objective, tokens=4 * 12 * 32, logging_steps=1))
        rows.append([row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row])
    assert rows[0] == pytest.approx(rows[1], abs=2e-5)


def test_training_a_parent_gives_a_plain_checkpoint(home, tmp_path):
    out = tmp_path / "parent"
    run("tiny", settings(home, out, objective="autoregressive", scratch=True))
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["eval_ar"] < rows[0]["eval_ar"] - 1
    assert "diffulm" not in json.loads((out / "config.json").read_text())
    with pytest.raises(BadInput, match="adapt"):
        load(out)
    adopt(out)


def test_the_autoregressive_loss_is_the_model_s_own(home, tmp_path):
    denoiser, tokenizer = adopt(home / "parent")
    rows = build(str(home / "text.jsonl"), tokenizer, 0, 0, 32, tmp_path / "blocks").with_format("torch")
    ids = torch.stack([rows[i]["ids"].long() for i in range(5)])
    model = AutoModelForCausalLM.from_pretrained(home / "parent")
    with torch.no_grad():
        own = float(model(input_ids=ids, labels=ids).loss)
    # the mask row is left out of our softmax; the parent gives it about one part in 300
    masked = model(input_ids=ids).logits.detach()
    masked[..., denoiser.record.mask_token_id] = -torch.inf
    expected = torch.nn.functional.cross_entropy(masked[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert likelihood.autoregressive(denoiser, ids).nats == pytest.approx(float(expected), abs=1e-5)
    assert likelihood.autoregressive(denoiser, ids).nats == pytest.approx(own, abs=0.05)


def test_held_out_losses_agree_with_naive_loops(home, tmp_path):
    denoiser, tokenizer = adopt(home / "parent")
    rows = build(str(home / "text.jsonl"), tokenizer, 0, 0, 16, tmp_path / "blocks").with_format("torch")
    ids = torch.stack([rows[i]["ids"].long() for i in range(2)])
    mask = denoiser.record.mask_token_id
    total = 0.0
    for block in ids:
        for j in range(1, 16):
            canvas = block.clone()[None]
            canvas[0, j:] = mask
            where = torch.zeros_like(canvas, dtype=torch.bool)
            where[0, j] = True
            total -= float(denoiser(canvas, where=where).log_softmax(-1)[0, block[j]].detach())
    assert likelihood.left_to_right(denoiser, ids).nats == pytest.approx(total / 30, abs=1e-4)
    loose, tight = (likelihood.bound(denoiser, ids, samples=n) for n in (8, 512))
    assert abs(loose.nats - tight.nats) < 4 * (loose.stderr + tight.stderr)  # 4 sigma, fixed seed
    assert tight.stderr < loose.stderr


def test_noise_and_matrix_depend_on_step_and_row_alone():
    curriculum = Curriculum(9, seed=3, global_batch=8, anneal_steps=10)
    ids = torch.arange(8 * 16).reshape(8, 16) % 7
    fixed = torch.zeros(8, 16, dtype=torch.bool)
    fixed[:, 0] = True
    batch = {"ids": ids, "fixed": fixed, "step": torch.full((8,), 5), "row": torch.arange(8)}
    whole = curriculum.hide(batch)
    part = curriculum.hide({key: value[2:5] for key, value in batch.items()})
    assert torch.equal(whole.where[2:5], part.where) and torch.equal(whole.token_weight[2:5], part.token_weight)
    assert not whole.where[:, 0].any()
    assert torch.equal(whole.canvas[whole.where], torch.full((int(whole.where.sum()),), 9))
    matrix = curriculum.visible(4, 16, torch.device("cpu"))
    assert matrix is not None and torch.equal(matrix, visibility.annealed(16, 0.5, 3, 4))
    assert curriculum.visible(9, 16, torch.device("cpu")) is None


def test_samples_visit_every_block_once_an_epoch():
    blocks = [{"ids": [i, i]} for i in range(7)]
    samples = Samples(blocks, True, seed=1, global_batch=7, steps=2)  # pyright: ignore[reportArgumentType]
    epochs = [[int(samples[e * 7 + i]["ids"][0]) for i in range(7)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(7)) and epochs[0] != epochs[1]
    assert (int(samples[9]["step"]), int(samples[9]["row"])) == (1, 2)


def test_context_batch_and_share_errors(home, tmp_path):
    with pytest.raises(BadInput, match="at most 64"):
        run("tiny", settings(home, tmp_path / "a", length=65))
    with pytest.raises(BadInput, match="micro_batch=5"):
        run("tiny", settings(home, tmp_path / "b", micro_batch=5))
    with pytest.raises(BadInput, match="learning_rate"):
        run("tiny", settings(home, tmp_path / "c", learning_rate="learning"))
    with pytest.raises(BadInput, match="did you mean 'learning_rate'"):
        adapt("tiny", model="x", data="y", out="z", learning_rat=1)
    with pytest.raises(BadInput, match="did you mean 'tiny'"):
        adapt("tinny", model="x", data="y", out="z")


@pytest.mark.parametrize(
    ("text", "value"), [("1000", 1000), ("600K", 600_000), ("1.5B", 1_500_000_000), ("4m", 4_000_000)]
)
def test_tokens(text, value):
    assert tokens(text) == value


@pytest.mark.parametrize("text", ["0", "-3", "4MM", "", "1e6", "nan"])
def test_tokens_refused(text):
    with pytest.raises(ValueError, match="number of tokens"):
        tokens(text)


def test_steps_or_share():
    assert (steps_or_share("2000"), steps_or_share("5%")) == (2000, "5%")
    for wrong in ("-1", "101%", "five"):
        with pytest.raises(ValueError, match="number of steps"):
            steps_or_share(wrong)
