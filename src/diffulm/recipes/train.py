"""One training run from an opened folder to the published model: what is the same whatever it trains for.

What is not the same is a `Job`: pretraining.py has that of `adapt`, tuning.py that of `sft`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from diffulm.checkpoint import card, disk
from diffulm.checkpoint.files import checkpoints_in
from diffulm.checkpoint.load import load
from diffulm.checkpoint.save import write_model
from diffulm.denoiser import layers
from diffulm.denoiser.adapter import merge
from diffulm.denoiser.denoiser import Denoiser
from diffulm.recipes.devices import deepspeed_file, device_of, is_sharded, split_batch
from diffulm.recipes.measure import Gauge
from diffulm.recipes.training import TrainingConfig, schedule_steps
from diffulm.training import processes, sharding
from diffulm.training.curriculum import Curriculum, Samples
from diffulm.training.health import examine
from diffulm.training.pace import Pace
from diffulm.training.progress import ProgressLine
from diffulm.training.report import remade, title_of, write_report
from diffulm.training.run_folder import RESUMES, RunFolder, read_metrics
from diffulm.training.trainer import DiffusionTrainer, checkpoint_bytes


@dataclass(frozen=True)
class Material:
    """What a job makes of its data. rows: what is trained on. fastest: tokens a second at the devices' peak, if known."""

    rows: Any
    curriculum: Curriculum
    gauge: Gauge
    steps: int
    fastest: float | None = None


@dataclass(frozen=True)
class Job:
    """What differs between the verbs that train.

    opened: the model and its tokenizer, on this process's device. material: packs the data into the run's folder, and says
    by checksum what it is. doing: for the progress line. next_command: what one would do with the model that was made.
    """

    opened: Callable[[Any], tuple[Denoiser, Any]]
    material: Callable[[Any, Denoiser, Any, RunFolder], Material]
    doing: Callable[[Any], str]
    next_command: Callable[[Any], str]


def train(
    config: TrainingConfig, folder: RunFolder, job: Job, denoiser: Denoiser, tokenizer: Any, started: float
) -> dict[str, Any]:
    """Pack, train (or resume), evaluate, publish; returns the report that is also written."""
    made = job.material(config, denoiser, tokenizer, folder)
    gauge = made.gauge
    checkpoint = processes.from_first(folder.resume_point)
    processes.from_first(lambda: disk.require(folder.path, checkpoint_bytes(denoiser.model), RESUMES))
    look = first_look(gauge, made.rows) if checkpoint is None else {}
    if look:
        processes.from_first(lambda: folder.log({"step": 0, **look}))
    progress = ProgressLine(
        job.doing(config), tokens_a_step(config), made.fastest, lambda: remade(folder.path)["warnings"]
    )
    trainer = make_trainer(config, folder, denoiser, tokenizer, made, progress)
    if look and config.report_to:
        trainer.log(dict(look))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    if trainer.is_deepspeed_enabled and processes.index() == 0:  # what it holds in parts, the last checkpoint has whole
        denoiser, _ = load(checkpoints_in(folder.path)[-1])
        denoiser.model.to(device_of(config))
    denoiser = sharding.whole(denoiser, device_of(config))
    return processes.from_first(
        lambda: published(
            replace(made, gauge=replace(gauge, denoiser=denoiser)),
            job,
            folder,
            tokenizer,
            trainer.saved_record(),
            progress,
            started,
        )
    )


def published(
    made: Material,
    job: Job,
    folder: RunFolder,
    tokenizer: Any,
    record: dict[str, Any] | None,
    progress: ProgressLine,
    started: float,
) -> dict[str, Any]:
    """Measure what training made, and write it to the folder's root; returns the report."""
    config = made.gauge.config
    denoiser = merged(config, job, made.gauge.denoiser)
    progress.say("measuring what training has made")
    report = final_report(
        replace(made, gauge=replace(made.gauge, denoiser=denoiser)), folder, time.monotonic() - started
    )
    training = card.training_of(config.model_dump(mode="json"), report)
    if record is not None:
        record = {**record, "training": training}  # so that copies of the model tell it, too
    facts = card.of_model(
        denoiser.model, denoiser.record if record else None, folder.path, parent=config.model, training=training
    )
    with disk.writing(folder.path, disk.size(denoiser.model), RESUMES):
        files = folder.publish(lambda path: write_model(denoiser.model, tokenizer, path, record, facts=facts))
    write_report(folder.path, title_of(folder.config), report)
    folder.finish(report, files)
    progress.say(f"verdict: {report['verdict']}")
    progress.say(f"next: {job.next_command(config)}")
    return report


def tokens_a_step(config: TrainingConfig) -> int:
    return config.global_batch * config.length


def open_model(config: TrainingConfig, job: Job) -> tuple[Denoiser, Any]:
    """The adopted parent and its tokenizer, on this process's device; BadInput when it cannot take the run's blocks."""
    if not is_sharded(config):
        return processes.first_then_all(lambda: job.opened(config))
    mesh = sharding.mesh(device_of(config))

    def part() -> tuple[Denoiser, Any]:
        denoiser, tokenizer = job.opened(config)
        # on a CPU evaluations are in float32
        sharding.shard(denoiser.model, mesh, bf16=config.precision == "bf16" and device_of(config) == "cuda")
        return denoiser, tokenizer

    return processes.in_turn(part)


def placed(denoiser: Denoiser, config: TrainingConfig) -> None:
    """An opened model onto this process's device, with what the config asks for while it is trained."""
    set_dropout(denoiser.model, config.dropout)
    # A sharded model goes to its devices a part at a time: the whole may be too large for one. A quantised one is there.
    if not is_sharded(config) and config.quantise == "none":
        denoiser.model.to(device_of(config))
    make_quick(denoiser, config)


def make_quick(denoiser: Denoiser, config: TrainingConfig) -> None:
    """The kernels and the memory that the config asks for. None of it stays in what is saved."""
    if device_of(config) == "cuda" and not config.deepspeed:  # whose parameters are empty until it runs
        denoiser.quick()  # on a CPU the kernel is the same with a mask and without
    if config.checkpointing:
        layers.recompute(denoiser.model)
    for layer in (layers.decoder_layers(denoiser.model) or []) if config.compile else ():
        layer.compile()


def merged(config: TrainingConfig, job: Job, denoiser: Denoiser) -> Denoiser:
    """A model whose adapter is not to be kept, as plain weights; those of a quantised parent are read again, in full."""
    if config.adapter == "none" or config.keep_adapter:
        return denoiser
    if config.quantise != "none":
        whole, _ = job.opened(config.model_copy(update={"quantise": "none"}))
        whole.model.load_state_dict(
            {name: value for name, value in denoiser.model.named_parameters() if value.requires_grad}, strict=False
        )
        denoiser = whole
    merge(denoiser.model, denoiser.record)
    return denoiser


def set_dropout(model: nn.Module, p: float) -> None:
    """The same dropout everywhere; the config keeps the parent's own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", p)  # noqa: B010 (the type checker takes it for a submodule)


def first_look(gauge: Gauge, rows: Any) -> dict[str, float]:
    """What is measured before anything is trained, at step 0."""
    return gauge.before(rows)


def make_trainer(
    config: TrainingConfig,
    folder: RunFolder,
    denoiser: Denoiser,
    tokenizer: Any,
    made: Material,
    progress: ProgressLine,
) -> Any:
    import transformers

    micro, accumulation = split_batch(config, processes.count())
    at = schedule_steps(config, made.steps)
    args = transformers.TrainingArguments(
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, deepspeed=deepspeed_file(config),
        output_dir=str(folder.path), max_steps=made.steps, learning_rate=config.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(config.lr_schedule, config.lr_schedule),
        warmup_steps=at["warmup"], weight_decay=config.weight_decay, adam_beta1=config.betas[0], adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm, bf16=config.precision == "bf16", use_cpu=device_of(config) == "cpu",
        logging_strategy="no", logging_steps=config.logging_steps, save_strategy="no", eval_strategy="no",
        save_total_limit=config.keep_checkpoints, report_to=list(config.report_to) or "none", disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False, seed=config.seed, dataloader_pin_memory=torch.cuda.is_available(),
        # Experts that no token was sent to have no gradient; anywhere else DDP would look for such in vain, and say so.
        ddp_find_unused_parameters="expert" in str(denoiser.config.to_dict()),
        use_cache=getattr(denoiser.config, "use_cache", True),  # Trainer writes it into the config, which is the parent's
    )  # fmt: skip
    args.mixed_precision = config.precision.replace("float32", "no")  # a launcher may have said otherwise
    # several GPUs are for torchrun: DataParallel's threads would lose what is asked for
    args._n_gpu = min(args.n_gpu, 1)
    samples = Samples(made.rows, denoiser.record.bos_token_id is not None, config.seed, config.global_batch, made.steps)
    pace = Pace(folder, made.curriculum, tokens_a_step(config), at["eval"], config.save_seconds, progress.fastest)
    trainer = DiffusionTrainer(
        denoiser, made.curriculum, folder, samples, args, tokenizer,
        evaluate_with=made.gauge.evaluate,
        callbacks=[pace, progress],
    )  # fmt: skip
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer


def final_report(made: Material, folder: RunFolder, seconds: float) -> dict[str, Any]:
    """The figures of a finished run: held-out losses on the same text, the parent's among them, and the verdict."""
    config, rows = made.gauge.config, read_metrics(folder.metrics)
    parent = next((row["eval_parent"] for row in rows if "eval_parent" in row), None)
    verdict = examine(rows, folder.config)
    return {
        "out": str(folder.path),
        "steps": made.steps,
        "tokens": made.steps * tokens_a_step(config),
        **made.gauge.held_back,
        "seconds_of_last_part": round(seconds, 1),
        **({} if config.objective == "autoregressive" or parent is None else {"parent": parent}),
        **made.gauge.after(),
        "verdict": verdict.line,
        "warnings": verdict.warnings,
    }
