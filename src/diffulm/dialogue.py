"""A conversation without a terminal: what was said, and what may be done to the last answer.

    talk = Dialogue(diffulm.load("runs/mine"))
    talk.say("Name two birds.").completion
    talk.retry()  # drawn with the next seed
    talk.edit(hole_in(talk.answer, "a wren", talk.lm.tokenizer))  # that part anew, both sides of it stand
    talk.save("talks.jsonl")  # a row of data for `diffulm sft`

What no longer fits the model's context is left out from the oldest turn on (`left_out`), and so is a turn without an answer.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffulm import canvas
from diffulm.canvas import Hole
from diffulm.chat import Message, Template, conversation, fitted, template_of
from diffulm.errors import BadInput, shown
from diffulm.holes import Candidate
from diffulm.options import GenerateOptions, checked
from diffulm.watch import HALF, Spell, spelling

if TYPE_CHECKING:
    from diffulm.lm import DiffusionLM, Generation
    from diffulm.samplers import Frame

Run = tuple[str, bool]
"""A piece of an answer, and whether it may still change."""
Watch = Callable[[list[Run]], Any]

_LENGTH = re.compile(r"<(\d[\d-]*)>\s+(?=\S)")
_SEEDS = 2**63


@dataclass
class Dialogue:
    """A model and what was said to it. options: as in `Sampling`, and `length` (None: as `lm.chat` chooses).

    hidden: what a watcher sees in the place of a token that is still masked.
    """

    lm: DiffusionLM
    options: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Question and answer; an answer may be empty."""
    left_out: int = 0
    """The oldest turns, so many, that the last answer did not see."""
    hidden: str = "░"
    tries: int = 0
    """How often the last answer was asked for again."""

    @property
    def answer(self) -> str:
        """The last one. BadInput where there is none."""
        if not self.turns:
            raise BadInput("there is no answer yet: say something first")
        return self.turns[-1][1]

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, turns without an answer left out."""
        return self._messages(self.turns)

    def say(self, text: str, watch: Watch | None = None, on_text: Callable[[str], Any] | None = None) -> Generation:
        """The answer to a message. watch: called with the answer as it stands, at every step; on_text: with what is new of
        it and final.

        Interrupted (KeyboardInterrupt) it keeps the question, and of the answer what was final. BadInput, and nothing
        kept, for a message that is empty or too long for the model.
        """
        self.tries, final = 0, []
        try:
            made = self._ask(self.turns, text, watch, on_text, final)
        except KeyboardInterrupt:
            self.turns.append((text, "".join(final)))
            raise
        self.turns.append((text, made.completion))
        return made

    def retry(self, watch: Watch | None = None, on_text: Callable[[str], Any] | None = None) -> Generation:
        """The last question once more, with the next seed; interrupted it leaves the answer as it was."""
        _ = self.answer
        *before, (question, _) = self.turns
        self.tries += 1
        made = self._ask(before, question, watch, on_text, [])
        self.turns = [*before, (question, made.completion)]
        return made

    def edit(self, parts: Sequence[str | Hole], watch: Watch | None = None) -> Candidate:
        """Put text with holes in the place of the last answer, and fill the holes from both sides.

        Of several ways to fill them the best that is not the answer as it was. BadInput as in `lm.infill`, and nothing is
        changed.
        """
        old = self.answer
        *before, (question, _) = self.turns
        parts, closing = canvas.joined(parts), self._template.answer("")
        open_ended = not all(isinstance(part, str) or part.settled for part in parts)
        needed = sum(part.longest if isinstance(part, Hole) else len(self._template.part(part)) for part in parts)
        left_out = self.left_out
        messages = self._fitted(before, question, needed + len(closing))
        self.left_out = left_out  # the next answer may take less
        options = {name: value for name, value in self.options.items() if name != "length"}
        told = None if open_ended else self._watched(messages, watch)  # a search shows nothing before it is over
        chosen = checked(GenerateOptions, **options | {"n": 2 if open_ended else 1})
        infiller = self.lm.infiller(chosen, self._template.opening(messages), closing)
        try:
            ways = infiller.infill([parts], told)[0].candidates
        except FloatingPointError:
            raise self.lm.overflow() from None
        best = next((one for one in ways if one.text != old), ways[0])
        self.turns = [*before, (question, best.text)]
        return best

    def set(self, name: str, value: Any) -> None:
        """One of the options; None: as the model or the library chooses. BadInput for a value that cannot be."""
        others = {key: each for key, each in self.options.items() if key != name}
        if value is not None:
            others[name] = getattr(checked(GenerateOptions, **_given(others) | {name: value}), name)
        self.options, self.left_out = others, 0

    def save(self, path: str | Path) -> None:
        """Add the conversation to a file of JSON lines, `{"messages": [...]}`, the form that `diffulm sft` reads.

        BadInput where nothing was said, and for a file that holds anything else.
        """
        if not self._told(self.turns):
            raise BadInput("there is nothing to save: no question has an answer yet")
        path = Path(path).expanduser()
        if path.exists() and not path.is_file():
            raise BadInput(f"{path}: is not a file")
        before = path.read_bytes() if path.exists() else b""
        if before and not re.match(rb'\s*{.*"messages"', before.partition(b"\n")[0]):
            raise BadInput(f"{path}: is there, and holds no conversations; name another file")
        row = json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"
        with path.open("ab") as file:
            file.write(b"\n" * bool(before and not before.endswith(b"\n")) + row.encode("utf-8", "backslashreplace"))

    @property
    def context(self) -> int | None:
        """Positions that the model can take."""
        return self.lm.denoiser.context

    @cached_property
    def _template(self) -> Template:
        return template_of(self.lm.tokenizer)

    @cached_property
    def _spell(self) -> Spell:
        return spelling(self.lm.tokenizer)

    def _told(self, turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [turn for turn in turns if turn[1].strip()]

    def _messages(self, turns: Sequence[tuple[str, str]], question: str | None = None) -> list[Message]:
        said = [("system", self.system)] if self.system.strip() else []
        for asked, answered in self._told(turns):
            said += [("user", asked), ("assistant", answered)]
        said += [] if question is None else [("user", question)]
        return [{"role": role, "content": content} for role, content in said]

    def _fitted(self, turns: Sequence[tuple[str, str]], question: str, needed: int) -> list[Message]:
        """The messages before an answer that takes `needed` positions, as far as they fit; `left_out` says how far."""
        if not question.strip():
            raise BadInput("the message has no text: say something")
        told = self._told(turns)
        self.left_out = min(self.left_out, len(told))  # what was too much before will be too much again
        messages = conversation(self._messages(told[self.left_out :], question))
        bos = self.lm.record.bos_token_id is not None
        room = sys.maxsize if self.context is None else self.context - bos - needed
        if room < 1:
            raise BadInput(
                f"{needed} tokens for an answer are too many: the model's context is {self.context}; ask for less"
            )
        kept, dropped = fitted(self._template, messages, room)
        self.left_out += dropped // 2
        return kept

    def _ask(
        self,
        turns: Sequence[tuple[str, str]],
        question: str,
        watch: Watch | None,
        on_text: Callable[[str], Any] | None,
        final: list[str],
    ) -> Generation:
        """`final` is given the pieces of the answer as they become final."""
        length, context = self.options.get("length"), self.context or sys.maxsize
        try:
            messages = self._fitted(turns, question, length or min(self.lm.reply_length, context // 2))
        except BadInput:
            if length is not None or not question.strip():
                raise
            messages = self._fitted([], question, 1)  # a long message, and as much of an answer as there is room for
            self.left_out = len(self._told(turns))
        seed = (self.options.get("seed", 0) + self.tries) % _SEEDS

        def heard(piece: str) -> None:
            final.append(piece)
            if on_text is not None:
                on_text(piece)

        told = self._watched(messages, watch)
        return self.lm.chat(messages, callback=told, on_text=heard, **self.options | {"seed": seed})

    def _watched(self, messages: list[Message], watch: Watch | None) -> Callable[[Frame], Any] | None:
        if watch is None:
            return None
        start = len(self._template.opening(messages)) + (self.lm.record.bos_token_id is not None)
        return lambda frame: watch(self._runs(frame, start))

    def _runs(self, frame: Frame, start: int) -> list[Run]:
        """The answer, which stands on the canvas from `start` on."""
        ids, masked, revealed = (part[0].tolist()[start:] for part in (frame.ids, frame.masked, frame.revealed))
        ends = {self._template.end, self.lm.tokenizer.eos_token_id}
        size = next((i for i, token in enumerate(ids) if token in ends and not masked[i]), len(ids))
        first = -1 if self.options.get("remask") and True in masked else [*masked, True].index(True)
        texts = self._spell(ids[:size], masked[:size])
        pieces = [
            (self.hidden if text is None else text, (revealed[i] >= 0 and i > first) or text is None)
            for i, text in enumerate(texts)
        ]
        runs = [("".join(text for text, _ in group), still) for still, group in groupby(pieces, key=lambda one: one[1])]
        return [(text if still else text.rstrip(HALF), still) for text, still in runs]


def hole_in(answer: str, words: str, tokenizer: Any) -> list[str | Hole]:
    """The answer with a hole in it, as `/edit WORDS` means it.

    words: a part of the answer, which becomes a hole of half to twice as many tokens (blanks stand for any white space);
    with <3> or <1-8> before it a hole of so many; or a text with <hole:3> in it, which is the whole answer then. BadInput
    for words that are not in the answer, or in more than one place.
    """
    parts = canvas.parse(words)
    if any(isinstance(part, Hole) for part in parts):
        return parts
    length = _LENGTH.match(words)
    wanted = words[length.end() :] if length else words
    places = list(re.finditer(r"\s+".join(map(re.escape, wanted.split())), answer)) if wanted.split() else []
    if not places:
        raise BadInput(f"{shown(wanted)} is not in the last answer: give words that are, or a text with <hole:3> in it")
    if len(places) > 1:
        raise BadInput(f"{shown(wanted)} is in the last answer {len(places)} times: give the words around it as well")
    start, stop = places[0].span()
    tokens = len(canvas.encode(tokenizer, answer[start:stop], inside=True))
    hole = canvas.parse(f"<hole:{length[1]}>")[0] if length else Hole(max(1, tokens // 2), max(4, 2 * tokens))
    return canvas.joined([answer[:start], hole, answer[stop:]])


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
