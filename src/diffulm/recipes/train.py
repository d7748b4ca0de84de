"""One training run from an opened folder to the published model: what `adapt` does once its config stands."""

import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffulm.checkpoint import adapter, card, disk
from diffulm.checkpoint.files import checkpoints_in
from diffulm.checkpoint.load import folder_of, load
from diffulm.checkpoint.save import write_model
from diffulm.data.blocks import build, fingerprint, tokenizer_hash
from diffulm.data.documents import Skips, sources
from diffulm.data.prepared import manifest_of, open_prepared, prepared_folder, split
from diffulm.denoiser import layers
from diffulm.denoiser.adapter import merge
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput
from diffulm.recipes.devices import deepspeed_file, device_of, is_sharded, split_batch
from diffulm.recipes.measure import COUNTED_BLOCKS, Gauge, fastest, judge_of
from diffulm.training import processes, sharding
from diffulm.training.curriculum import Curriculum, Samples
from diffulm.training.health import examine
from diffulm.training.pace import Pace
from diffulm.training.progress import ProgressLine
from diffulm.training.report import remade, title_of, write_report
from diffulm.training.run_folder import RESUMES, RunFolder, read_metrics
from diffulm.training.trainer import DiffusionTrainer, checkpoint_bytes

if TYPE_CHECKING:
    from diffulm.recipes.adapt import AdaptConfig


def train(
    config: "AdaptConfig", folder: RunFolder, denoiser: Denoiser, tokenizer: Any, started: float
) -> dict[str, Any]:
    """Pack, train (or resume), evaluate, publish; returns the report that is also written."""
    from diffulm.recipes.adapt import schedule_steps, stages

    data = folder.path / "data"
    with disk.writing(data, text_bytes(config), RESUMES):
        training, held_out = processes.first_then_all(lambda: blocks(config, denoiser.record, tokenizer, data))
    folder.data = fingerprints(config, data)
    at = schedule_steps(config)
    curriculum = Curriculum(
        mask_token_id=denoiser.record.mask_token_id, seed=config.seed, global_batch=config.global_batch,
        objective=config.objective, noise=config.noise, schedule=config.noise_schedule, floor=config.noise_floor,
        ceiling=config.noise_ceiling, annealing=config.annealing, anneal_steps=at["anneal"], ar_weight=config.ar_weight,
        stages=stages(config), full_share=config.full_share, clean_causal=config.clean_copy == "causal",
    )  # fmt: skip
    gauge = Gauge(denoiser, config, held_out, end_of_text(tokenizer, denoiser.record), judge_of(denoiser, config))
    checkpoint = processes.from_first(folder.resume_point)
    processes.from_first(lambda: disk.require(folder.path, checkpoint_bytes(denoiser.model), RESUMES))
    look = first_look(gauge, training) if checkpoint is None else {}
    if look:
        processes.from_first(lambda: folder.log({"step": 0, **look}))
    progress = ProgressLine(
        "pre-training" if curriculum.autoregressive else "adapting",
        tokens_a_step(config),
        fastest(denoiser, config, device_of(config)),
        lambda: remade(folder.path)["warnings"],
    )
    trainer = make_trainer(config, folder, denoiser, tokenizer, curriculum, training, gauge, at, progress)
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
            replace(gauge, denoiser=denoiser), folder, tokenizer, trainer.saved_record(), progress, started
        )
    )


def published(
    gauge: Gauge,
    folder: RunFolder,
    tokenizer: Any,
    record: dict[str, Any] | None,
    progress: ProgressLine,
    started: float,
) -> dict[str, Any]:
    """Measure what training made, and write it to the folder's root; returns the report."""
    config, denoiser = gauge.config, merged(gauge.config, gauge.denoiser)
    progress.say("measuring what training has made")
    report = final_report(replace(gauge, denoiser=denoiser), folder, time.monotonic() - started)
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
    progress.say(f"next: {next_command(config)}")
    return report


def next_command(config: "AdaptConfig") -> str:
    """What somebody would do with the model that a run has made."""
    out = shlex.quote(config.out)
    if config.objective == "autoregressive":
        return f"diffulm adapt tiny model={out} data=... out=..."
    return f"diffulm generate {out} --prompt 'The' --length 32{' --sampler verified' * (config.lora_rows == 'masked')}"


def tokens_a_step(config: "AdaptConfig") -> int:
    return config.global_batch * config.length


def text_bytes(config: "AdaptConfig") -> int:
    """About what the packed blocks take: a token of text is about 4 bytes long, and so is its id."""
    named = [data for data in (config.data, config.eval_data) if data is not None and manifest_of(data) is None]
    return sum(file.stat().st_size for data in named for file in sources(data) if isinstance(file, Path))


def end_of_text(tokenizer: Any, record: Record) -> int:
    """The token between documents."""
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else record.bos_token_id
    assert eos is not None  # adopt refuses a parent with neither
    return eos


def open_model(config: "AdaptConfig") -> tuple[Denoiser, Any]:
    """The adopted parent and its tokenizer, on this process's device; BadInput when it cannot take the run's blocks."""
    if not is_sharded(config):
        return processes.first_then_all(lambda: _opened(config))
    mesh = sharding.mesh(device_of(config))

    def part() -> tuple[Denoiser, Any]:
        denoiser, tokenizer = _opened(config)
        # on a CPU evaluations are in float32
        sharding.shard(denoiser.model, mesh, bf16=config.precision == "bf16" and device_of(config) == "cuda")
        return denoiser, tokenizer

    return processes.in_turn(part)


def _opened(config: "AdaptConfig") -> tuple[Denoiser, Any]:
    denoiser, tokenizer = adopt(
        config.model,
        mask_token=config.mask_token,
        window=config.window,
        scratch=config.seed if config.scratch else None,
        shift=config.shift,
        frozen=config.adapter != "none" and not config.train_embeddings,
        quantise=config.quantise,
    )
    if tokenizer is None:
        raise BadInput(
            f"{config.model}: has no tokenizer to make tokens of text; copy its tokenizer's files into its folder"
        )
    if denoiser.context is not None and config.length > denoiser.context:
        raise BadInput(
            f"length={config.length}: {config.model} takes at most {denoiser.context} positions; set length lower"
        )
    set_attention(denoiser, config)
    set_dropout(denoiser.model, config.dropout)
    if config.adapter != "none":
        home = folder_of(config.model)
        adapter.begin(denoiser, home, config.lora_rank, config.lora_alpha, config.seed, config.train_embeddings)
        if config.lora_rows == "masked":
            adapter.only_masks(denoiser)
    # A sharded model goes to its devices a part at a time: the whole may be too large for one. A quantised one is there.
    if not is_sharded(config) and config.quantise == "none":
        denoiser.model.to(device_of(config))
    make_quick(denoiser, config)
    return denoiser, tokenizer


def make_quick(denoiser: Denoiser, config: "AdaptConfig") -> None:
    """The kernels and the memory that the config asks for. None of it stays in what is saved."""
    if device_of(config) == "cuda" and not config.deepspeed:  # whose parameters are empty until it runs
        denoiser.quick()  # on a CPU the kernel is the same with a mask and without
    if config.checkpointing:
        layers.recompute(denoiser.model)
    for layer in (layers.decoder_layers(denoiser.model) or []) if config.compile else ():
        layer.compile()


def set_attention(denoiser: Denoiser, config: "AdaptConfig") -> None:
    """Record what the run's last stage makes of the model. BadInput where its family cannot be trained so."""
    from diffulm.recipes.adapt import stages

    sizes = [size for _, size in stages(config)]
    if any(sizes) and not denoiser.takes_clean_copy:
        raise BadInput(f"{config.model}: cannot be trained in blocks, its layers take no positions or always look left")
    if config.packing == "documents" and denoiser.record.notes.get("left_layers"):
        raise BadInput(f"{config.model}: has layers that always look left, into other documents; take packing=stream")
    if sizes[-1] is not None:
        notes = denoiser.record.notes | ({"full_share": config.full_share} if config.full_share else {})
        if config.clean_copy == "causal":
            notes |= {"clean_copy": config.clean_copy}
        denoiser.record = replace(denoiser.record, attention="block", block_size=sizes[-1], notes=notes)
        denoiser.model.config.diffulm = denoiser.record.to_dict()


def merged(config: "AdaptConfig", denoiser: Denoiser) -> Denoiser:
    """A model whose adapter is not to be kept, as plain weights; those of a quantised parent are read again, in full."""
    if config.adapter == "none" or config.keep_adapter:
        return denoiser
    if config.quantise != "none":
        whole, _ = _opened(config.model_copy(update={"quantise": "none"}))
        whole.model.load_state_dict(
            {name: value for name, value in denoiser.model.named_parameters() if value.requires_grad}, strict=False
        )
        denoiser = whole
    merge(denoiser.model, denoiser.record)
    return denoiser


def blocks(config: "AdaptConfig", record: Record, tokenizer: Any, folder: Path) -> tuple[Any, Tensor]:
    """(training blocks, held-out blocks (n, length)); without eval_data the last blocks are kept out of training.

    What `diffulm prepare` made is used in place, text is packed into `folder`.
    """
    eos = end_of_text(tokenizer, record)
    # the small one first: a broken row in it should not be found after hours of packing
    rows = (
        None if config.eval_data is None else _blocks("eval", config.eval_data, config, record, tokenizer, eos, folder)
    )
    packed = _blocks("train", config.data, config, record, tokenizer, eos, folder)
    if rows is not None:
        return packed, _spread(rows, config.eval_blocks)
    if len(packed) <= config.eval_blocks:
        raise BadInput(
            f"data={config.data}: has only {len(packed)} blocks of {config.length} tokens; {config.eval_blocks} are held out; "
            "give more text, or set eval_blocks lower"
        )
    training, held_out = split(packed, manifest_of(config.data), config.eval_blocks)
    return training, _spread(held_out, config.eval_blocks)


def _blocks(name: str, data: Any, config: "AdaptConfig", record: Record, tokenizer: Any, eos: int, folder: Path) -> Any:
    prepared = manifest_of(data)
    if prepared is not None:
        wanted = {"length": config.length, "packing": config.packing, "bos_token_id": record.bos_token_id}
        wanted |= {"eos_token_id": eos, "tokenizer": tokenizer_hash(tokenizer)}
        return open_prepared(prepared_folder(data), prepared, wanted).with_format("torch")
    skips = Skips() if config.bad_rows == "skip" else None
    layout = (tokenizer, record.bos_token_id, eos, config.length)
    packed = build(data, *layout, folder / name, packing=config.packing, skips=skips).with_format("torch")
    if skips is not None and skips.count and processes.index() == 0:
        print(f"diffulm: {skips}; {folder / name / 'manifest.json'} says so too", file=sys.stderr)
    return packed


def fingerprints(config: "AdaptConfig", folder: Path) -> dict[str, str]:
    """What a run's blocks are, by checksum; prepared data by its manifest, which need not be read as a whole."""
    named = {"train": config.data, "eval": config.eval_data}
    return {
        name: fingerprint(folder / name if manifest_of(data) is None else prepared_folder(data))
        for name, data in named.items()
    }


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


def first_look(gauge: Gauge, training: Any) -> dict[str, float]:
    """What is measured before anything is trained, at step 0."""
    return gauge.before(_spread(training, COUNTED_BLOCKS))


def make_trainer(
    config: "AdaptConfig", folder: RunFolder, denoiser: Denoiser, tokenizer: Any, curriculum: Curriculum,
    training: Any, gauge: Gauge, at: dict[str, int], progress: ProgressLine,
) -> Any:  # fmt: skip
    import transformers

    micro, accumulation = split_batch(config, processes.count())
    args = transformers.TrainingArguments(
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, deepspeed=deepspeed_file(config),
        output_dir=str(folder.path), max_steps=config.steps, learning_rate=config.learning_rate,
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
    samples = Samples(
        training, denoiser.record.bos_token_id is not None, config.seed, config.global_batch, config.steps
    )
    pace = Pace(folder, curriculum, tokens_a_step(config), at["eval"], config.save_seconds, progress.fastest)
    trainer = DiffusionTrainer(
        denoiser, curriculum, folder, samples, args, tokenizer,
        evaluate_with=gauge.evaluate,
        callbacks=[pace, progress],
    )  # fmt: skip
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer


def final_report(gauge: Gauge, folder: RunFolder, seconds: float) -> dict[str, Any]:
    """The figures of a finished run: held-out losses on the same blocks, the parent's among them, and the verdict."""
    config, rows = gauge.config, read_metrics(folder.metrics)
    parent = next((row["eval_parent"] for row in rows if "eval_parent" in row), None)
    verdict = examine(rows, folder.config)
    return {
        "out": str(folder.path),
        "steps": config.steps,
        "tokens": config.steps * config.global_batch * config.length,
        "held_out_blocks": len(gauge.held_out),
        "seconds_of_last_part": round(seconds, 1),
        **({} if config.objective == "autoregressive" else {"parent": parent}),
        **gauge.after(),
        "verdict": verdict.line,
        "warnings": verdict.warnings,
    }
