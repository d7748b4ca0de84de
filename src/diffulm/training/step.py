"""The loss of one optimizer step: sums over the whole global batch, whatever its cut into micro-batches and processes."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from diffulm import visibility
from diffulm.data import packed
from diffulm.denoiser.denoiser import Clean, Denoiser
from diffulm.training.curriculum import Curriculum

Inputs = dict[str, Tensor]  # of a micro-batch: everything (B, ...)


def prepared(
    curriculum: Curriculum, batches: list[Inputs], processes: int, over_processes: Callable[[Tensor], Tensor]
) -> list[Inputs]:
    """The micro-batches of one step, noised, each token with its final weight.

    batches: samples as `Samples` gives them. over_processes sums a tensor over all processes. The weights are divided by
    the denominators of the global batch, and multiplied by the number of processes, since DDP and FSDP average over them.
    """
    hidden = [curriculum.hide(batch) for batch in batches]
    totals = torch.stack([torch.stack([h.denominator, h.free.sum().float()]) for h in hidden]).sum(0)
    totals = over_processes(totals).to(totals.device)
    diffusion, autoregressive = (processes / total if total > 0 else 0.0 for total in totals.tolist())
    kept = ("ids", "row", "step", "document")
    made = []
    for batch, h in zip(batches, hidden, strict=True):
        inputs = {name: batch[name] for name in kept if name in batch}
        inputs |= {"canvas": h.canvas, "where": h.where, "weight": h.token_weight * diffusion}
        if curriculum.ar_weight:
            inputs |= {"free": h.free, "ar_weight": h.free * (curriculum.ar_weight * autoregressive)}
        made.append(inputs)
    return made


def loss_of(denoiser: Denoiser, curriculum: Curriculum, inputs: Inputs, micro_batches: int) -> Tensor:
    """What a micro-batch adds to the loss of its step; a scalar.

    The parent's load-balancing loss, where it has one, is a mean over the `micro_batches` of the step.
    """
    ids, where, step = inputs["ids"], inputs["where"], int(inputs["step"][0])
    size = curriculum.block_size(step)
    clean = None if size is None else Clean(ids, size, curriculum.clean_causal)
    denoiser = denoiser if clean else denoiser.seeing_everything()  # what no matrix means without blocks
    visible = _matrix(curriculum, step, ids.shape[1], ids.device)
    visible, positions = _in_documents(visible, inputs.get("document"))
    total, balance = denoiser.weighed_loss(
        inputs["canvas"], ids[where], where, inputs["weight"][where], visible, positions, clean
    )
    if "free" in inputs:
        free = inputs["free"]
        visible, _ = _in_documents(visibility.causal(ids.shape[1], device=ids.device), inputs.get("document"))
        again, _ = denoiser.shifted().weighed_loss(ids, ids[free], free, inputs["ar_weight"][free], visible, positions)
        total = total + again
    return total if balance is None else total + balance / micro_batches


@lru_cache(maxsize=2)
def _matrix(curriculum: Curriculum, step: int, length: int, device: torch.device) -> Tensor | None:
    """One matrix a step, for all of its micro-batches."""
    return curriculum.visible(step, length, device)


def _in_documents(visible: Tensor | None, document: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(visible, positions) where documents share a block and do not see each other."""
    if document is None:
        return visible, None
    same = visibility.same_document(document)
    return same if visible is None else same & visible, packed.positions(document)
