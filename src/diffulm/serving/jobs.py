"""What a job does: a text is made or scored by the library, and told of in events.

{"event": "text", "text": ...}       a piece that is final; joined they are the text of the result
{"event": "canvas", "step": ..., "masked": ..., "tokens": [[text or null, confidence or null, free], ...]}
{"event": "done", "result": {...}}   the last one, or
{"event": "error", "status": ..., "message": ..., "param": ..., "code": ...}
"""

import copy
import math
import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffulm import streaming
from diffulm.canvas import Canvas, Hole, continued, template
from diffulm.chat import Template
from diffulm.errors import BadInput
from diffulm.lm import DiffusionLM
from diffulm.options import GenerateOptions, checked
from diffulm.samplers import Frame
from diffulm.serving import patterns
from diffulm.serving.engine import Gone, Seat
from diffulm.serving.job import Event, Job, failed
from diffulm.watch import Spell, confidences, spelling

Emit = Callable[[Event], Any]

SEARCH = 64
"""Forwards that finding the length of a hole may take, for the order of jobs; nothing else depends on it."""
_FIELDS = {"complete": "prompt", "chat": "messages", "infill": "parts", "score": "text"}


def expected(job: Job, reply_length: int) -> int:
    """Forwards that a job may need."""
    options = job.options
    if job.kind == "score":
        return options.get("samples", 64)
    if job.kind == "infill":
        try:
            holes = [_hole(part) for part in job.input["parts"] if not isinstance(part, str)]
        except BadInput:  # the job itself will say so
            return 1
        length = sum(hole.longest if hole.settled else SEARCH for hole in holes)
    else:
        length = options.get("length") or job.input.get("length") or reply_length
    return min(options.get("steps") or length, length) if not options.get("remask") else options.get("steps") or length


def run(lm: DiffusionLM, job: Job, seat: Seat, emit: Emit) -> None:
    """Do the job in this thread; raises nothing. The last event is `done` or `error`, but where nobody waits any more."""
    own = copy.copy(lm)
    own.denoiser = lm.denoiser.shared(seat)
    try:
        emit({"event": "done", "result": _KINDS[job.kind](own, job, seat, emit)})
    except Gone:
        pass
    except BadInput as error:
        emit(_bad(job, str(error)))
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            emit(failed(503, "the model ran out of memory; ask for a shorter text", "out_of_memory"))
            return
        traceback.print_exception(error)  # a mistake of ours: the server goes on
        emit(failed(500, f"the server made a mistake: {type(error).__name__}: {error}", "internal_error"))


def _complete(lm: DiffusionLM, job: Job, seat: Seat, emit: Emit) -> Event:
    prompt, length = job.input["prompt"], job.options.get("length", GenerateOptions().length)
    made = lm.canvas([prompt, Hole(length)]) if isinstance(prompt, str) else _of_ids(lm, prompt, length)
    return _continue(lm, job, seat, emit, made, None)


def _chat(lm: DiffusionLM, job: Job, seat: Seat, emit: Emit) -> Event:
    made, template = lm.asked(job.input["messages"], job.input.get("length"))
    return _continue(lm, job, seat, emit, made, template)


def _continue(lm: DiffusionLM, job: Job, seat: Seat, emit: Emit, made: Canvas, template: Template | None) -> Event:
    start, spell = made.spans[-1].start, spelling(lm.tokenizer)
    length = len(made.ids) - start
    chosen = checked(GenerateOptions, **job.options | {"length": length, "seed": _seed(job)})
    if job.logprobs and (chosen.sampler == "verified" or chosen.cache in ("prefix", "dual")):
        raise BadInput(
            "logprobs: those of other tokens are not known with sampler verified, nor with cache prefix or dual; ask for none"
        )
    likely = None if job.logprobs is None else _Likely(lm, seat, spell, job.logprobs)
    told = streaming.Held(lambda text: emit({"event": "text", "text": text}), template.tail if template else "")
    callback = _callbacks(_canvases(spell, emit) if job.canvas else None, likely and likely.reveal)
    done = lm.continued([made], chosen, callback, told if job.text else None)[0]
    text = template.reply(done.completion) if template else done.completion
    if job.text:
        told.end(text)
    new, end = done.ids[start:], made.ends[0]
    ended = end in new
    kept = new[: new.index(end) + 1] if ended and end is not None else new
    whole = streaming.completion(made, done.ids, [])
    if whole != done.completion:  # cut by a stop string
        kept, ended = kept[: _tokens_of(spell, kept, len(done.completion))], True
    result = {"text": text, "ids": kept, "finish_reason": "stop" if ended else "length"}
    if likely:
        result["logprobs"] = likely.of(kept, start)
    return result | _usage(start, len(kept), done.forwards, done.seconds)


def _infill(lm: DiffusionLM, job: Job, seat: Seat, emit: Emit) -> Event:
    parts = [part if isinstance(part, str) else _hole(part) for part in job.input["parts"]]
    for part in parts:
        if isinstance(part, Hole) and part.pattern is not None:
            with patterns.one_at_a_time:
                seat.check()
                patterns.check(part.pattern)
    callback = _callbacks(_canvases(spelling(lm.tokenizer), emit) if job.canvas else None)
    given: dict[str, Any] = job.options | {"seed": _seed(job)}
    done = lm.infill(parts, callback=callback, **given)
    given_texts = [part for part in parts if isinstance(part, str) or part.choices is None]
    first = template(lm.tokenizer, lm.record.bos_token_id, lm.mask_token_id, given_texts)
    fixed = min(int(first.fixed.sum()), len(done.ids))  # joined to a choice, a text may have fewer
    candidates = [
        {"text": one.text, "fills": one.fills, "score": None if math.isnan(one.score) else one.score}
        for one in done.candidates
    ]
    result = {"text": done.text, "fills": done.fills, "candidates": candidates}
    return result | _usage(fixed, len(done.ids) - fixed, done.forwards, done.seconds)


def _score(lm: DiffusionLM, job: Job, seat: Seat, emit: Emit) -> Event:
    found = lm.score(job.input["text"], job.input.get("context", ""), **job.options)
    forwards = job.options.get("samples", 64) if job.options.get("method", "bound") == "bound" else found.tokens
    return {"nats": found.nats, "stderr": found.stderr, "tokens": found.tokens, "forwards": forwards}


_KINDS = {"complete": _complete, "chat": _chat, "infill": _infill, "score": _score}


class _Likely:
    """The likeliest tokens of each position in the forward that revealed it."""

    def __init__(self, lm: DiffusionLM, seat: Seat, spell: Spell, count: int) -> None:
        self.spell, self.count = spell, count
        self.forbidden = torch.tensor(lm.forbidden, dtype=torch.int64)
        self.latest: dict[int, list[tuple[int, float]]] = {}
        self.revealed: dict[int, tuple[float, list[tuple[int, float]]]] = {}
        seat.saw = self.saw

    def saw(self, where: Tensor, logits: Tensor) -> None:
        if self.count:
            logs = logits.float().index_fill(1, self.forbidden.to(logits.device), -torch.inf).log_softmax(1)
            best = logs.topk(min(self.count, logs.shape[1]))
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            at = where[0].nonzero()[:, 0].tolist()
            self.latest |= {place: list(zip(*row, strict=True)) for place, row in zip(at, rows, strict=True)}

    def reveal(self, frame: Frame) -> None:
        for place, sure in enumerate(confidences(frame)):
            if sure is None:
                self.revealed.pop(place, None)
            elif place not in self.revealed:
                self.revealed[place] = math.log(max(sure, 1e-45)), self.latest.get(place, [])

    def of(self, ids: Sequence[int], start: int) -> list[dict[str, Any]]:
        """For each of the new tokens its text, log-probability and the likeliest ones in its place."""
        texts = self.spell(list(ids), [False] * len(ids))
        found = (self.revealed.get(start + i, (0.0, [])) for i in range(len(ids)))
        return [
            {"token": text or "", "logprob": sure, "top": [[self.spell([one], [False])[0] or "", p] for one, p in top]}
            for text, (sure, top) in zip(texts, found, strict=True)
        ]


def _canvases(spell: Spell, emit: Emit) -> Callable[[Frame], Any]:
    """A callback that tells every canvas; those whose beginnings differ (a search replays its winner) come as they are."""

    def tell(frame: Frame) -> None:
        masked, revealed = frame.masked[0].tolist(), frame.revealed[0].tolist()
        texts, sure = spell(frame.ids[0].tolist(), masked), confidences(frame)
        tokens = [
            [text, None if p is None else round(p, 4), hidden or step >= 0]
            for text, p, hidden, step in zip(texts, sure, masked, revealed, strict=True)
        ]
        emit({"event": "canvas", "step": int(frame.step[0]), "masked": sum(masked), "tokens": tokens})

    return tell


def _callbacks(*some: Callable[[Frame], Any] | None) -> Callable[[Frame], Any] | None:
    wanted = [one for one in some if one is not None]
    return (lambda frame: [one(frame) for one in wanted]) if wanted else None


def _seed(job: Job) -> list[int]:
    """Draw j of a text has the random stream that `lm.generate(n=...)` gives it."""
    seed, draw = job.options.get("seed", 0), job.input.get("draw", 0)
    return [streaming.draws((seed, 0), draw + 1)[draw][0]]


def _of_ids(lm: DiffusionLM, ids: list[int], length: int) -> Canvas:
    known = lm.denoiser.vocabulary
    if wrong := next((one for one in ids if not 0 <= one < known), None):
        raise BadInput(f"the prompt has the token {wrong}; the vocabulary has ids from 0 to {known - 1}")
    bos, limit = lm.record.bos_token_id, lm.denoiser.context
    front = [] if bos is None else [bos]
    before = ids[1:] if bos is not None and ids[:1] == [bos] else ids
    if limit is not None and len(front) + len(before) + length > limit:
        raise BadInput(
            f"the prompt has {len(before)} tokens and {length} are asked for; the model's context is {limit}: give less"
        )
    return continued(lm.tokenizer, front, before, lm.mask_token_id, length)


def _hole(part: dict[str, Any]) -> Hole:
    return Hole(part.get("length"), part.get("most"), part.get("choices"), part.get("pattern"))


def _tokens_of(spell: Spell, ids: Sequence[int], characters: int) -> int:
    """How many of the tokens it takes to write so many characters."""
    total = 0
    for count, text in enumerate(spell(list(ids), [False] * len(ids))):
        if total >= characters:
            return count
        total += len(text or "")
    return len(ids)


def _usage(prompt: int, new: int, forwards: int, seconds: float) -> Event:
    return {"prompt_tokens": prompt, "completion_tokens": new, "forwards": forwards, "seconds": seconds}


def _bad(job: Job, message: str) -> Event:
    """The library's one line, and the field that it speaks of."""
    named = re.match(r"(\w+)", message)
    options = named and named[1] in {*GenerateOptions.model_fields, "logprobs"} and job.kind != "score"
    param = named[1] if named and options else _FIELDS[job.kind]
    code = "context_length_exceeded" if "context is" in message else None
    return failed(400, message, code, param)
