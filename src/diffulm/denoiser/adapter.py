"""A LoRA on a frozen parent, through peft, that can be switched off: what is left then is the parent, bit for bit.

    with parent_view(denoiser) as parent:
        logits = parent(ids, where=where)  # what the AR parent says; all weights are shared

The mask token is no part of the parent. What it reads as is a vector beside the embedding, put where the token stands; the
output embedding stays as it is, for the mask's logit is never asked for. So a new mask token needs no row, a reused id keeps
its own, and it does not matter whether the embeddings are tied.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from diffulm.denoiser.denoiser import Denoiser, evaluating
from diffulm.denoiser.mask_token import give_row
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput

_found: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
# Of the forward that is running in this thread: the rows that the low-rank matrices act on; None: on all.
_rows: ContextVar[Tensor | None] = ContextVar("diffulm_lora_rows", default=None)
_gating: ContextVar[bool] = ContextVar("diffulm_gating", default=False)


class _WithMaskVector:
    """What an embedding becomes, in place, as a class of its own before that of the family: tying, hooks and names stay."""

    mask_token_id: int
    mask_vector: nn.Parameter
    masks_only: bool
    _disable_adapters: bool

    def forward(self, ids: Tensor) -> Tensor:
        if self._disable_adapters:
            return super().forward(ids)  # pyright: ignore[reportAttributeAccessIssue]
        hidden = ids == self.mask_token_id
        _rows.set(hidden if self.masks_only or _gating.get() else None)
        read = super().forward(ids.masked_fill(hidden, 0))  # pyright: ignore[reportAttributeAccessIssue]
        return torch.where(hidden[..., None], self.mask_vector.to(read.dtype), read)


def give_mask_vector(model: Any, mask_token_id: int, new: bool) -> None:
    """A vector (d,) that the model reads at `mask_token_id` in place of the embedding's row, which there need not be.

    new: it starts as the mean of all tokens, as a new row does, else as that token's own.
    """
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        if new:
            start = embedding.weight[:mask_token_id].float().mean(0) * _scale(embedding)
        else:
            start = embedding(torch.tensor([mask_token_id], device=embedding.weight.device))[0]
    embedding.mask_vector = nn.Parameter(start.to(embedding.weight.dtype).clone())
    embedding.mask_token_id, embedding._disable_adapters, embedding.masks_only = mask_token_id, False, False
    kind = type(embedding)
    embedding.__class__ = type(f"Masked{kind.__name__}", (_WithMaskVector, kind), {})


def _scale(embedding: Any) -> Tensor:
    """What an embedding multiplies its rows by (Gemma does); measured on its longest row."""
    with torch.no_grad():
        row = embedding.weight.float().norm(dim=1).argmax()[None]
        return embedding(row).float().norm() / embedding.weight[row].float().norm()


def add_lora(model: Any, parent: str | None, rank: int, alpha: float, seed: int, embeddings: bool = False) -> None:
    """Low-rank matrices in every linear layer but the output embedding; the rest is frozen, but for the mask vector and,
    with `embeddings`, the whole input and output embedding.

    parent: what the adapter will say it belongs to. The second matrix is zero, so nothing is changed yet; the first is a
    function of the seed. BadInput where peft is not installed, or finds nothing that it can adapt.
    """
    if importlib.util.find_spec("peft") is None:
        raise BadInput("adapter=lora: needs peft, which is not installed; pip install diffulm[lora]")
    from peft import LoraConfig

    # GPT-2 keeps its linear layers transposed, and peft warns of what it then finds out by itself
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", fan_in_fan_out=transposed)  # pyright: ignore[reportArgumentType]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            model.add_adapter(config)
        except (ValueError, ImportError, RuntimeError, MemoryError) as error:  # the last two for a rank too large
            raise BadInput(f"{parent}: peft cannot adapt it ({str(error).splitlines()[0]})") from None
    config.target_modules = sorted(config.target_modules or ())  # peft keeps a set, whose order changes
    config.base_model_name_or_path = parent
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    for end in ends if embeddings else ():
        end.requires_grad_(True)
    if isinstance(ends[0], _WithMaskVector):
        ends[0].mask_vector.requires_grad_(True)
        for part in _parts(model):
            if part is not ends[0]:
                part.lora_B["default"].register_forward_hook(_on_its_rows)


def _on_its_rows(matrix: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    rows = _rows.get()
    if rows is None:
        return None
    if output.shape[:-1] != rows.shape:
        raise BadInput("the adapter cannot act on masks alone: a layer of this model does not run one row a token")
    return output * rows[..., None].to(output.device)


def masks_only(model: Any) -> None:
    """From now on the low-rank matrices act on the rows of masks alone: the others are the parent's, bit for bit, as long
    as they see no mask. (Gated LoRA, arXiv 2507.11851.) ValueError unless the mask token is a vector beside the embedding.
    """
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, _WithMaskVector):
        raise ValueError("the embeddings of this model are trained with its adapter: no row is the parent's")
    embedding.masks_only = True


@contextmanager
def gated(model: Any) -> Iterator[None]:
    """`masks_only` inside, in this thread, however the adapter was trained. ValueError as there, and without an adapter."""
    if not attached(model) or not isinstance(model.get_input_embeddings(), _WithMaskVector):
        raise ValueError("this model has no adapter beside a parent that is still there")
    token = _gating.set(True)
    try:
        yield
    finally:
        _gating.reset(token)


def attached(model: Any) -> bool:
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def _parts(model: Any) -> list[Any]:
    """All that can be switched off; found once, for a long walk at every token of a draft would be felt."""
    if model not in _found:
        from peft.tuners.tuners_utils import BaseTunerLayer

        _found[model] = [m for m in model.modules() if isinstance(m, BaseTunerLayer | _WithMaskVector)]
    return _found[model]


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The parent alone inside, for every thread that runs this model. ValueError for a model without an adapter."""
    if not attached(model):
        raise ValueError("this model has no adapter that could be switched off")
    before = [part._disable_adapters for part in _parts(model)]
    for part in _parts(model):
        part._disable_adapters = True
    try:
        yield
    finally:
        for part, was in zip(_parts(model), before, strict=True):
            part._disable_adapters = was


@contextmanager
def parent_view(denoiser: Denoiser) -> Iterator[Denoiser]:
    """The AR parent of a model with an adapter, as a denoiser: row i predicts token i + 1, `visible=None` is causal, no
    logit is forbidden. Its logits are the parent's own, bit for bit, on all of the parent's vocabulary.

    The adapter is off inside, for every thread. ValueError for a model without one, or whose embeddings were trained.
    """
    other = denoiser.shifted()
    other.record = replace(other.record, emit_mask=True, attention="block", block_size=1)
    with adapter_off(denoiser.model):
        if not isinstance(denoiser.model.get_input_embeddings(), _WithMaskVector):
            raise ValueError(
                "the embeddings of this model were trained with its adapter: its parent is no longer there"
            )
        yield other


def merge(model: Any, record: Record) -> None:
    """Fold the adapter into the weights, in place: what is left is a plain transformers model with a row for the mask."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            above, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(above), leaf, module.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    _found.pop(model, None)
    embedding = model.get_input_embeddings()
    if isinstance(embedding, _WithMaskVector):
        row = embedding.mask_vector.detach().float() / _scale(embedding)
        del embedding.mask_vector
        embedding.__class__ = type(embedding).__bases__[1]
        if record.emit_mask:
            _untie(model)  # as a token of the text the mask keeps its own row at the output
        give_row(model, record.mask_token_id, row)
    model.requires_grad_(True)


def _untie(model: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = model.config.get_text_config(decoder=True).tie_word_embeddings = False


def check_mask_vector(model: Any, mask_token_id: int) -> str | None:
    """Why a model that got a mask vector cannot take the mask token after all; None: it can.

    Some families look the ids up in a second table (Gemma 3n, one a layer), which lacks a row for it.
    """
    ids = torch.tensor([[mask_token_id]], device=model.get_input_embeddings().weight.device)
    try:
        with evaluating(model):
            model(input_ids=ids)
    except (IndexError, RuntimeError):
        return "it looks tokens up in more than one table, so an adapter cannot bring a new mask token; name one it has"
    return None
