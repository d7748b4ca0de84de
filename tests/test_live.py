"""Texts while they come: what streams is final, stop strings, several draws of a prompt, and the page that replays it."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffulm
from broken import one_error
from broken import run as command
from diffulm import animation, canvas, streaming, watch
from diffulm.canvas import Hole
from diffulm.options import GenerateOptions
from diffulm.samplers import Frame
from models import bad
from test_canvas import byte_level, sentence_piece

PROMPT = "class Stack:\n    def "


@pytest.fixture(scope="module")
def lm():
    return diffulm.load("pocket")


# --- what streams is final ---


def followed(tokenizer, prompt: str, new: list[int], order: list[int], **options) -> tuple[list[str], str]:
    """(the pieces that were handed on while `new` was revealed in an order, the whole completion)."""
    made = canvas.template(tokenizer, None, 0, [prompt, Hole(len(new))])
    start, chosen = made.spans[-1].start, GenerateOptions(**options)
    pieces: list[str] = []
    final = streaming.Final(made, chosen, pieces.append, None)
    ids = torch.tensor([[*made.ids[:start].tolist(), *new]])
    masked = ~made.fixed[None]
    for position in order:
        masked = masked.clone()
        masked[0, start + position] = False
        rest = torch.tensor([0]), torch.full_like(ids, -1), torch.zeros(ids.shape)
        final(Frame((0,), torch.where(masked, 0, ids), masked, *rest))
    whole = streaming.completion(made, ids[0].tolist(), chosen.stop)
    final.end(whole)
    return pieces, whole


def tokens(tokenizer, text: str) -> list[int]:
    return canvas.encode(tokenizer, text, inside=True)


MADE = pytest.mark.parametrize("make", [byte_level, sentence_piece])


@settings(max_examples=100, deadline=None, derandomize=True)
@MADE
@given(data=st.data())
def test_what_streams_is_the_completion(make, data):
    tokenizer = make()
    some = tokens(tokenizer, "日é🦜 ab\n")  # bytes that make characters, or break them where they stand alone
    part = st.sampled_from([*([one] for one in some), *(tokens(tokenizer, text) for text in ("日", "🦜", " a", "b"))])
    new = [one for part in data.draw(st.lists(part, min_size=1, max_size=7)) for one in part]
    if data.draw(st.booleans()):
        new.insert(data.draw(st.integers(0, len(new))), tokenizer.eos_token_id)
    order = data.draw(st.permutations(range(len(new))) | st.just(list(range(len(new)))))
    stop = data.draw(st.lists(st.sampled_from(["ab", "b", "日é", " a b", "ba", "é"]), max_size=2))
    pieces, whole = followed(tokenizer, data.draw(st.sampled_from(["", "a", "日"])), new, order, stop=stop)
    assert "".join(pieces) == whole
    assert "" not in pieces


@MADE
def test_a_text_comes_piece_by_piece_and_never_half_a_character(make):
    new = tokens(make(), "ab日 🦜 é.")
    pieces, whole = followed(make(), "x", new, list(range(len(new))))
    assert whole == "ab日 🦜 é."
    assert {"日", "🦜"} <= {piece.strip() for piece in pieces}
    assert [len(piece.strip()) <= 2 for piece in pieces] == [True] * len(pieces)


def test_only_what_is_left_of_the_first_mask_comes():
    new = tokens(byte_level(), "日é🦜")
    backwards, whole = followed(byte_level(), "x", new, list(reversed(range(len(new)))))
    assert backwards == [whole]
    remasked, _ = followed(byte_level(), "x", new, list(range(len(new))), remask=0.1)
    assert remasked == [whole], "nothing is final while it may be masked again"


def test_a_stop_string_is_held_back_until_it_is_none():
    new = tokens(byte_level(), "x-y-") + tokens(byte_level(), "-z")
    pieces, whole = followed(byte_level(), "", new, list(range(len(new))), stop=["--"])
    assert whole == "x-y"
    assert pieces[0] == "x" and "".join(pieces) == "x-y"


@settings(deadline=None, derandomize=True)
@given(st.text("ab-"), st.text("ab-"), st.lists(st.text("ab-", min_size=1, max_size=3)))
def test_what_is_settled_stays(text, more, stop):
    assert streaming.cut(text + more, stop).startswith(streaming.settled(text, stop))
    assert streaming.cut(text, stop).startswith(streaming.settled(text, stop))
    held = len(streaming.cut(text, stop)) - len(streaming.settled(text, stop))
    assert held < max(map(len, stop), default=1), "no more than what may begin a stop"


# --- generate: streams, stops, draws ---

DRAWN = {"length": 10, "steps": 10, "temperature": 1.0, "seed": 5, "block": 2}


def test_a_stream_is_what_generate_gives(lm):
    whole = lm.generate(PROMPT, **DRAWN)
    pieces: list[str] = []
    assert lm.generate(PROMPT, on_text=pieces.append, **DRAWN).ids == whole.ids
    assert len(pieces) > 3
    assert "".join(pieces) == whole.completion
    assert list(lm.stream(PROMPT, **DRAWN)) == pieces


def test_a_stream_that_nobody_wants_any_more_stops(lm, monkeypatch):
    seen = []
    called = type(lm.denoiser).__call__
    monkeypatch.setattr(type(lm.denoiser), "__call__", lambda *args, **more: (seen.append(0), called(*args, **more))[1])
    long = DRAWN | {"length": 60, "steps": 60}
    list(lm.stream(PROMPT, **long))
    whole, seen[:] = len(seen), []
    pieces = lm.stream(PROMPT, **long)
    next(pieces)
    pieces.close()
    assert 0 < len(seen) < whole


def test_errors_come_out_of_a_stream(lm):
    with bad("context is 256"):
        next(lm.stream(PROMPT, length=300))
    with bad("did you mean 'steps'"):
        next(lm.stream(PROMPT, stesp=3))


def test_on_text_is_for_one_text(lm):
    for prompt, options in ((["a", "b"], {}), ("a", {"n": 2})):
        with bad("one prompt, and n=1"):
            lm.generate(prompt, on_text=print, **options)


def test_stop_cuts_the_text_and_not_the_ids(lm):
    whole = lm.generate(PROMPT, **DRAWN)
    middle = whole.completion[len(whole.completion) // 2 :][:2]
    made = lm.generate(PROMPT, stop=["never there", middle], **DRAWN)
    assert made.completion == whole.completion[: whole.completion.index(middle)]
    assert made.text == PROMPT + made.completion
    assert made.ids == whole.ids
    with bad("stop should not be empty"):
        lm.generate(PROMPT, stop=[""])


def test_the_first_draw_has_the_stream_of_the_text():
    assert streaming.draws((5, 2), 1) == [(5, 2)]
    assert streaming.draws((5, 2), 3)[:1] == [(5, 2)]
    assert len(set(streaming.draws((5, 2), 3) + streaming.draws((6, 2), 3) + streaming.draws((5, 3), 3))) == 9


def test_several_draws_of_a_prompt(lm):
    one = lm.generate(PROMPT, **DRAWN)
    assert one.candidates == []
    several = lm.generate([PROMPT, "x = "], n=3, **DRAWN)
    assert all(
        made.candidates[0].text == made.text == prompt + made.completion
        for made, prompt in zip(several, [PROMPT, "x = "], strict=True)
    )
    assert all(made.candidates[0].fills == [made.completion] for made in several)
    assert several[0].ids == one.ids, "the first draw is the one of n=1"
    assert len({candidate.text for candidate in several[0].candidates}) == 3
    assert all(math.isnan(candidate.score) for candidate in several[0].candidates)
    texts = [candidate.text for candidate in several[0].candidates[:2]]
    alone = lm.generate(PROMPT, n=2, batch_size=1, **DRAWN | {"seed": [5]})
    assert texts == [candidate.text for candidate in alone.candidates], "neither more draws nor others change them"


# --- the command line ---


def test_stream_prints_what_generate_prints(capsys):
    line = ["generate", "pocket", "--prompt", PROMPT, "--length", "8", "--steps", "8"]
    assert command([*line, "--stream"], capsys) == command(line, capsys)


def test_several_results_are_printed_one_by_one(capsys):
    line = ["generate", "pocket", "--prompt", "x = ", "--length", "4", "--temperature", "1", "-n", "2"]
    code, out, _ = command(line, capsys)
    assert code == 0
    assert re.fullmatch(r"--- 1 of 2\nx = .*--- 2 of 2\nx = .*\n", out, re.DOTALL)
    code, out, _ = command([*line, "--json"], capsys)
    found = json.loads(out)
    assert found["candidates"][0]["fills"] == [found["completion"]]
    assert [one["score"] for one in found["candidates"]] == [None, None], "drawn, not ranked"


# --- the page that replays it ---


class Page(HTMLParser):
    """What a browser takes a page for: its elements, the text of each by its id, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.inside: str | None = None
        self.texts: dict[str | None, str] = {}
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.inside = dict(attrs).get("id") or tag
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        self.texts[self.inside] = self.texts.get(self.inside, "") + data

    @property
    def replay(self) -> dict:
        return json.loads(self.texts["data"])


def states(replay: dict) -> list[list[list]]:
    """The cells of every frame, as the script of the page puts them together."""
    cells: dict[int, list] = {}
    found = []
    for *_, changed in replay["frames"]:
        cells |= {position: cell for position, *cell in changed}
        found.append([cells[i] for i in sorted(cells)])
    return found


def test_the_page_replays_every_frame(lm):
    frames: list[Frame] = []
    made = lm.generate(PROMPT, length=9, steps=5, temperature=1.0, callback=frames.append)
    replay = Page(animation.page(lm.tokenizer, frames, "A stack", made.text)).replay
    pictures = [watch.picture(lm.tokenizer, one.ids[0].tolist(), one.masked[0].tolist()) for one in frames]
    assert ["".join("░" if cell[0] is None else cell[0] for cell in state) for state in states(replay)] == pictures
    assert [forwards for _, forwards, *_ in replay["frames"]] == list(range(made.forwards + 1))
    assert [masked for _, _, masked, _ in replay["frames"]] == [int(one.masked[0].sum()) for one in frames]
    last, sure = states(replay)[-1], watch.confidences(frames[-1])
    for i, (_, confidence, since) in enumerate(last):
        shown = [number for number, one in enumerate(frames) if not one.masked[0, i]]
        assert since == (shown[0] if shown[0] else -1), "0: it was given"
        assert confidence == (round(sure[i], 4) if since > 0 else None)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&lt;<!--@DATA@\u2028\x1b[2J\ud800"


def hostile_frames() -> list[Frame]:
    ids, shape = torch.tensor([[0, 1]]), (1, 2)
    return [
        Frame(
            (0,),
            ids,
            torch.tensor([[step == 0, False]]),
            torch.tensor([step]),
            torch.full(shape, -1),
            torch.rand(shape),
        )
        for step in (0, 1)
    ]


class Hostile:
    def decode(self, ids, **_):
        return HOSTILE * len(ids)


def test_nothing_in_a_text_is_markup():
    page = animation.page(Hostile(), hostile_frames(), HOSTILE, HOSTILE)
    found = Page(page)
    assert found.elements.count("script") == 2
    assert not set("<>&") & set(found.texts["data"])
    assert not {"img", "b"} & set(found.elements)
    assert states(found.replay)[-1][0][0] == watch.escaped(HOSTILE)
    assert found.texts["text"] == watch.escaped(HOSTILE)
    assert found.texts["title"] == HOSTILE


def test_the_page_asks_nobody_for_anything():
    page = animation.page(Hostile(), hostile_frames(), "", "")
    assert Page(page).addresses == []
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|import\s*\(", page)
    assert "default-src 'none'" in page
    assert "prefers-reduced-motion" in page and "prefers-color-scheme" in page and "aria-live" in page


def test_a_row_that_waits_for_others_makes_no_frame():
    frames = hostile_frames()
    replay = Page(animation.page(Hostile(), [*frames, frames[-1], frames[-1]], "", "")).replay
    assert len(replay["frames"]) == 2


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_of_the_page_is_one(tmp_path):
    page = animation.page(Hostile(), hostile_frames(), "", "")
    (tmp_path / "script.js").write_text(page.rpartition("<script>")[2].partition("</script>")[0], "utf-8")
    done = subprocess.run(["node", "--check", tmp_path / "script.js"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", ["generate", "infill"])
def test_save_animation(verb, capsys, tmp_path):
    line = [verb, "pocket", "--text", "x = <hole:2>\n", "--save-animation", str(tmp_path / "out.html")]
    code, out, err = command([*line, *(["--length", "2"] if verb == "generate" else [])], capsys)
    assert (code, err) == (0, "")
    found = Page((tmp_path / "out.html").read_text("utf-8"))
    assert found.texts["title"] == f"DiffuLM: {verb} with pocket"
    assert found.texts["text"] + "\n" == out
    assert len(found.replay["frames"]) == 3
    assert "out.html: is there already" in one_error(line, capsys)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with bad("is no folder"):
        animation.save(tmp_path / "no" / "a.html", "")
    animation.save(tmp_path / "a.html", "\ud800 é")
    assert (tmp_path / "a.html").read_text("utf-8") == "\\ud800 é"
    with bad("is there already"):
        animation.save(tmp_path / "a.html", "")
    assert (tmp_path / "a.html").read_text("utf-8") == "\\ud800 é"
