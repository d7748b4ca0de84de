"""One training run from an opened folder to the published model: what `adapt` does once its config stands."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffulm.checkpoint import card, disk
from diffulm.checkpoint.save import write_model
from diffulm.data.blocks import build, fingerprint
from diffulm.data.documents import sources
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput
from diffulm.evaluation import likelihood
from diffulm.training import processes
from diffulm.training.curriculum import Curriculum, Samples
from diffulm.training.pace import Pace
from diffulm.training.progress import ProgressLine
from diffulm.training.report import write_report
from diffulm.training.run_folder import RESUMES, RunFolder, read_metrics
from diffulm.training.trainer import DiffusionTrainer, checkpoint_bytes

if TYPE_CHECKING:
    from diffulm.recipes.adapt import AdaptConfig

# Positions a device takes at once where the config leaves it open: on a CPU what its caches hold is fastest (2,048 was 20%
# faster than 8,192 at width 256), an accelerator wants more.
MICRO_POSITIONS = {"cpu": 2048, "cuda": 32768}
FINAL_SAMPLES = 64
LEFT_TO_RIGHT_BLOCKS = 8  # L - 1 forwards each


def train(
    config: "AdaptConfig", folder: RunFolder, denoiser: Denoiser, tokenizer: Any, started: float
) -> dict[str, Any]:
    """Pack, train (or resume), evaluate, publish; returns the report that is also written."""
    from diffulm.recipes.adapt import schedule_steps

    data = folder.path / "data"
    with disk.writing(data, text_bytes(config), RESUMES):
        training, held_out = processes.first_then_all(lambda: blocks(config, denoiser.record, tokenizer, data))
    folder.data = {split: fingerprint(data / split) for split in ("train", "eval")}
    at = schedule_steps(config)
    curriculum = Curriculum(
        mask_token_id=denoiser.record.mask_token_id, seed=config.seed, global_batch=config.global_batch,
        objective=config.objective, noise=config.noise, schedule=config.noise_schedule, floor=config.noise_floor,
        annealing=config.annealing, anneal_steps=at["anneal"],
    )  # fmt: skip
    checkpoint = processes.from_first(folder.resume_point)
    processes.from_first(lambda: disk.require(folder.path, checkpoint_bytes(denoiser.model), RESUMES))
    if checkpoint is None:
        look = first_look(denoiser, curriculum, held_out, config)
        processes.from_first(lambda: folder.log({"step": 0, **look}))
    progress = ProgressLine("pre-training" if curriculum.autoregressive else "adapting", tokens_a_step(config))
    trainer = make_trainer(config, folder, denoiser, tokenizer, curriculum, training, held_out, at, progress)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    return processes.from_first(
        lambda: published(config, folder, denoiser, tokenizer, curriculum, held_out, trainer.saved_record(), started)
    )


def published(
    config: "AdaptConfig", folder: RunFolder, denoiser: Denoiser, tokenizer: Any, curriculum: Curriculum,
    held_out: Tensor, record: dict[str, Any] | None, started: float,
) -> dict[str, Any]:  # fmt: skip
    """Measure what training made, and write it to the folder's root; returns the report."""
    report = final_report(config, folder, denoiser, curriculum, held_out, time.monotonic() - started)
    training = card.training_of(config.model_dump(mode="json"), report)
    if record is not None:
        record = {**record, "training": training}  # so that copies of the model tell it, too
    facts = card.of_model(
        denoiser.model, denoiser.record if record else None, folder.path, parent=config.model, training=training
    )
    with disk.writing(folder.path, disk.size(denoiser.model), RESUMES):
        files = folder.publish(lambda path: write_model(denoiser.model, tokenizer, path, record, facts=facts))
    write_report(folder.path, f"DiffuLM: {config.model}, {config.objective}", report)
    folder.finish(report, files)
    return report


def tokens_a_step(config: "AdaptConfig") -> int:
    return config.global_batch * config.length


def text_bytes(config: "AdaptConfig") -> int:
    """About what the packed blocks take: a token of text is about 4 bytes long, and so is its id."""
    named = [data for data in (config.data, config.eval_data) if data is not None]
    return sum(file.stat().st_size for data in named for file in sources(data) if isinstance(file, Path))


def device_of(config: "AdaptConfig") -> str:
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def open_model(config: "AdaptConfig") -> tuple[Denoiser, Any]:
    """The adopted parent and its tokenizer, on this process's device; BadInput when it cannot take the run's blocks."""
    return processes.first_then_all(lambda: _opened(config))


def _opened(config: "AdaptConfig") -> tuple[Denoiser, Any]:
    denoiser, tokenizer = adopt(
        config.model,
        mask_token=config.mask_token,
        window=config.window,
        scratch=config.seed if config.scratch else None,
        shift=config.shift,
    )
    if tokenizer is None:
        raise BadInput(
            f"{config.model}: has no tokenizer to make tokens of text; copy its tokenizer's files into its folder"
        )
    if denoiser.context is not None and config.length > denoiser.context:
        raise BadInput(
            f"length={config.length}: {config.model} takes at most {denoiser.context} positions; set length lower"
        )
    set_dropout(denoiser.model, config.dropout)
    denoiser.model.to(device_of(config))
    return denoiser, tokenizer


def blocks(config: "AdaptConfig", record: Record, tokenizer: Any, folder: Path) -> tuple[Any, Tensor]:
    """(training blocks, held-out blocks (n, length)); without eval_data the last blocks are kept out of training."""
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else record.bos_token_id
    assert eos is not None  # adopt refuses a parent with neither
    layout = (tokenizer, record.bos_token_id, eos, config.length)
    # the small one first: a broken row in it should not be found after hours of packing
    rows = None if config.eval_data is None else build(config.eval_data, *layout, folder / "eval").with_format("torch")
    packed = build(config.data, *layout, folder / "train").with_format("torch")
    if rows is not None:
        return packed, _spread(rows, config.eval_blocks)
    keep = len(packed) - config.eval_blocks
    if keep < 1:
        raise BadInput(
            f"data={config.data}: has only {len(packed)} blocks of {config.length} tokens; {config.eval_blocks} are held out; "
            "give more text, or set eval_blocks lower"
        )
    return packed.select(range(keep)), _spread(packed.select(range(keep, len(packed))), config.eval_blocks)


def _spread(rows: Any, count: int) -> Tensor:
    """`count` blocks evenly over the text, fewer if there are fewer."""
    count = min(count, len(rows))
    return torch.stack([torch.as_tensor(rows[i * len(rows) // count]["ids"]).long() for i in range(count)])


def set_dropout(model: nn.Module, p: float) -> None:
    """The same dropout everywhere; the config keeps the parent's own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", p)  # noqa: B010 (the type checker takes it for a submodule)


def first_look(denoiser: Denoiser, curriculum: Curriculum, held_out: Tensor, config: "AdaptConfig") -> dict[str, float]:
    """Before anything is trained: the parent's own AR loss, and the bound it gives as it stands."""
    return {
        "eval_parent": likelihood.autoregressive(denoiser, held_out).nats,
        **evaluate(denoiser, curriculum, held_out, config),
    }


def evaluate(denoiser: Denoiser, curriculum: Curriculum, held_out: Tensor, config: "AdaptConfig") -> dict[str, float]:
    if curriculum.autoregressive:
        return {"eval_ar": likelihood.autoregressive(denoiser, held_out).nats}
    loss = likelihood.bound(denoiser, held_out, config.eval_samples, config.seed)
    return {"eval_bound": loss.nats, "eval_bound_stderr": loss.stderr}


def make_trainer(
    config: "AdaptConfig", folder: RunFolder, denoiser: Denoiser, tokenizer: Any, curriculum: Curriculum,
    training: Any, held_out: Tensor, at: dict[str, int], progress: ProgressLine,
) -> Any:  # fmt: skip
    import transformers

    args = transformers.TrainingArguments(
        output_dir=str(folder.path), max_steps=config.steps, learning_rate=config.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(config.lr_schedule, config.lr_schedule),
        warmup_steps=at["warmup"], weight_decay=config.weight_decay, adam_beta1=config.betas[0], adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm, bf16=config.precision == "bf16", use_cpu=device_of(config) == "cpu",
        logging_strategy="no", logging_steps=config.logging_steps, save_strategy="no", eval_strategy="no",
        save_total_limit=config.keep_checkpoints, report_to="none", disable_tqdm=True, remove_unused_columns=False,
        logging_nan_inf_filter=False, seed=config.seed, dataloader_pin_memory=torch.cuda.is_available(),
        # Experts that no token was sent to have no gradient; anywhere else DDP would look for such in vain, and say so.
        ddp_find_unused_parameters="expert" in str(denoiser.config.to_dict()),
        use_cache=getattr(denoiser.config, "use_cache", True),  # Trainer writes it into the config, which is the parent's
    )  # fmt: skip
    args._n_gpu = min(
        args.n_gpu, 1
    )  # several GPUs are for torchrun: DataParallel's threads would lose what is asked for
    micro, accumulation = split_batch(config, args.world_size)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = micro, accumulation
    samples = Samples(
        training, denoiser.record.bos_token_id is not None, config.seed, config.global_batch, config.steps
    )
    pace = Pace(folder, curriculum, tokens_a_step(config), at["eval"], config.save_seconds)
    trainer = DiffusionTrainer(
        denoiser, curriculum, folder, samples, args, tokenizer,
        evaluate_with=lambda: evaluate(denoiser, curriculum, held_out, config),
        callbacks=[pace, progress],
    )  # fmt: skip
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer


def split_batch(config: "AdaptConfig", world: int) -> tuple[int, int]:
    """(canvases a device takes at once, accumulation steps); a global batch that does not divide is an error."""
    if config.global_batch % world:
        raise BadInput(f"global_batch={config.global_batch} does not divide by {world} processes")
    share = config.global_batch // world
    micro = config.micro_batch
    if micro is None:
        fits = max(1, MICRO_POSITIONS[device_of(config)] // config.length)
        micro = max(d for d in range(1, share + 1) if share % d == 0 and d <= fits)
    if share % micro:
        raise BadInput(f"micro_batch={micro} does not divide the {share} canvases of a process")
    return micro, share // micro


def final_report(
    config: "AdaptConfig",
    folder: RunFolder,
    denoiser: Denoiser,
    curriculum: Curriculum,
    held_out: Tensor,
    seconds: float,
) -> dict[str, Any]:
    """The figures of a finished run: held-out losses on the same blocks, the parent's among them."""
    rows = read_metrics(folder.metrics)
    parent = next((row["eval_parent"] for row in rows if "eval_parent" in row), None)
    found: dict[str, Any] = {
        "out": str(folder.path),
        "steps": config.steps,
        "tokens": config.steps * config.global_batch * config.length,
        "held_out_blocks": len(held_out),
        "seconds_of_last_part": round(seconds, 1),
        "causal_view": likelihood.autoregressive(denoiser, held_out).nats,
    }
    if curriculum.autoregressive:
        return found
    whole = likelihood.bound(denoiser, held_out, FINAL_SAMPLES, config.seed)
    some = held_out[:LEFT_TO_RIGHT_BLOCKS]
    return {
        **found,
        "parent": parent,
        "bound": whole.nats,
        "bound_stderr": whole.stderr,
        "left_to_right": likelihood.left_to_right(denoiser, some).nats,
        "left_to_right_blocks": len(some),
    }
