"""The canvas while it fills: what each token says, and what a terminal shows of it."""

import io
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

import diffulm
from diffulm import watch
from diffulm.samplers import Frame

HALF = "\ufffd"
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def lm():
    return diffulm.load("pocket")


@pytest.fixture(scope="module")
def tokenizer(lm):
    return lm.tokenizer


def frame(ids: list[int], masked: list[bool], step: int = 1, confidence: list[float] | None = None) -> Frame:
    sure = torch.full((1, len(ids)), torch.nan) if confidence is None else torch.tensor([confidence])
    rest = torch.tensor([masked]), torch.tensor([step]), torch.full((1, len(ids)), -1), sure
    return Frame((0,), torch.tensor([ids]), *rest)


class Screen:
    """A terminal of some size; `shows` is the last picture as lines, without colours."""

    def __init__(self, tokenizer, width: int = 40, height: int = 10, **environment: str) -> None:
        self.file = io.StringIO()
        kind = {"TERM": "xterm-256color", "COLORTERM": "truecolor", **environment}
        self.console = Console(file=self.file, force_terminal=True, width=width, height=height, _environ=kind)
        self.drawing = watch._drawing(self.console, tokenizer, "░")
        self.draw = self.drawing.__enter__()

    def shows(self, shown: Frame) -> tuple[list[str], str]:
        """(lines, what the terminal was sent)."""
        self.file.truncate(self.file.seek(0))
        self.draw(shown)
        sent = self.file.getvalue()
        return CODES.sub("", sent.replace("\r", "")).split("\n"), sent


def test_a_program_gets_every_canvas(lm):
    """The example of the module's docstring, whole."""
    frames = []
    made = lm.generate("class Stack:", length=6, steps=3, callback=frames.append)
    assert [int(one.step[0]) for one in frames] == [0, 1, 2, 3]
    drawn = [watch.picture(lm.tokenizer, one.ids[0].tolist(), one.masked[0].tolist()) for one in frames]
    assert drawn[0] == "class Stack:" + 6 * "░"
    assert [one.count("░") for one in drawn] == [6, 4, 2, 0]
    assert drawn[-1].startswith("class Stack:")
    assert watch.confidences(frames[0]) == [None] * len(made.ids)
    sure = watch.confidences(frames[-1])
    assert sure[:-6] == [None] * (len(made.ids) - 6)
    assert all(p is not None and 0 < p <= 1 for p in sure[-6:])


# No whitespace but single spaces and newlines: what else a tokenizer does with text is its own business.
@settings(deadline=None, derandomize=True)
@given(st.text("ab é日本🦜\n(", max_size=30))
def test_tokens_spell_the_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    spelled = watch.spelling(tokenizer)(ids, [False] * len(ids))
    assert "".join(spelled) == text
    assert len(spelled) == len(ids)


def test_a_character_of_several_tokens_belongs_to_the_last(tokenizer):
    ids = tokenizer.encode("a🦜b", add_special_tokens=False)
    spell = watch.spelling(tokenizer)
    assert len(ids) > 4
    assert spell(ids, [False] * len(ids)) == ["a", *[""] * (len(ids) - 3), "🦜", "b"]
    masked = [i == len(ids) - 2 for i in range(len(ids))]
    assert spell(ids, masked)[-3:] == [HALF, None, "b"]  # what is there of it, and the mask


def test_special_tokens_have_no_text_and_no_part_in_their_neighbours(tokenizer):
    a, eos = tokenizer.encode("a", add_special_tokens=False)[0], tokenizer.eos_token_id
    assert watch.spelling(tokenizer)([eos, a, eos, eos, a], [False] * 5) == ["", "a", "", "", "a"]


def test_without_a_tokenizer_the_ids_are_shown():
    assert watch.spelling(None)([5, 6, 0, 7], [False, False, True, False]) == ["5", " 6", None, "7"]


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_a_terminal_is_told_nothing_by_what_is_escaped(text):
    shown = watch.escaped(text, keep="\n")
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert watch.escaped("\x1b[2J\u202e\ud800é日🦜 \t") == r"\x1b[2J\u202e\ud800é日🦜 \t"


def test_the_colour_is_the_confidence(tokenizer):
    ids = tokenizer.encode("a(b", add_special_tokens=False)
    screen = Screen(tokenizer)
    screen.shows(frame(ids, [False, True, True]))
    lines, sent = screen.shows(frame(ids, [False, False, False], 2, [torch.nan, 0.1, 0.99]))
    assert lines[0] == "a(b"
    unsure, sure = ("38;2;{};{};{}m".format(*bytes.fromhex(code[1:])) for code in (watch.SHADES[0], watch.SHADES[-1]))
    assert re.search(rf"^[^m]*a\x1b\[1;4;{unsure}\(\x1b\[0m\x1b\[1;4;{sure}b\x1b\[0m", sent)
    _, again = screen.shows(frame(ids, [False, False, False], 3, [torch.nan, 0.1, 0.99]))
    assert f"\x1b[{unsure}(" in again, "no longer new"
    assert "step 3, 0 masked" in CODES.sub("", again)


@pytest.mark.parametrize(("sure", "colour"), [(0.0, 0), (0.24, 0), (0.26, 1), (0.6, 2), (0.75, 3), (1.0, 3)])
def test_shades(sure, colour):
    assert watch.shade(sure) == watch.SHADES[colour]
    assert watch.shade(None) == ""


def test_no_color_is_no_colour(tokenizer):
    ids = tokenizer.encode("a(b", add_special_tokens=False)
    _, sent = Screen(tokenizer, NO_COLOR="1").shows(frame(ids, [False] * 3, 1, [0.1, 0.5, 0.9]))
    assert "a(b" in CODES.sub("", sent)
    assert not re.search(r"\x1b\[[0-9;]*(3|4)8;", sent)


def test_a_long_canvas_is_shown_where_it_changes(tokenizer):
    lines = [f"line{i} = {i}" for i in range(30)]
    ids = tokenizer.encode("\n".join(lines), add_special_tokens=False)
    spelled = watch.spelling(tokenizer)(ids, [False] * len(ids))
    line_of = [("".join(spelled[:i]) + text).rstrip("\n").count("\n") for i, text in enumerate(spelled)]
    screen = Screen(tokenizer, height=8)
    for place in (0, 25, 24, 11, 29):
        position = max(i for i, line in enumerate(line_of) if line == place)
        screen.shows(frame(ids, [i == position for i in range(len(ids))]))
        shown, _ = screen.shows(frame(ids, [False] * len(ids), 2))
        *body, foot = shown
        assert lines[place] in body
        assert body == lines[lines.index(body[0]) :][:6], "six lines of the canvas, in their order"
        assert "step 2, 0 masked (a part of it" in foot


@pytest.mark.parametrize("width", [3, 10, 21])
def test_wide_and_hostile_text_stays_within_the_terminal(tokenizer, width):
    text = "日本語のテキスト🦜🦜 x\x1b[2J\r\x07\n\ta é " + 30 * "w"
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown, sent = Screen(tokenizer, width=width, height=60).shows(frame(ids, [False] * len(ids)))
    assert max(Text(line).cell_len for line in shown) <= width
    assert set(CODES.sub("", sent)) & set(map(chr, range(32))) <= {"\n", "\r"}
    assert "\x1b[2J" not in sent
    assert "x\\x1b[2J\\r\\x07" in "".join(shown)
