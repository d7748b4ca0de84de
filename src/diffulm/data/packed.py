"""Documents that share a block, each with its own fixed BOS, its own positions and no sight of the others: what follows from
their numbers in the block, never from ids. Who may look at whom is `visibility.same_document`."""

import torch
from torch import Tensor

from diffulm.shapes import Bool, Int


def begins(document: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """(B, L) document numbers -> (B, L): where a document begins, which is its BOS: fixed, it carries no loss."""
    first = torch.ones_like(document[:, :1], dtype=torch.bool)
    return torch.cat([first, document[:, 1:] != document[:, :-1]], 1)


def positions(document: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """(B, L) document numbers -> (B, L) int64: positions, from 0 in each document."""
    at = torch.arange(document.shape[1], device=document.device).expand_as(document)
    return at - at.masked_fill(~begins(document), 0).cummax(1).values
