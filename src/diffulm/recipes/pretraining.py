"""The job of `diffulm adapt`: continual pre-training on blocks of packed text."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffulm.checkpoint import adapter, disk
from diffulm.checkpoint.load import folder_of
from diffulm.data.blocks import build, fingerprint, tokenizer_hash
from diffulm.data.documents import Skips, sources
from diffulm.data.prepared import manifest_of, open_prepared, prepared_folder, split
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput
from diffulm.recipes.devices import device_of
from diffulm.recipes.measure import Gauge, fastest, judge_of, spread
from diffulm.recipes.train import Job, Material, placed
from diffulm.recipes.training import TrainingConfig, schedule_steps
from diffulm.training import processes
from diffulm.training.curriculum import Curriculum
from diffulm.training.run_folder import RESUMES, RunFolder

if TYPE_CHECKING:
    from diffulm.recipes.adapt import AdaptConfig


def opened(config: "AdaptConfig") -> tuple[Denoiser, Any]:
    """The adopted parent and its tokenizer; BadInput when it cannot take the run's blocks."""
    denoiser, tokenizer = adopted(config)
    set_attention(denoiser, config)
    if config.adapter != "none":
        begin_adapter(denoiser, config)
        if config.lora_rows == "masked":
            adapter.only_masks(denoiser)
    placed(denoiser, config)
    return denoiser, tokenizer


def adopted(config: TrainingConfig) -> tuple[Denoiser, Any]:
    """An AR parent as a denoiser, with its tokenizer. BadInput where it has none, or takes no text of `length`."""
    denoiser, tokenizer = adopt(
        config.model,
        mask_token=config.mask_token,
        window=config.window,
        scratch=config.seed if config.scratch else None,
        shift=config.shift,
        frozen=config.adapter != "none" and not config.train_embeddings,
        quantise=config.quantise,
    )
    check_fits(config, denoiser, tokenizer)
    return denoiser, tokenizer


def check_fits(config: TrainingConfig, denoiser: Denoiser, tokenizer: Any) -> None:
    """BadInput for a model that cannot read the run's text."""
    if tokenizer is None:
        raise BadInput(
            f"{config.model}: has no tokenizer to make tokens of text; copy its tokenizer's files into its folder"
        )
    if denoiser.context is not None and config.length > denoiser.context:
        raise BadInput(
            f"length={config.length}: {config.model} takes at most {denoiser.context} positions; set length lower"
        )


def begin_adapter(denoiser: Denoiser, config: TrainingConfig, base: str | None = None) -> None:
    home = folder_of(config.model)
    adapter.begin(denoiser, home, config.lora_rank, config.lora_alpha, config.seed, config.train_embeddings, base)


def material(config: "AdaptConfig", denoiser: Denoiser, tokenizer: Any, folder: RunFolder) -> Material:
    from diffulm.recipes.adapt import stages

    data = folder.path / "data"
    with disk.writing(data, text_bytes(config), RESUMES):
        rows, held_out = processes.first_then_all(lambda: blocks(config, denoiser.record, tokenizer, data))
    folder.data = fingerprints(config, data)
    curriculum = Curriculum(
        mask_token_id=denoiser.record.mask_token_id, stages=stages(config), full_share=config.full_share,
        clean_causal=config.clean_copy == "causal", **shared(config, schedule_steps(config, config.steps)["anneal"]),
    )  # fmt: skip
    gauge = Gauge(denoiser, config, held_out, end_of_text(tokenizer, denoiser.record), judge_of(denoiser, config))
    return Material(rows, curriculum, gauge, config.steps, fastest(denoiser, config, device_of(config)))


def shared(config: TrainingConfig, anneal_steps: int) -> dict[str, Any]:
    """What every run tells its curriculum."""
    return {
        "seed": config.seed, "global_batch": config.global_batch, "objective": config.objective, "noise": config.noise,
        "schedule": config.noise_schedule, "floor": config.noise_floor, "ceiling": config.noise_ceiling,
        "annealing": config.annealing, "anneal_steps": anneal_steps, "ar_weight": config.ar_weight,
    }  # fmt: skip


def text_bytes(config: "AdaptConfig") -> int:
    """About what the packed blocks take: a token of text is about 4 bytes long, and so is its id."""
    named = [data for data in (config.data, config.eval_data) if data is not None and manifest_of(data) is None]
    return sum(file.stat().st_size for data in named for file in sources(data) if isinstance(file, Path))


def end_of_text(tokenizer: Any, record: Record) -> int:
    """The token between documents."""
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else record.bos_token_id
    assert eos is not None  # adopt refuses a parent with neither
    return eos


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
        return packed, spread(rows, config.eval_blocks)
    if len(packed) <= config.eval_blocks:
        raise BadInput(
            f"data={config.data}: has only {len(packed)} blocks of {config.length} tokens; {config.eval_blocks} are held out; "
            "give more text, or set eval_blocks lower"
        )
    training, held_out = split(packed, manifest_of(config.data), config.eval_blocks)
    return training, spread(held_out, config.eval_blocks)


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


def next_command(config: "AdaptConfig") -> str:
    """What somebody would do with the model that a run has made."""
    out = shlex.quote(config.out)
    if config.objective == "autoregressive":
        return f"diffulm adapt tiny model={out} data=... out=..."
    return f"diffulm generate {out} --prompt 'The' --length 32{' --sampler verified' * (config.lora_rows == 'masked')}"


JOB = Job(
    opened,
    material,
    lambda config: "pre-training" if config.objective == "autoregressive" else "adapting",
    next_command,
)
