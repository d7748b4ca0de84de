"""Forms: the holes of a template filled together, on one canvas, in one run. What comes of a JSON template always parses.

    lm.fill({"name": str, "age": int, "mood": Literal["happy", "sad"]}, prompt="Ann, who is ten, laughs.\\n").value

A hole is a regular expression that holds at every step, whatever the order. How many tokens it takes is not known
beforehand: it has places for as many as it may have, is filled from left to right, and ends where the model puts the token
that comes behind it, or one that ends a text; the places left over are shown to the model no more. Between holes, and within
one of a given number of tokens, the order is the sampler's.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffulm import canvas, constraints, filling
from diffulm.bounds import Denoise
from diffulm.canvas import Canvas, Hole
from diffulm.chat import conversation, template_of
from diffulm.constraints import Automaton
from diffulm.errors import BadInput, shown
from diffulm.filling import Callback, Filled, renumbered, streams
from diffulm.infilling import Infiller
from diffulm.samplers import Reveal, Rule, State, by_name
from diffulm.schema import Blank
from diffulm.skeleton import Skeleton, skeleton
from diffulm.streaming import draws

ORDERS = ("confidence", "entropy", "left_to_right", "margin", "random")


@dataclass(frozen=True)
class Form:
    """A template whose holes are filled."""

    text: str
    """The template, byte for byte, with something in its holes."""
    value: Any
    """What a JSON form says; None for plain text."""
    fills: list[Any]
    """The value of each hole, in order."""
    ids: list[int] = field(repr=False)
    """The whole canvas; EOS stands in places that a hole did not need."""
    forwards: int
    """Denoiser calls this form took part in."""
    seconds: float
    """Wall-clock seconds of the batch it was filled in."""
    candidates: list["Form"] = field(default_factory=list, repr=False)
    """With n > 1 so many draws, of which this is the first."""


@dataclass(frozen=True)
class Gap:
    """A hole at positions start..stop-1 of a canvas."""

    start: int
    stop: int
    machine: Automaton
    spare: int
    """The token in places that the hole does not need."""
    ends: tuple[int, ...]
    """Tokens that say that the hole is over: the one that follows it, and those that end a text."""
    ordered: bool
    """Filled from left to right."""


@dataclass(frozen=True)
class Cast:
    """A blank for one tokenizer. owns: the space before it, which is then no text, but the beginning of its tokens."""

    blank: Blank
    places: int
    machine: Automaton
    owns: bool


def fill(infiller: Infiller, template: Any, prompt: Any = None, callback: Callback | None = None) -> Any:
    """The template filled once, or, for a list of prompts, once for each: a Form or a list.

    template: see `skeleton.skeleton`. prompt: text to stand before the form, messages that it answers, or a list of these.
    BadInput as there and in `filled`.
    """
    form = template if isinstance(template, Skeleton) else skeleton(template)
    several = isinstance(prompt, list | tuple) and not (prompt and isinstance(prompt[0], dict))
    found = filled(infiller, form, prompt if several else [prompt], callback)
    return found if several else found[0]


def filled(infiller: Infiller, form: Skeleton, prompts: Sequence[Any], callback: Callback | None = None) -> list[Form]:
    """The form once for each prompt: text to stand before it, messages that it answers, or None.

    A hole that does not say how many tokens it has gets `options.length` at most. BadInput for a form that has no room, a hole
    that nothing of its length fills, and options that do not go with forms.
    """
    options = infiller.options
    if options.sampler not in ORDERS:
        raise BadInput(f"sampler={options.sampler}: a form is filled in one of the orders {', '.join(ORDERS)}")
    if options.stop or options.remask or options.cache in ("prefix", "dual"):
        raise BadInput("stop, remask, and the caches prefix and dual do not go with a form: leave them out")
    texts, spare = _tokens(infiller)
    casts = list(_casts(infiller, form, texts, spare))
    rows = [row for row in (_canvas(infiller, form, casts, spare, one) for one in prompts) for _ in range(options.n)]
    seeds = [draw for one in streams(options.seed, len(prompts)) for draw in draws(one, options.n)]
    found: list[Form] = []
    for start in range(0, len(rows), options.batch_size):
        some = slice(start, start + options.batch_size)
        made, gaps = [list(column) for column in zip(*rows[some], strict=True)]
        run = Run(gaps, infiller.denoiser.record.mask_token_id, by_name(options.sampler))
        told = callback and renumbered(callback, range(start, start + len(made)))
        results = filling.fill(
            infiller.denoiser,
            made,
            options,
            infiller.forbidden,
            told,
            seeds=seeds[some],
            order=run.order,
            around=run.around,
        )
        found += [_form(form, casts, texts, each, row) for each, row in zip(results, gaps, strict=True)]
    groups = [found[start : start + options.n] for start in range(0, len(found), options.n)]
    return [replace(one[0], candidates=one if len(one) > 1 else []) for one in groups]


def _tokens(infiller: Infiller) -> tuple[tuple[bytes, ...], int]:
    """What each token says in UTF-8 (nothing: those that are never drawn), and the one for places left over."""
    never = {infiller.denoiser.record.mask_token_id, *infiller.forbidden}
    said = constraints.token_bytes(infiller.tokenizer, infiller.texts())
    texts = tuple(b"" if token in never else text for token, text in enumerate(said))
    silent = (token for token, text in enumerate(texts) if not text and token not in never)
    eos = infiller.tokenizer.eos_token_id
    spare = next(silent, None) if eos is None or eos in never else eos
    if spare is None:
        raise BadInput("the tokenizer has no token without text, and a form needs one: give it an EOS")
    return texts, spare


def _casts(infiller: Infiller, form: Skeleton, texts: tuple[bytes, ...], spare: int) -> Iterator[Cast]:
    tokenizer, before = infiller.tokenizer, ""
    for part in form.parts:
        if isinstance(part, str):
            before = part
            continue
        # a space that is no part of the token before it would be one with the token after it
        last = canvas.encode(tokenizer, before)[-1:] if before.endswith(" ") else []
        owns = bool(last) and texts[last[0]] == b" "
        space = " " * owns
        sizes = [len(canvas.encode(tokenizer, space + option, inside=True)) for option in part.options]
        places = max(sizes) if sizes else owns * (not part.exact) + (part.longest or infiller.options.length)
        widest = None if part.characters is None else part.characters // places
        machine = _machine(f"{space}(?:{part.pattern})", texts, part.simple, widest, None if part.exact else spare)
        if machine.masks([None] * places) is None:
            size = f"{places} tokens" if part.exact else f"at most {places} tokens"
            raise BadInput(f"no text of {size} is what a hole asks for ({shown(part.pattern)}): allow another length")
        yield Cast(part, places, machine, owns)
        before = ""


@lru_cache(maxsize=64)
def _machine(pattern: str, texts: tuple[bytes, ...], simple: bool, widest: int | None, spare: int | None) -> Automaton:
    """The automaton of a pattern, with as many of the token `spare` behind its text as there are places."""
    if simple:
        texts = tuple(b"" if any(byte in b'"\\' or byte < 32 for byte in text) else text for text in texts)
    if widest is not None:
        texts = tuple(b"" if len(text) > widest else text for text in texts)
    machine = constraints.automaton(pattern, texts, spare)
    return machine if spare is None else machine.padded(spare)


def _canvas(
    infiller: Infiller, form: Skeleton, casts: Sequence[Cast], spare: int, prompt: Any
) -> tuple[Canvas, list[Gap]]:
    """The canvas of one form, and its holes."""
    record, tokenizer, limit = infiller.denoiser.record, infiller.tokenizer, infiller.denoiser.context
    before, after = [], []
    if not isinstance(prompt, str | None):
        template = template_of(tokenizer)
        before, after = template.opening(conversation(prompt)), template.answer("")
    parts: list[str | Hole] = [prompt] if isinstance(prompt, str) else []
    each = iter(casts)
    for part in form.parts:
        if isinstance(part, Blank):
            cast = next(each)
            if cast.owns:
                parts[-1] = str(parts[-1])[:-1]
            parts.append(Hole(cast.places))
        else:
            parts.append(part)
    room = None if limit is None else limit - len(after)
    made = canvas.template(tokenizer, record.bos_token_id, record.mask_token_id, parts, room, before)
    tail = torch.tensor(after, dtype=torch.int64)
    made = replace(made, ids=torch.cat([made.ids, tail]), fixed=torch.cat([made.fixed, torch.ones_like(tail).bool()]))
    ids, gaps = [*made.ids.tolist(), spare], []
    over = {spare, *after[-1:]}
    for cast, span in zip(casts, (span for span in made.spans if span.text is None), strict=True):
        gaps.append(
            Gap(span.start, span.end, cast.machine, spare, tuple(sorted(over | {ids[span.end]})), not cast.blank.exact)
        )
    return made, gaps


def _form(form: Skeleton, casts: Sequence[Cast], texts: Sequence[bytes], made: Filled, gaps: Sequence[Gap]) -> Form:
    fills = []
    for cast, gap in zip(casts, gaps, strict=True):
        fill = b"".join(texts[token] for token in made.ids[gap.start : gap.stop] if token != gap.spare)
        fills.append(fill.decode()[cast.owns :])
    each = iter(fills)
    text = "".join(part if isinstance(part, str) else next(each) for part in form.parts)
    values = [cast.blank.value(fill) for cast, fill in zip(casts, fills, strict=True)]
    return Form(text, json.loads(text) if form.json else None, values, made.ids, made.forwards, made.seconds)


@dataclass(frozen=True)
class Run:
    """One batch of canvases with gaps: what the model is shown and may say, and what is revealed of it."""

    gaps: Sequence[Sequence[Gap]]
    mask_token_id: int
    rule: Rule
    known: dict[tuple[int, tuple[int, ...]], Tensor | None] = field(default_factory=dict)
    """What was found out: of an automaton and what stands in a gap."""

    def around(self, denoise: Denoise) -> Denoise:
        """The model, shown no place that is not needed, and saying what may stand there and nothing else."""

        def constrained(ids: Tensor, where: Tensor, present: Tensor | None = None) -> Tensor:
            kept = torch.ones_like(where) if present is None else present.clone()
            for row, gap in self._each():
                kept[row, gap.start : gap.stop] &= ids[row, gap.start : gap.stop] != gap.spare
            at = (~kept).long().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
            logits = denoise(ids.gather(1, at), where.gather(1, at) & kept.gather(1, at), kept.gather(1, at)).clone()
            number = where.flatten().cumsum(0).view(where.shape) - 1
            for row, gap in self._each():
                asked = where[row, gap.start : gap.stop]
                if bool(asked.any()):
                    rows = number[row, gap.start : gap.stop][asked]
                    logits[rows] = self._allowed(gap, ids[row], asked, logits[rows])
            return logits

        return constrained

    def _each(self) -> Iterator[tuple[int, Gap]]:
        return ((row, gap) for row, gaps in enumerate(self.gaps) for gap in gaps)

    def _masks(self, gap: Gap, ids: Tensor) -> Tensor | None:
        """What each place of the gap may hold: (places, tokens); None if no text has what is there."""
        tokens = tuple(ids[gap.start : gap.stop].tolist())
        key = id(gap.machine), tokens
        if key not in self.known:
            self.known[key] = gap.machine.masks([None if token == self.mask_token_id else token for token in tokens])
        return self.known[key]

    def _allowed(self, gap: Gap, ids: Tensor, asked: Tensor, logits: Tensor) -> Tensor:
        """The logits at the places asked for; a place where the hole may end says what ends it by that alone."""
        masks = self._masks(gap, ids)
        assert masks is not None
        allowed = torch.zeros(logits.shape, dtype=torch.bool)
        allowed[:, : masks.shape[1]] = masks[asked.cpu()]
        if gap.ordered:
            ends, logits = list(gap.ends), logits.clone()
            logits[:, gap.spare] = logits[:, ends].logsumexp(1)
            others = [token for token in ends if token != gap.spare]
            allowed[:, others] &= ~allowed[:, gap.spare, None]
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def order(self, state: State) -> Reveal:
        """The sampler's order, in a gap from left to right, as far as what it reveals goes together; and what follows."""
        masked = state.masked.clone()
        for row, gap in self._each():
            if gap.ordered:
                part = masked[row, gap.start : gap.stop]
                part &= part.cumsum(0) == 1
        reveal = self.rule(replace(state, masked=masked))
        where, tokens, ids = reveal.where.clone(), reveal.tokens.clone(), state.ids.clone()
        for row, gap in self._each():
            for place in where[row, gap.start : gap.stop].nonzero()[:, 0].tolist():
                ids[row, gap.start + place] = tokens[row, gap.start + place]
                if self._masks(gap, ids[row]) is None:
                    ids[row, gap.start + place], where[row, gap.start + place] = self.mask_token_id, False
            masks = self._masks(gap, ids[row])
            if masks is not None:
                sure = (masks.sum(1) == 1).to(ids.device) & state.masked[row, gap.start : gap.stop]
                where[row, gap.start : gap.stop] |= sure
                part = tokens[row, gap.start : gap.stop]
                part[sure] = masks.long().argmax(1).to(ids.device)[sure]
        return Reveal(where, tokens, reveal.step)
