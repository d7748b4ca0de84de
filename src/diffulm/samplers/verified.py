"""Exactly the left-to-right distribution, several tokens a forward.

Every token is drawn from the causal view p(. | x_<i) with the uniform of its position, as if one were drawn at a time. A
draft only says how many of these draws one forward settles: as many as equal the draft, and the first that does not. So the
text is the same, token for token, whatever drafted and however long the drafts are. Drafts are drawn with the same uniforms,
which makes them agree more often and, as nothing that is kept comes from them, can bias nothing.
(MATHS: min(1, p/q) would be exact for independent drafts too, but its text would depend on the drafter.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffulm import randomness
from diffulm.errors import BadInput
from diffulm.samplers._draw import draw
from diffulm.shapes import Bool, Int

_TOKEN = randomness.key("sampler", "verified")
Read = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Sequence[Tensor]]]
"""(known (n,) ids, drafted (k,) ids, sizes of k + 1 groups) -> (exact (k + 1, V), ahead: k + 1 tensors (size, V)), logits.

exact[g]: of position n + g behind the known tokens and g drafted ones. ahead[g]: guesses at the positions after that one."""
Groups = Callable[[int, int, int], list[int]]


def everywhere(drafted: int, room: int, draft: int) -> list[int]:
    """`draft` tokens behind each of the drafted + 1 places where the draft may end; `room` tokens are left to fill."""
    return [max(0, min(draft, room - place - 1)) for place in range(drafted + 1)]


@torch.no_grad()
def verified(
    reader: Callable[[], Read],
    ids: Int[Tensor, "b l"],
    fixed: Bool[Tensor, "b l"],
    present: Bool[Tensor, "b l"] | None = None,
    *,
    seeds: Sequence[int | tuple[int, int]],
    draft: int = 4,
    forbidden: Sequence[int] = (),
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    callback: Callable[[Any], Any] | None = None,
    groups: Groups = everywhere,
) -> tuple[Int[Tensor, "b l"], Int[Tensor, " b"]]:
    """Continue what is fixed at the start of each row: (ids (B, L), forwards (B,) of each row).

    reader: makes the `Read` of a row; rows are run one after the other. draft: tokens drafted at once, 0: one token a
    forward. seeds, forbidden (the mask token belongs to it) and the rest as in `sample`. What follows EOS becomes
    `pad_token_id`, or EOS, without a forward. BadInput where something fixed stands behind something free.
    """
    free = ~fixed if present is None else ~fixed & present
    real = torch.ones_like(fixed) if present is None else present
    if bool((fixed & real & (free.cumsum(1) > 0)).any()):
        raise BadInput("sampler=verified reads from left to right: it cannot fill a hole with text behind it; take another")
    out, forwards = ids.clone(), torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    for row, seed in enumerate(seeds):
        pair = seed if isinstance(seed, tuple) else (seed, 0)
        start, end = int((~free[row] & real[row]).sum()), int(real[row].sum())
        position = torch.arange(end, device=ids.device)
        uniforms = randomness.uniform(randomness.key("sample", *pair), _TOKEN, position)
        ...
    return out, forwards
