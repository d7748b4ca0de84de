"""`diffulm chat`: a reply for each line of a pipe, and what a terminal shows of a conversation."""

import contextlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffulm
from diffulm.cli import _talk
from diffulm.cli._answer import Answer
from diffulm.data.conversations import messages_of
from diffulm.dialogue import Dialogue
from diffulm.lm import Generation
from forks import Forks, open_terminal, read_terminal
from screens import Screen

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def lm():
    return diffulm.load("pocket")


# -- a pipe


@pytest.fixture
def pipe(lm, run, monkeypatch):
    """`diffulm chat pocket` with these bytes on standard input: (exit code, standard output, standard error)."""
    monkeypatch.setitem(vars(diffulm), "load", lambda *_, **__: lm)

    def call(given: bytes, *flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
        return run("chat", "pocket", *flags)

    return call


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def line(text: str) -> str:
    return text.replace("\n", "\\n") + "\n"


UNTUNED = (
    "diffulm: pocket was never taught to answer: it goes on with the text of the conversation; diffulm sft teaches it\n"
)


def test_a_reply_for_each_line_and_nothing_else(pipe, lm):
    code, out, err = pipe(b"def close(self):\nclass Stack:", "--length", "16", "--history")
    first = lm.chat([user("def close(self):")], length=16).completion
    second = lm.chat([user("def close(self):"), assistant(first), user("class Stack:")], length=16).completion
    assert "\n" in first + second, "otherwise it is not seen what becomes of one"
    assert (code, out, err) == (0, line(first) + line(second), UNTUNED)


def test_json_has_the_exact_reply_on_a_line(pipe, lm):
    code, out, _ = pipe(" é日🦜\r\n\nb\n".encode(), "--length", "8", "--json", "--seed", "3", "--temperature", "0.9")
    first, empty, second = map(json.loads, out.splitlines())
    made = lm.chat([user(" é日🦜")], length=8, seed=3, temperature=0.9)
    seconds = [one.pop("seconds") for one in (first, empty, second)]
    assert first == {"message": " é日🦜", "reply": made.completion, "forwards": 8, "left_out": 0}
    assert empty == {"message": "", "reply": "", "forwards": 0, "left_out": 0}
    assert second["message"] == "b" and second["reply"]
    assert seconds[0] > seconds[1] == 0
    assert code == 0


ODD = "a\u2028b\x85c\rd\x0be"


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["plain", "json"])
def test_nothing_in_a_reply_ends_its_line(pipe, lm, flags, monkeypatch):
    monkeypatch.setattr(type(lm), "chat", lambda *_, **__: Generation(ODD, [], 1, 0.0, ODD))
    code, out, _ = pipe(b"a\nb\n", *flags)
    assert (code, len(out.splitlines())) == (0, 2)
    line = out.splitlines()[1]
    assert json.loads(line)["reply"] == ODD if flags else line == r"a\u2028b\x85c\rd\x0be"


@pytest.mark.parametrize("history", [True, False])
def test_lines_are_one_conversation_or_each_its_own(pipe, lm, history, monkeypatch):
    asked = []
    made = Generation("an answer", [], 1, 0.0, "an answer")
    monkeypatch.setattr(type(lm), "chat", lambda self, messages, **_: asked.append(messages) or made)
    pipe(b"one\ntwo\n", "--system", "Python", *(["--history"] if history else []))
    contents = [[message["content"] for message in messages] for messages in asked]
    assert contents[0] == ["Python", "one"]
    assert contents[1] == (["Python", "one", made.completion, "two"] if history else ["Python", "two"])


def test_a_line_is_a_message_whatever_it_says(pipe, lm):
    _, out, _ = pipe(b"/quit\n/help\n", "--length", "4")
    assert out.count("\n") == 2
    assert out.startswith(line(lm.chat([user("/quit")], length=4).completion))


def test_an_empty_line_gets_an_empty_line_and_is_no_turn(pipe):
    _, out, _ = pipe(b"\n \t\na = 1\n\nb\n", "--length", "4")
    assert [bool(line) for line in out.split("\n")] == [False, False, True, False, True, False]
    assert out.split() == pipe(b"a = 1\nb\n", "--length", "4")[1].split()
    assert pipe(b"")[:2] == (0, "")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"a\n\xff\xfe\nb", "standard input, line 2: is not UTF-8; convert it"),
        (b"a\n" + 400 * b"wort " + b"\n", "standard input, line 2: the last message takes"),
    ],
    ids=["not UTF-8", "too long"],
)
def test_a_line_that_cannot_be_is_named_and_what_came_before_is_there(pipe, given, words):
    code, out, err = pipe(given, "--length", "4")
    assert (code, out.count("\n")) == (2, 1)
    assert re.fullmatch(f"(.*never taught.*)\ndiffulm: error: {words}.*\n", err)


def test_what_no_longer_fits_is_left_out_and_said_once(pipe):
    code, out, err = pipe(6 * (b"for i in range(10): " * 6 + b"\n"), "--length", "3", "--json", "--history")
    left_out = [json.loads(line)["left_out"] for line in out.splitlines()]
    assert code == 0 and left_out[0] == 0 and left_out == sorted(left_out) and left_out[-1] > 1
    first = next(n for n, count in enumerate(left_out, 1) if count)
    line = (
        f"line {first}: the conversation has outgrown the model's context; from here on its oldest turns are left out"
    )
    assert err.splitlines()[1:] == [f"diffulm: standard input, {line}"]


def test_each_reply_is_there_before_the_next_line_is_read(lm, run, monkeypatch):
    monkeypatch.setitem(vars(diffulm), "load", lambda *_, **__: lm)
    seen: list[str] = []

    class Out(io.StringIO):
        def flush(self) -> None:
            seen.append(self.getvalue())

    class Asking:
        buffer = property(lambda self: self.lines())

        def isatty(self) -> bool:
            return False

        def lines(self):
            for number in range(3):
                assert (seen[-1] if seen else "").count("\n") == number
                yield b"a\n"

    out = Out()
    monkeypatch.setattr(sys, "stdin", Asking())
    monkeypatch.setattr(sys, "stdout", out)
    assert run("chat", "pocket", "--length", "2")[0] == 0
    assert out.getvalue().count("\n") == 3


def test_a_tuned_model_is_not_said_to_be_untuned(pipe, lm, monkeypatch):
    monkeypatch.setitem(lm.record.notes, "sft", {"answer_tokens": 3})
    code, out, err = pipe(b"a\n", "--json")
    assert (code, err, json.loads(out)["forwards"]) == (0, "", 3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], "steps should be greater"),
        (["--sampler", "confidense"], "did you mean 'confidence'"),
        (["--steps", "3", "--factor", "1"], "steps and factor each say"),
        (["--dtype", "float3"], "did you mean 'float32'"),
        (["--n", "2"], "No such option: --n"),
    ],
)
def test_a_wrong_option_is_said_before_anything_is_read(run, flags, words):
    code, out, err = run("chat", "pocket", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


# -- the picture of an answer

TEXTS = st.text("ab \n日🦜é\t", max_size=60)


def shown(answer: Answer, out: io.StringIO, screen: Screen) -> Screen:
    screen.send(out.getvalue())
    out.truncate(out.seek(0))
    return screen


@settings(deadline=None, derandomize=True)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 60), TEXTS), max_size=6), st.integers(3, 30), st.integers(2, 6))
def test_an_answer_ends_as_if_it_had_been_printed_at_once(text, steps, columns, lines):
    out, screen = io.StringIO(), Screen(columns, lines)
    answer = Answer(out, live=True)
    answer._size = lambda: (columns, lines)
    shown(answer, io.StringIO("> question\r\n"), screen)
    for cut, rest in sorted(steps):
        answer.draw([(text[:cut], False), (rest, True)] if cut and text else [(rest, True)])
        shown(answer, out, screen)
        assert set(screen.faint.replace(" ", "")) <= set(rest)
        assert not screen.cursor
    answer.end(text)
    shown(answer, out, screen)
    expected = Screen(columns, lines).send("> question\r\n" + text.replace("\n", "\r\n") + "\r\n" * (text[-1:] != "\n"))
    assert (screen.text, screen.faint, screen.cursor) == (expected.text, "", True)


def test_what_is_open_is_dim_and_the_rest_is_not(monkeypatch):
    out, screen = io.StringIO(), Screen(20, 8)
    answer = Answer(out, live=True)
    answer._size = lambda: (20, 8)
    answer.draw([("one\ntwo ", False), ("░th░", True)])
    assert (shown(answer, out, screen).text, screen.faint) == ("one\ntwo ░th░", "░th░")
    answer.draw([("one\ntwo ", False), ("three", True), (" four", False)])
    assert (shown(answer, out, screen).text, screen.faint) == ("one\ntwo three four", "three")
    with answer:
        answer.draw([("one\ntwo ", False), ("x", True)])
    assert (shown(answer, out, screen).text, screen.cursor) == ("one\n", True), "what is not final goes with an error"


def test_a_long_line_is_shown_where_it_is_open():
    out, screen = io.StringIO(), Screen(11, 6)
    answer = Answer(out, live=True)
    answer._size = lambda: (11, 6)
    answer.draw([("".join(f"{n:09d}." for n in range(20)), False), (30 * "░", True)])
    assert len(shown(answer, out, screen).rows) == 5
    assert "000000019." in screen.text and screen.faint == 30 * "░"


@pytest.mark.parametrize("columns", [10, 7, 40])
def test_a_terminal_that_changes_its_size(columns):
    out, screen, size = io.StringIO(), Screen(20, 30), [20, 30]
    answer = Answer(out, live=True)
    answer._size = lambda: tuple(size)
    screen.send("> a\r\n")
    answer.draw([("ab 日本 " * 5, False), (9 * "░", True)])
    shown(answer, out, screen).resize(columns)
    size[0] = columns
    answer.draw([("ab 日本 " * 5, False), ("open", True)])
    shown(answer, out, screen)
    assert screen.text.replace("\n", "") == "> a" + "ab 日本 " * 5 + "open"


def test_an_answer_cannot_command_the_terminal():
    for live in (True, False):
        out = io.StringIO()
        answer = Answer(out, live)
        answer.draw([("\x1b[2J\u202e", False), ("\x1b]0;x\x07", True)])
        answer.add("\x1b[2J\u202e\u3000é")
        answer.end("\x1b[2J\u202e\u3000é")
        assert r"\x1b[2J\u202e" + "\u3000é" in out.getvalue()
        assert not set(out.getvalue()) & {"\x07", "\u202e"} and "\x1b[2J" not in out.getvalue()


# -- a terminal


class Terminal:
    """`diffulm chat` in a pseudo-terminal of its own."""

    def __init__(self, forks: Forks, model: str, *flags: str, columns: int = 80, first: str = "", **env: str) -> None:
        self.ours, path = open_terminal(columns)
        environment = {"TERM": "xterm-256color", "INPUTRC": os.devnull, **env}
        self.child = forks.diffulm("chat", model, *flags, terminal=path, env=environment, first=first)
        self.screen, self.sent, self.pictures = Screen(columns), "", []
        self.until(self.asks)

    def asks(self) -> bool:
        return self.screen.text.endswith(("\n> ", "\n... "))

    def until(self, there: Callable[[], bool], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if new := read_terminal(self.ours):
                self.sent += new
                self.screen.send(new)
                self.pictures.append(self.screen.faint)
                if there():
                    return
            time.sleep(0.01)
        raise AssertionError(self.screen.text)

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def say(self, line: str) -> list[str]:
        """What is shown after this line was typed, up to the next prompt."""
        before = self.screen.text
        self.type(line + "\n")
        self.until(lambda: len(self.screen.text) > len(before) + len(line) and self.asks())
        return self.screen.text[len(before) :].removesuffix("\n> ").split("\n")[1:]

    def end(self, keys: str = "\x04") -> int:
        self.type(keys)
        code = self.child.wait()
        self.sent += (last := read_terminal(self.ours))
        self.screen.send(last)
        os.close(self.ours)
        return code


@pytest.fixture
def terminal(forks):
    """Opens `diffulm chat`; what a failed test leaves running is ended."""
    opened: list[Terminal] = []

    def start(model: str = "pocket", *flags: str, **settings: str) -> Terminal:
        opened.append(Terminal(forks, model, *flags, **settings))
        return opened[-1]

    yield start
    for one in opened:
        with contextlib.suppress(AssertionError):
            if one.child.wait_some(0) is None:
                one.child.kill(signal.SIGKILL)


def rows(text: str) -> list[str]:
    """An answer as it stands on a wide screen."""
    return text.removesuffix("\n").split("\n")


@pytest.mark.slow
def test_a_conversation(terminal, lm, tmp_path):
    """All of it: a streamed answer, another one, a part of it anew, what is saved."""
    chat = terminal("pocket", "--length", "8", "--temperature", "0.8")
    answers = [lm.chat([user("class Stack:")], length=8, temperature=0.8, seed=n).completion for n in (0, 1)]
    assert answers[0] != answers[1]
    assert chat.say("class Stack:") == rows(answers[0])
    masks = [dim.count("░") for dim in chat.pictures]
    assert max(masks) == 8 and len(set(masks)) > 4, "it was seen while it was filled"
    assert chat.say("/retry") == rows(answers[1])
    (edited,) = chat.say("/edit def close(self): <hole:2> = None")
    assert re.fullmatch(r"def close\(self\): .+ = None", edited)
    (again,) = chat.say("/edit <1> close(self)")
    assert again != edited and re.fullmatch(re.escape(edited).replace(r"close\(self\)", ".+"), again)
    path = tmp_path / "a talk.jsonl"
    assert chat.say("/system write Python") == ["(system: write Python)"]
    chat.say(f"/save {path}")
    contents = [one["content"] for one in messages_of(json.loads(path.read_text("utf-8")))]
    assert contents == ["write Python", "class Stack:", again]
    talk = [{"role": "system", "content": "write Python"}, user("class Stack:"), assistant(again), user("/x\ny")]
    second = lm.chat(talk, length=8, temperature=0.8)
    chat.say("//x\\")
    assert chat.say("y") == rows(second.completion), "two lines, and no command"
    assert chat.say("/history")[:3] == ["> class Stack:", again, "> /x"]
    assert chat.screen.faint == "" and chat.screen.cursor
    assert chat.end() == 0


def test_commands_and_mistakes(terminal, tmp_path):
    chat = terminal("pocket", "--length", "3", columns=200)
    answer = chat.say("x = [")
    assert chat.say("/retry")[:-1] == answer
    assert chat.screen.text.endswith(
        "(the same again: at temperature 0 there is one answer; /temperature 0.7 lets it vary)\n> "
    )
    for typed, shown in {
        "/retyr": "unknown command '/retyr'; did you mean '/retry'?; // begins a message with /",
        "/steps x": "steps should be a whole number, not 'x'",
        "/steps 4": "steps: 4",
        "/steps auto": "steps: auto",
        "/sampler confidense": "unknown sampler 'confidense'; did you mean 'confidence'?",
        "/temperature": "temperature: 0.0",
        "/tem\t": "temperature: 0.0",  # completed
        "/system": "system: nothing",
        "/system be kind": "system: be kind",
        "/system -": "system: nothing",
        "/edit": _talk.EDIT,
        "/edit nowhere": "'nowhere' is not in the last answer: give words that are, or a text with <hole:3> in it",
        "/save": "name a file: /save talks.jsonl",
        f"/save {tmp_path}": f"{tmp_path}: is not a file",
        f"/save {tmp_path}/no/where": f"[Errno 2] No such file or directory: '{tmp_path}/no/where'",
        "/length 300": "length: 300",
        "a": "300 tokens for an answer are too many: the model's context is 256; ask for less",
        "/new": "a new conversation",
        "/retry": "there is no answer yet: say something first",
    }.items():
        assert chat.say(typed) == [f"({shown})"]
    assert chat.say("/help") == _talk.HELP.split("\n")
    assert all(f"/{name}" in _talk.HELP for name in _talk.NAMES)
    assert chat.end("/quit\n") == 0


def test_what_is_left_out_is_said_whenever_it_is_more(lm, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    talk = _talk.Terminal(Dialogue(lm, {"length": 2}), "pocket", out)
    while talk.talk.left_out < 2:
        assert not talk.obeys("for i in range(10): " * 6)
    said = re.findall(r"\(left out: .*\)", out.getvalue())
    context = "the model's context holds 256 tokens"
    assert said == [f"(left out: the oldest {which}; {context})" for which in ("turn", "2 turns")]


def test_ctrl_c_stops_an_answer_and_nothing_else(terminal):
    chat = terminal("pocket", "--length", "100", "--sampler", "left_to_right", columns=100)
    chat.type("class Stack:\n")
    chat.until(lambda: "\n░" not in chat.screen.text and "░" in chat.screen.text)  # something of it is final
    chat.type("\x03")
    time.sleep(0.05)
    chat.type("\x03")
    chat.until(chat.asks)
    *answer, stopped = chat.screen.text.removesuffix("\n> ").partition("> class Stack:\n")[2].split("\n")
    assert stopped == "(stopped)" and "".join(answer) and "░" not in chat.screen.text
    assert chat.screen.cursor and chat.screen.faint == ""
    time.sleep(1.2 * _talk.TWICE)  # else it might be taken for the same
    chat.type("half a line\x03")
    chat.until(lambda: "(Ctrl-D or /quit ends)" in chat.screen.text and chat.asks())
    assert chat.say("/history") == ["> class Stack:", *"\n".join(answer).rstrip().split("\n")]
    chat.child.kill(signal.SIGTERM)
    assert chat.child.wait() == 143


def test_a_terminal_of_twenty_columns_and_wide_characters(terminal):
    chat = terminal("pocket", "--length", "24", "--temperature", "1", columns=20)
    chat.say("日本語のテキストを書いて🦜🦜")
    assert max(map(len, chat.screen.rows)) <= 20
    chat.say("/edit 日本語のテキスト、<hole:3>🦜🦜🦜 と言った。")
    assert re.search("日本語のテキスト、.*🦜🦜🦜 と言った。", chat.screen.text.replace("\n", ""), re.DOTALL)
    assert chat.end() == 0 and "Traceback" not in chat.sent


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["dumb", "no colour"])
def test_no_codes_where_they_are_not_wanted(terminal, lm, environment):
    chat = terminal("pocket", "--length", "6", **environment)
    assert chat.say("class Stack:") == rows(lm.chat([user("class Stack:")], length=6).completion)
    assert len(chat.say("/edit a <hole:1>")) == 1
    assert chat.end() == 0 and ESCAPE not in chat.sent
