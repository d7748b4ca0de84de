"""Texts with holes, filled by a model: what is only a number of masks at once, the rest by a search (`holes`).

In a hole with text behind it nothing may end the text: EOS is forbidden there. A last hole of free length has EOS behind it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from diffulm import canvas, holes
from diffulm.canvas import Canvas, Hole
from diffulm.constraints import Constraint
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.tile import tiled
from diffulm.errors import BadInput
from diffulm.filling import Callback, Filled, fill, renumbered, streams
from diffulm.holes import Candidate, Search, Solution
from diffulm.options import GenerateOptions
from diffulm.samplers import Frame
from diffulm.streaming import draws

Stream = tuple[int, int]
Parts = Sequence[str | Hole]


@dataclass(frozen=True)
class Infilled:
    """A text whose holes are filled."""

    candidates: list[Candidate]
    """Best first; the only one of a text that was not searched has no score: NaN."""
    ids: list[int]
    """The canvas of the first candidate, BOS included."""
    forwards: int
    seconds: float


@dataclass(frozen=True)
class Infiller:
    """A model, its tokenizer, and how to fill. forbidden: ids that are never drawn. texts: see `constraints.token_texts`.

    before, after: ids that stand before and after every text, and are no part of it; the last of them ends a text.
    """

    denoiser: Denoiser
    tokenizer: Any
    options: GenerateOptions
    forbidden: Sequence[int]
    texts: Callable[[], Sequence[str]]
    before: Sequence[int] = ()
    after: Sequence[int] = ()

    def infill(self, texts: Sequence[Parts], callback: Callback | None = None) -> list[Infilled]:
        """Fill the holes of each text. callback: as in `filling.fill`; of a search it sees how the winner was filled, when
        that is known. BadInput for a text without a hole or too long for the model, and for holes that nothing fills."""
        for parts in texts:
            if not any(isinstance(part, Hole) for part in parts):
                raise BadInput("there is no hole in the text: write <hole:3> where three tokens are missing")
        seeds = streams(self.options.seed, len(texts))
        plain = [
            row for row, parts in enumerate(texts) if self.options.n == 1 and all(_settled(part) for part in parts)
        ]
        made = [self._template(texts[row]) for row in plain]
        results: dict[int, Infilled] = {}
        for row, filled in zip(plain, self._fill(made, [seeds[row] for row in plain], callback, plain), strict=True):
            done = replace(filled.canvas, ids=torch.tensor(filled.ids))
            found = holes.solution(texts[row], done, float("nan"))
            results[row] = self._infilled(texts[row], [found], filled.forwards, filled.seconds)
        for row in range(len(texts)):
            if row not in results:
                results[row] = self._searched(texts[row], seeds[row], row, callback)
        return [results[row] for row in range(len(texts))]

    def _infilled(self, parts: Parts, found: list[Solution], forwards: int, seconds: float) -> Infilled:
        cut = [holes.cut(parts, one.candidate, self.options.stop) for one in found]
        distinct = {one.text: one for one in reversed(cut)}  # of equal ones the better
        return Infilled([one for one in cut if distinct[one.text] is one], found[0].ids, forwards, seconds)

    def _template(self, parts: Parts, ended: bool = False) -> Canvas:
        record, limit, eos = self.denoiser.record, self.denoiser.context, self.tokenizer.eos_token_id
        behind = torch.tensor([*self.after, *([eos] if ended and eos is not None and not self.after else [])]).long()
        room = None if limit is None else limit - len(behind)
        made = canvas.template(self.tokenizer, record.bos_token_id, record.mask_token_id, parts, room, self.before)
        ids, fixed = torch.cat([made.ids, behind]), torch.cat([made.fixed, torch.ones_like(behind).bool()])
        return replace(made, ids=ids, fixed=fixed)

    def _fill(
        self,
        made: Sequence[Canvas],
        seeds: Sequence[Stream],
        callback: Callback | None,
        numbers: Sequence[int],
        constraint: Constraint | None = None,
    ) -> list[Filled]:
        """`filling.fill`, with EOS where a text may end; numbers: which text each canvas is of, for callbacks."""
        eos, options = self.tokenizer.eos_token_id, self.options
        if constraint is not None:  # it looks at the tokens that are there, so it wants one at a time
            longest = max(int((~one.fixed).sum()) for one in made)
            order = options.sampler if options.sampler in ("left_to_right", "random") else "confidence"
            single = {"steps": longest, "sampler": order, "remask": 0.0, "cache": "none"}
            rules = {"threshold": None, "entropy_bound": None, "factor": None, "schedule": "linear"}
            options = options.model_copy(update=single | rules)
        found: dict[int, Filled] = {}
        for open_ended in (False, True):
            rows = [row for row, one in enumerate(made) if _ends_open(one) == open_ended]
            banned = [*self.forbidden, *self.after[-1:], *([] if open_ended or eos is None else [eos])]
            ends = (eos, self.tokenizer.pad_token_id) if open_ended else (None, None)
            told = callback and renumbered(callback, [numbers[row] for row in rows])
            batch = [made[row] for row in rows]
            results = fill(self.denoiser, batch, options, banned, told, *ends, [seeds[row] for row in rows], constraint)
            found |= dict(zip(rows, results, strict=True))
        return [found[row] for row in range(len(made))]

    def _searched(self, parts: Parts, seed: Stream, row: int, callback: Callback | None) -> Infilled:
        seen: list[Frame] = []

        def fill_all(made: Sequence[Canvas], constraint: Constraint | None = None) -> list[Filled]:
            return self._fill(made, [seed] * len(made), seen.append if callback else None, range(len(made)), constraint)

        started = time.perf_counter()
        ended = not _settled(parts[-1])
        context, end = self.denoiser.context, self.tokenizer.eos_token_id
        search = Search(tiled(self.denoiser), fill_all, self.denoiser.record.mask_token_id, self.texts, end, context)
        if all(_settled(part) for part in parts):
            found = self._drawn(search, parts, seed)
        else:
            found = holes.solve(
                search, lambda some: self._template(some, ended), parts, self.options.length_method, self.options.n
            )
        if callback:
            _replay(seen, found[0].ids, row, callback)
        return self._infilled(parts, found, search.forwards, time.perf_counter() - started)

    def _drawn(self, search: Search, parts: Parts, seed: Stream) -> list[Solution]:
        """`n` draws of holes whose lengths are known, best first, by -log p(holes | both sides) left to right."""
        if self.options.temperature == 0:
            raise BadInput(
                f"n={self.options.n}: at temperature 0 there is one way to fill holes of a given length: set a temperature, "
                "or leave the length to the model with <hole>"
            )
        made = self._template(parts)
        seeds = draws(seed, self.options.n)
        results = self._fill([made] * len(seeds), seeds, None, range(len(seeds)))
        found = []
        for result in results:
            ids = torch.tensor(result.ids)
            nats = search.nats(ids, ~made.fixed)
            search.forwards += result.forwards
            found.append(holes.solution(parts, replace(made, ids=ids), nats))
        return sorted(found, key=lambda one: one.candidate.score)


def nearest(tokenizer: Any, parts: Parts, limit: int | None) -> tuple[str, list[str | Hole], str]:
    """(text to leave out before, the parts with as much around the holes as `limit` positions hold, text to leave out after).

    Whole lines, and both sides alike as far as both are long enough; of a line that alone is too long, a part.
    """
    parts = canvas.joined(parts)
    first, last = ("" if not parts or isinstance(part, Hole) else part for part in (parts[0], parts[-1]))
    if limit is None or len(parts) < 2:
        return "", parts, ""
    middle = parts[bool(first) : len(parts) - bool(last)]
    sizes = (part.longest if isinstance(part, Hole) else _tokens(tokenizer, part) for part in middle)
    room = limit - sum(sizes) - 2  # BOS, EOS
    before, after, asked = first, last, room
    while asked > 0 and (
        len(before) + len(after) > 64 * room or _tokens(tokenizer, before) + _tokens(tokenizer, after) > room
    ):
        after = _lines(tokenizer, last, asked // 2, 1)
        before = _lines(tokenizer, first, asked - _tokens(tokenizer, after), -1)
        after = _lines(tokenizer, last, asked - _tokens(tokenizer, before), 1)
        asked -= 8  # lines can have more tokens together than each by itself
    kept = [*([before] if before else []), *middle, *([after] if after else [])]
    return first[: len(first) - len(before)], kept, last[len(after) :]


def _tokens(tokenizer: Any, text: str) -> int:
    return len(canvas.encode(tokenizer, text))


def _lines(tokenizer: Any, text: str, room: int, step: int) -> str:
    """Lines from the beginning (step 1) or the end (-1) of a text, as many as `room` tokens hold; a part of one too long."""
    kept: list[str] = []
    for line in text.splitlines(keepends=True)[::step]:
        # a line of so many characters is not looked at whole: it takes long, and does not fit
        size = min(len(line), 16 * max(room, 0))
        part = line[:size] if step == 1 else line[len(line) - size :]
        while not kept and _tokens(tokenizer, part) > room:
            part = part[: len(part) // 2] if step == 1 else part[-(len(part) // 2) :] if len(part) > 1 else ""
        room -= _tokens(tokenizer, part)
        if room < 0 or (kept and part != line):
            break
        kept.append(part)
        if part != line:
            break
    return "".join(kept[::step])


def _settled(part: str | Hole) -> bool:
    return isinstance(part, str) or part.settled


def _ends_open(made: Canvas) -> bool:
    """Whether all that is free is one hole at the end."""
    free = [span for span in made.spans if not bool(made.fixed[span.start : span.end].all())]
    return len(free) == 1 and free[0].end == len(made.ids)


def _replay(seen: list[Frame], ids: list[int], number: int, callback: Callback) -> None:
    """The frames of the canvas that was filled last and became `ids` (L), as those of text `number`."""
    for end in reversed(range(len(seen))):
        for row, filled in enumerate(seen[end].ids[:, : len(ids)].tolist()):
            if filled == ids and not bool(seen[end].masked[row].any()):
                start = end
                while bool(seen[start].step.any()):
                    start -= 1
                last = None
                for frame in seen[start : end + 1]:
                    masked = frame.masked[row].tolist()
                    if masked != last:  # the others in its batch may have gone on
                        callback(_single(frame, row, len(ids), number))
                    last = masked
                return


def _single(frame: Frame, row: int, length: int, number: int) -> Frame:
    """One row of a frame, without padding."""
    parts = {each.name: getattr(frame, each.name) for each in fields(frame) if each.name != "rows"}
    rows = {
        name: part[row : row + 1, :length] if part.dim() > 1 else part[row : row + 1] for name, part in parts.items()
    }
    return replace(frame, rows=(number,), **rows)
