"""What a run is measured by: an evaluation now and then, a first look before anything is trained, the figures at its end.

Every draw is a function of the run's seed, so an evaluation that is made again, by a run that was resumed, finds the same.
"""

import contextlib
import copy
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffulm import costs
from diffulm.checkpoint.outline import geometry
from diffulm.denoiser.adapter import adapter_off, attached
from diffulm.denoiser.denoiser import Denoiser
from diffulm.evaluation import generation, likelihood
from diffulm.training.health import DRAWN
from diffulm.training.pace import peak
from diffulm.training.sharding import is_sharded

if TYPE_CHECKING:
    from diffulm.recipes.adapt import AdaptConfig
    from diffulm.recipes.training import TrainingConfig

FINAL_SAMPLES = 64
LEFT_TO_RIGHT_BLOCKS = 8
LEFT_TO_RIGHT_FORWARDS = 256  # a text: exact up to so many positions, beyond them at so many of each text
DRAWN_LENGTH, DRAWN_STEPS = 64, 16  # samples at an evaluation cost a quarter of what the bound does
ALL_HIDDEN = 0.99  # from this share on a run never sees what it could look at
COUNTED_BLOCKS = 512  # of the training text, for the frequencies of tokens
# A copy of the parent is kept beside the model to judge its samples up to this size: in float32 that is 0.8 GB, less than
# a third of what training adds to the weights. Beyond it samples have no perplexity.
JUDGE_PARAMETERS = 200_000_000


@dataclass(frozen=True)
class Gauge:
    """held_out: (n, L) blocks. eos: the token that ends a document. judge: the AR parent, None where it is not kept."""

    denoiser: Denoiser
    config: "AdaptConfig"
    held_out: Tensor
    eos: int
    judge: Any = None

    @property
    def held_back(self) -> dict[str, int]:
        """How much is measured on, for the report."""
        return {"held_out_blocks": len(self.held_out)}

    def before(self, rows: Any) -> dict[str, float]:
        """Before anything is trained: the parent's own AR loss, what the training text is like, and `evaluate` of the parent
        as it stands: under full attention, by noise level, that is the curve to compare with."""
        texts, part = spread(rows, COUNTED_BLOCKS), self.held_out[:, :DRAWN_LENGTH]
        with precision(self.config, self.denoiser):
            parent = likelihood.autoregressive(self.denoiser, self.held_out).nats
        return {
            "eval_parent": parent,
            "eval_unigram": generation.unigram_entropy(texts),
            "eval_data_eos": generation.share(texts, self.eos),
            "eval_data_repeats": generation.repeated(part),
            "eval_data_entropy": generation.entropy(part),
            **self.evaluate(),
        }

    def evaluate(self) -> dict[str, float]:
        """Held-out losses and what a few samples are like. Left to right is measured at some positions of each text, half
        as many forwards as the bound takes."""
        denoiser, config = self.denoiser, self.config
        with precision(self.config, self.denoiser):
            if config.objective == "autoregressive":
                return {"eval_ar": likelihood.autoregressive(denoiser, self.held_out).nats}
            bound = likelihood.bound(denoiser, self.held_out, config.eval_samples, config.seed)
            forwards = max(1, config.eval_samples // 2)
            read = likelihood.left_to_right(denoiser, self.held_out, forwards, config.seed)
            gain, gain_stderr = likelihood.future(denoiser, self.held_out, config.seed)
            if config.noise_floor > ALL_HIDDEN or (
                denoiser.record.attention == "block" and denoiser.record.block_size == 1
            ):
                gain = math.nan  # it has no right side to look at
            drawn = self._drawn(DRAWN, DRAWN_LENGTH, DRAWN_STEPS)
        found = {
            "bound": bound.nats, "bound_stderr": bound.stderr,
            "left_to_right": read.nats, "left_to_right_stderr": read.stderr,
            "future": gain, "future_stderr": gain_stderr, **drawn,
            **{f"noise_{5 + 10 * i:02}": nats for i, nats in enumerate(bound.levels) if nats is not None},
        }  # fmt: skip
        return {f"eval_{name}": value for name, value in found.items() if math.isfinite(value)}

    def after(self) -> dict[str, Any]:
        """The figures of a finished run, from more draws."""
        with precision(self.config, self.denoiser):
            found: dict[str, Any] = {"causal_view": likelihood.autoregressive(self.denoiser, self.held_out).nats}
            if self.config.objective == "autoregressive":
                return found
            whole = likelihood.bound(self.denoiser, self.held_out, FINAL_SAMPLES, self.config.seed)
            some = self.held_out[:LEFT_TO_RIGHT_BLOCKS]
            read = likelihood.left_to_right(self.denoiser, some, LEFT_TO_RIGHT_FORWARDS, self.config.seed)
        return {
            **found,
            "bound": whole.nats,
            "bound_stderr": whole.stderr,
            "left_to_right": read.nats,
            "left_to_right_stderr": read.stderr,
            "left_to_right_blocks": len(some),
        }

    def _drawn(self, count: int, length: int, steps: int) -> dict[str, float]:
        """What `count` samples in a random order at temperature 1, the model's own distribution, are like."""
        if self.denoiser.record.bos_token_id is None:
            return {}
        length = min(length, self.held_out.shape[1])
        ids = generation.unconditional(
            self.denoiser, count, length, self.config.seed, steps=steps, sampler="random", temperature=1.0
        )
        found = {"eos": generation.share(ids, self.eos), "repeats": generation.repeated(ids)}
        with self._parent() as judge:
            if judge is None:
                return {**found, "entropy": generation.entropy(ids)}
            seen = generation.quality(judge, ids)
        return {**found, "entropy": seen.entropy, "perplexity": seen.perplexity}

    @contextlib.contextmanager
    def _parent(self) -> Iterator[Any]:
        """The AR parent as a transformers model: the one that is kept, or the frozen one under an adapter."""
        model = self.denoiser.model
        if self.judge is None and frozen(model):
            with adapter_off(model):
                yield model
        else:
            yield self.judge


def precision(config: "TrainingConfig", denoiser: Denoiser) -> contextlib.AbstractContextManager[Any]:
    """On a GPU in the precision of the run: float32 would cost several times as much. On a CPU it costs less."""
    if config.precision == "bf16" and denoiser.device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def spread(rows: Any, count: int) -> Tensor:
    """`count` blocks evenly over the text, fewer if there are fewer."""
    count = min(count, len(rows))
    return torch.stack([torch.as_tensor(rows[i * len(rows) // count]["ids"]).long() for i in range(count)])


def judge_of(denoiser: Denoiser, config: "AdaptConfig") -> Any:
    """The parent as it is before training, to be kept beside the model; None where that would take too much memory, or where
    there is no trained parent."""
    model = denoiser.model
    large = sum(p.numel() for p in model.parameters()) > JUDGE_PARAMETERS
    if config.scratch or config.objective == "autoregressive" or frozen(model) or is_sharded(model) or large:
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)


def frozen(model: Any) -> bool:
    """Whether the parent is still there, whole, under an adapter."""
    return attached(model) and not model.get_input_embeddings().weight.requires_grad


def fastest(denoiser: Denoiser, config: "AdaptConfig", device: str) -> float | None:
    """Tokens a second if all devices did nothing but the products that this run needs, at their peak; None: not known."""
    from diffulm.recipes.plan import method_of

    most = peak(device, config.precision == "bf16")
    if most is None or config.quantise != "none":  # packed weights cannot be counted
        return None
    sizes, tokens = geometry(denoiser.model), config.global_batch * config.length
    parts = costs.flop_parts(sizes, tokens, config.length, method_of(config, sizes))
    return (
        most * int(os.environ.get("WORLD_SIZE", "1")) * tokens / (sum(parts.values()) - parts.get("recomputation", 0))
    )
