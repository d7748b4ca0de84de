"""What one optimizer step sees: which tokens are hidden, what they weigh, who may look at whom.

Everything is a function of (seed, step, row of the global batch), so that a resumed run and a run on more processes see
the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from diffulm import noise, objective, visibility
from diffulm.data import conversations, packed
from diffulm.data.blocks import row as row_of
from diffulm.randomness import key, uniform
from diffulm.shapes import Bool, Float, Int

_MIX = key("full attention among blocks")


class Samples(Dataset[dict[str, Tensor]]):
    """Global sample n -> its canvas (ids, fixed) and its place (step, row): random access, order a function of the seed."""

    def __init__(
        self, blocks: "Dataset[dict[str, Tensor]]", has_bos: bool, seed: int, global_batch: int, steps: int
    ) -> None:
        self.blocks, self.has_bos, self.seed, self.global_batch, self.steps = blocks, has_bos, seed, global_batch, steps

    def __len__(self) -> int:
        return self.steps * self.global_batch

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        block = self.blocks[row_of(self.blocks, self.seed, n)]  # pyright: ignore[reportArgumentType]
        ids = torch.as_tensor(block["ids"]).long()
        fixed = torch.zeros_like(ids, dtype=torch.bool)
        fixed[0] = self.has_bos
        step, row = divmod(n, self.global_batch)
        sample = {"ids": ids, "fixed": fixed, "step": torch.tensor(step), "row": torch.tensor(row)}
        if "document" in block:
            sample["document"] = torch.as_tensor(block["document"]).long()
            sample["fixed"] = packed.begins(sample["document"][None])[0]
        if "kind" in block:
            kind = torch.as_tensor(block["kind"])
            sample |= {"fixed": kind == conversations.FIXED, "padding": kind == conversations.PADDING}
        return sample


@dataclass(frozen=True)
class Hidden:
    """canvas (B, L) as the model sees it; where (B, L) carries loss; token_weight (B, L); denominator: scalar; free (B, L):
    what may be hidden."""

    canvas: Int[Tensor, "b l"]
    where: Bool[Tensor, "b l"]
    token_weight: Float[Tensor, "b l"]
    denominator: Float[Tensor, ""]
    free: Bool[Tensor, "b l"]


Stages = tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class Curriculum:
    """objective "autoregressive" trains the parent itself: nothing hidden, a causal matrix, every free token carries loss.

    stages: (first step, block size or None for full attention), one after the other; blocks have clean context.
    full_share: of the steps under blocks, those that are taken under full attention, drawn by (seed, step).
    clean_causal: the clean text before a block was read from left to right, as a decoder of drafts has it.
    documents: the documents of a row, so many at most, are noised each at a level of its own; None: a row has one level.
    padding_weight: what the loss of padding that was trained with weighs beside that of other tokens.
    """

    mask_token_id: int
    seed: int
    global_batch: int
    objective: str = "bound"
    noise: str = "bernoulli"
    schedule: str = "linear"
    floor: float = 1e-3
    ceiling: float = 1.0
    annealing: str = "bernoulli"
    anneal_steps: int = 0
    ar_weight: float = 0.0
    stages: Stages = ((0, None),)
    full_share: float = 0.0
    clean_causal: bool = False
    documents: int | None = None
    padding_weight: float = 1.0

    @property
    def autoregressive(self) -> bool:
        return self.objective == "autoregressive"

    def block_size(self, step: int) -> int | None:
        """Positions of a block at this step; None: full attention."""
        size = [size for first, size in self.stages if first <= step][-1]
        open_to_all = self.full_share > 0 and float(uniform(self.seed, _MIX, step)) < self.full_share
        return None if open_to_all else size

    def hide(self, batch: dict[str, Tensor]) -> Hidden:
        """The noise of one micro-batch: batch holds ids, fixed (B, L) and step, row (B,), all of one step; also document,
        padding (B, L) where there are such.

        Each block, and with `documents` each document, is noised as if it were a row of its own, at its own noise level.
        """
        ids, free, step = batch["ids"], ~batch["fixed"], int(batch["step"][0])
        free[:, 0] = False  # with shift position 0 is never predicted, fixed or not
        if self.autoregressive:
            return Hidden(ids, free, free.float(), free.sum().float(), free)
        size, weights = self.block_size(step), torch.ones_like(ids, dtype=torch.float)
        if "padding" in batch:
            weights = weights.masked_fill(batch["padding"], self.padding_weight)
        if size is None and self.documents is not None and "document" in batch:
            parts, weights, count = _by_document(free, weights, batch["document"], self.documents)
        else:
            parts, weights, count = _by_block(free, weights, size or free.shape[1])
        rows = (batch["row"][:, None] * count + torch.arange(count, device=ids.device)).flatten()
        options = {"schedule": self.schedule, "floor": self.floor, "ceiling": self.ceiling}
        options = options if self.noise == "bernoulli" else {}
        drawn = noise.by_name(self.noise)(parts, self.seed, step, rows, self.global_batch * count, **options)
        weight, denominator = objective.by_name(self.objective)(drawn.masked, parts, drawn.weight, weights)
        masked, weight = _joined(drawn.masked, free), _joined(weight, free)
        return Hidden(ids.masked_fill(masked, self.mask_token_id), masked, weight, denominator, free)

    def anneal_ratio(self, step: int) -> float:
        """Share of the future that is open at this step."""
        return 0.0 if self.autoregressive else visibility.anneal_ratio(step, self.anneal_steps)

    def visible(self, step: int, length: int, device: torch.device) -> Bool[Tensor, "l l"] | None:
        """The matrix of this step, shared by rows, heads and layers; None: nothing beyond what blocks say, if there are any."""
        ratio = self.anneal_ratio(step)
        if ratio >= 1:
            return None
        if ratio <= 0:
            return visibility.causal(length, device=device)
        return visibility.annealed(length, ratio, self.seed, step, order=self.annealing, device=device)  # pyright: ignore[reportArgumentType]


# (B, L) -> (parts (B x count, ...), weights of the same shape, count), and back


def _by_block(free: Tensor, weights: Tensor, size: int) -> tuple[Tensor, Tensor, int]:
    count = -(-free.shape[1] // size)
    beyond = (0, count * size - free.shape[1])
    return pad(free, beyond).reshape(-1, size), pad(weights, beyond).reshape(-1, size), count


def _by_document(free: Tensor, weights: Tensor, document: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    own = document[:, None, :] == torch.arange(count, device=free.device)[None, :, None]
    parts = free[:, None, :] & own
    return parts.flatten(0, 1), weights[:, None, :].expand_as(parts).flatten(0, 1), count


def _joined(parts: Tensor, like: Tensor) -> Tensor:
    """Parts side by side, or, each as long as the row, on top of each other: in either case every position is in one."""
    rows, length = like.shape
    if parts.shape[1] == length and len(parts) > rows:
        return parts.view(rows, -1, length).sum(1).to(parts.dtype)
    return parts.reshape(rows, -1)[:, :length]
