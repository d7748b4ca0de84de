"""Denoiser = (ids, visible, where, positions, cache) -> logits for the tokens AT `where`.

The shift by one of the AR parent lives in `Denoiser._rows` and nowhere else. The model runs as one root call
`model(...)` (so DDP and FSDP2 hooks fire), and hooks on its output embedding hand over only the rows somebody asked for.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffulm import visibility
from diffulm.bounds import Denoise
from diffulm.denoiser import attention, experts, head, layers
from diffulm.denoiser.hooks import Request, asking
from diffulm.denoiser.record import Record
from diffulm.shapes import Bool, Float, Int


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off (GPT-2 has 0.1 by default) and no gradients; then every module's own flag as it was."""
    training = _in_training(model)
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _in_training(module: nn.Module) -> list[nn.Module]:
    """Those of a module and all within it; quicker than `modules()`, which is felt between the steps of a small window."""
    found = [module] if module.training else []
    for child in module._modules.values():
        found += [] if child is None else _in_training(child)
    return found


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside DDP or another wrapper that keeps it under `.module`."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # pyright: ignore[reportAssignmentType]
    return model


def input_device(model: Any) -> torch.device:
    """Where the ids go: to the embedding, or, when accelerate keeps its weights elsewhere, to where it will run."""
    embedding = model.get_input_embeddings()
    if embedding.weight.device.type != "meta":
        return embedding.weight.device
    return torch.device(embedding._hf_hook.execution_device)


@dataclass(frozen=True)
class Clean:
    """The clean text beside a noisy canvas, for block-causal training: see `visibility.clean_context`."""

    ids: Tensor  # (B, L) as the canvas, nothing masked
    block_size: int
    left_to_right: bool = False  # within the clean copy


@runtime_checkable
class Company(Protocol):
    """Others that run rows on the same model at the same time, each from a thread of its own (serving/engine.py)."""

    def turn(self) -> AbstractContextManager[Any]:
        """The model for oneself; may be taken again inside."""
        ...

    def tiled(self, denoiser: "Denoiser") -> Denoise:
        """As `tile.tiled`, the rows together with those of the others."""
        ...

    def cached(self, denoiser: "Denoiser") -> Denoise:
        """As `cache.cached` in mode exact, the rows together with those of the others."""
        ...


class Denoiser:
    """A Hugging Face decoder read as a denoiser of masked tokens.

    model: the transformers model, or the same wrapped by DDP. record: what the checkpoint says of itself.
    additive: the family takes its attention mask as an additive float tensor under eager attention (found by the probe).
    The model itself is never changed but for two dormant hooks on its output embedding.
    """

    def __init__(self, model: Any, record: Record, additive: bool = False) -> None:
        self.module = model
        self.model = unwrap(model)
        self.record = record
        self.additive = additive
        self.windows = layers.windows(self.config)
        takes = inspect.signature(self.model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._takes_routers = "output_router_logits" in takes
        self._head_is_last: bool | None = None

    company: "Company | None" = None
    """Who else runs rows on this model at the same time; None: nobody."""

    def shared(self, company: "Company") -> "Denoiser":
        """The same denoiser, its rows run in company and its other forwards in turn with those of others."""
        other = copy.copy(self)
        other.company = company
        return other

    def turn(self) -> AbstractContextManager[Any]:
        """Inside, nobody else runs the model."""
        return nullcontext() if self.company is None else self.company.turn()

    def on(self, module: Any) -> "Denoiser":
        """The same denoiser calling `module`, a wrapper (DDP, FSDP) around its model."""
        self._chunkable()  # measured once here, not by every copy
        other = copy.copy(self)
        other.module = module
        return other

    def quick(self) -> "Denoiser":
        """The same, its model switched to attention without a mask wherever everything is visible, if that changes nothing."""
        ids = (torch.arange(16, device=self.device) * 7 % self.vocabulary)[None]
        if not self.additive:
            with evaluating(self.model):
                attention.use(self.model, lambda: self.seeing_everything().rows(ids))
        return self

    def seeing_everything(self) -> "Denoiser":
        """The same weights under full attention, whatever the record says."""
        other = copy.copy(self)
        other.record = replace(self.record, attention="full", block_size=None)
        return other

    def shifted(self) -> "Denoiser":
        """The same weights read as the AR parent is: row i predicts token i + 1, whatever the record says."""
        other = copy.copy(self)
        other.record = replace(self.record, shift=True)
        return other

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config(decoder=True)

    @property
    def device(self) -> torch.device:
        return input_device(self.model)

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    @cached_property
    def parameters(self) -> int:
        """How many there are; counted once, for the tile is chosen at every forward."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def forbidden(self) -> int | None:
        """The mask's logit, which nobody gets; None where it is allowed, or is none of the model's own."""
        mask = self.record.mask_token_id
        return None if self.record.emit_mask or mask >= self.vocabulary else mask

    @property
    def context(self) -> int | None:
        """Positions the model can take, None where the architecture sets no limit."""
        return getattr(self.config, "max_position_embeddings", None)

    def __call__(
        self,
        ids: Int[Tensor, "b l"],
        visible: Bool[Tensor, "..."] | None = None,
        where: Bool[Tensor, "b l"] | None = None,
        positions: Int[Tensor, "b l"] | None = None,
        cache: Any = None,
        clean: Clean | None = None,
    ) -> Float[Tensor, "n v"]:
        """Logits of the tokens AT `where`, row-major: (where.sum(), vocabulary).

        ids (B, L). visible: bool (L, L) or (B, L, L), row q may look at column k; None = what the record says.
        where: (B, L) bool, default every predictable position (all but 0 with shift). positions: (B, L), default 0..L-1.
        cache: a transformers cache that holds all earlier columns (`DynamicCache()`, which crops no window) and takes the
        new ones; `visible` is then (L, earlier + L), `positions` default to those after it. clean: the text without masks;
        each block of the canvas then sees itself and the clean blocks before it, within `visible` where that is given. The
        mask token is at -inf unless the record says `emit_mask`. Raises ValueError when `where` asks for position 0 with
        shift, for masks that are not bool or of the wrong shape, and for a clean copy that the family cannot be given. A
        row's logits do not depend on its neighbours in the batch.
        """
        where = self.predictable(ids) if where is None else where
        request = Request(self._rows(ids, where, clean), head.row_by_row(where.sum(1).tolist()))
        ids, visible, positions = self._beside(ids, visible, positions, clean)
        logits = self._forward(ids, visible, positions, cache, request)
        return logits if self.record.emit_mask else self._without_mask(logits)

    def cross_entropy(
        self,
        ids: Int[Tensor, "b l"],
        targets: Int[Tensor, "n"],
        where: Bool[Tensor, "b l"],
        visible: Bool[Tensor, "..."] | None = None,
        positions: Int[Tensor, "b l"] | None = None,
        clean: Clean | None = None,
    ) -> Float[Tensor, "n"]:
        """-log p(targets) in nats at `where` (row-major), float32; arguments as in a call.

        The full logits never exist, but for families that do something to them after the output embedding.
        """
        if self._chunkable():
            project = head.cross_entropy(targets, self.forbidden, self.vocabulary)
            request = Request(self._rows(ids, where, clean), project)
            return self._forward(*self._beside(ids, visible, positions, clean), None, request)
        logits = self(ids, visible, where, positions, clean=clean)
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def weighed_loss(
        self,
        ids: Int[Tensor, "b l"],
        targets: Int[Tensor, "n"],
        where: Bool[Tensor, "b l"],
        weights: Float[Tensor, "n"],
        visible: Bool[Tensor, "..."] | None = None,
        positions: Int[Tensor, "b l"] | None = None,
        clean: Clean | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
        """(sum of weights x `cross_entropy`, the parent's own load-balancing loss, weighed; None where it had none).

        What a training step minimises: the gradient of the head is computed in the forward (see head.py), so a loss can be
        taken backwards once.
        """
        balance = experts.balancing(self.model)
        with experts.recording(self.model) if balance else nullcontext([]) as routers:
            if self._chunkable():
                project = head.weighed_loss(targets, weights, self.forbidden, self.vocabulary)
                request = Request(self._rows(ids, where, clean), project)
                loss = self._forward(*self._beside(ids, visible, positions, clean), None, request).squeeze(0)
            else:
                loss = (self.cross_entropy(ids, targets, where, visible, positions, clean) * weights).sum()
        return loss, balance(routers[-1]) if balance else None

    def causal_view(self, ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
        """The AR reading of the same weights: next-token logits (B, L, V), row i for token i + 1, as the parent gives them."""
        logits = self.rows(ids, visibility.causal(ids.shape[1], device=ids.device))
        return logits if self.record.emit_mask else self._without_mask(logits)

    def rows(self, ids: Int[Tensor, "b l"], visible: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "b l v"]:
        """The model's raw output by input row, no shift and nothing forbidden: for probes and parity."""
        return self._forward(ids, visible, None, None, None)

    @property
    def takes_clean_copy(self) -> bool:
        """Whether the family can be given the clean text beside the canvas: its order is told by positions alone."""
        return self._takes_positions and not self.record.notes.get("left_layers")

    def predictable(self, ids: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        where = torch.ones_like(ids, dtype=torch.bool)
        if self.record.shift:
            where[:, 0] = False
        return where

    def _rows(self, ids: Tensor, where: Tensor, clean: Clean | None = None) -> Tensor:
        """Targets -> rows that predict them. With shift row j - 1 predicts token j: the one place that knows.

        Beside a clean copy the first token of a block is predicted by the clean row before it, which belongs to the block
        before and so sees no mask.
        """
        if where.dtype != torch.bool or where.shape != ids.shape:
            raise ValueError(
                f"`where` must be bool of shape {tuple(ids.shape)}, not {where.dtype} {tuple(where.shape)}"
            )
        if self.record.shift and bool(where[:, 0].any()):
            raise ValueError("position 0 is never predicted by a model with shift: `where` must be False there")
        text, target = where.nonzero(as_tuple=True)
        row = target - 1 if self.record.shift else target
        if clean is None:
            return text * ids.shape[1] + row
        row = torch.where(row // clean.block_size < target // clean.block_size, row + ids.shape[1], row)
        return text * 2 * ids.shape[1] + row

    def _beside(
        self, ids: Tensor, visible: Tensor | None, positions: Tensor | None, clean: Clean | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(ids, visible, positions) of the rows: the canvas, or the canvas and after it its clean copy."""
        if clean is None:
            return ids, visible, positions
        if not self.takes_clean_copy:
            raise ValueError("a clean copy needs a family that takes positions, and no layer that looks left always")
        length = ids.shape[1]
        doubled = visibility.clean_context(
            length, clean.block_size, left_to_right=clean.left_to_right, device=ids.device
        )
        if visible is not None:
            doubled = doubled & visible.to(ids.device).repeat(*[1] * (visible.dim() - 2), 2, 2)
        if positions is None:
            positions = torch.arange(length, device=ids.device).expand_as(ids)
        return torch.cat([ids, clean.ids], 1), doubled, positions.repeat(1, 2)

    def _without_mask(self, logits: Tensor) -> Tensor:
        if self.forbidden is None:  # beside the parent's logits: see adapter.py
            return F.pad(logits, (0, self.record.mask_token_id + 1 - logits.shape[-1]), value=float("-inf"))
        at = torch.tensor([self.forbidden], device=logits.device)
        return logits.index_fill(-1, at, float("-inf"))

    def _forward(
        self, ids: Tensor, visible: Tensor | None, positions: Tensor | None, cache: Any, request: Request | None
    ) -> Tensor:
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache
        past = 0 if cache is None else int(cache.get_seq_length())
        rows = torch.arange(past, past + ids.shape[1], device=ids.device) if positions is None else positions
        # One that keeps its columns by position says how many there are; any other appends the new ones to the earlier.
        count = getattr(cache, "columns", None)
        columns = torch.arange(past if count is None else count, device=ids.device)
        if count is None:
            columns = torch.cat([columns.expand(*rows.shape[:-1], -1), rows], -1)
        options["attention_mask"] = self._mask(visible, rows, columns, len(ids))
        if self._takes_routers:
            options["output_router_logits"] = False  # see experts.py
        if self._takes_positions:
            options["position_ids"] = rows.expand_as(ids)
        if request is None:
            with self.turn():
                return self.module(input_ids=ids, **options).logits
        with self.turn(), asking(self.model.get_output_embeddings(), request):
            return self.module(input_ids=ids, **options).logits

    def _mask(self, visible: Tensor | None, rows: Tensor, columns: Tensor, batch: int) -> Any:
        """The 4-D mask; one a kind of layer where the architecture mixes them; None where no layer takes any.

        rows, columns: their positions in the text, (..., L) and (..., C).
        """
        everything = visible is None and self.record.attention == "full"
        if visible is None:
            visible = self.default_visible(columns.shape[-1], rows.device)[..., -rows.shape[-1] :, :]
        expected = (rows.shape[-1], columns.shape[-1])
        if visible.dtype != torch.bool or visible.shape[-2:] != expected or visible.dim() not in (2, 3):
            raise ValueError(
                f"`visible` must be bool of shape (..., {expected[0]}, {expected[1]}), "
                f"not {visible.dtype} {tuple(visible.shape)}"
            )
        visible = visible.to(rows.device)
        found = self.windows.keys()
        if found <= layers.UNMASKED:
            return None
        masks: dict[str, Any] = {}
        if found & (layers.UNMASKED | layers.PARALLEL):  # such families look for these two names, whatever they have
            masks = {"linear_attention": None, layers.FULL: self._as_argument(visible, batch)}
        for kind, size in self.windows.items():
            seen = visible
            if size is not None and self.record.window != "lift":
                seen = visible & layers.within(kind, size, rows, columns)
            masks[kind] = None if kind in layers.UNMASKED else self._as_argument(seen, batch)
            if everything and seen is visible and masks[kind] is not None:
                attention.marked(masks[kind])
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def default_visible(self, length: int, device: torch.device, masked: Tensor | None = None) -> Tensor:
        """What the record says of L positions, (L, L); (B, L, L) where that depends on what is masked (B, L) now."""
        if self.record.attention == "block":
            assert self.record.block_size is not None
            masked = masked if self.record.clean_causal else None
            return visibility.block_causal(length, self.record.block_size, masked=masked, device=device)
        return visibility.full(length, device=device)

    def _as_argument(self, visible: Tensor, rows: int) -> Tensor:
        mask = visible[None, None] if visible.dim() == 2 else visible[:, None]
        if self.additive:
            dtype = self.model.get_input_embeddings().weight.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return mask.expand(rows, -1, -1, -1)  # some families insist; a view, it takes no memory

    def _chunkable(self) -> bool:
        """Whether the logits are exactly the output embedding's output (no soft-cap, no scale after it): measured once."""
        if self._head_is_last is None:
            seen: list[Tensor] = []

            def watch(head: nn.Module, hidden: Tensor) -> Tensor:
                seen.append(head(hidden))
                return seen[0].clone()  # what comes after may work in place

            # not all one token: the row of a padding token may be zero, and zero survives any soft-cap
            ids = (torch.arange(4, device=self.device) % self.vocabulary)[None]
            with evaluating(self.model):
                request = Request(torch.arange(ids.numel(), device=ids.device), watch)
                self._head_is_last = torch.equal(self._forward(ids, None, None, None, request), seen[0])
        return self._head_is_last
