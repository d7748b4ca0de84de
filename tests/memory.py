"""How much memory a training step takes: the bytes of all tensors that live, counted operation by operation.

Unlike the memory of the process it does not depend on what malloc keeps, and unlike torch.cuda's figures it needs no GPU.
Buffers that a kernel takes for itself are not seen.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffulm.denoiser.denoiser import Clean, Denoiser


class Living(TorchDispatchMode):
    """now: bytes of the tensors that were made inside, or shown to it, and live. most: the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def show(self, value: Any) -> None:
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.show(made)
        return made


def of_a_step(
    denoiser: Denoiser,
    rows: int,
    length: int,
    mixed: bool,
    micro_batches: int = 1,
    block_size: int | None = None,
    ar_term: bool = False,
) -> int:
    """Bytes at the fullest moment of a step as the trainer takes it, the second one, with AdamW: weights, moments and all."""
    parameters = [p for p in denoiser.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, denoiser.vocabulary - 4, (rows, length), generator=draw)
    where = torch.rand(rows, length, generator=draw) < 0.5
    where[:, 0] = False
    free = denoiser.predictable(ids)
    canvas = ids.masked_fill(where, denoiser.record.mask_token_id)
    clean = None if block_size is None else Clean(ids, block_size)

    def share(here: Tensor) -> Tensor:
        return torch.full((int(here.sum()),), 1 / int(here.sum()))

    def step() -> None:
        for _ in range(micro_batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss, _ = denoiser.weighed_loss(canvas, ids[where], where, share(where), clean=clean)
                if ar_term:
                    loss = loss + denoiser.weighed_loss(ids, ids[free], free, share(free))[0]
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    denoiser.model.train()
    step()
    living = Living()
    living.show([list(denoiser.model.parameters()), [list(state.values()) for state in optimizer.state.values()]])
    with living:
        step()
    return living.most
