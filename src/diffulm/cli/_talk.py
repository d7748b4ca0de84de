"""`diffulm chat` in a terminal: what is typed is a message, or a command that begins with a slash."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from diffulm.cli import _common, _process
from diffulm.cli._answer import KEPT, SHOW, Answer
from diffulm.errors import BadInput, unknown
from diffulm.watch import escaped

if TYPE_CHECKING:
    from diffulm.dialogue import Dialogue
    from diffulm.lm import Generation

SETTINGS = ("steps", "length", "seed", "temperature", "sampler")
NAMES = ("system", "retry", "edit", *SETTINGS, "history", "save", "new", "help", "quit")
HELP = """\
/system TEXT    what the model is to keep in mind; - for nothing
/retry          another answer, drawn with the next seed
/edit WORDS     these words of the last answer anew, the rest of it stays;
                /edit <3> WORDS: three tokens in their place; or the whole
                answer with holes: /edit It was <hole:2> in <hole>.
/steps N        /length N   /seed N   /temperature X   /sampler NAME
                alone: what it is; auto: as the model picks
/history        what was said
/save FILE      add the conversation to a file that diffulm sft reads
/new            forget the conversation
/help  /quit    or Ctrl-D; Ctrl-C stops an answer
A line that ends in \\ goes on in the next; // begins a message with /."""
EDIT = 'say which words of the last answer to write anew: "/edit WORDS", "/edit <3> WORDS", "/edit It was <hole:2>."'
TWICE = 0.5  # seconds within which a second Ctrl-C is the first one


def talk_in_terminal(talk: Dialogue, model: str, out: TextIO) -> None:
    """Read, answer and obey until /quit or the end of input."""
    talk.hidden = "░" if "utf" in (sys.stderr.encoding or "").lower() else "_"
    Terminal(talk, model, out).run()


class Terminal:
    def __init__(self, talk: Dialogue, model: str, out: TextIO) -> None:
        self.talk, self.model, self.out = talk, model, out
        self.live = os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
        self.left_out = 0

    def run(self) -> None:
        self.note(f"{self.model}: /help says what there is, Ctrl-D ends")
        with _editing(), _interrupting():
            while True:
                try:
                    line = _read()
                    if line.strip() and self.obeys(line):
                        return
                except EOFError:
                    print(file=self.out)
                    return
                except KeyboardInterrupt:
                    if _process.stopped():
                        raise
                    print(SHOW if self.live else "", file=self.out)
                    self.note("Ctrl-D or /quit ends")
                except (BadInput, OSError) as error:
                    if isinstance(error, OSError) and not error.filename:
                        raise
                    self.note(" ".join(str(error).split()))
                except UnicodeDecodeError:
                    self.note("this is not the text that the terminal says it sends: check its locale")

    def note(self, text: str) -> None:
        print(f"({escaped(text, KEPT)})", file=self.out, flush=True)

    def obeys(self, line: str) -> bool:
        """Whether it was the last line."""
        if line.startswith("//") or not line.startswith("/"):
            self.answers(partial(self.talk.say, line.removeprefix("/")))
            return False
        name, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        if name not in NAMES:
            raise BadInput(
                f"{unknown('command', '/' + name, ['/' + each for each in NAMES])}; // begins a message with /"
            )
        if name in SETTINGS:
            self.sets(name, rest)
        elif name != "quit":
            getattr(self, name)(rest)
        return name == "quit"

    def answers(self, ask: Callable[..., Generation]) -> None:
        turns = len(self.talk.turns)
        with Answer(self.out, self.live) as answer:
            try:
                with _common.only_result():
                    made = ask(watch=answer.draw, on_text=answer.add)
            except KeyboardInterrupt:
                kept = len(self.talk.turns) > turns
                answer.end(self.talk.answer if kept else "")
                self.stopped("" if kept else ": what was said before stays")
                return
            answer.end(made.completion)
        if not made.completion.strip():
            self.note("that was an empty answer")
        if self.talk.left_out > self.left_out:
            oldest = f"{self.talk.left_out} turns" if self.talk.left_out > 1 else "turn"
            self.note(f"left out: the oldest {oldest}; the model's context holds {self.talk.context} tokens")
        self.left_out = self.talk.left_out

    def stopped(self, what: str) -> None:
        if _process.stopped():
            raise KeyboardInterrupt
        self.note(f"stopped{what}")

    def retry(self, _: str) -> None:
        before = self.talk.answer
        self.answers(self.talk.retry)
        if self.talk.answer == before and not self.talk.options.get("temperature"):
            self.note("the same again: at temperature 0 there is one answer; /temperature 0.7 lets it vary")

    def edit(self, words: str) -> None:
        from diffulm.dialogue import hole_in

        if not words:
            raise BadInput(EDIT)
        before = self.talk.answer
        parts = hole_in(before, words, self.talk.lm.tokenizer)
        with Answer(self.out, self.live) as answer, _common.only_result():
            answer.draw([(part, False) if isinstance(part, str) else (3 * self.talk.hidden, True) for part in parts])
            try:
                self.talk.edit(parts, watch=answer.draw)
            except KeyboardInterrupt:
                answer.end(before)
                self.stopped(": the answer stays as it was")
                return
            answer.end(self.talk.answer)
        if self.talk.answer == before:
            self.note("the model would write the same again: give it other lengths, /edit <2-6> WORDS")

    def sets(self, name: str, value: str) -> None:
        if value:
            self.talk.set(name, None if value == "auto" else value)
        found = self.talk.options.get(name)
        self.note(f"{name}: {'auto' if found is None else found}")

    def system(self, text: str) -> None:
        if text:
            self.talk.system, self.talk.left_out = "" if text == "-" else text, 0
        self.note(f"system: {self.talk.system or 'nothing'}")

    def history(self, _: str) -> None:
        for question, answer in self.talk.turns:
            print(escaped(f"> {question}\n{answer.rstrip()}", KEPT), file=self.out)

    def save(self, path: str) -> None:
        if not path:
            raise BadInput("name a file: /save talks.jsonl")
        self.talk.save(path)
        self.note(f"added to {path}")

    def new(self, _: str) -> None:
        self.talk.turns, self.talk.left_out, self.left_out = [], 0, 0
        self.note("a new conversation")

    def help(self, _: str) -> None:
        print(HELP, file=self.out)


def _read() -> str:
    line = input("> ")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{input('... ')}"
    return line


@contextlib.contextmanager
def _editing() -> Iterator[None]:
    """Line editing, history and completion of commands, where Python has them."""
    with contextlib.suppress(ImportError):
        import readline

        def command(text: str, state: int) -> str | None:
            fitting = [f"/{name} " for name in NAMES if text and f"/{name}".startswith(text)]
            return [*fitting, None][min(state, len(fitting))]

        readline.set_completer_delims(" \n")
        readline.set_completer(command)
        libedit = "libedit" in (readline.__doc__ or "")  # of macOS
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    yield


@contextlib.contextmanager
def _interrupting() -> Iterator[None]:
    """Ctrl-C stops what is going on, not the process. Pressed twice in haste it is still one."""
    last = -TWICE

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= TWICE:
            last = now
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
