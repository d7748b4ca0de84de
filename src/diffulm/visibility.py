"""Who may look at whom: boolean matrices [row, column], composed with `&` and `|`.

`visible[q, k]` is True where row q may look at column k. All of them speak of rows, that is of inputs: the shift
between a row and the token it predicts is none of their business.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from diffulm.errors import BadInput
from diffulm.randomness import key, uniform
from diffulm.shapes import Bool, Int

Device = torch.device | str | None
Order = Literal["bernoulli", "near"]
_SALT = key("annealed visibility")


def _rows_and_columns(length: int, device: Device) -> tuple[Tensor, Tensor]:
    position = torch.arange(length, device=device)
    return position[:, None], position[None, :]


def _at_least_one(what: str, size: int) -> None:
    if size < 1:
        raise BadInput(f"{what} must be at least 1, not {size}")


def causal(length: int, *, device: Device = None) -> Bool[Tensor, "length length"]:
    """(L, L): a row sees itself and what is to its left."""
    row, column = _rows_and_columns(length, device)
    return column <= row


def full(length: int, *, device: Device = None) -> Bool[Tensor, "length length"]:
    """(L, L): everybody sees everybody."""
    return torch.ones(length, length, dtype=torch.bool, device=device)


def window(length: int, size: int, *, device: Device = None) -> Bool[Tensor, "length length"]:
    """(L, L): a symmetric sliding window, |row - column| < size. BadInput if size < 1."""
    _at_least_one("window size", size)
    row, column = _rows_and_columns(length, device)
    return (row - column).abs() < size


def block_causal(
    length: int, size: int, *, masked: Bool[Tensor, "b length"] | None = None, device: Device = None
) -> Bool[Tensor, "... length length"]:
    """(L, L): a row sees its own block of `size` positions and the blocks before it. BadInput if size < 1.

    masked: (B, L) -> (B, L, L): only blocks in which something is masked are seen whole, from within; finished ones are read
    from left to right.
    """
    _at_least_one("block size", size)
    row, column = _rows_and_columns(length, device)
    if masked is None:
        return column // size <= row // size
    block = torch.arange(length, device=device) // size
    filling = (masked[:, :, None] & (block[:, None] == block)).any(
        1
    )  # (B, L): something in the block of this column is masked
    return (column <= row) | ((column // size == row // size) & filling[:, None, :])


def clean_context(
    length: int, size: int, *, left_to_right: bool = False, device: Device = None
) -> Bool[Tensor, "rows rows"]:
    """(2L, 2L), rows [noisy copy; clean copy] of one text, in blocks of `size`: a noisy row sees its own noisy block and
    the clean blocks before it, a clean row the clean blocks up to its own. BadInput if size < 1.

    So every block is trained on what it will see when the blocks before it are filled (BD3-LM, arXiv 2503.09573).
    left_to_right: a clean row sees no clean row to its right, so that clean rows are what the AR parent computes.
    """
    _at_least_one("block size", size)
    row, column = (x // size for x in _rows_and_columns(length, device))
    nothing = torch.zeros(length, length, dtype=torch.bool, device=device)
    seen = causal(length, device=device) if left_to_right else column <= row
    noisy, clean = torch.cat([row == column, column < row], 1), torch.cat([nothing, seen], 1)
    return torch.cat([noisy, clean])


def same_document(documents: Int[Tensor, "b l"]) -> Bool[Tensor, "b l l"]:
    """(B, L) document numbers -> (B, L, L): a row sees the columns of its own document."""
    return documents[:, :, None] == documents[:, None, :]


def present(present: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l l"]:
    """(B, L) -> (B, L, L): nobody sees batch padding, but a padded row sees itself.

    Without the diagonal a padded row would have no column at all, and a softmax over nothing is NaN.
    """
    itself = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return present[:, None, :] | itself


def annealed(
    length: int, ratio: float, seed: int, step: int, order: Order = "bernoulli", *, device: Device = None
) -> Bool[Tensor, "length length"]:
    """(L, L): causal, or open to the future by `ratio` (0: causal, 1 and more: full). Paper, section 3.3.

    `bernoulli` opens each future pair with probability `ratio`, by a draw that depends on (seed, step) alone:
    one matrix a step, the same for all rows of a batch and in every process. `near` opens the future nearest
    first, up to a distance of ratio x (length - 1), without chance. BadInput if the ratio is negative or NaN.
    """
    if math.isnan(ratio) or ratio < 0:
        raise BadInput(f"annealing ratio must be 0 or more, not {ratio}")
    row, column = _rows_and_columns(length, device)
    if order == "near":
        return column - row <= ratio * (length - 1)
    if order != "bernoulli":
        raise BadInput(f"unknown annealing order {order!r}: there are bernoulli, near")
    return (column <= row) | (uniform(seed, _SALT, step, row, column) < ratio)


def anneal_ratio(step: int, anneal_steps: int) -> float:
    """How far the future is open at optimizer step `step`: min(1, (step + 1) / anneal_steps); 1 without annealing."""
    return 1.0 if anneal_steps <= 0 else min(1.0, (step + 1) / anneal_steps)
