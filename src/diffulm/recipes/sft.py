"""`diffulm sft`: instruction tuning (paper, section 4.3): the prompt is fixed on the canvas, the answer is free.

    diffulm sft tiny model=pocket data=mine.jsonl out=runs/mine

The same objective as in `adapt` and no second loss. Where an answer ends is learned as well: its end token and the padding
behind it are tokens like others. The model is an adapted one, or an AR parent that is adapted in the same run; with
objective=autoregressive an AR parent is tuned as such, to compare with.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from diffulm.errors import BadInput
from diffulm.options import Count, checked
from diffulm.recipes import training
from diffulm.recipes.config import Tokens, resolve
from diffulm.recipes.training import Name, Share, TrainingConfig

VERB = "sft"


class SftConfig(TrainingConfig):
    """Every setting of a run; `config.yaml` holds all of them."""

    made: ClassVar[tuple[str, ...]] = ("simple", "simple:test")

    model: Name
    """An adapted model or an AR parent: a folder, a hub id or a shipped name."""
    data: Name | list[Name] = "simple"
    """Conversations: .jsonl, .parquet (each also .gz), globs, folders, hub data sets; simple: instructions that are made."""
    tokens: Tokens | None = None
    """Canvas positions to process."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Or how often to go through the data."""
    template: Annotated[str, Field(min_length=1)] = "auto"
    """auto: the tokenizer's own chat template, else plain; or plain, paper, alpaca, or a .jinja file."""
    prompt: Annotated[str, Field(min_length=1)] | None = None
    """For rows of another shape: the prompt as a format string over their fields, such as "{question}"."""
    response: Annotated[str, Field(min_length=1)] | None = None
    """The answer likewise."""
    turns: Literal["each", "last"] = "each"
    """Each turn of the assistant is an example, or only the last one of a conversation."""
    too_long: Literal["drop", "cut", "stop"] = "drop"
    """What happens to an answer that does not fit into `length`."""
    padding: Literal["random", "full", "block", "none"] = "random"
    """Padding that is trained with, behind an answer: drawn from 0 to `padding_tokens`; to the end of the row, as in
    the paper; to the end of the block (block-causal models); none."""
    padding_tokens: Annotated[int, Field(ge=0, le=2**20)] = 32
    padding_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """What the loss of a padding token weighs."""
    truncation: Share = 0.0
    """Share of the examples whose canvas ends within the answer, so that its end tells nothing of its length."""
    packing: bool = True
    """Several conversations in one row, each seeing only itself."""
    noise: Literal["bernoulli", "count"] = "count"
    eval_rows: Annotated[int, Field(ge=1, le=10**6)] = 64
    """Held-out examples; without eval_data they are taken from the end of `data`."""
    eval_answers: Annotated[int, Field(ge=0, le=10**6)] = 16
    """Of these, as many are answered at each evaluation."""
    eval_steps: Count = 32
    """Denoising steps of such an answer, at most."""

    @field_validator("template")
    @classmethod
    def _known(cls, name: str) -> str:
        if not name.endswith(".jinja") and name != "auto":
            from diffulm.chat import template_file

            template_file(name)
        return name

    @model_validator(mode="after")
    def _whole(self) -> "SftConfig":
        if (self.tokens is None) == (self.epochs is None):
            raise BadInput("tokens and epochs: give one of them")
        if (self.prompt is None) != (self.response is None):
            raise BadInput("prompt and response: give both of them, or neither")
        if self.padding == "full" and self.packing:
            raise BadInput(
                "padding=full: an answer is padded to the end of its row, which then holds one; set packing=false"
            )
        return self


def sft(config: "str | Path | SftConfig", **settings: Any) -> dict[str, Any]:
    """Fine-tune on conversations: a preset name, a YAML path or a typed config, and settings over it. Returns the report.

    Raises BadInput for anything wrong with the settings, the model, the data or the folder, before anything is written.
    """
    if isinstance(config, SftConfig):
        return carry_out(checked(SftConfig, **{**config.model_dump(), **settings}))
    return run(str(config), settings)


def run(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Resolve the config and carry it out. `tokens` and `epochs` each take the place of the other in a preset."""
    other = {"tokens": "epochs", "epochs": "tokens"}
    instead = {other[key]: None for key in other if key in overrides and other[key] not in overrides}
    return carry_out(resolve(VERB, SftConfig, preset, instead | overrides))


def carry_out(config: SftConfig) -> dict[str, Any]:
    """Train, or go on with a run that was stopped, or return the report of one that is finished."""
    from diffulm.recipes.tuning import JOB

    return training.carry_out(config, JOB)
