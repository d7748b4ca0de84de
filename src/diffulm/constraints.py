"""What may stand where in a hole: tokens that go on with a word that the text before it has begun, regular expressions.

A constraint is a function of (ids (B, L), where (B, L), logits (n, V) at `where`) that gives the logits with -inf for what
may not stand there. It looks at the canvas alone, so any order of filling will do, as long as it is one token a forward.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from diffulm.bounds import Denoise
from diffulm.canvas import decode, encode
from diffulm.errors import BadInput, shown
from diffulm.shapes import Bool, Float, Int

Constraint = Callable[[Tensor, Tensor, Tensor], Tensor]

_END = "\x03"
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte
# How byte-level BPE writes each byte: as itself where that can be seen, else as one of the characters from 256 on.
_SEEN = {*range(33, 127), *range(161, 173), *range(174, 256)}
_CHARACTERS = [
    chr(byte if byte in _SEEN else 256 + byte - len([one for one in _SEEN if one < byte])) for byte in range(256)
]
_BROKEN = 3  # tokens that a word may have been broken into


def constrained(denoise: Denoise, constraint: Constraint) -> Denoise:
    """The same denoiser, its logits constrained."""

    def constrained_denoise(ids: Tensor, where: Tensor, present: Tensor | None = None) -> Tensor:
        return constraint(ids, where, denoise(ids, where, present))

    return constrained_denoise


def token_texts(tokenizer: Any) -> list[str]:
    """What each token says behind other text; "" for special tokens and for parts of a character."""
    anchor = encode(tokenizer, "a")
    head = decode(tokenizer, anchor)
    size = max(tokenizer.get_vocab().values()) + 1
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    found = ["" if token in special else decode(tokenizer, [*anchor, token]) for token in range(size)]
    return [text.removeprefix(head) if text.startswith(head) and "\ufffd" not in text else "" for text in found]


def token_bytes(tokenizer: Any, texts: Sequence[str]) -> list[bytes]:
    """`token_texts` in UTF-8, and the bytes of tokens that are a part of a character."""
    out = [text.encode() for text in texts]
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    for token, name in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(texts))))):
        if not texts[token] and token not in special and name:
            if byte := _BYTE.fullmatch(name):
                out[token] = bytes([int(byte[1], 16)])
            elif all(char in _CHARACTERS for char in name):
                out[token] = bytes(_CHARACTERS.index(char) for char in name)
    return out


def broken(texts: Sequence[str], left: Sequence[int]) -> tuple[int, list[int]]:
    """(tokens at the end of `left` that may be the beginning of one token, the tokens that begin so and say more).

    texts: as `token_texts`. (0, []) unless `left` ends in a letter, a digit or an underscore, and for words that no token
    goes on with. For a tokenizer the text "clo" is perhaps `cl`, `o`, and what stands in a text is `close`: a hole after
    "clo" that had to go on from those two tokens would ask the model for what it has never seen.
    """
    for take in range(min(_BROKEN, len(left)), 0, -1):
        parts = [texts[token] for token in left[-take:]]
        begun = "".join(parts)
        if all(parts) and (begun[-1].isalnum() or begun[-1] == "_"):
            going_on = [token for token, text in enumerate(texts) if text.startswith(begun) and text != begun]
            if going_on:
                return take, going_on
    return 0, []


def only(tokens: Sequence[int], position: int) -> Constraint:
    """Nothing but these tokens at one position."""

    def constraint(ids: Tensor, where: Tensor, logits: Tensor) -> Tensor:
        allowed = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        allowed[torch.tensor(tokens, device=logits.device)] = True
        there = where.nonzero()[:, 1] == position
        return logits.masked_fill(there[:, None] & ~allowed, -torch.inf)

    return constraint


@dataclass(frozen=True)
class Automaton:
    """A regular expression over tokens: start, states where a text may end, and the tokens that lead from one to another."""

    start: int
    finals: frozenset[int]
    moves: dict[int, dict[int, frozenset[int]]]
    """state -> next state -> tokens; no token leads from a state to two."""

    def allowed(self, tokens: Sequence[int | None]) -> list[set[int]] | None:
        """What each of these positions may hold, given those that are known; None if no text fits."""
        found = self.masks(tokens)
        return None if found is None else [set(row.nonzero()[:, 0].tolist()) for row in found]

    def masks(self, tokens: Sequence[int | None]) -> Bool[Tensor, "n v"] | None:
        """`allowed` as a matrix: position by token, up to the last token that leads anywhere."""
        numbers, leads, kind = self._table
        if any(token is not None and not 0 <= token < len(kind) for token in tokens):
            return None
        columns = [leads if token is None else leads[:, kind[token], None] for token in tokens]
        ahead = [torch.zeros(len(leads), dtype=torch.bool)]
        ahead[0][[numbers[state] for state in self.finals]] = True
        for to in reversed(columns):
            ahead.insert(0, ahead[0][to].any(1))
        behind = torch.arange(len(leads)) == numbers[self.start]
        if not bool((behind & ahead[0]).any()):
            return None
        rows = torch.zeros(len(tokens), len(kind), dtype=torch.bool)
        for row, token, to, after in zip(rows, tokens, columns, ahead[1:], strict=True):
            open_ways = behind[:, None] & after[to]
            behind = torch.zeros_like(behind).index_fill_(0, to[open_ways], True)
            row[slice(None) if token is None else token] = open_ways.any(0)[kind] if token is None else True
        return rows

    @cached_property
    def _table(self) -> tuple[dict[int, int], Tensor, Tensor]:
        """state -> its row; (rows + 1, kinds) the row that a kind of token leads to, the last row a dead end; (tokens,) its
        kind: most tokens of a vocabulary do the same wherever they stand, so there are few."""
        states = {self.start, *self.finals, *self.moves, *(to for moves in self.moves.values() for to in moves)}
        numbers = {state: row for row, state in enumerate(sorted(states))}
        moves = [
            (numbers[state], numbers[to], torch.tensor(sorted(tokens)))
            for state, reached in self.moves.items()
            for to, tokens in reached.items()
            if tokens
        ]
        # Tokens of one kind have one sum of random numbers, and others, but for one chance in billions, another.
        marks = torch.randint(-(2**62), 2**62, (len(moves),), generator=torch.Generator().manual_seed(0))
        sums = torch.zeros(1 + max((int(tokens[-1]) for _, _, tokens in moves), default=0), dtype=torch.int64)
        for mark, (_, _, tokens) in zip(marks, moves, strict=True):
            sums[tokens] += mark
        found, kind = sums.unique(return_inverse=True)
        leads = torch.full((len(numbers) + 1, len(found)), len(numbers))
        for state, to, tokens in moves:
            leads[state, kind[tokens]] = to
        return numbers, leads, kind

    def padded(self, token: int) -> "Automaton":
        """The same with any number of one token more, which leads nowhere yet, behind the text."""
        end = 1 + max({self.start, *self.finals, *self.moves, *(to for moves in self.moves.values() for to in moves)})
        more = {state: {end: frozenset([token])} for state in (*self.finals, end)}
        moves = {state: self.moves.get(state, {}) | more.get(state, {}) for state in {*self.moves, *more}}
        return Automaton(self.start, self.finals | {end}, moves)


def automaton(pattern: str, texts: Sequence[str | bytes], eos_token_id: int | None) -> Automaton:
    """The regular expression by outlines-core, whose tokens are `texts` (bytes: in UTF-8, a part of a character perhaps).

    BadInput where that is missing or refuses it.
    """
    return _automaton(pattern, tuple(text.encode() if isinstance(text, str) else text for text in texts), eos_token_id)


@lru_cache(maxsize=64)
def _automaton(pattern: str, texts: tuple[bytes, ...], eos_token_id: int | None) -> Automaton:
    try:
        from outlines_core import Index, Vocabulary
    except ImportError:
        raise BadInput(
            "a pattern needs outlines-core, which is not installed: pip install outlines-core, or give choices"
        ) from None
    tokens: dict[bytes, list[int]] = {}
    for token, text in enumerate(texts):
        if text and token != eos_token_id and _END.encode() not in text:
            tokens.setdefault(text, []).append(token)
    # It loses what goes on from a text that could end: so none can before _END, which is a token of its own.
    end = len(texts)
    tokens[_END.encode()] = [end]
    try:
        index = Index(f"(?:{pattern}){_END}", Vocabulary(end + 1, tokens))
    except ValueError as error:
        why = (
            "no tokens can spell what it asks for"
            if "vocabulary" in str(error)
            else "it is not a regular expression here"
        )
        raise BadInput(
            f"the pattern {shown(pattern)} cannot be used: {why} (no look-around, no back references)"
        ) from None
    moves: dict[int, dict[int, list[int]]] = {}
    for state, reached in index.get_transitions().items():
        for token, to in reached.items():
            moves.setdefault(state, {}).setdefault(to, []).append(token)
    frozen = {
        state: {to: frozenset(found) for to, found in reached.items() if max(found) < end}
        for state, reached in moves.items()
    }
    finals = frozenset(state for state, reached in moves.items() if any(end in found for found in reached.values()))
    return Automaton(index.get_initial_state(), finals, frozen)


def matching(machine: Automaton, start: int, stop: int, mask_token_id: int) -> Constraint:
    """The tokens from start to stop - 1 spell a text that the automaton takes, whole."""

    def constraint(ids: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], logits: Float[Tensor, "n v"]) -> Tensor:
        banned = torch.zeros(logits.shape, dtype=torch.bool)
        rows = where.nonzero().tolist()
        for row in {row for row, _ in rows}:
            tokens = ids[row, start:stop].tolist()
            allowed = machine.masks([None if token == mask_token_id else token for token in tokens])
            for n, (other, position) in enumerate(rows):
                if allowed is not None and other == row and start <= position < stop:
                    banned[n] = True
                    banned[n, : allowed.shape[1]] = ~allowed[position - start]
        return logits.masked_fill(banned.to(logits.device), -torch.inf)

    return constraint
