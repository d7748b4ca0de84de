"""What every training run shares, pre-training and fine-tuning alike: its settings, and its way from a command to a run.

Nothing here imports torch before a run begins, so that the command line can check settings at once.
"""

import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from diffulm.errors import BadInput
from diffulm.options import Count, Options, Seed
from diffulm.recipes.config import Every, Steps, in_steps

if TYPE_CHECKING:
    from diffulm.recipes.train import Job

OWN = (
    "metrics.jsonl",
    "merges.txt",
    "checkpoint-1/metrics.jsonl",
    "checkpoint-1/merges.txt",
)  # could be taken for data
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _name(text: str) -> str:
    if not text.strip() or "\0" in text or any(len(os.fsencode(part)) > 255 for part in text.split("/")):
        raise ValueError("should be a name that a file can have")
    return text


def _token(text: str) -> str:
    if not text or re.fullmatch(r"-?\d{10,}", text):
        raise ValueError("should be auto, new, a token or its id")
    return text


Name = Annotated[str, AfterValidator(_name)]
# YAML takes an id for a number
Token = Annotated[str, BeforeValidator(lambda t: str(t) if type(t) is int else t), AfterValidator(_token)]


class TrainingConfig(Options):
    """The settings of a run that do not depend on what it is for. made: names of data that is made, not read."""

    made: ClassVar[tuple[str, ...]] = ()

    model: Name
    """The AR parent: a folder, a hub id or a shipped name."""
    data: Name | list[Name]
    """Text: .txt, .jsonl, .parquet (each also .gz), globs, folders, hub data sets; or what `diffulm prepare` made."""
    out: Name
    """The run's folder."""
    length: Annotated[int, Field(ge=2, le=2**24)] = 512
    """Positions of a canvas, BOS included."""
    global_batch: Annotated[int, Field(ge=1, le=2**20)] = 256
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
    noise_ceiling: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Times are drawn between floor and ceiling (bernoulli)."""
    ar_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of the AR loss on the same text, which keeps the causal view alive; costs a second forward."""
    annealing: Literal["bernoulli", "near", "none"] = "bernoulli"
    """How the future opens: at random, nearest first, or at once."""
    anneal_steps: Steps = 10_000
    shift: bool = True
    """The output of row i predicts token i + 1, as in the parent; false: token i (the paper's ablation)."""
    mask_token: Token = "auto"
    """auto, new, an id or a token."""
    window: Literal["keep", "lift"] = "keep"
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-4
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Steps = 2000
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    max_grad_norm: Positive = 1.0
    dropout: Share = 0.0
    precision: Literal["float32", "bf16"] = "bf16"
    adapter: Literal["none", "lora"] = "none"
    """lora: low-rank matrices on all linear layers of a frozen parent, through peft."""
    lora_rank: Count = 16
    lora_alpha: Annotated[float, Field(gt=0, le=1e6)] = 32.0
    train_embeddings: bool = True
    """With an adapter: train the embeddings as well, as the paper does; false: of them the mask token's row alone."""
    keep_adapter: bool = False
    """Publish the adapter beside the name of its parent, which stays as it is; false: merge it into the weights."""
    quantise: Literal["none", "8bit", "4bit"] = "none"
    """How the frozen parent is held (QLoRA); needs bitsandbytes."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the decoder layers."""
    sharding: Literal["none", "full"] = "none"
    """full: weights, gradients and moments are split over the processes (FSDP2)."""
    deepspeed: Name | None = None
    """A DeepSpeed JSON file, or zero3: the one that is shipped."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """A row of data that cannot be read: an error, or left out and counted."""
    logging_steps: Count = 10
    report_to: tuple[str, ...] = ()
    """Trackers beside metrics.jsonl, as transformers names them: tensorboard, wandb, ..."""
    eval_data: Name | list[Name] | None = None
    """Held-out text; None: the last `eval_blocks` blocks of `data` are kept out of training."""
    eval_samples: Annotated[int, Field(ge=2, le=10**6)] = 8
    eval_every: Every = "10%"
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

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.objective == "autoregressive" and not self.shift:
            raise BadInput("shift=false: an autoregressive run predicts the next token")
        if self.objective == "autoregressive" and self.ar_weight:
            raise BadInput("objective=autoregressive: leaves nothing to ar_weight; set it back")
        if self.adapter == "none":
            for key in ("keep_adapter", "quantise"):
                if getattr(self, key) not in (False, "none"):
                    raise BadInput(f"{key}={getattr(self, key)}: there is no adapter; set adapter=lora")
        elif self.scratch:
            raise BadInput("adapter=lora: there is no parent to adapt when scratch=true; leave out one of them")
        elif self.keep_adapter and (self.train_embeddings or self.objective == "autoregressive"):
            what = "train_embeddings=true" if self.train_embeddings else "objective=autoregressive"
            raise BadInput(f"keep_adapter=true: with {what} there is more to keep than an adapter; set it to false")
        if self.sharding == "full" and (self.deepspeed is not None or self.quantise != "none"):
            other = "deepspeed" if self.deepspeed is not None else "quantise"
            raise BadInput(f"sharding=full and {other}={getattr(self, other)}: give one of them")
        if self.noise_floor >= self.noise_ceiling:
            raise BadInput(f"noise_floor={self.noise_floor}: should be below noise_ceiling={self.noise_ceiling}")
        return self


def schedule_steps(config: TrainingConfig, total: int) -> dict[str, int]:
    """The step counts that may be given as shares of a run of `total` steps."""
    return {
        "anneal": 0 if config.annealing == "none" else in_steps(config.anneal_steps, total),
        "warmup": in_steps(config.warmup_steps, total),
        "eval": max(1, in_steps(config.eval_every, total)),
    }


def carry_out(config: TrainingConfig, job: "Job") -> dict[str, Any]:
    """Train, or go on with a run that was stopped, or return the report of one that is finished."""
    from diffulm.recipes.devices import device_of
    from diffulm.recipes.train import open_model, train
    from diffulm.training import processes
    from diffulm.training.run_folder import RunFolder

    folder = RunFolder(Path(os.path.expanduser(config.out)), config.model_dump(mode="json"))
    processes.start(cpu=device_of(config) == "cpu")
    processes.from_first(folder.check)
    if (report := processes.from_first(folder.report)) is not None:
        if processes.index() == 0:
            print(f"{folder.path}: this run is finished already; nothing was done")
        return report
    processes.from_first(lambda: check(config, folder.path))
    started = time.monotonic()
    opened = open_model(config, job)  # what is missing is an error before a folder exists
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    begun = (folder.path / "config.yaml").exists()
    with folder.claimed():
        try:
            return train(config, folder, job, *opened, started)
        except BadInput:
            if not begun and processes.index() == 0:
                discard(folder.path, made)
            raise


def check(config: TrainingConfig, out: Path) -> None:
    """Raise BadInput for what can be known to be wrong before the parent is opened. Writes nothing."""
    import torch

    from diffulm.data.documents import sources, takes_in
    from diffulm.data.prepared import manifest_of
    from diffulm.recipes.devices import check_launch
    from diffulm.training import trackers

    trackers.check(config.report_to)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device=cuda: PyTorch finds no GPU here (`diffulm doctor` says what it finds); take device=auto")
    for key in ("data", "eval_data"):
        named = getattr(config, key)
        if named is None or manifest_of(named) is not None:
            continue
        for name in [named] if isinstance(named, str) else named:
            if name in config.made:
                continue
            sources(name)
            if any(takes_in(name, out / file) for file in OWN):
                raise BadInput(f"{key}={name}: takes in what the run writes to out={out}; name a folder elsewhere")
    check_launch(config)
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "may not be written" if there.is_dir() else "is a file"
        raise BadInput(f"out={out}: {there} {what}; name another folder")


def discard(folder: Path, made: list[Path]) -> None:
    """Delete what a run left that could not begin (a broken row, say), so that the command, put right, finds nothing.

    made: the folders that were not there before it, the innermost first.
    """
    from diffulm.training.run_folder import read_metrics

    trained = any(row.get("step") for row in read_metrics(folder / "metrics.jsonl"))
    if trained or any(folder.glob("checkpoint-*")) or (folder / "config.json").exists():
        return
    shutil.rmtree(folder / "data", ignore_errors=True)
    for name in ("config.yaml", "metrics.jsonl", ".lock"):
        (folder / name).unlink(missing_ok=True)
    for path in made:
        try:
            path.rmdir()
        except OSError:  # somebody else has put something there
            return
