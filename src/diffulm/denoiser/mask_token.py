"""Which token stands for "hidden": an existing mask token, a named id, a reserved special token, or a new row."""

import re
from dataclasses import dataclass
from typing import Any

from diffulm.errors import BadInput, shown

NEW_TOKEN = "<|mask|>"
# What tokenizer makers call tokens they left unused: <|reserved_special_token_0|>, <unused3>, [unused1], <reserved_7>.
RESERVED = re.compile(r"^\W*(reserved|unused)(_?special_token)?_?\d*\W*$", re.IGNORECASE)
WORKING = ("unk_token", "bos_token", "eos_token", "pad_token", "sep_token", "cls_token")


@dataclass(frozen=True)
class MaskToken:
    """policy: how it was chosen, in words. emit: an ordinary token, whose logit stays as it is. new: a row that has no
    token yet, perhaps behind the end of the embedding."""

    id: int
    policy: str
    emit: bool = False
    new: bool = False


def choose(tokenizer: Any, vocabulary: int, wanted: str | int = "auto") -> MaskToken:
    """Pick the mask token for a model whose embedding has `vocabulary` rows.

    wanted: "auto" (the tokenizer's mask token, else an unused reserved special token, else a new row), "new" (a new row),
    an id (also as digits), or a token of the tokenizer. An ordinary token is reused only when it is named. Raises BadInput
    when the named one does not exist or is one of the tokenizer's working tokens (unk, bos, eos, pad, sep, cls, a marker of
    the chat template).
    """
    if wanted == "new":
        return _new_row(tokenizer, vocabulary)
    if wanted != "auto":
        return _named(tokenizer, vocabulary, wanted)
    existing = getattr(tokenizer, "mask_token_id", None)
    if existing is not None and existing < vocabulary and existing not in _working(tokenizer):
        return MaskToken(existing, f"the tokenizer's mask token {tokenizer.mask_token!r}")
    for index, token in sorted(_special(tokenizer).items()):
        if index < vocabulary and RESERVED.match(token) and not _job(tokenizer, index, token):
            return MaskToken(index, f"the reserved special token {token!r}")
    return _new_row(tokenizer, vocabulary)


def _special(tokenizer: Any) -> dict[int, str]:
    """id -> the special tokens, which never stand for a piece of text."""
    if tokenizer is None:
        return {}
    return {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def _working(tokenizer: Any) -> dict[int, str]:
    """id -> what it is to the tokenizer, for the special tokens that have a job."""
    found = {name: getattr(tokenizer, f"{name}_id", None) for name in WORKING}
    return {index: name for name, index in found.items() if index is not None}


def _job(tokenizer: Any, index: int, token: str | None) -> str | None:
    """What a token is needed for, or None."""
    if tokenizer is None:
        return None
    if index in _special(tokenizer) and token and token in str(getattr(tokenizer, "chat_template", None) or ""):
        return "marker of the chat template"
    return _working(tokenizer).get(index)


def _named(tokenizer: Any, vocabulary: int, wanted: str | int) -> MaskToken:
    index = _find(tokenizer, wanted)
    if not 0 <= index < vocabulary:
        raise BadInput(f"mask token {wanted!r}: id {index} lies outside the vocabulary of {vocabulary} rows")
    text = tokenizer.convert_ids_to_tokens(index) if tokenizer is not None and index < _end(tokenizer) else None
    if job := _job(tokenizer, index, text):
        raise BadInput(f"mask token {wanted!r}: it is the tokenizer's {job}; name another token, or 'new'")
    name = f"{text!r} (id {index})" if text else f"with id {index}"
    if index in _special(tokenizer):
        return MaskToken(index, f"the named special token {name}")
    if tokenizer is not None and text is None:
        return MaskToken(index, f"the named unused row {name}")
    return MaskToken(index, f"the named ordinary token {name}, reused", emit=True)


def _find(tokenizer: Any, wanted: str | int) -> int:
    if isinstance(wanted, int) or re.fullmatch(r"-?\d{1,18}", wanted):
        return int(wanted)
    known = {} if tokenizer is None else tokenizer.get_vocab()
    if wanted not in known:
        raise BadInput(f"mask token {shown(wanted)}: is not a token of the tokenizer; give an id, 'auto' or 'new'")
    return known[wanted]


def _end(tokenizer: Any) -> int:
    """The id behind the tokenizer's last; its length is less where ids have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _new_row(tokenizer: Any, vocabulary: int) -> MaskToken:
    """Behind the tokenizer's last token: a padding row of the embedding where there is one, else one row more."""
    index = vocabulary if tokenizer is None else _end(tokenizer)
    if tokenizer is not None and NEW_TOKEN in tokenizer.get_vocab():
        raise BadInput(f"the tokenizer has a token {NEW_TOKEN!r} already; name it, or another, as the mask token")
    return MaskToken(index, f"a new row, id {index}", new=True)


def give_row(model: Any, index: int, row: Any = None) -> None:
    """Write the mask token's row into both embeddings, which grow by it where they end before `index`.

    row (d,): what the token reads as; None: the mean of the rows before it. What it says as an output is the mean as well,
    where that is a row of its own and the id a new one: transformers would draw it at random.
    """
    import torch

    ends = model.get_input_embeddings(), model.get_output_embeddings()
    weight = ends[0].weight
    used, new = min(index, len(weight)), row is None or index >= len(weight)
    if index >= len(weight):
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):  # it draws all the same
            model.resize_token_embeddings(index + 1, mean_resizing=False)
        ends = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for layer in {id(m): m for m in ends}.values() if new else ():
            layer.weight[index] = layer.weight[:used].float().mean(0).to(layer.weight.dtype)
            if getattr(layer, "bias", None) is not None:
                layer.bias[index] = layer.bias[:used].float().mean().to(layer.bias.dtype)
        if row is not None:
            ends[0].weight[index] = row.to(weight.dtype)
