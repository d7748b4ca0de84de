"""DiffusionLM = denoiser + tokenizer: generate, infill and score text.

    lm = diffulm.load("pocket")
    lm.infill("def add(a, b):\\n    return <hole:3>\\n", steps=3).text

Prompts, contexts and texts around holes are the fixed part of a canvas, everything else is free: one loop continues
prompts and fills holes, and scores mask nothing but free positions.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

import torch
from torch import Tensor

from diffulm import canvas, constraints, forms, randomness, scoring, streaming
from diffulm.bounds import Score
from diffulm.canvas import Canvas, Hole
from diffulm.chat import Message, Template, reply_canvas, template_of
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput
from diffulm.filling import Callback, Filled, fill, streams
from diffulm.holes import Candidate
from diffulm.infilling import Infilled, Infiller
from diffulm.options import GenerateOptions, Sampling, ScoreOptions, Scoring, checked
from diffulm.scoring import Request

Parts = str | Sequence[str | Hole]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Generation:
    """A filled canvas."""

    text: str
    """The whole text: what was given, byte for byte, and what is new."""
    ids: list[int] = field(repr=False)
    """The whole canvas, BOS included; nothing is cut."""
    forwards: int
    """Denoiser calls this text took part in."""
    seconds: float
    """Wall-clock seconds of the batch it was filled in."""
    completion: str = ""
    """`generate`: the new text alone, cut at the first EOS and the first of the `stop` strings."""
    fills: list[str] = field(default_factory=list)
    """`infill`: the text of each hole, in order."""
    candidates: list[Candidate] = field(default_factory=list)
    """`infill`, where there was something to choose or n > 1: the best ways to fill the holes, at most n, best first."""


@dataclass
class DiffusionLM:
    """A diffusion language model. tokenizer None: only the denoiser, `causal_view` and `save` work."""

    denoiser: Denoiser
    tokenizer: Any = None

    @property
    def model(self) -> Any:
        """The plain transformers model underneath."""
        return self.denoiser.model

    @property
    def record(self) -> Record:
        return self.denoiser.record

    @property
    def mask_token_id(self) -> int:
        return self.record.mask_token_id

    @overload
    def generate(
        self,
        prompt: str,
        length: int = ...,
        *,
        callback: Callback | None = ...,
        on_text: Callable[[str], Any] | None = ...,
        **options: Unpack[Sampling],
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: list[str], length: int = ..., *, callback: Callback | None = ..., **options: Unpack[Sampling]
    ) -> list[Generation]: ...
    def generate(
        self,
        prompt: str | list[str],
        length: int = 64,
        *,
        callback: Callback | None = None,
        on_text: Callable[[str], Any] | None = None,
        **options: Unpack[Sampling],
    ) -> Generation | list[Generation]:
        """Continue each prompt by `length` tokens: a Generation for a text, a list for a list.

        options: as in `Sampling`. callback: called with a `Frame` before and after every forward of a batch. on_text: called
        with each new piece of the completion as soon as it is final; for one prompt. n: so many draws of each prompt, in
        `Generation.candidates`; the first is what n=1 gives. BadInput for values out of range or misspelt, a prompt and
        `length` beyond the model's context, and a model without tokenizer.
        """
        chosen = checked(GenerateOptions, length=length, **options)
        made = [self.canvas([text, Hole(chosen.length)]) for text in _listed(prompt)]
        return _like(prompt, self.continued(made, chosen, callback, on_text))

    def chat(
        self,
        messages: Sequence[Message],
        length: int | None = None,
        *,
        callback: Callback | None = None,
        on_text: Callable[[str], Any] | None = None,
        **options: Unpack[Sampling],
    ) -> Generation:
        """The assistant's next reply in a conversation, as `Generation.completion`.

        messages: `{"role": ..., "content": ...}`, the last one the user's; they are laid out by the tokenizer's chat template,
        else by the built-in one, just as `diffulm sft` does. length: tokens for the reply; None: as many as the longest reply
        that the model was tuned on, as far as the context has them. The rest as in `generate`. BadInput also for messages out
        of turn, and a conversation that leaves no room (`diffulm.chat.fitted` leaves out its oldest turns).
        """
        made, template = self.asked(messages, length)
        chosen = checked(GenerateOptions, length=int((~made.fixed).sum()), **options)
        told = on_text and streaming.Held(on_text, template.tail)
        said = self.continued([made], chosen, callback, told)[0]
        reply = template.reply(said.completion)
        if told:
            told.end(reply)
        return replace(said, completion=reply)

    def asked(self, messages: Sequence[Message], length: int | None = None) -> tuple[Canvas, Template]:
        """The canvas of the assistant's next reply, and the template that laid it out: see `chat`."""
        self._check_tokenizer()
        length = None if length is None else checked(GenerateOptions, length=length).length
        template, ids = template_of(self.tokenizer), (self.record.bos_token_id, self.mask_token_id)
        return reply_canvas(template, messages, *ids, length, self.reply_length, self.denoiser.context), template

    @property
    def reply_length(self) -> int:
        """Tokens of the longest reply that the model was tuned on, its end included; 64 where it was not tuned."""
        found = (self.record.notes.get("sft") or {}).get("answer_tokens")
        return found if isinstance(found, int) else 64

    def continued(
        self,
        made: list[Canvas],
        chosen: GenerateOptions,
        callback: Callback | None,
        on_text: Callable[[str], Any] | None,
    ) -> list[Generation]:
        """Canvases whose last hole ends them, filled: what `generate` and `chat` do with theirs."""
        if on_text is None:
            final = None
        elif len(made) == chosen.n == 1:
            final = callback = streaming.Final(made[0], chosen, on_text, callback)
        else:
            raise BadInput("on_text is handed one text as it comes: give one prompt, and n=1")
        draws = [draw for one in streams(chosen.seed, len(made)) for draw in streaming.draws(one, chosen.n)]
        filled = self._fill(self.denoiser, [one for one in made for _ in range(chosen.n)], chosen, callback, draws)
        results = [self._completed(filled[i : i + chosen.n], chosen.stop) for i in range(0, len(filled), chosen.n)]
        if final is not None:
            final.end(results[0].completion)
        return results

    def stream(self, prompt: str, length: int = 64, **options: Unpack[Sampling]) -> Iterator[str]:
        """`generate` as an iterator over the completion: each piece as soon as nothing can change it any more.

            for piece in lm.stream("class Stack:", sampler="left_to_right"):
                print(piece, end="", flush=True)

        Joined, the pieces are `Generation.completion`. Whoever stops iterating stops the model. BadInput as in `generate`,
        when the first piece is asked for.
        """
        return streaming.pulled(
            lambda emit, check: self.generate(prompt, length, on_text=emit, callback=check, **options)
        )

    @overload
    def infill(self, text: str, *, callback: Callback | None = ..., **options: Unpack[Sampling]) -> Generation: ...
    @overload
    def infill(self, text: list[Any], *, callback: Callback | None = ..., **options: Unpack[Sampling]) -> Any: ...
    def infill(
        self, text: str | list[Any], *, callback: Callback | None = None, **options: Unpack[Sampling]
    ) -> Generation | list[Generation]:
        """Fill the holes of each text; what stands around them comes back byte for byte.

        text: markup ("The <hole:3> sat", "<hole:1-24>", "<hole>"), or a list of str and `Hole` (one text, no markup read),
        or a list of such texts. The rest as in `generate`; `length_method` says how the length of a hole is chosen that may
        have several, n asks for so many candidates, and `stop` cuts what is in a hole. BadInput also for a text without a
        hole, a hole that nothing fills, and a model that sees nothing to the right of a block.
        """
        chosen = checked(GenerateOptions, **options)
        single = isinstance(text, str) or any(isinstance(part, Hole) for part in text)
        texts = [
            canvas.joined(canvas.parse(one) if isinstance(one, str) else one) for one in ([text] if single else text)
        ]
        try:
            found = [self._infilled(one) for one in self.infiller(chosen).infill(texts, callback)]
        except FloatingPointError:
            raise self.overflow() from None
        return found[0] if single else found

    def infiller(self, chosen: GenerateOptions, before: Sequence[int] = (), after: Sequence[int] = ()) -> Infiller:
        """What fills holes in texts that stand between these ids. BadInput for a model that cannot."""
        if not self.record.infills:
            raise BadInput(
                f"{self._name}: fills block by block and was never trained to see text to the right of a block, so it cannot "
                "infill; adapt with full_share=0.2 or with full attention"
            )
        self._check_tokenizer()
        model = self.denoiser.seeing_everything()
        return Infiller(model, self.tokenizer, chosen, self.forbidden, self._texts, before, after)

    def fill(self, template: Any, *, prompt: Any = None, callback: Callback | None = None, **options: Any) -> Any:
        """The holes of a template filled together: see `forms.fill`. options: `Sampling`, and `length`, tokens of a hole."""
        infiller = self.infiller(checked(GenerateOptions, **{"length": canvas.LONGEST} | options))
        try:
            return forms.fill(infiller, template, prompt, callback)
        except FloatingPointError:
            raise self.overflow() from None

    @overload
    def score(self, text: str, context: str = ..., **options: Unpack[Scoring]) -> Score: ...
    @overload
    def score(self, text: list[str], context: str | list[str] = ..., **options: Unpack[Scoring]) -> list[Score]: ...
    def score(
        self, text: str | list[str], context: str | list[str] = "", **options: Unpack[Scoring]
    ) -> Score | list[Score]:
        """-log p(text | context) in nats: a Score for a text, a list for a list (with one context, or one each).

        options: method, samples, seed, key, as in `Scoring`. Context and text are tokenised together; what they share
        with the context alone is fixed, the rest is free. Nothing is added but the fixed BOS. Warns where the text has
        the token that the model uses as its mask. BadInput for an empty text, one beyond the model's context, and
        values out of range or misspelt.
        """
        key = options.pop("key", None)
        chosen = checked(ScoreOptions, **options)
        texts = _listed(text)
        contexts = [context] * len(texts) if isinstance(context, str) else _listed(context)
        if len(contexts) != len(texts):
            raise BadInput(f"{len(texts)} texts need one context, or as many, not {len(contexts)}")
        requests = [
            self._request(one, before, randomness.key(before if key is None else key))
            for one, before in zip(texts, contexts, strict=True)
        ]
        try:
            found = scoring.scores(self.denoiser, requests, chosen.method, chosen.samples, chosen.seed)
        except FloatingPointError:
            raise self.overflow() from None
        return _like(text, [Score(one.nats, one.stderr, one.tokens) for one in found])

    def causal_view(self, ids: Tensor) -> Tensor:
        """The AR reading of the same weights: ids (B, L) -> logits (B, L, V), row i for token i + 1."""
        return self.denoiser.causal_view(ids)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a plain Hugging Face checkpoint with the record in its config.json, the tokenizer and a model card.

        path: a new or empty folder; with `overwrite` also one that holds a model and nothing else, which is replaced at
        one stroke. BadInput for anything else, and nothing is written.
        """
        from diffulm.checkpoint.save import save

        save(self.denoiser, self.tokenizer, path, overwrite)

    def _texts(self) -> list[str]:
        return self._token_texts

    @cached_property
    def _token_texts(self) -> list[str]:
        return constraints.token_texts(self.tokenizer)

    @cached_property
    def forbidden(self) -> list[int]:
        """Rows of the vocabulary that stand for no token: padding of the embedding, gaps in the tokenizer."""
        return sorted(set(range(self.denoiser.vocabulary)) - set(self.tokenizer.get_vocab().values()))

    @property
    def _name(self) -> str:
        """What to call this model in an error."""
        return getattr(self.model, "name_or_path", None) or "this model"

    def overflow(self) -> BadInput:
        return BadInput(
            f"{self._name}: its logits are NaN or infinite: it was trained badly, or is open in float16, whose range is too "
            "small for it; try bfloat16 or float32"
        )

    def _check_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise BadInput(
                f"{self._name}: has no tokenizer, so it knows no text; copy its parent's tokenizer files into its folder, or "
                "give one in Python: DiffusionLM(lm.denoiser, tokenizer)"
            )

    def canvas(self, parts: Iterable[str | Hole]) -> Canvas:
        """Text with holes on a canvas of this model; BadInput where it is beyond the context."""
        self._check_tokenizer()
        record = self.record
        return canvas.template(
            self.tokenizer, record.bos_token_id, record.mask_token_id, parts, limit=self.denoiser.context
        )

    def _fill(
        self,
        denoiser: Denoiser,
        made: list[Canvas],
        options: GenerateOptions,
        callback: Callback | None,
        seeds: list[tuple[int, int]],
    ) -> list[Filled]:
        # A text that goes on from a prompt may end before its canvas does; one around a hole goes on behind it.
        open_ended = all(one.spans[-1].text is None for one in made)
        ends = made[0].ends if open_ended and made else (None, None)
        try:
            return fill(denoiser, made, options, self.forbidden, callback, *ends, seeds)
        except FloatingPointError:
            raise self.overflow() from None

    def _completed(self, draws: list[Filled], stop: list[str]) -> Generation:
        first, prompt = draws[0], "".join(span.text or "" for span in draws[0].canvas.spans)
        new = [streaming.completion(one.canvas, one.ids, stop) for one in draws]
        candidates = [Candidate(prompt + one, [one], math.nan) for one in new] if len(new) > 1 else []
        forwards, seconds = sum(one.forwards for one in draws), first.seconds
        return Generation(prompt + new[0], first.ids, forwards, seconds, new[0], candidates=candidates)

    def _infilled(self, found: Infilled) -> Generation:
        best, *_ = searched = found.candidates
        candidates = [] if math.isnan(best.score) else searched
        return Generation(best.text, found.ids, found.forwards, found.seconds, fills=best.fills, candidates=candidates)

    def _request(self, text: str, context: str, key: int) -> Request:
        ids, given = self.canvas([context + text]).ids.tolist(), self.canvas([context]).ids.tolist()
        start = scoring.shared(ids, given)
        if start == len(ids):
            raise BadInput(
                "there is nothing to score: the text is empty, or adds no token to its context; give more text"
            )
        occurrences = ids[start:].count(self.mask_token_id)
        if occurrences and self.record.emit_mask:
            warnings.warn(
                f"the text has {occurrences} of the token {self.mask_token_id}, which this model uses as its mask: "
                "where it stands unmasked the model takes it for a hidden token, and the score suffers",
                stacklevel=4,
            )
        return Request(tuple(ids), start, len(ids), key)


def adopt(
    source: Any,
    tokenizer: Any = None,
    mask_token: str | int = "auto",
    window: str = "keep",
    dtype: torch.dtype | None = None,
) -> DiffusionLM:
    """An autoregressive checkpoint (folder, hub id) or model instance as a DiffusionLM: verified, nothing trained yet.

    See `diffulm.denoiser.adopt.adopt` for what the arguments mean, what is refused, and whether an instance is changed.
    """
    from diffulm.denoiser.adopt import adopt as adopt_denoiser

    return DiffusionLM(*adopt_denoiser(source, tokenizer, mask_token, window, dtype))


def load(source: str | Path, mask_token_id: int | None = None, dtype: torch.dtype | None = None) -> DiffusionLM:
    """Open an adapted checkpoint: ours, the released DiffuGPT / DiffuLLaMA layouts, or another project's diffusion model that
    docs/importing.md lists.

    See `diffulm.checkpoint.load.load` for the arguments and what is refused.
    """
    from diffulm.checkpoint.load import load as load_denoiser

    denoiser, tokenizer = load_denoiser(source, mask_token_id, dtype)
    last = max(tokenizer.get_vocab().values(), default=-1) if tokenizer is not None else -1
    if last >= denoiser.vocabulary and last != denoiser.record.mask_token_id:
        raise BadInput(
            f"{source}: its tokenizer has a token {last}, its vocabulary only {denoiser.vocabulary} rows: it is of another "
            "model; copy the tokenizer's files of the parent"
        )
    return DiffusionLM(denoiser, tokenizer)


def _listed(texts: str | list[str]) -> list[str]:
    listed = [texts] if isinstance(texts, str) else list(texts)
    for text in listed:
        if not isinstance(text, str):
            raise BadInput(f"a text is a str, not {type(text).__name__}")
    return listed


def _like(texts: str | list[str], results: list[Result]) -> Any:
    return results[0] if isinstance(texts, str) else results
