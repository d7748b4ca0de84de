"""Counter-based uniform numbers: a value is a function of its key alone, so batches, ranks and devices never enter.

Every part of a key passes through the finaliser of splitmix64 (Steele, Lea and Flood, 2014), in int64 arithmetic
that wraps, and the top 53 bits become a float64. There is no state: asking for one row or for a thousand, in one
process or in eight, gives each key the same number.
"""

import hashlib

import torch
from torch import Tensor

from diffulm.shapes import Float


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift: `>>` on int64 copies the sign bit, which the mask removes."""
    return (bits >> count) & (2 ** (64 - count) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _FIRST
    bits = (bits ^ _shift_right(bits, 27)) * _SECOND
    return bits ^ _shift_right(bits, 31)


def uniform(*key: int | Tensor) -> Float[Tensor, "..."]:
    """Uniform float64 numbers in [0, 1), one for each key.

    The parts of the key are ints or integer tensors that broadcast against each other; the result has their
    broadcast shape (a scalar tensor if all are ints) and lives on their device. Keys of different length, or in
    another order, give unrelated numbers. A tensor that is not of integers raises TypeError.
    """
    state = torch.zeros((), dtype=torch.int64)
    for part in key:
        if isinstance(part, Tensor):
            if part.is_floating_point() or part.is_complex():
                raise TypeError(f"a key is made of integers, not {part.dtype}")
            bits = part.to(torch.int64)
        else:
            bits = torch.tensor(_signed(part), dtype=torch.int64)
        # The constant keeps an all-zero key away from 0, which the finaliser maps to itself.
        state = _mix((state ^ bits) + _GAMMA)
    return _shift_right(state, 11).to(torch.float64) * 2.0**-53


def key(*parts: int | str) -> int:
    """A 63-bit key out of ints and strings (sha256 of them): the same on every machine and in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
