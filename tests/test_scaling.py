"""One run on 1, 2 and 3 processes, whole on each or sharded over them: the same losses, the same weights, and at the end one
plain checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from safetensors.torch import load_file

from diffulm.lm import load
from diffulm.recipes.adapt import run
from diffulm.recipes.config import PRESETS
from forks import Child, Forks
from models import bad
from runs import short, timeless

CLOSE = 2e-5  # the sums of float32 come in another order; through the 8 steps of these runs they stay this near
SIX: dict[str, Any] = {"global_batch": 6, "tokens": 8 * 6 * 16}  # rows for 1, 2 and 3 processes
# Each process says what it trains: `sharded` checks it in the middle of the run, when the third step is clipped.
LOOK = """
import torch
from torch.distributed.tensor import DTensor
from diffulm.training.trainer import DiffusionTrainer
def look(self, model, clip=DiffusionTrainer._clip_grad_norm):
    if self.state.global_step == 2:
        weights = list(self.model.parameters())
        assert all(type(weight) is DTensor for weight in weights)
        here = sum(weight.to_local().numel() for weight in weights)
        assert here < 1.1 / self.args.world_size * sum(weight.numel() for weight in weights)
        assert all(type(weight.grad) is DTensor for weight in weights)
        moments = [part["exp_avg"] for part in self.optimizer.state_dict()["state"].values()]
        assert len(moments) == len(weights) and all(type(moment) is DTensor for moment in moments)
        assert type(self.model).__bases__[1].__name__ == "LlamaForCausalLM"
    return clip(self, model)
DiffusionTrainer._clip_grad_norm = look
"""


def done(*children: Child) -> None:
    codes = [child.wait() for child in children]
    assert codes == [0] * len(codes), "".join(child.err for child in children)


def losses(folder: Path) -> list[dict[str, float]]:
    """The rows of the log by step, without what is drawn from the model, where a rounding may turn one token into another."""
    names = ("step", "loss", "grad_norm", "learning_rate", "eval_parent", "eval_bound", "eval_left_to_right")
    return [{name: row[name] for name in names if name in row} for row in timeless(folder)]


def same(out: Path, other: Path) -> None:
    """The same losses in both logs, the same weights in both folders."""
    assert len(losses(out)) == 7, "four log lines, three evaluations"
    for row, expected in zip(losses(out), losses(other), strict=True):
        assert row == pytest.approx(expected, abs=CLOSE)
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (out, other))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        # AdamW divides a gradient by its own size: of one that is zero but for rounding, it takes the sign
        torch.testing.assert_close(weight, theirs[name], atol=2e-4, rtol=0)


@pytest.fixture(scope="module")
def alone(forks: Forks, home, tmp_path_factory) -> Path:
    """The run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done(forks.diffulm(*short(home, out, **SIX)))
    return out


@pytest.mark.parametrize("count", [2, 3])
def test_more_processes_compute_the_same(forks: Forks, home, alone, tmp_path, count):
    done(*forks.launched(count, *short(home, tmp_path / "run", **SIX, micro_batch=1)))
    same(tmp_path / "run", alone)


@pytest.fixture(scope="module")
def sharded(forks: Forks, home, tmp_path_factory) -> Path:
    """The run on two processes with a part of the model each, all its checkpoints kept."""
    out = tmp_path_factory.mktemp("sharded") / "run"
    command = short(home, out, **SIX, sharding="full", keep_checkpoints=9)
    done(*forks.launched(2, *command, first=LOOK))
    return out


def test_a_sharded_run_computes_the_same_and_leaves_one_plain_checkpoint(home, alone, sharded):
    same(sharded, alone)
    names = {path.name for path in sharded.iterdir() if path.is_file()}
    assert names == {path.name for path in alone.iterdir() if path.is_file()}
    config, plain = (json.loads((folder / "config.json").read_text()) for folder in (sharded, alone))
    assert config.pop("diffulm").keys() == plain.pop("diffulm").keys()
    assert config == plain, "the architecture's own name too"
    assert load(sharded).infill("the cat <hole:1> on a mat").fills


@pytest.mark.parametrize(
    ("count", "sharding"), [(1, "full"), (3, "full"), pytest.param(2, "none", marks=pytest.mark.slow)]
)
def test_a_sharded_checkpoint_resumes_on_another_number_of_processes(
    forks: Forks, home, alone, sharded, tmp_path, count, sharding
):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(sharded / "config.yaml", out)
    shutil.copytree(sharded / "checkpoint-4", out / "checkpoint-4")
    files = {path.name for path in (out / "checkpoint-4").iterdir()}
    assert {f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)} <= files
    assert {Path(name).suffix for name in files} == {".json", ".jsonl", ".safetensors"}, "nothing is pickled"
    assert files - {"manifest.json"} == json.loads((out / "checkpoint-4" / "manifest.json").read_text()).keys()
    command = short(home, out, **SIX, sharding=sharding, keep_checkpoints=9)
    done(*(forks.launched(count, *command) if count > 1 else [forks.diffulm(*command)]))
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    same(out, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{"ar_weight": 0.5}, {"precision": "bf16"}, {"checkpointing": True}, {"micro_batch": 1}, {"adapter": "lora"}],
)
def test_a_sharded_run_of_another_kind(forks: Forks, home, tmp_path, more):
    """Two forwards before a backward, autocast, activations computed twice, several micro-batches, frozen weights."""
    for name, sharding in [("whole", "none"), ("parts", "full")]:
        done(*forks.launched(2, *short(home, tmp_path / name, **SIX, sharding=sharding, **more)))
    tolerance = 2e-2 if "precision" in more else CLOSE  # bfloat16 has three digits
    for row, expected in zip(losses(tmp_path / "parts"), losses(tmp_path / "whole"), strict=True):
        assert row == pytest.approx(expected, abs=tolerance)


BFLOAT16 = """
import os, torch
from diffulm.training import processes, sharding
from models import build, ids
processes.start(cpu=True)
whole, parts = build("llama"), build("llama")
sharding.shard(parts, sharding.mesh("cpu"), bf16=True)
seen = []
for model in (whole, parts):
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids(), labels=ids()).loss
    loss.backward()
    seen.append([loss.detach()] + [getattr(p.grad, "full_tensor", lambda g=p.grad: g)() for p in model.parameters()])
for mine, expected in zip(*reversed(seen), strict=True):
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, expected, atol=0.01 * expected.abs().max().item(), rtol=0)  # bfloat16 has 8 bits
assert {p.dtype for p in parts.parameters()} == {torch.float32}
os._exit(0)
"""


def test_layers_gathered_in_bfloat16_are_what_autocast_makes_of_them(forks: Forks):
    done(*forks.launched(2, code=BFLOAT16))


@pytest.mark.slow
def test_a_sharded_run_goes_on_from_a_whole_checkpoint(forks: Forks, home, alone, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(alone / "config.yaml", out)
    shutil.copytree(alone / "checkpoint-6", out / "checkpoint-6")
    done(*forks.launched(2, *short(home, out, **SIX, sharding="full")))
    same(out, alone)


def test_what_cannot_be_launched_is_one_line(forks: Forks, home, tmp_path, monkeypatch):
    settings = {"model": str(home / "parent"), "data": str(home / "text.jsonl"), "out": str(tmp_path / "run")}
    with bad("DeepSpeed is not installed; pip install deepspeed, or take sharding=full"):
        run("tiny", settings | {"deepspeed": "zero3"})
    with bad("deepspeed=no.json: no such file; give zero3 or a DeepSpeed JSON file"):
        run("tiny", settings | {"deepspeed": "no.json"})
    with bad("sharding=full and deepspeed=zero3: give one of them"):
        run("tiny", settings | {"sharding": "full", "deepspeed": "zero3"})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with bad("the launcher is set to accelerate's own FSDP; launch without it, and set sharding=full"):
        run("tiny", settings)
    monkeypatch.undo()
    children = forks.launched(2, *short(home, tmp_path / "run", global_batch=5))
    assert [child.wait() for child in children] == [2, 2]
    assert children[0].err == "diffulm: error: global_batch=5 does not divide by 2 processes\n"
    assert children[1].err == "" and not (tmp_path / "run").exists()


def test_the_deepspeed_file_is_zero_3_and_leaves_every_figure_to_the_preset():
    """DeepSpeed is not among what the tests install: its own reader of such files, which accelerate has, is."""
    read = HfDeepSpeedConfig(str(PRESETS / "deepspeed" / "zero3.json"))
    assert read.is_zero3() and not read.is_offload()
    for name in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert read.get_value(name) == "auto"
    assert set(read.get_value("optimizer.params").values()) == {"auto"} and read.get_value("bf16.enabled") == "auto"
    assert read.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save"), (
        "the result is read from there"
    )
