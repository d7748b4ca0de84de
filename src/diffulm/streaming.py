"""What a continuation has come to: where its text ends, and what of it is final while the rest is still masked.

Without remasking a revealed token stays, so everything to the left of the first mask is final.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Any

from diffulm import canvas, randomness
from diffulm.canvas import Canvas
from diffulm.filling import Callback
from diffulm.options import GenerateOptions
from diffulm.samplers import Frame

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a byte-fallback token: how it reads depends on those beside it
_HALF = "\ufffd"


def draws(stream: tuple[int, int], n: int) -> list[tuple[int, int]]:
    """The random streams of n draws of one text; the first is the text's own, so that asking for more does not change it."""
    return [(randomness.key("draw", stream[0], draw) if draw else stream[0], stream[1]) for draw in range(n)]


def completion(made: Canvas, ids: Sequence[int], stop: Sequence[str]) -> str:
    """The text of the hole that ends a canvas, up to the first EOS and the first of the `stop` strings."""
    return cut(_text(made, ids), stop)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first occurrence of any of `stop`."""
    return text[: min((text.index(one) for one in stop if one in text), default=len(text))]


def settled(text: str, stop: Sequence[str]) -> str:
    """What `cut` leaves of every text that begins with this one: it ends, too, before what may be the head of a stop."""
    heads = (i for one in stop for i in range(max(0, len(text) - len(one) + 1), len(text)) if one.startswith(text[i:]))
    return cut(text, stop)[: min(heads, default=len(text))]


def _text(made: Canvas, ids: Sequence[int]) -> str:
    first, start, eos = made.spans[0].start, made.spans[-1].start, made.ends[0]
    new = list(ids[start:])
    return canvas.continuation(made.tokenizer, ids[first:start], new[: new.index(eos)] if eos in new else new)


class Final:
    """A callback that hands on the text of one canvas as soon as it is final: `emit` is called with what is new of it.

    Never half a character, nothing of a stop string: all that was handed on, joined, is `completion` in the end. Where tokens
    may be masked again (`remask`) everything comes at the end.
    """

    def __init__(
        self, made: Canvas, options: GenerateOptions, emit: Callable[[str], Any], also: Callback | None
    ) -> None:
        self.made, self.options, self.emit, self.also = made, options, emit, also
        self.sent = ""

    def __call__(self, frame: Frame) -> None:
        if self.also is not None:
            self.also(frame)
        masked = frame.masked[0].tolist()
        if self.options.remask or True not in masked:
            return
        ids = frame.ids[0].tolist()[: masked.index(True)]
        tokenizer, start = self.made.tokenizer, self.made.spans[-1].start
        if self.made.ends[0] not in ids[start:]:
            while len(ids) > start and _BYTE.fullmatch(str(tokenizer.convert_ids_to_tokens(ids[-1]))):
                ids.pop()
        self._send(settled(_text(self.made, ids).rstrip(_HALF), self.options.stop))

    def end(self, text: str) -> None:
        """Hand on what is left of the whole completion."""
        self._send(text)

    def _send(self, text: str) -> None:
        new = text.removeprefix(self.sent)
        if new and text.startswith(self.sent):
            self.sent = text
            self.emit(new)


class Held:
    """Hands on text that comes in pieces, but for an end that may be the `tail` which is cut off in the end."""

    def __init__(self, emit: Callable[[str], Any], tail: str) -> None:
        self.emit, self.tail = emit, tail
        self.whole, self.sent = "", 0

    def __call__(self, piece: str) -> None:
        self.whole += piece
        held = max(n for n in range(len(self.tail) + 1) if self.whole.endswith(self.tail[:n]))
        self.end(self.whole[: len(self.whole) - held])

    def end(self, text: str) -> None:
        """Hand on what is new of the text."""
        new, self.sent = text[self.sent :], max(self.sent, len(text))
        if new:
            self.emit(new)


class _NobodyWaits(Exception):
    pass


def pulled(run: Callable[[Callable[[str], Any], Callback], Any]) -> Iterator[str]:
    """What `run(emit, callback)` hands to `emit`, as an iterator.

    It runs in a thread of its own, and ends at its next frame where nobody wants more. Its errors are raised here.
    """
    texts: SimpleQueue[str | None] = SimpleQueue()
    closed = Event()

    def check(_: Frame) -> None:
        if closed.is_set():
            raise _NobodyWaits

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, texts.put, check)
        job.add_done_callback(lambda _: texts.put(None))
        try:
            yield from iter(texts.get, None)
        finally:
            closed.set()
    job.result()
