"""Text with holes to canvas and back, with a byte-level tokenizer and a SentencePiece-like one made here."""

import json
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffulm import adopt, load
from diffulm.canvas import (
    Hole,
    alone,
    continuation,
    decode,
    encode,
    fills,
    keeps,
    parse,
    prompt,
    render,
    resized,
    settled,
    template,
)  # fmt: skip
from diffulm.errors import BadInput
from models import build

CORPUS = [
    "The cat sat on the mat. Once upon a time there was a little girl, unable to sleep.\n",
    "def add(a, b):\n    return a + b\n\n\nclass Thing:\n\tname = 'x' * 100\r\n",
    "naïve café — “quoted” text, 123 456.789 ünïcödé\n",
] * 20


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2: bytes, no space in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<mask>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", mask_token="<mask>")


@cache
def sentence_piece() -> PreTrainedTokenizerFast:
    """As LLaMA 2: a space in front of everything, bytes for what the vocabulary lacks."""
    space = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    learner.normalizer = space
    # Trained on words (spaces in front), used without a pre-tokenizer, as LLaMA's.
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=350, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [word for word in learned["vocab"] if word not in first]
    vocab = {word: i for i, word in enumerate([*first, *words])}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = space
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MADE = [byte_level, sentence_piece]
EXACT = ["data/tokenizers/gpt2", "data/tokenizers/llama2"]
TIDYING = "data/models/stories260k-hf"  # trims texts and shortens runs of spaces to one
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=12)  # ▁ is LLaMA's space
TEXT = st.one_of(
    UNICODE,
    st.text("ab <s>/mask\n\r\t.()😀é👩‍🚀", max_size=12),
    st.sampled_from(["able", " on the mat", "\n    return ", "</s><s><mask><|endoftext|>", "\r\n", "  ", "👩‍🚀", "é"]),
)


def filled(tokenizer, left: str, middle: str, right: str):
    """The canvas of left, a hole, right, and its ids with the hole filled by `middle`."""
    new = encode(tokenizer, middle, inside=bool(left))
    canvas = template(tokenizer, tokenizer.bos_token_id, 0, [left, Hole(len(new)), right])
    ids = canvas.ids.clone()
    ids[~canvas.fixed] = torch.tensor(new, dtype=torch.int64)
    return canvas, ids.tolist()


def check_round_trip(tokenizer, left: str, middle: str, right: str) -> None:
    canvas, ids = filled(tokenizer, left, middle, right)
    assert render(canvas, ids) == left + middle + right
    assert fills(canvas, ids) == [middle]
    # The tokens say the same as the text: no space was put in front of what stands behind a hole.
    assert decode(tokenizer, ids[1:]) == left + middle + right
    assert ids[0] == tokenizer.bos_token_id
    assert not set(ids[1:]) & set(tokenizer.all_special_ids)
    assert canvas.fixed.tolist() == [True] + [
        not (len(encode(tokenizer, left)) <= i < len(ids) - 1 - len(encode(tokenizer, right, inside=True)))
        for i in range(len(ids) - 1)
    ]


@pytest.mark.parametrize("make", MADE)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(left=TEXT, middle=TEXT.filter(bool), right=TEXT)
@example("The cat", " sat", " on the mat")
@example("un", "ab", "le")
@example("", "Once", " upon")
@example("a\r\n", "\r\n", "\r\n")
@example("def f():\n    return", " ", "x")
def test_text_comes_back_byte_for_byte(make, left, middle, right):
    check_round_trip(make(), left, middle, right)


@pytest.mark.parametrize("folder", EXACT)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(left=TEXT, middle=TEXT.filter(bool), right=TEXT)
@example("The cat", " sat", " on the mat")
@example("x = un", "ab", "le")
def test_text_comes_back_byte_for_byte_with_real_tokenizers(shared, folder, left, middle, right):
    check_round_trip(real(shared / folder), left, middle, right)


@cache
def real(folder):
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(left=TEXT, middle=TEXT, right=TEXT)
@example("The cat", " sat", " on  the mat")
def test_a_tokenizer_that_tidies_up_changes_ids_but_not_text(shared, left, middle, right):
    tokenizer = real(shared / TIDYING)
    canvas, ids = filled(tokenizer, left, middle + "x", right)
    text = render(canvas, ids)
    assert text.startswith(left)
    assert text.endswith(right)


def test_a_tokenizer_that_tidies_up_still_gets_no_space_where_there_is_none(shared):
    tokenizer = real(shared / TIDYING)
    check_round_trip(tokenizer, "The cat", " sat", " on the mat")
    check_round_trip(tokenizer, "He was un", "ab", "le to\nsleep")
    assert decode(tokenizer, encode(tokenizer, "a", inside=True) + encode(tokenizer, "le  to", inside=True)) == "ale to"


@pytest.mark.parametrize("make", MADE)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(left=TEXT, right=TEXT, draw=st.lists(st.integers(3, 340), min_size=1, max_size=5))
def test_whatever_a_model_puts_into_a_hole_the_rest_stays(make, left, right, draw):
    tokenizer = make()
    canvas = template(tokenizer, tokenizer.bos_token_id, 0, [left, Hole(len(draw)), right])
    ids = canvas.ids.clone()
    ids[~canvas.fixed] = torch.tensor(draw)
    text = render(canvas, ids.tolist())
    assert text == left + fills(canvas, ids.tolist())[0] + right


ANYTHING = st.one_of(
    st.text(max_size=15),
    st.text("\0\r\n\t\x0b\u2028\u0301\u200d▁Ġ<hole:2>|mask", max_size=12),
    st.sampled_from([
        "<hole:2>", "<hole>", "<hole:x>",
        "a\u0301", "e\u0301\u0323", "👩‍👩‍👧", "🇩🇪", "\ufffd", "\r\n", "  \n\t ", "\0", "<|mask|>",
        "def f(x):\n\treturn x\r\n", "ﬁ", "Ａ", "한", "नि", "\ufeff", "<s></s>", "<0x0A>",
    ]),
)  # fmt: skip
PARTS = st.lists(st.one_of(ANYTHING, ANYTHING, st.integers(1, 3).map(Hole)), min_size=1, max_size=7)


def interleaved(parts, holes) -> str:
    """The texts as they were given, and `holes` between them."""
    filled = iter(holes)
    text = "".join(next(filled) if isinstance(part, Hole) else part for part in parts)
    assert next(filled, None) is None
    return text


def check_text_survives(tokenizer, parts, drawn) -> None:
    canvas = template(tokenizer, 0, 2, parts)
    ids = canvas.ids.clone()
    ids[~canvas.fixed] = torch.tensor((drawn * 9)[: int((~canvas.fixed).sum())], dtype=torch.int64)
    assert render(canvas, ids.tolist()) == interleaved(parts, fills(canvas, ids.tolist()))
    assert int((~canvas.fixed).sum()) == sum(part.length for part in parts if isinstance(part, Hole))


@pytest.mark.parametrize("make", MADE)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(parts=PARTS, drawn=st.lists(st.integers(0, 349), min_size=3, max_size=5))
def test_any_text_with_any_holes_comes_back(make, parts, drawn):
    check_text_survives(make(), parts, drawn)


@cache
def pocket():
    return load("pocket")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(parts=PARTS, drawn=st.lists(st.integers(0, 2047), min_size=3, max_size=5))
def test_any_text_with_any_holes_comes_back_from_the_tokenizer_of_pocket(parts, drawn):
    check_text_survives(pocket().tokenizer, parts, drawn)


@pytest.mark.parametrize("folder", [*EXACT, TIDYING])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS, drawn=st.lists(st.integers(0, 500), min_size=3, max_size=5))
def test_any_text_with_any_holes_comes_back_from_real_tokenizers(shared, folder, parts, drawn):
    check_text_survives(real(shared / folder), parts, drawn)


def check_infilled(lm, parts) -> None:
    """Through the model: the text comes back, and the tokens of the text stay where they are."""
    parts = [*parts, Hole(2)]
    made = lm.infill(parts, steps=1, temperature=1.0)
    assert made.text == interleaved(parts, made.fills)
    canvas = template(lm.tokenizer, lm.record.bos_token_id, lm.mask_token_id, parts)
    assert torch.equal(torch.tensor(made.ids)[canvas.fixed], canvas.ids[canvas.fixed])
    assert lm.mask_token_id not in torch.tensor(made.ids)[~canvas.fixed].tolist()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(parts=PARTS)
@example(["<hole:2>"])
@example(["a\0", Hole(1), "\r\n", Hole(3)])
def test_any_text_with_any_holes_comes_back_from_pocket(parts):
    check_infilled(pocket(), parts)


@cache
def like_llama(folder):
    """A tiny random model with a real SentencePiece-like tokenizer."""
    words = AutoTokenizer.from_pretrained(folder)
    return adopt(build("llama", vocab_size=len(words), max_position_embeddings=512), words)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS)
def test_any_text_with_any_holes_comes_back_from_a_llama(shared, parts):
    check_infilled(like_llama(shared / "data/tokenizers/llama2"), parts)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(text=ANYTHING)
def test_any_prompt_comes_back(text):
    assert pocket().generate(text, length=3, steps=1).text.startswith(text)


def test_a_leading_space_in_a_hole_survives_and_the_prefix_space_of_the_tokenizer_does_not():
    tokenizer = sentence_piece()
    assert decode(tokenizer, encode(tokenizer, " sat")) == " sat"
    sat = encode(tokenizer, "sat")  # with the space that the tokenizer adds
    assert continuation(tokenizer, encode(tokenizer, "The cat"), sat) == " sat"
    assert continuation(tokenizer, [], sat) == "sat"
    inside = encode(tokenizer, "sat", inside=True)
    assert inside != sat
    assert continuation(tokenizer, encode(tokenizer, "The cat "), inside) == "sat"


def test_bos_is_not_text_even_if_the_tokenizer_takes_it_for_a_word():
    tokenizer = sentence_piece()
    word = encode(tokenizer, "mat")[0]
    canvas = template(tokenizer, word, 0, [Hole(2), " on"])
    ids = canvas.ids.clone()
    ids[~canvas.fixed] = torch.tensor(encode(tokenizer, "cat")[:2])
    assert len(encode(tokenizer, "cat")) <= 2
    assert render(canvas, ids.tolist()).startswith("cat")


def test_an_anchor_that_changes_the_text_is_not_used():
    tidying = Tokenizer.from_str(sentence_piece().backend_tokenizer.to_str())
    tidying.normalizer = normalizers.Sequence([normalizers.Replace(Regex("\n +"), "\n"), tidying.normalizer])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tidying)
    assert decode(tokenizer, encode(tokenizer, "\n on")) == "\non"  # so behind "\n" the space would be lost
    assert decode(tokenizer, encode(tokenizer, "cat") + encode(tokenizer, " on", inside=True)) == "cat on"


def test_a_character_cut_by_two_holes_side_by_side():
    tokenizer = byte_level()
    whole = encode(tokenizer, "😀")
    assert len(whole) == 4  # bytes: no merge was learnt for it
    canvas = template(tokenizer, 0, 2, ["a", Hole(1), Hole(3), "b"])
    ids = canvas.ids.clone()
    ids[~canvas.fixed] = torch.tensor(whole)
    assert fills(canvas, ids.tolist()) == ["", "😀"]
    assert render(canvas, ids.tolist()) == "a😀b"


def test_stray_bytes_do_not_eat_the_text_before_them():
    tokenizer = sentence_piece()
    stray = tokenizer.convert_tokens_to_ids("<0xF0>")
    canvas = template(tokenizer, 1, 0, ["a👩", Hole(1), "b"])
    ids = canvas.ids.clone()
    ids[~canvas.fixed] = stray
    assert render(canvas, ids.tolist()) == "a👩\ufffdb"


def test_special_tokens_drawn_into_a_hole_are_not_text():
    tokenizer = byte_level()
    canvas = template(tokenizer, 0, 2, ["a", Hole(2), "b"])
    ids = canvas.ids.clone()
    ids[~canvas.fixed] = torch.tensor([tokenizer.eos_token_id, encode(tokenizer, "x")[0]])
    assert render(canvas, ids.tolist()) == "axb"


def test_a_canvas():
    tokenizer = byte_level()
    canvas = template(tokenizer, 7, 2, ["a", "", "b", Hole(2), "c", Hole(1)])
    assert canvas.ids.tolist() == [7, *encode(tokenizer, "ab"), 2, 2, *encode(tokenizer, "c"), 2]
    free = len(canvas.ids) - 1
    assert [i for i, fixed in enumerate(canvas.fixed.tolist()) if not fixed] == [free - 3, free - 2, free]
    without = template(tokenizer, None, 2, ["ab", Hole(2), "c", Hole(1)])
    assert without.ids.tolist() == canvas.ids.tolist()[1:]
    assert not prompt(tokenizer, None, 2, "", 3).fixed.any()


def test_neighbouring_texts_are_encoded_together():
    tokenizer = sentence_piece()
    apart, together = (template(tokenizer, 1, 0, parts) for parts in (["The ca", "t", Hole(1)], ["The cat", Hole(1)]))
    assert torch.equal(apart.ids, together.ids)


def test_parse():
    assert parse("The <hole:3> sat <hole>.") == ["The ", Hole(3), " sat ", Hole(), "."]
    assert parse("<hole:1><hole:12>") == [Hole(1), Hole(12)]
    assert parse("a<hole:2-024>b<hole:3-3>") == ["a", Hole(2, 24), "b", Hole(3, 3)]
    assert parse("") == [""]
    assert parse("a < b, <holes>, <hole, hole:3>, < hole:3>") == ["a < b, <holes>, <hole, hole:3>, < hole:3>"]


@pytest.mark.parametrize(
    "mark", ["<hole:0>", "<hole:-1>", "<hole:x>", "<hole:>", "<hole: 3>", "<hole:1.5>", "<hole:٣>",
     "<hole:3-1>", "<hole:0-3>", "<hole:1-2-3>", "<hole:-3>", "<hole:3->"],
)  # fmt: skip
def test_a_malformed_mark_is_named(mark):
    with pytest.raises(BadInput, match=mark):
        parse(f"The {mark} sat")


@pytest.mark.parametrize("length", [0, -1, True])
def test_a_hole_is_at_least_one_token_long(length):
    with pytest.raises(BadInput, match="at least one token"):
        Hole(length)
    with pytest.raises(BadInput, match="at least one token"):
        Hole(1, length)


def test_what_a_hole_says_of_its_length():
    holes = [Hole(), Hole(3), Hole(2, 5), Hole(3, 3), Hole(None, 4)]
    assert [(hole.least, hole.longest) for hole in holes] == [(1, 16), (3, 3), (2, 5), (3, 3), (1, 4)]
    assert [hole.settled for hole in holes] == [False, True, False, True, False]
    assert not Hole(choices=["a"]).settled and not Hole(3, pattern="a").settled
    assert Hole(choices=["a", "b", "a"]).choices == ("a", "b")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"length": 3, "most": 2}, "3 to 2 tokens has no length"), ({"choices": []}, "choices are a list"),
        ({"choices": "abc"}, "choices are a list"),
        ({"choices": ["a"], "length": 2}, "neither a length"), ({"choices": ["a"], "pattern": "a"}, "nor a pattern"),
    ],
)  # fmt: skip
def test_a_hole_that_contradicts_itself(wrong, says):
    with pytest.raises(BadInput, match=says):
        Hole(**wrong)


def test_a_hole_is_made_longer_and_shorter_and_nothing_else_moves():
    tokenizer = byte_level()
    made = template(tokenizer, 0, 2, ["The cat", Hole(2), " on ", Hole(1, 9), "mat"])
    texts = [made.ids[span.start : span.end].tolist() for span in made.spans if span.text is not None]
    assert [span.end - span.start for span in made.spans if span.text is None] == [2, 3]  # 3: the middle of 1 and 9
    for length in (1, 3, 8):
        new = resized(made, 1, length, 2)
        assert [new.ids[span.start : span.end].tolist() for span in new.spans if span.text is not None] == texts
        assert [span.end - span.start for span in new.spans if span.text is None] == [length, 3]
        again = template(tokenizer, 0, 2, ["The cat", Hole(length), " on ", Hole(1, 9), "mat"])
        assert torch.equal(new.ids, again.ids) and torch.equal(new.fixed, again.fixed) and new.spans == again.spans
        free = (~alone(new, 1).fixed).nonzero()[:, 0].tolist()
        assert free == list(range(new.spans[1].start, new.spans[1].end))
        done = settled(new, 1, [7] * len(new.ids))
        assert done.ids[free].tolist() == [7] * length and int((~done.fixed).sum()) == 3
        assert int((done.ids == 7).sum()) == length + int((new.ids == 7).sum())


def test_a_hole_takes_back_the_end_of_the_text_before_it():
    tokenizer = byte_level()
    made = template(tokenizer, 0, 2, ["The cat", Hole(1), " on the mat"])
    before = made.spans[0]
    last = made.ids[before.end - 1 :][:1].tolist()
    new = resized(made, 1, 1, 2, take=1)
    assert new.spans[0].end == before.end - 1 == new.spans[1].start and len(new.ids) == len(made.ids) - 1
    assert new.spans[1].taken and "The cat".endswith(new.spans[1].taken)
    ids = new.ids.clone()
    ids[new.spans[1].start] = last[0]
    assert fills(new, ids.tolist()) == [""] and render(new, ids.tolist()) == "The cat on the mat"
    assert keeps(settled(new, 1, ids.tolist()), 1)
    ids[new.spans[1].start] = encode(tokenizer, ".")[0]
    assert not keeps(settled(new, 1, ids.tolist()), 1)


def test_what_cannot_be_a_canvas():
    tokenizer = byte_level()
    with pytest.raises(BadInput, match="Unicode"):
        template(tokenizer, 0, 2, ["a\ud800", Hole(1)])


def test_the_context_is_a_limit():
    tokenizer = byte_level()
    size = 1 + len(encode(tokenizer, "The cat")) + 4
    assert len(prompt(tokenizer, 0, 2, "The cat", 4, limit=size).ids) == size
    with pytest.raises(BadInput, match=f"{size} positions.* {size - 1}"):
        prompt(tokenizer, 0, 2, "The cat", 4, limit=size - 1)
    with pytest.raises(BadInput, match="positions"):
        template(tokenizer, 0, 2, [Hole(4), "The cat"], limit=size - 1)
    with pytest.raises(BadInput, match="positions"):
        prompt(tokenizer, 0, 2, "", 10**9, limit=64)  # refused before a list of that length is made


def test_a_text_far_too_long_is_not_tokenised_to_the_end(monkeypatch):
    tokenizer, seen = byte_level(), []
    plain = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text, **options: seen.append(len(text)) or plain(text, **options))
    with pytest.raises(BadInput, match=r"at least \d+ positions; the model's context is 32: give less"):
        template(tokenizer, 0, 2, ["word " * 10**6, Hole(1)], limit=32)
    assert sum(seen) <= 64 * 32
    # one that is long in characters alone is taken as it is
    squeezing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(plain.__self__.backend_tokenizer.to_str()))
    squeezing.backend_tokenizer.normalizer = normalizers.Replace(Regex(" +"), " ")
    assert len(template(squeezing, 0, 2, ["a" + " " * 10**5 + "b", Hole(1)], limit=32).ids) < 10


def test_a_long_text_is_no_reason_to_warn(monkeypatch):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer, model_max_length=8)
    said = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda *words: said.append(words))
    assert len(encode(tokenizer, "word " * 20)) > 8
    assert said == []


@pytest.mark.parametrize("tokenizer", [byte_level, sentence_piece])
def test_what_stands_before_a_text_is_no_part_of_it(tokenizer):
    before = encode(tokenizer(), "Question: ")
    made = template(tokenizer(), 1, 3, ["The cat ", Hole(2), " mat."], before=before)
    text = [*encode(tokenizer(), "The cat ", inside=True), 3, 3, *encode(tokenizer(), " mat.", inside=True)]
    assert made.ids.tolist() == [1, *before, *text]
    assert made.fixed.tolist() == [one != 3 for one in made.ids.tolist()]
    assert made.spans[0].start == 1 + len(before)
    sat = [9, *encode(tokenizer(), "sat")][-2:]
    ids = [one if one != 3 else sat.pop(0) for one in made.ids.tolist()]
    assert render(made, ids).startswith("The cat ") and render(made, ids).endswith(" mat.")
    with pytest.raises(BadInput, match="need at least"):
        template(tokenizer(), 1, 3, ["The cat ", Hole(2)], len(before) + 3, before)
