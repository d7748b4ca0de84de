"""`diffulm adapt`: continual pre-training of an AR parent into a diffusion model (paper, section 3).

    diffulm adapt tiny model=gpt2 data=corpus.jsonl out=runs/mine

Also trains a parent itself (objective=autoregressive) and the from-scratch baseline (scratch=true), so that comparisons
share one code path.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from diffulm.errors import BadInput
from diffulm.options import Count, Options, checked
from diffulm.recipes import training
from diffulm.recipes.config import Steps, Tokens, in_steps, resolve
from diffulm.recipes.training import Share, TrainingConfig

VERB = "adapt"


class Stage(Options):
    """A part of a run under one kind of attention (LLaDA2.0 calls such a plan warm-up, stable, decay)."""

    size: Annotated[int, Field(ge=1, le=2**24)] | None
    """Positions of a block, 1 is exactly autoregressive; None: full attention."""
    steps: Steps
    """Its length; the last stage lasts to the end of the run whatever it says."""


class AdaptConfig(TrainingConfig):
    """Every setting of a run; `config.yaml` holds all of them."""

    tokens: Tokens
    """Canvas positions to process."""
    block_size: Annotated[int, Field(ge=1, le=2**24)] | None = None
    """Block-causal attention with clean context, in blocks of so many positions; None: full attention."""
    block_schedule: Annotated[list[Stage], Field(min_length=1)] | None = None
    """Stages of other block sizes one after the other; the last one is what the model ends as."""
    full_share: Share = 0.0
    """Share of a block-causal run's steps that are taken under full attention, so that it can fill holes."""
    clean_copy: Literal["block", "causal"] = "block"
    """How the clean text before a block is read: block by block, as blocks are filled one after the other; or from left to
    right, as a decoder of verified drafts has it (sampler=verified)."""
    lora_rows: Literal["all", "masked"] = "all"
    """masked: the adapter acts on the rows of masks alone, so that one forward drafts and is the parent for all else."""
    packing: Literal["stream", "documents"] = "stream"
    """stream: EOS between documents, as in the paper; documents: each has its own BOS and sees only itself."""
    eval_blocks: Count = 32

    @model_validator(mode="after")
    def _together(self) -> "AdaptConfig":
        if self.block_size is not None and self.block_schedule is not None:
            raise BadInput("block_size and block_schedule: give one of them")
        blocks = self.block_size is not None or self.block_schedule is not None
        if self.full_share and not blocks:
            raise BadInput(f"full_share={self.full_share}: without blocks all attention is full; set block_size")
        if self.objective == "autoregressive" and blocks:
            raise BadInput("objective=autoregressive: leaves nothing to blocks; set them back")
        if self.clean_copy == "causal" and not blocks:
            raise BadInput("clean_copy=causal: without blocks there is no clean copy; set block_size")
        if self.lora_rows == "masked" and self.adapter != "none":
            wanted = {
                "keep_adapter": True,
                "checkpointing": False,
                "compile": False,
                "full_share": 0.0,
                "ar_weight": 0.0,
                "clean_copy": "causal",
            }
            for key, value in wanted.items():
                if getattr(self, key) != value:
                    raise BadInput(f"lora_rows=masked: needs {key}={str(value).lower()}")
        if self.lora_rows == "masked" and self.adapter == "none":
            raise BadInput("lora_rows=masked: there is no adapter; set adapter=lora")
        return self

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.length * self.global_batch))


def adapt(config: "str | Path | AdaptConfig", **settings: Any) -> dict[str, Any]:
    """Adapt an AR model: a preset name, a YAML path or a typed config, and settings over it. Returns the report.

    Raises BadInput for anything wrong with the settings, the parent, the data or the folder, before anything is written.
    """
    if isinstance(config, AdaptConfig):
        return carry_out(checked(AdaptConfig, **{**config.model_dump(), **settings}))
    return run(str(config), settings)


def run(preset: str, overrides: dict[str, Any], plan: bool = False, **asked: Any) -> dict[str, Any]:
    """Resolve the config and carry it out; with `plan` only say what would be done and cost (`asked`: see plan.py)."""
    if plan:
        from diffulm.recipes.plan import plan as planned

        return planned(preset, overrides, **asked)
    return carry_out(resolve(VERB, AdaptConfig, preset, overrides))


def carry_out(config: AdaptConfig) -> dict[str, Any]:
    """Train, or go on with a run that was stopped, or return the report of one that is finished."""
    from diffulm.recipes.pretraining import JOB

    return training.carry_out(config, JOB)


def stages(config: AdaptConfig) -> tuple[tuple[int, int | None], ...]:
    """(first step, block size; None: full attention) of each stage of a run."""
    if config.block_schedule is None:
        return ((0, config.block_size),)
    lengths = [in_steps(stage.steps, config.steps) for stage in config.block_schedule]
    return tuple((sum(lengths[:i]), stage.size) for i, stage in enumerate(config.block_schedule))
