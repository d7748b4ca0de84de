"""A model under evaluation: a diffusion model, or its AR parent read from left to right; text goes in, text comes out.

Everything a task asks goes through here, so that both see the same tokens, the same BOS and the same cut.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffulm import lm as language_model
from diffulm import randomness
from diffulm.canvas import continuation as text_after
from diffulm.canvas import continued, encode
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.denoiser import evaluating
from diffulm.errors import BadInput
from diffulm.filling import fill
from diffulm.lm import DiffusionLM
from diffulm.options import GenerateOptions
from diffulm.streaming import completion, cut, draws

TILE = 8  # prompts that an AR model continues at once: fixed, so that a text does not depend on a batch size


@dataclass(frozen=True)
class Completion:
    """What a model went on with. cut: tokens of the prompt left out on the left, for want of room. ended: by the token
    that ends a text, not for want of positions."""

    text: str
    cut: int
    tokens: int
    ended: bool


@dataclass
class Subject:
    """name: what it was opened from. autoregressive: read from left to right by its own causal attention."""

    name: str
    lm: DiffusionLM
    autoregressive: bool = False

    @property
    def denoiser(self):
        return self.lm.denoiser

    @property
    def tokenizer(self) -> Any:
        return self.lm.tokenizer

    @property
    def bos(self) -> list[int]:
        """What stands in front of every text: BOS, or nothing."""
        bos = self.lm.record.bos_token_id
        return [] if bos is None else [bos]

    @property
    def context(self) -> int:
        """Positions the model can take; 10^9 where the architecture sets no limit."""
        return self.denoiser.context or 10**9

    def complete(
        self,
        prompts: Sequence[str | list[int]],
        length: int | Sequence[int],
        *,
        keys: Sequence[int | str],
        stop: Sequence[str] = (),
        steps: int | None = None,
        temperature: float = 0.0,
        draws: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        closing: tuple[int, int] | None = None,
        **options: Any,
    ) -> list[list[Completion]]:
        """`draws` continuations of each prompt, at most `length` tokens each, ended by EOS or the first of `stop`.

        A prompt is text, or its ids. length: of all, or one for each prompt. keys: names each prompt for its random
        numbers, so that a continuation depends on nothing beside it. steps (default: one token a forward), batch_size and
        options (`GenerateOptions`) are for diffusion models. A prompt that leaves no room for its tokens is cut on the
        left. closing: (token that ends a continuation, what follows it) where it is not EOS, as in `chat.Template`. BadInput
        where even an empty prompt leaves none.
        """
        lengths = [length] * len(prompts) if isinstance(length, int) else list(length)
        longest, room = max(lengths, default=1), self.context - len(self.bos)
        if longest > room:
            raise BadInput(f"{self.name}: {longest} tokens do not fit into its context of {self.context}")
        encoded = [encode(self.tokenizer, one) if isinstance(one, str) else one for one in prompts]
        kept = [ids[max(0, len(ids) + n - room) :] for ids, n in zip(encoded, lengths, strict=True)]
        seeds = [randomness.key(seed, key) for key in keys]
        if self.autoregressive:
            texts = self._continued(kept, lengths, seeds, stop, temperature, draws, closing)
        else:
            chosen = GenerateOptions(steps=steps, temperature=temperature, batch_size=batch_size, **options)
            texts = self._filled(kept, lengths, chosen, seeds, stop, draws, closing)
        cuts = [len(ids) - len(rest) for ids, rest in zip(encoded, kept, strict=True)]
        return [
            [Completion(text, lost, new, ended) for text, new, ended in of]
            for of, lost in zip(texts, cuts, strict=True)
        ]

    def _filled(
        self,
        prompts: list[list[int]],
        lengths: list[int],
        options: GenerateOptions,
        seeds: list[int],
        stop: Sequence[str],
        count: int,
        closing: tuple[int, int] | None,
    ) -> list[list[tuple[str, int, bool]]]:
        made = [
            continued(self.tokenizer, self.bos, ids, self.lm.mask_token_id, n, closing)
            for ids, n in zip(prompts, lengths, strict=True)
        ]
        streams = [one for seed in seeds for one in draws((seed, 0), count)]
        ends = made[0].ends if made else (None, None)
        done = fill(
            self.denoiser,
            [one for one in made for _ in range(count)],
            options,
            self.lm.forbidden,
            None,
            *ends,
            seeds=streams,
        )
        texts = [
            (completion(one.canvas, one.ids, stop), free, ends[0] in one.ids[-free:])
            for one in done
            for free in [int((~one.canvas.fixed).sum())]
        ]
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def _continued(
        self,
        prompts: list[list[int]],
        lengths: list[int],
        seeds: list[int],
        stop: Sequence[str],
        temperature: float,
        count: int,
        closing: tuple[int, int] | None,
    ) -> list[list[tuple[str, int, bool]]]:
        """By `generate` of transformers: greedy in tiles of prompts padded on the left, drawn one prompt at a time."""
        texts: list[list[tuple[str, int, bool]]] = []
        drawn = temperature > 0
        while len(texts) < len(prompts):
            start = len(texts)
            size = 1 if drawn else self._fitting(prompts[start:], lengths[start:])
            tile = [[*self.bos, *ids] for ids in prompts[start : start + size]]
            most = lengths[start : start + size]
            longest = max(map(len, tile))
            ids = torch.tensor([[0] * (longest - len(one)) + one for one in tile], device=self.denoiser.device)
            present = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in tile], device=ids.device)
            # named, because a model's own file may have settings of its own
            how: dict[str, Any] = {"do_sample": drawn, "num_beams": 1, "repetition_penalty": 1.0}
            how["synced_gpus"] = False  # processes that ask at all ask the same, and the first one may ask alone
            end = self.tokenizer.eos_token_id if closing is None else closing[0]
            if closing is not None:
                how |= {"eos_token_id": end}
            if drawn:
                how |= {"temperature": temperature, "top_k": 0, "top_p": 1.0, "num_return_sequences": count}
            with evaluating(self.lm.model), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # generate warns of settings in a model's own file
                torch.manual_seed(seeds[start])
                out = self.lm.model.generate(
                    ids, attention_mask=present, max_new_tokens=max(most), pad_token_id=self._pad, **how
                )
            rows = [*zip(tile, most, strict=True)] * (count if drawn else 1)
            new = [
                self._text(one, row[longest : longest + n], stop, end)
                for (one, n), row in zip(rows, out.tolist(), strict=True)
            ]
            texts += [new] if drawn else [[one] * count for one in new]
        return texts

    def _fitting(self, prompts: list[list[int]], lengths: list[int]) -> int:
        """How many of the first prompts make a tile: all of them run for the longest prompt and the longest length."""
        for size in range(TILE, 1, -1):
            longest = max(map(len, prompts[:size])) + max(lengths[:size])
            if longest + len(self.bos) <= self.context:
                return min(size, len(prompts))
        return 1

    def _text(self, before: list[int], new: list[int], stop: Sequence[str], end: int) -> tuple[str, int, bool]:
        kept = new[: new.index(end)] if end in new else new
        return cut(text_after(self.tokenizer, before[len(self.bos) :], kept), stop), len(kept), end in new

    @property
    def _pad(self) -> int:
        for one in (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id):
            if one is not None:
                return one
        return 0


def opened(
    source: str | Path, mask_token_id: int | None = None, dtype: torch.dtype | None = None, parent: bool = False
) -> Subject:
    """A diffusion model, or with `parent` an AR model as it is. BadInput for what cannot be opened, or has no tokenizer."""
    if parent:
        denoiser, tokenizer = adopt(str(source), dtype=dtype, frozen=True)
        # its own distribution: as lm-eval reads it, a token that is to be the mask has its share of the probability
        denoiser.record = replace(denoiser.record, emit_mask=True)
        found = DiffusionLM(denoiser, tokenizer)
    else:
        found = language_model.load(source, mask_token_id, dtype)
    if found.tokenizer is None:
        raise BadInput(
            f"{source}: has no tokenizer, so it can be asked nothing in words; copy its parent's tokenizer files"
        )
    return Subject(str(source), found, parent)
