"""One run on 1, 2 and 3 processes, whole on each or sharded over them: the same losses, the same weights, and at the end one
plain checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffulm.lm import load
from forks import Child, Forks
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


def test_a_sharded_run_computes_the_same_and_leaves_one_plain_checkpoint(forks: Forks, home, alone, tmp_path):
    out = tmp_path / "run"
    done(*forks.launched(2, *short(home, out, **SIX, sharding="full"), first=LOOK))
    same(out, alone)
    config, plain = (json.loads((folder / "config.json").read_text()) for folder in (out, alone))
    assert config.pop("diffulm")["training"]["bound"] == pytest.approx(plain.pop("diffulm")["training"]["bound"], abs=CLOSE)
    assert config == plain, "the architecture's own name too"
    assert load(out).infill("the cat <hole:1> on a mat").fills


def test_a_sharded_checkpoint_resumes_on_any_number_of_processes(forks: Forks, home, alone, tmp_path):
    out, settings = tmp_path / "run", SIX | {"sharding": "full"}
    stop = "when('diffulm.training.trainer:DiffusionTrainer.training_step', 6, 'os.kill(os.getpid(), 2)')"
    children = forks.launched(2, *short(home, out, **settings), first=stop)
    assert [child.wait() for child in children] == [130, 130], children[0].err
    newest = out / "checkpoint-4"
    assert {path.name for path in newest.glob("*.safetensors")} == {
        f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)
    }
    assert not {path.suffix for path in newest.iterdir()} - {".json", ".jsonl", ".safetensors"}, "nothing is pickled"
    assert len(json.loads((newest / "manifest.json").read_text())) == len(list(newest.iterdir())) - 1
    for count, changed in [(1, {}), (3, {}), (2, {"sharding": "none"})]:
        copied = tmp_path / f"on-{count}"
        shutil.copytree(out, copied)
        command = short(home, copied, **settings | changed)
        done(*(forks.launched(count, *command) if count > 1 else [forks.diffulm(*command)]))
        same(copied, alone)
