"""Which token stands for "hidden": an existing mask token, a named id, a reserved special token, or a new row."""

import re
from dataclasses import dataclass
from typing import Any

from diffulm.errors import BadInput

NEW_TOKEN = "<|mask|>"
# What tokenizer makers call tokens they left unused: <|reserved_special_token_0|>, <unused3>, [unused1], <reserved_7>.
RESERVED = re.compile(r"^\W*(reserved|unused)(_?special_token)?_?\d*\W*$", re.IGNORECASE)


@dataclass(frozen=True)
class MaskToken:
    """id; policy: how it was chosen, in words; emit: an ordinary token whose logit stays as it is; rows: the vocabulary
    the embedding must have."""

    id: int
    policy: str
    emit: bool
    rows: int


def choose(tokenizer: Any, vocabulary: int, wanted: str | int = "auto") -> MaskToken:
    """Pick the mask token for a model whose embedding has `vocabulary` rows.

    wanted: "auto" (the tokenizer's mask token, else an unused reserved special token, else a new row), "new" (a new row),
    an id, or a token of the tokenizer. An ordinary token is reused only when it is named. Raises BadInput when the named
    one does not exist or is one of the tokenizer's working tokens (unk, bos, eos, pad, sep, chat markers).
    """
    if wanted == "new":
        return _new_row(tokenizer, vocabulary)
    if wanted != "auto":
        return _named(tokenizer, vocabulary, wanted)
    existing = getattr(tokenizer, "mask_token_id", None)
    if existing is not None and existing < vocabulary:
        return MaskToken(existing, f"the tokenizer's mask token {tokenizer.mask_token!r}", False, vocabulary)
    for token, index in _reserved(tokenizer):
        if index < vocabulary:
            return MaskToken(index, f"the reserved special token {token!r}", False, vocabulary)
    return _new_row(tokenizer, vocabulary)


def _reserved(tokenizer: Any) -> list[tuple[str, int]]:
    if tokenizer is None:
        return []
    taken = set(_working(tokenizer).values())
    added = [(token.content, index) for index, token in tokenizer.added_tokens_decoder.items()]
    found = [(t, i) for t, i in added if RESERVED.match(t) and i not in taken and not _in_template(tokenizer, t)]
    return sorted(found, key=lambda pair: pair[1])


def _working(tokenizer: Any) -> dict[str, int]:
    """The special tokens that have a job: name -> id (the mask token is not one of them)."""
    names = ("unk_token", "bos_token", "eos_token", "pad_token", "sep_token", "cls_token")
    found = {name: getattr(tokenizer, f"{name}_id", None) for name in names}
    return {name: index for name, index in found.items() if index is not None}


def _in_template(tokenizer: Any, token: str) -> bool:
    return token in str(getattr(tokenizer, "chat_template", None) or "")


def _named(tokenizer: Any, vocabulary: int, wanted: str | int) -> MaskToken:
    index, text = _find(tokenizer, wanted)
    if not 0 <= index < vocabulary:
        raise BadInput(f"mask token {wanted!r}: id {index} lies outside the vocabulary of {vocabulary} rows")
    for name, taken in _working(tokenizer).items() if tokenizer is not None else ():
        if index == taken:
            raise BadInput(f"mask token {wanted!r}: it is the tokenizer's {name}; name another token or use 'new'")
    if text is not None and _in_template(tokenizer, text) and index in tokenizer.added_tokens_decoder:
        raise BadInput(f"mask token {wanted!r}: it is a marker of the chat template; name another token or use 'new'")
    special = tokenizer is not None and (
        index == getattr(tokenizer, "mask_token_id", None) or index in dict((i, t) for t, i in _reserved(tokenizer))
    )
    kind = "the named special token" if special else "the named ordinary token, reused"
    return MaskToken(
        index, f"{kind} {text!r} (id {index})" if text else f"{kind} with id {index}", not special, vocabulary
    )


def _find(tokenizer: Any, wanted: str | int) -> tuple[int, str | None]:
    if isinstance(wanted, int) or re.fullmatch(r"-?\d+", wanted):
        index = int(wanted)
        return index, tokenizer.convert_ids_to_tokens(index) if tokenizer is not None and 0 <= index < len(
            tokenizer
        ) else None
    known = tokenizer.get_vocab() if tokenizer is not None else {}
    if wanted not in known:
        raise BadInput(f"mask token {wanted!r} is not a token of the tokenizer; give an id, 'auto' or 'new'")
    return known[wanted], wanted


def _new_row(tokenizer: Any, vocabulary: int) -> MaskToken:
    """Behind the tokenizer's last token: a padding row of the embedding where there is one, else one row more."""
    index = vocabulary if tokenizer is None else len(tokenizer)
    return MaskToken(index, f"a new row, id {index}", False, max(vocabulary, index + 1))
