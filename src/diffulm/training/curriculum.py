"""What one optimizer step sees: which tokens are hidden, what they weigh, who may look at whom.

Everything is a function of (seed, step, row of the global batch), so that a resumed run and a run on more processes see
the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffulm import noise, objective, visibility
from diffulm.data.blocks import row as row_of
from diffulm.shapes import Bool, Float, Int


class Samples(Dataset[dict[str, Tensor]]):
    """Global sample n -> its canvas (ids, fixed) and its place (step, row): random access, order a function of the seed."""

    def __init__(
        self, blocks: "Dataset[dict[str, Tensor]]", has_bos: bool, seed: int, global_batch: int, steps: int
    ) -> None:
        self.blocks, self.has_bos, self.seed, self.global_batch, self.steps = blocks, has_bos, seed, global_batch, steps

    def __len__(self) -> int:
        return self.steps * self.global_batch

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        ids = torch.as_tensor(self.blocks[row_of(self.blocks, self.seed, n)]["ids"]).long()  # pyright: ignore[reportArgumentType]
        fixed = torch.zeros_like(ids, dtype=torch.bool)
        fixed[0] = self.has_bos
        step, row = divmod(n, self.global_batch)
        return {"ids": ids, "fixed": fixed, "step": torch.tensor(step), "row": torch.tensor(row)}


@dataclass(frozen=True)
class Hidden:
    """canvas (B, L) as the model sees it; where (B, L) carries loss; token_weight (B, L); denominator: scalar."""

    canvas: Int[Tensor, "b l"]
    where: Bool[Tensor, "b l"]
    token_weight: Float[Tensor, "b l"]
    denominator: Float[Tensor, ""]


@dataclass(frozen=True)
class Curriculum:
    """objective "autoregressive" trains the parent itself: nothing hidden, a causal matrix, every free token carries loss."""

    mask_token_id: int
    seed: int
    global_batch: int
    objective: str = "bound"
    noise: str = "bernoulli"
    schedule: str = "linear"
    floor: float = 1e-3
    annealing: str = "bernoulli"
    anneal_steps: int = 0

    @property
    def autoregressive(self) -> bool:
        return self.objective == "autoregressive"

    def hide(self, batch: dict[str, Tensor]) -> Hidden:
        """The noise of one micro-batch: batch holds ids, fixed (B, L) and step, row (B,), all of one step."""
        ids, free, rows = batch["ids"], ~batch["fixed"], batch["row"]
        free[:, 0] = False  # with shift position 0 is never predicted, fixed or not
        if self.autoregressive:
            return Hidden(ids, free, free.float(), free.sum().float())
        options = {"schedule": self.schedule, "floor": self.floor} if self.noise == "bernoulli" else {}
        drawn = noise.by_name(self.noise)(free, self.seed, int(batch["step"][0]), rows, self.global_batch, **options)
        weight, denominator = objective.by_name(self.objective)(drawn.masked, free, drawn.weight)
        return Hidden(ids.masked_fill(drawn.masked, self.mask_token_id), drawn.masked, weight, denominator)

    def anneal_ratio(self, step: int) -> float:
        """Share of the future that is open at this step."""
        return 0.0 if self.autoregressive else visibility.anneal_ratio(step, self.anneal_steps)

    def visible(self, step: int, length: int, device: torch.device) -> Bool[Tensor, "l l"] | None:
        """The matrix of this step, shared by rows, heads and layers; None once everything is visible."""
        ratio = self.anneal_ratio(step)
        if ratio >= 1:
            return None
        if ratio <= 0:
            return visibility.causal(length, device=device)
        return visibility.annealed(length, ratio, self.seed, step, order=self.annealing, device=device)  # pyright: ignore[reportArgumentType]
