"""What `diffulm inspect` reports: the document, and what of it can be read off a model."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from diffulm.checkpoint.outline import Misfit, geometry
from diffulm.denoiser import layers
from diffulm.denoiser.record import Record
from diffulm.options import ScoreOptions, sampler_names

RECURRENT = (layers.UNMASKED | layers.PARALLEL) - {"moe", "mlp"}


@dataclass(frozen=True)
class Inspection:
    """What `diffulm inspect` reports. Sizes in tokens, memory in bytes; what is not known is None."""

    model: str
    kind: str
    """autoregressive, diffusion or unknown."""
    adoptable: bool | None
    """None: nothing speaks against it, and nothing was measured."""
    reason: str | None
    """Why it is not adoptable."""
    evidence: str | None = None
    """What the verdict rests on, in words."""
    read: str | None = None
    """How much of the model was read: weights, headers or config."""
    probed: str | None = None
    """What the probe measured: weights, twin or None."""
    probe: dict[str, Any] | None = None
    architecture: str | None = None
    model_type: str | None = None
    parameters: int | None = None
    parameters_by_use: dict[str, int] | None = None
    vocabulary: int | None = None
    context: int | None = None
    dtype: str | None = None
    bytes_on_disk: int | None = None
    layers: dict[str, int | None] = field(default_factory=dict)
    """Kind of layer -> its window or chunk; None: sees everything, or takes no matrix."""
    layer_counts: dict[str, int] = field(default_factory=dict)
    tokenizer: str | None = None
    tokenizer_size: int | None = None
    tokenizer_fits: bool | None = None
    mask_token: str | None = None
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    bos_from: str | None = None
    tensors: dict[str, list[str]] | None = None
    """Names of missing, unexpected and misshapen tensors; None: not compared, or all fit."""
    record: dict[str, Any] | None = None
    serves: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """What was found of a model before any verdict. model: with its weights, or on the meta device."""

    name: str
    model: Any
    tokenizer: Any
    read: str
    dtype: str
    bytes_on_disk: int | None = None
    misfit: Misfit | None = None

    @property
    def text(self) -> Any:
        return self.model.config.get_text_config(decoder=True)

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]


def facts(seen: Seen) -> dict[str, Any]:
    sizes, tokenizer, misfit = geometry(seen.model), seen.tokenizer, seen.misfit
    used = {
        "embedding": sizes.embedding_parameters,
        "without_embedding": sizes.parameters - sizes.embedding_parameters,
        "active": sizes.active_parameters,
    }
    return {
        "read": seen.read,
        "architecture": type(seen.model).__name__,
        "model_type": seen.model.config.model_type,
        "parameters": sizes.parameters,
        "parameters_by_use": used,
        "vocabulary": seen.vocabulary,
        "context": sizes.context,
        "dtype": seen.dtype,
        "bytes_on_disk": seen.bytes_on_disk,
        "layers": layers.windows(seen.text),
        "layer_counts": dict(Counter(layers.kinds(seen.text))),
        "tokenizer": None if tokenizer is None else f"{type(tokenizer).__name__}, {len(tokenizer)} tokens",
        "tokenizer_size": None if tokenizer is None else len(tokenizer),
        "tokenizer_fits": None if tokenizer is None else len(tokenizer) <= seen.vocabulary,
        "tensors": asdict(misfit) if misfit and misfit.reason else None,
    }


def serves(seen: Seen, record: Record | None) -> dict[str, Any]:
    """What the model can be asked for, now (with a record) or once it is adapted."""
    kinds = layers.kinds(seen.text)
    left = sum(kind in RECURRENT for kind in kinds)
    blocks = record is not None and record.attention == "block"
    scores = list(get_args(ScoreOptions.model_fields["method"].annotation))
    why = "a finished block no longer changes" if blocks else "full attention: any token changes all others"
    if seen.tokenizer is None:
        infilling = "it has no tokenizer: only ids can be filled, through `denoiser`"
    elif record is not None and not record.infills:
        infilling = "it fills block by block, and was never trained to see what follows a hole"
    elif left:
        infilling = f"{left} of {len(kinds)} layers always look left (recurrent); the others look both ways"
    else:
        infilling = "a hole sees the text on both sides"
    return {
        "when": "now" if record else "once adapted",
        "samplers": sampler_names() if seen.tokenizer is not None else [],
        "infilling": seen.tokenizer is not None and (record is None or record.infills),
        "infilling_reason": infilling,
        "scores": scores if seen.tokenizer is not None else [],
        "caches": ["block-causal, exact"] if blocks else [],
        "caches_reason": why,
    }
