"""What a run is spread over: devices, processes, and its share of the global batch on each."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffulm.errors import BadInput
from diffulm.recipes.config import PRESETS
from diffulm.training import processes

if TYPE_CHECKING:
    from diffulm.recipes.training import TrainingConfig

# Positions a device takes at once where the config leaves it open: on a CPU what its caches hold is fastest (2,048 was 20%
# faster than 8,192 at width 256), an accelerator wants more.
MICRO_POSITIONS = {"cpu": 2048, "cuda": 32768}


def device_of(config: "TrainingConfig") -> str:
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def is_sharded(config: "TrainingConfig") -> bool:
    return config.sharding == "full" and processes.count() > 1


def check_launch(config: "TrainingConfig") -> None:
    """Raise BadInput for a launcher that wants other things than the config does, and for DeepSpeed that is not there."""
    deepspeed_file(config)
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise BadInput("the launcher is set to accelerate's own FSDP; launch without it, and set sharding=full")
    split_batch(config, processes.count())


def deepspeed_file(config: "TrainingConfig") -> str | None:
    """The DeepSpeed settings that a run asks for; BadInput where they are not there, or DeepSpeed is not."""
    if config.deepspeed is None:
        return None
    file = PRESETS / "deepspeed" / "zero3.json" if config.deepspeed == "zero3" else Path(config.deepspeed)
    if not file.is_file():
        raise BadInput(f"deepspeed={config.deepspeed}: no such file; give zero3 or a DeepSpeed JSON file")
    if find_spec("deepspeed") is None:
        raise BadInput(
            f"deepspeed={config.deepspeed}: DeepSpeed is not installed; pip install deepspeed, or take sharding=full, which "
            "needs nothing besides torch"
        )
    return str(file)


def split_batch(config: "TrainingConfig", world: int, device: str | None = None) -> tuple[int, int]:
    """(canvases a device takes at once, accumulation steps); a global batch that does not divide is an error.

    device: cpu or cuda; None: what this process has.
    """
    if config.global_batch % world:
        raise BadInput(f"global_batch={config.global_batch} does not divide by {world} processes")
    share = config.global_batch // world
    micro = config.micro_batch
    if micro is None:
        fits = max(1, MICRO_POSITIONS[device or device_of(config)] // config.length)
        micro = max(d for d in range(1, share + 1) if share % d == 0 and d <= fits)
    if share % micro:
        raise BadInput(f"micro_batch={micro} does not divide the {share} canvases of a process")
    return micro, share // micro
