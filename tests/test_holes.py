"""Holes of free length, choices and patterns: the scores on a chain whose law is known, the rest through tiny models."""

import itertools
import math
import re
from functools import cache, partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import diffulm
from diffulm import adopt, canvas, constraints, holes
from diffulm.canvas import Canvas, Hole, Span
from diffulm.constraints import Automaton
from diffulm.errors import BadInput
from diffulm.filling import Filled
from diffulm.holes import Gap, Scored, Search
from diffulm.infilling import nearest
from models import build
from test_canvas import ANYTHING, byte_level, interleaved, sentence_piece

MASK, WORDS = 5, 6
# p(next | token): a Markov chain over 0..4; the mask never comes
CHAIN = torch.tensor(
    [
        [0.10, 0.60, 0.10, 0.10, 0.10], [0.05, 0.10, 0.70, 0.05, 0.10], [0.20, 0.10, 0.10, 0.50, 0.10],
        [0.10, 0.10, 0.05, 0.15, 0.60], [0.50, 0.20, 0.10, 0.10, 0.10],
    ], dtype=torch.float64,
)  # fmt: skip


def chain(ids, where, present=None):
    """Each token by the one before it, which left to right is always known."""
    left = ids.roll(1, 1)[where]
    table = torch.full((WORDS, WORDS), 1e-9, dtype=torch.float64)
    table[:5, :5] = CHAIN
    table[MASK, :5] = 0.2
    return table[left].log().float()


def chain_nats(tokens: list[int]) -> float:
    return -sum(math.log(CHAIN[a, b]) for a, b in itertools.pairwise(tokens))


FILLS = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [2, 3, 4, 0], 5: [1] * 5, 6: [1, 2, 3, 4, 0, 1], 7: [0] * 7, 8: [4] * 8}


def given_fills(made, constraint=None):
    """A fake of filling: each hole gets what FILLS has for its length (repeated as need be), in as many forwards."""
    results = []
    for one in made:
        free = (~one.fixed).nonzero()[:, 0]
        ids = one.ids.clone()
        ids[free] = torch.tensor((FILLS.get(len(free)) or [len(free) % 5] * len(free))[: len(free)])
        results.append(Filled(one, ids.tolist(), len(free), 0.0))
    return results


def gap(left=(0,), right=(3, 4, 0), hole=None, **options) -> Gap:
    hole = hole or Hole(1, 8)
    length = canvas.start_length(hole)
    ids = torch.tensor([*left, *[MASK] * length, *right])
    spans = (
        Span(0, len(left), "l"),
        Span(len(left), len(left) + length, None),
        Span(len(left) + length, len(ids), "r"),
    )
    fixed = (torch.arange(len(ids)) < len(left)) | (torch.arange(len(ids)) >= len(left) + length)
    search = Search(chain, given_fills, MASK, **options)
    return Gap(search, Scored(Canvas(ids, fixed, spans, None), 0.0), 1, hole, heal=False)


@pytest.fixture(autouse=True)
def _no_text(monkeypatch):
    """The canvases of the chain have no tokenizer."""
    keeps = canvas.keeps
    monkeypatch.setattr(canvas, "keeps", lambda made, index: made.tokenizer is None or keeps(made, index))


def length(way) -> int:
    return way.made.spans[1].end - way.made.spans[1].start


# float32 logits of about ten tokens, at most 20 nats each
CLOSE = 1e-4


@pytest.mark.parametrize("window", [0, 1, 2, 8])
def test_the_score_is_that_of_the_hole_and_the_text_after_it(window):
    one = gap(left=(2, 0), right=(3, 4, 0), window=window)
    for way in one.ways(range(1, 9)):
        read = [0, *FILLS[length(way)], *(3, 4, 0)[:window]]
        assert way.nats == pytest.approx(chain_nats(read), abs=CLOSE)
    after = min(window, 3)
    assert one.search.forwards == sum(2 * n + after for n in range(1, 9))  # n to fill, n + after to score


def test_the_canvas_that_is_read_ends_at_one_place_whatever_the_length():
    seen = set()

    def watching(ids, where, present=None):
        seen.add(ids.shape[1])
        # what follows what is read is masked, and so is what is read and not reached yet
        assert all((row[at:] == MASK).all() for row, at in zip(ids, where.long().argmax(1), strict=True))
        return chain(ids, where)

    one = gap(right=(3, 4, 0, 1, 2), window=2)
    one.search.denoise = watching
    one.ways(range(1, 9))
    assert seen == {1 + 8 + 2}


def test_rank_is_the_best_of_all_lengths():
    one = gap()
    ranked = holes.rank(one)
    nats = {n: chain_nats([0, *FILLS[n], 3, 4, 0]) for n in FILLS}
    assert [length(way) for way in ranked] == sorted(nats, key=nats.__getitem__)
    assert length(ranked[0]) == 2


def test_a_prior_moves_the_choice():
    assert sum(math.exp(-holes.geometric(0.3)(n)) for n in range(1, 200)) == pytest.approx(1)
    assert holes.geometric(0.3)(3) == pytest.approx(-math.log(0.7 * 0.7 * 0.3))
    assert length(holes.rank(gap(prior=holes.geometric(0.999)))[0]) == 1
    longest = holes.rank(gap(prior=lambda tokens: -10.0 * tokens))[0]
    assert length(longest) == 8


def test_the_bound_per_token_favours_repeats():
    likely = torch.full((WORDS,), 1e-6)
    likely[1], likely[2] = 0.9, 0.1

    def repeats(ids, where, present=None):
        """A token that is there already is likely to come again, whatever stands around it; and 3 follows 2."""
        rows = where.nonzero()
        logits = torch.stack([likely if 1 in ids[row, max(0, at - 2) : at + 3] else likely.flip(0) for row, at in rows])
        return logits.log()

    one = gap(hole=Hole(2, 5))
    ways = one.ways([2, 5])
    one.search.denoise = repeats
    assert length(holes.bound_per_token(one.search, ways, 1)) == 5 and length(holes.rank(one)[0]) == 2


def test_grow_climbs_to_the_same_length_with_fewer_forwards(monkeypatch):
    for best in (1, 2, 6, 11, 16):
        monkeypatch.setattr(Search, "joint", lambda self, made, since, stop, size, best=best: abs(stop - since - best))
        few, all_ = gap(hole=Hole(1, 16)), gap(hole=Hole(1, 16))
        assert length(holes.grow(few)[0]) == length(holes.rank(all_)[0]) == best
        assert few.search.forwards < all_.search.forwards / (1 if best > 6 else 3)


@pytest.mark.parametrize(("hole", "best"), [(Hole(1, 200), 37), (Hole(20, 90), 90), (Hole(3, 19), 3), (Hole(1, 60), 1)])
def test_rank_tries_few_of_many_lengths(hole, best, monkeypatch):
    monkeypatch.setattr(Search, "joint", lambda self, made, since, stop, size: abs(stop - since - best))
    one = gap(hole=hole)
    ranked = holes.rank(one)
    tried = [length(way) for way in ranked]
    assert tried[0] == best and len(tried) == len(set(tried)) <= 2 * holes.TRIED
    assert set(tried) <= set(range(hole.least, hole.longest + 1)) and {hole.least, hole.longest} <= set(tried)


def test_a_hole_is_no_longer_than_there_is_room():
    one = gap(context=10)  # 4 for the text
    assert list(one.lengths) == [1, 2, 3, 4, 5, 6]
    assert {len(way.made.ids) for way in one.ways(one.lengths)} == {5, 6, 7, 8, 9, 10}
    with pytest.raises(BadInput, match="no room for a hole of 7 tokens: the model's context is 10"):
        _ = gap(context=10, hole=Hole(7, 9)).lengths


# Automata: the letters a and b as tokens 0 and 1, `ab` as 2; token 3 says nothing
TEXTS = ["a", "b", "ab", ""]


@pytest.mark.parametrize("pattern", ["a*b", "(ab)*", "a|bb", "[ab]{3}", "(a|b)*bb?", "b(ab)+", ".*"])
def test_what_an_automaton_allows_is_what_some_text_needs(pattern):
    pytest.importorskip("outlines_core")
    machine = constraints.automaton(pattern, TEXTS, eos_token_id=3)
    for size in (1, 2, 3):
        whole = [
            row for row in itertools.product(range(3), repeat=size)
            if re.fullmatch(pattern, "".join(TEXTS[token] for token in row))
        ]  # fmt: skip
        for known in itertools.product([None, 0, 1, 2], repeat=size):
            fitting = [row for row in whole if all(k in (None, token) for k, token in zip(known, row, strict=True))]
            allowed = machine.allowed(known)
            assert (allowed or None) == ([set(column) for column in zip(*fitting, strict=True)] or None), (known, size)


def test_a_pattern_that_cannot_be_used_is_one_line(monkeypatch):
    pytest.importorskip("outlines_core")
    for pattern in ("(", "(?<=a)b", r"(a)\1"):
        with pytest.raises(BadInput, match="it is not a regular expression here"):
            constraints.automaton(pattern, TEXTS, 3)
    with pytest.raises(BadInput, match="no tokens can spell"):
        constraints.automaton("xyz", TEXTS, 3)
    monkeypatch.setitem(__import__("sys").modules, "outlines_core", None)
    with pytest.raises(BadInput, match=r"a pattern needs outlines-core.*pip install outlines-core, or give choices"):
        constraints.automaton("a", TEXTS, 3)


def test_a_constraint_holds_at_every_step_and_leaves_other_places_alone():
    machine = Automaton(0, frozenset([2]), {0: {1: frozenset([0, 2])}, 1: {2: frozenset([1])}})
    hold = constraints.matching(machine, 1, 3, MASK)
    ids = torch.tensor([[4, MASK, MASK, 4], [4, MASK, 0, MASK], [4, 2, MASK, 4]])
    where = ids == MASK
    free = hold(ids, where, torch.zeros(int(where.sum()), WORDS)).isfinite()
    # row 1 holds a token that fits nowhere: nothing is left to hold on to, and its last place is outside
    assert [row.nonzero()[:, 0].tolist() for row in free] == [[0, 2], [1], [*range(6)], [*range(6)], [1]]


def test_the_beginning_of_a_word_that_a_token_goes_on_with():
    texts = ["def", " cl", "o", "close", " close", "clo", "(", "f", " clone", "\n", " def", "open"]
    assert constraints.broken(texts, [0, 1, 2]) == (2, [4, 8])  # not `o` of `open`: both tokens belong to the word
    assert constraints.broken(texts, [0, 5]) == (1, [3])
    assert constraints.broken(texts, [0, 6]) == (0, [])
    assert constraints.broken(texts, [0, 9]) == (0, [])
    assert constraints.broken(texts, []) == (0, [])


# Through models


@cache
def tiny(make):
    words = make()
    return adopt(
        build("llama", vocab_size=len(words), max_position_embeddings=256, eos_token_id=words.eos_token_id), words
    )


@cache
def pocket():
    return diffulm.load("pocket")


FREE = st.one_of(
    ANYTHING,
    ANYTHING,
    st.just(Hole(1, 3)),
    st.just(Hole(2)),
    st.just(Hole(choices=["a", "é😀", ""])),
    st.just(Hole(1, 2)),
)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(parts=st.lists(FREE, min_size=1, max_size=4), method=st.sampled_from(["rank", "grow"]))
@example(["un", Hole(1, 2), "le\r\n", Hole(1, 2)], "rank")
@example([Hole(1, 2), Hole(1, 2)], "grow")
def test_any_text_with_any_holes_comes_back(make, parts, method):
    lm = tiny(make)
    made = lm.infill([*parts, Hole(1, 2)], length_method=method, temperature=1.0)
    assert made.text == interleaved([*parts, Hole(1, 2)], made.fills)
    assert made.text == made.candidates[0].text and lm.mask_token_id not in made.ids
    for part, fill in zip([part for part in parts if isinstance(part, Hole)], made.fills, strict=False):
        assert part.choices is None or fill in part.choices


def test_the_middle_of_a_word_is_found():
    lm = pocket()
    rest = "(self):\n        try:\n            self.file.close()\n        finally:\n            self.closed = True\n"
    made = lm.infill(["class Reader:\n    def clo", Hole(1, 2), rest])
    assert made.fills == ["se"] and made.text.startswith("class Reader:\n    def close(self)")


def test_a_text_alone_and_in_company_and_in_halves():
    lm = tiny(byte_level)
    texts = [["The c", Hole(1, 4), " on"], ["a", Hole(2), "b"], ["x ", Hole(choices=["on", "mat"]), Hole(1, 2), "."]]
    together = lm.infill(texts, temperature=1.0, seed=[3, 4, 5])
    alone = [lm.infill(text, temperature=1.0, seed=seed) for text, seed in zip(texts, (3, 4, 5), strict=True)]
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert [one.forwards for one in together] == [one.forwards for one in alone]
    halves = lm.infill(texts, temperature=1.0, seed=[3, 4, 5], batch_size=2)
    assert [one.ids for one in halves] == [one.ids for one in alone]


def test_candidates_are_different_and_ranked_and_some_as_good_as_the_first_alone():
    lm = tiny(byte_level)
    parts = ["The ", Hole(1, 4), " sat on ", Hole(1, 2), "."]
    made = lm.infill(parts, n=4)
    scores = [one.score for one in made.candidates]
    assert len(scores) == 4 == len({one.text for one in made.candidates}) and scores == sorted(scores)
    assert made.text == made.candidates[0].text == interleaved(parts, made.candidates[0].fills)
    assert scores[0] <= lm.infill(parts).candidates[0].score
    drawn = lm.infill(["The ", Hole(2), " sat"], n=4, temperature=1.0)
    scores = [one.score for one in drawn.candidates]
    assert len(scores) > 1 and scores == sorted(scores) and drawn.forwards == 4 * 2 + 4 * 2
    with pytest.raises(BadInput, match="n=2: at temperature 0 there is one way"):
        lm.infill("The <hole:2> sat", n=2)


def test_choices_are_ranked_by_their_exact_likelihood():
    lm = pocket()
    left, right = "def close(self):\n    self.file.", "()\n"
    made = lm.infill([left, Hole(choices=["close", "open", "read"]), right], n=3)
    exact = {
        word: lm.score(word + right, context=left, method="left_to_right").nats for word in ("close", "open", "read")
    }
    assert {one.fills[0]: one.score for one in made.candidates} == pytest.approx(exact, abs=1e-3)
    assert made.fills == ["close"] and made.candidates[0].score == min(one.score for one in made.candidates)


def test_a_pattern_is_matched_whole_in_any_order():
    pytest.importorskip("outlines_core")
    lm = tiny(byte_level)
    for pattern in (r"[0-9]{2,4}", r"(cat|mat) (sat|on)", r"[a-z]+\.[a-z]"):
        for sampler in ("confidence", "random"):
            hole = Hole(1, 5, pattern=pattern)
            made = lm.infill(["x = ", hole, "\n"], temperature=2.0, sampler=sampler, steps=1, n=2)
            assert all(re.fullmatch(pattern, one.fills[0]) for one in made.candidates)
    with pytest.raises(BadInput, match=r"no text of 1 to 2 tokens matches the pattern '\[0-9\]\{9\}'"):
        lm.infill(["x", Hole(1, 2, pattern="[0-9]{9}")])


def test_nothing_ends_the_text_where_more_text_follows(monkeypatch):
    lm = tiny(byte_level)
    end = lm.tokenizer.eos_token_id

    def ends(ids, where, present=None):
        logits = torch.zeros(int(where.sum()), lm.denoiser.vocabulary)
        logits[:, end], logits[:, 40] = 9.0, 1.0
        return logits

    monkeypatch.setattr("diffulm.filling.denoising", lambda *_: (ends, None))
    assert end not in lm.infill("a<hole:2>b").ids and end in lm.infill("a<hole:2>").ids
    assert end not in lm.infill("a<hole:2>b<hole:2>").ids
    # neighbours in a list do not matter, and EOS stands behind a last hole of free length, not in it
    assert [end in one.ids for one in lm.infill(["a<hole:2>b", "a<hole:2>"])] == [False, True]
    assert lm.infill(["a", Hole(1, 2)]).ids[-1] == end and lm.infill(["a", Hole(1, 2)]).ids.count(end) == 1


def test_stop_cuts_what_is_in_a_hole():
    lm = pocket()
    whole = lm.infill("def add(a, b):\n    return <hole:3>\n")
    assert len(whole.fills[0]) > 2
    stop = whole.fills[0][1:]
    made = lm.infill("def add(a, b):\n    return <hole:3>\n", stop=["never there", stop])
    assert made.fills == [whole.fills[0][:1]] and made.text == f"def add(a, b):\n    return {made.fills[0]}\n"
    assert made.ids == whole.ids


def test_a_callback_sees_how_the_winner_was_filled():
    lm, frames = tiny(byte_level), []
    parts = ["The ", Hole(1, 4), " sat"]
    made = lm.infill([["a", Hole(1)], parts], callback=frames.append)[1]
    plain, searched = [[frame for frame in frames if frame.rows == (row,)] for row in (0, 1)]
    assert len(plain) == 2 and len(plain) + len(searched) == len(frames)
    assert searched[-1].ids[0].tolist() == made.ids and not searched[-1].masked.any()
    size = int(searched[0].masked.sum())
    assert [int(frame.masked.sum()) for frame in searched] == list(range(size, -1, -1))
    assert all(frame.ids.shape == frame.confidence.shape == (1, len(made.ids)) for frame in searched)


def test_a_file_is_shortened_to_the_lines_around_its_holes():
    tokenizer = byte_level()
    size = partial(lambda text: len(canvas.encode(tokenizer, text)))
    lines = [f"line {number} of the text\r\n" for number in range(300)]
    for at, sides in ((150, (1, 1)), (0, (0, 1)), (300, (1, 0))):
        parts = ["".join(lines[:at]), Hole(1, 4), "".join(lines[at:])]
        before, kept, after = nearest(tokenizer, parts, 128)
        texts = [part for part in kept if isinstance(part, str)]
        assert before + "".join(texts) + after == "".join(lines)
        assert 90 < sum(map(size, texts)) + 4 + 2 <= 128
        assert all(text.startswith("line ") and text.endswith("\r\n") for text in texts) and len(texts) == sum(sides)
    assert nearest(tokenizer, ["a", Hole(1), "b"], 128) == ("", ["a", Hole(1), "b"], "")
    assert nearest(tokenizer, parts, None) == ("", canvas.joined(parts), "")
    before, kept, after = nearest(tokenizer, ["x" * 10**6, Hole(1), "y" * 10**6], 64)  # one line without end
    assert before + kept[0] == "x" * 10**6 and kept[2] + after == "y" * 10**6 and size(kept[0]) + size(kept[2]) > 20
