"""`diffulm adapt`: continual pre-training of an AR parent into a diffusion model (paper, section 3).

    diffulm adapt tiny model=gpt2 data=corpus.jsonl out=runs/mine

Also trains a parent itself (objective=autoregressive) and the from-scratch baseline (scratch=true), so that comparisons
share one code path.
"""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from diffulm.options import Count, Options, Seed
from diffulm.recipes.config import Steps, Tokens, in_steps, resolve

VERB = "adapt"
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class AdaptConfig(Options):
    """Every setting of a run; `config.yaml` holds all of them."""

    model: str
    """The AR parent: a folder, a hub id or a shipped name."""
    data: str | list[str]
    """Text: .txt, .jsonl, .parquet (each also .gz), globs, folders, hub data sets."""
    out: str
    """The run's folder."""
    tokens: Tokens
    """Canvas positions to process."""
    length: Annotated[int, Field(ge=2)] = 512
    """Positions of a canvas, BOS included."""
    global_batch: Count = 256
    """Canvases of an optimizer step, over all devices."""
    micro_batch: Count | None = None
    """Canvases a device takes at once; None: as many as the device takes well."""
    seed: Seed = 0
    scratch: bool = False
    """Start from fresh weights of the same architecture: the baseline."""
    objective: str = "bound"
    """bound, row_mean, unweighted, published (parity only), or autoregressive: train the parent itself."""
    noise: Literal["bernoulli", "count"] = "bernoulli"
    noise_schedule: str = "linear"
    noise_floor: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    annealing: Literal["bernoulli", "near", "none"] = "bernoulli"
    """How the future opens: at random, nearest first, or at once."""
    anneal_steps: Steps = 10_000
    mask_token: str = "auto"
    """auto, new, an id or a token."""
    window: Literal["keep", "lift"] = "keep"
    learning_rate: Positive = 3e-4
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Steps = 2000
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    max_grad_norm: Positive = 1.0
    dropout: Share = 0.0
    precision: Literal["float32", "bf16"] = "bf16"
    logging_steps: Count = 10
    eval_data: str | list[str] | None = None
    """Held-out text; None: the last `eval_blocks` blocks of `data` are kept out of training."""
    eval_blocks: Count = 32
    eval_samples: Annotated[int, Field(ge=2)] = 8
    eval_every: Steps = "10%"
    save_seconds: Annotated[float, Field(ge=0)] = 600.0
    """A checkpoint at the first logging step after so many seconds."""
    keep_checkpoints: Count = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("objective")
    @classmethod
    def _objective(cls, name: str) -> str:
        from diffulm import objective

        if name != "autoregressive":
            objective.by_name(name)
        return name

    @field_validator("noise_schedule")
    @classmethod
    def _schedule(cls, name: str) -> str:
        from diffulm import schedule

        return schedule.by_name(name).name

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.length * self.global_batch))


def adapt(config: "str | Path | AdaptConfig", **settings: Any) -> dict[str, Any]:
    """Adapt an AR model: a preset name, a YAML path or a typed config, and settings over it. Returns the report.

    Raises BadInput for anything wrong with the settings, the parent, the data or the folder, before anything is written.
    """
    if isinstance(config, AdaptConfig):
        config, settings = "tiny", {**config.model_dump(), **settings}
    return run(str(config), settings)


def run(preset: str, overrides: dict[str, Any], plan: bool = False) -> dict[str, Any]:
    """Resolve the config and carry it out; with `plan` only say what would be done."""
    config = resolve(VERB, AdaptConfig, preset, overrides)
    return planned(config) if plan else carry_out(config)


def planned(config: AdaptConfig) -> dict[str, Any]:
    """What a run would do, without reading weights or data."""
    positions = config.steps * config.global_batch * config.length
    return {"config": config.model_dump(mode="json"), "steps": config.steps, "tokens": positions}


def carry_out(config: AdaptConfig) -> dict[str, Any]:
    """Train, or go on with a run that was stopped, or return the report of one that is finished."""
    from diffulm.training.run_folder import RunFolder

    folder = RunFolder(Path(config.out), config.model_dump(mode="json"))
    folder.check()
    if (report := folder.report()) is not None:
        print(f"{folder.path}: this run is finished already; nothing was done")
        return report
    from diffulm.data.documents import sources
    from diffulm.recipes.train import open_model, train

    for data in (config.data, config.eval_data):
        if data is not None:
            sources(data)
    started = time.monotonic()
    opened = open_model(config)  # what is missing is an error before a folder exists
    with folder.claimed():
        return train(config, folder, *opened, started)


def schedule_steps(config: AdaptConfig) -> dict[str, int]:
    """The step counts that may be given as shares of the run."""
    total = config.steps
    return {
        "anneal": 0 if config.annealing == "none" else in_steps(config.anneal_steps, total),
        "warmup": in_steps(config.warmup_steps, total),
        "eval": max(1, in_steps(config.eval_every, total)),
    }
