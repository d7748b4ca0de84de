"""generate, infill and score on a denoiser made of arithmetic: what goes in, what comes back, what is refused."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from diffulm import bounds, randomness, scoring
from diffulm.bounds import Score
from diffulm.canvas import Hole
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.record import Record
from diffulm.denoiser.tile import tiled
from diffulm.errors import BadInput
from diffulm.lm import DiffusionLM, Generation, adopt, load
from diffulm.samplers import Frame
from diffulm.scoring import Scored

BOS, EOS, MASK = 0, 1, 2
GAP = 3  # rows of the vocabulary that the tokenizer does not know


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["The cat sat on the mat. Once upon a time."] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", mask_token="<mask>")


class Fake(Denoiser):
    """Logits are a pseudo-random function of what a row sees and the position; `wish` adds to them."""

    def __init__(
        self, record: Record, limit: int | None = 64, wish: dict[tuple[int, int], float] | None = None
    ) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.record = record
        self.limit = limit
        self.wish = wish or {}
        self._head_is_last = False  # its losses are those of its logits

    @property
    def context(self):
        return self.limit

    @property
    def vocabulary(self):
        return len(tokenizer()) + GAP

    @property
    def device(self):
        return torch.device("cpu")

    def __call__(self, ids, visible=None, where=None, positions=None, cache=None, clean=None):
        row, column = where.nonzero(as_tuple=True)
        visible = torch.ones(*ids.shape, ids.shape[1], dtype=torch.bool) if visible is None else visible
        weight = torch.arange(1, ids.shape[1] + 1) ** 2
        state = ((ids + 1)[row] * weight * visible[row, column]).sum(1)
        logits = 4 * randomness.uniform(state[:, None], column[:, None], torch.arange(self.vocabulary)).float()
        logits[:, len(tokenizer()) :] += 2  # tempting, but no token
        for (position, token), more in self.wish.items():
            logits[column == position, token] += more
        if not self.record.emit_mask:
            logits[:, self.record.mask_token_id] = -torch.inf
        return logits

    def causal_view(self, ids):
        return ids[..., None].float()


def model(wish=None, limit: int | None = 64, **record) -> DiffusionLM:
    return DiffusionLM(Fake(replace(Record(MASK, BOS), **record), limit, wish), tokenizer())


def encoded(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


# --- generate ---


def test_generate():
    out = model().generate("The cat", length=10, steps=4, seed=3)
    assert isinstance(out, Generation)
    prompt = [BOS, *encoded("The cat")]
    assert out.ids[: len(prompt)] == prompt
    new = out.ids[len(prompt) :]
    assert len(new) == 10
    assert MASK not in new
    assert max(new) < len(tokenizer())
    assert out.text == "The cat" + out.completion
    cut = new[: new.index(EOS)] if EOS in new else new
    assert out.completion == tokenizer().decode(cut, skip_special_tokens=True)
    assert out.forwards == 4
    assert out.seconds > 0


def test_the_text_ends_at_the_first_eos_and_what_follows_is_padding():
    start = 1 + len(encoded("The cat"))
    at = encoded(" mat")[0]
    wish = {(start, at): 99.0, (start + 1, EOS): 99.0, (start + 2, at): 99.0}
    out = model(wish).generate("The cat", length=3)
    assert out.completion == " mat"
    assert out.text == "The cat mat"
    assert out.ids[start:] == [at, EOS, EOS]


def test_steps_are_an_upper_limit():
    lm = model(limit=None)
    assert lm.generate("a", length=3).forwards == 3
    assert lm.generate("a", length=50).forwards == 50  # one token at a time
    assert lm.generate("a", length=5, steps=100).forwards == 5
    assert lm.generate("a", length=40, steps=40).forwards == 40


@pytest.mark.parametrize("sampler", ["confidence", "random"])
def test_a_text_depends_on_its_seed_alone(sampler):
    lm = model()
    texts = ["The cat", "Once", "", "The cat", "on the mat and so on and so on, a longer one that needs more room"[:40]]
    options = {"length": 8, "steps": 3, "sampler": sampler, "temperature": 1.0, "top_p": 0.95}
    together = lm.generate(texts, seed=5, batch_size=16, **options)
    for batch_size in (1, 2):
        again = lm.generate(texts, seed=5, batch_size=batch_size, **options)
        assert [one.ids for one in again] == [one.ids for one in together]
    assert together[0].ids != together[3].ids  # (5, 0) and (5, 3): the same text, other streams
    listed = lm.generate(texts, seed=[5, 6, 7, 5, 8], **options)
    assert listed[0].ids == together[0].ids == lm.generate("The cat", seed=5, **options).ids
    assert listed[3].ids == listed[0].ids
    for text, seed, one in zip(texts, [5, 6, 7, 5, 8], listed, strict=True):
        assert one.ids == lm.generate(text, seed=seed, **options).ids
        assert one.text.startswith(text)


def test_generate_like_its_argument():
    lm = model()
    assert isinstance(lm.generate("a", length=1), Generation)
    assert [one.text[0] for one in lm.generate(["a", "b"], length=1)] == ["a", "b"]
    assert lm.generate([]) == []


def test_no_special_token_comes_from_the_text():
    text = "<s></s><mask> a"
    out = model().generate(text, length=1)
    assert out.ids[0] == BOS
    assert not {BOS, EOS, MASK} & set(out.ids[1:-1])
    assert out.text.startswith(text)


def test_callback_sees_every_canvas_of_every_batch():
    frames: list[Frame] = []
    out = model().generate(["a", "b", "c"], length=4, steps=2, batch_size=2, callback=frames.append)
    assert [frame.rows for frame in frames] == [(0, 1)] * 3 + [(2,)] * 3
    assert [int(frame.masked[0].sum()) for frame in frames] == [4, 2, 0] * 2
    assert frames[2].ids[1].tolist() == out[1].ids
    assert frames[5].ids[0].tolist() == out[2].ids


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 0}, "length"),
        ({"steps": 0}, "steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"sampler": "confidense"}, "confidence"),
        ({"seed": -1}, "seed"),
        ({"seed": [1, 2], "length": 4}, "one seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"stpes": 3}, "steps"),
        ({"length": 64}, "context is 64"),
        ({"length": 10**9}, "context is 64"),
    ],
)
def test_generate_refuses(options, words):
    with pytest.raises(BadInput, match=words):
        model().generate("a", **options)


def test_a_canvas_as_long_as_the_context_is_fine():
    assert len(model().generate("a", length=62).ids) == 64


# --- infill ---


def test_infill():
    lm = model()
    out = lm.infill("The <hole:3> on the <hole:1>.\r\n", steps=2)
    assert len(out.fills) == 2
    assert out.text == f"The {out.fills[0]} on the {out.fills[1]}.\r\n"
    left, middle = [BOS, *encoded("The ")], encoded(" on the ")
    assert out.ids[: len(left)] == left
    assert out.ids[len(left) + 3 : len(left) + 3 + len(middle)] == middle
    assert out.forwards == 2
    assert MASK not in out.ids
    parts = lm.infill(["The ", Hole(3), " on the ", Hole(1), ".\r\n"], steps=2)
    assert parts.ids == out.ids
    assert parts.text == out.text


def test_infill_takes_a_list_of_texts_and_marks_are_text_in_parts():
    lm = model()
    one, two = lm.infill(["a<hole:2>b", ["<hole:5>", Hole(2), "b"]], seed=[4, 4])
    assert one.ids == lm.infill("a<hole:2>b", seed=4).ids
    assert two.text.startswith("<hole:5>")
    assert len(two.ids) == 1 + len(encoded("<hole:5>")) + 2 + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no hole", "no hole"),
        (["no hole", "a<hole:1>"], "no hole"),
        ("a <hole:x> b", "<hole:x>"),
        ("a <hole:80> b", "context is 64"),
        ("a <hole:999999999> b", "context is 64"),
    ],
)
def test_infill_refuses(text, words):
    with pytest.raises(BadInput, match=words):
        model().infill(text)


def test_a_block_model_does_not_infill():
    with pytest.raises(BadInput, match="block"):
        model(attention="block", block_size=4).infill("a<hole:1>b")


def test_a_block_model_trained_with_full_attention_as_well_infills_under_it():
    mixed = model(attention="block", block_size=4, notes={"full_share": 0.2})
    text = "a b<hole:3> c d"
    assert mixed.infill(text).ids == model().infill(text).ids


# --- score ---


def test_score_is_the_bound_of_the_text_given_its_context():
    lm = model()
    context, text = "The cat", " sat on the mat."
    ids = torch.tensor([BOS, *encoded(context), *encoded(text)])
    free = torch.arange(len(ids)) > len(encoded(context))
    key = randomness.key(context)
    expected = bounds.bound(tiled(lm.denoiser), ids, free, MASK, 20, 7, key)
    assert lm.score(text, context, samples=20, seed=7) == expected
    assert expected.tokens == len(encoded(text))
    exact = bounds.left_to_right(tiled(lm.denoiser), ids, free, MASK)
    assert lm.score(text, context, method="left_to_right") == exact


def test_score_without_context_frees_all_but_bos():
    score = model().score("The cat", method="left_to_right")
    assert score.tokens == len(encoded("The cat"))
    # 290 tokens with logits in [0, 4): each costs between log(290) - 4 and log(290 e^4)
    assert 0 < score.nats < score.tokens * (math.log(400) + 6)


def test_without_bos_position_0_is_free():
    assert model(bos_token_id=None, shift=False).score("The cat", samples=4).tokens == len(encoded("The cat"))


def test_a_token_across_the_border_belongs_to_the_text():
    joint = encoded(" mat")
    assert len(joint) < len(encoded(" m")) + len(encoded("at"))  # tokenised together they merge
    score = model().score("at", " m", method="left_to_right")
    shared = len([1 for a, b in zip(joint, encoded(" m"), strict=False) if a == b])
    assert score.tokens == len(joint) - shared


def test_score_like_its_argument_and_contexts():
    lm = model()
    texts = [" sat", " mat"]
    singles = [lm.score(text, "The cat", samples=6) for text in texts]
    assert lm.score(texts, "The cat", samples=6) == singles
    assert lm.score(texts, ["The cat", "The"], samples=6) == [singles[0], lm.score(" mat", "The", samples=6)]
    assert isinstance(singles[0], Score)
    with pytest.raises(BadInput, match="one context"):
        lm.score(texts, ["a"])


def test_texts_of_one_context_or_key_share_their_random_numbers(monkeypatch):
    keys = []

    def spy(denoiser, requests, *settings):
        keys.extend(one.key for one in requests)
        return [Scored(0.0, 0.0, 1, 1) for _ in requests]

    monkeypatch.setattr(scoring, "scores", spy)
    lm = model()
    lm.score([" a", " b"], "The")
    lm.score(" a", "Once")
    lm.score([" a", " b"], ["The", "Once"], key="question 1")
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == keys[4] not in keys[:3]


def test_a_reused_mask_token_in_the_text_is_counted():
    word = encoded(" on")[0]
    lm = model(mask_token_id=word, emit_mask=True)
    with pytest.warns(UserWarning, match=f"2 of the token {word}"):
        lm.score("cat on on mat", samples=2)
    lm.score("cat", context="on on", samples=2)  # not in what is scored: no warning (warnings are errors here)
    assert model(mask_token_id=word).score("cat on", samples=2).nats == math.inf  # a token that is never predicted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": ""}, "nothing to score"),
        ({"text": "", "context": "a"}, "nothing to score"),
        ({"text": "a " * 64}, "context is 64"),
        ({"text": "a", "samples": 0}, "samples"),
        ({"text": "a", "method": "exact"}, "method"),
        ({"text": "a", "sample": 3}, "samples"),
    ],
)
def test_score_refuses(arguments, words):
    with pytest.raises(BadInput, match=words):
        model().score(**arguments)


# --- the rest of the face ---


def test_without_tokenizer():
    lm = DiffusionLM(Fake(Record(MASK, BOS)))
    for call in (lm.generate, lm.score):
        with pytest.raises(BadInput, match="tokenizer"):
            call("a")


def test_the_denoiser_shows_through():
    lm = model()
    assert lm.model is lm.denoiser.model
    assert lm.mask_token_id == MASK
    assert lm.record is lm.denoiser.record
    ids = torch.tensor([[4, 5]])
    assert torch.equal(lm.causal_view(ids), ids[..., None].float())


def test_adopt_load_and_save_wrap_the_denoiser(monkeypatch, tmp_path):
    lm = model()
    calls = []

    def returning(value):
        return lambda *arguments: calls.append(arguments) or value

    monkeypatch.setattr("diffulm.denoiser.adopt.adopt", returning((lm.denoiser, lm.tokenizer)))
    monkeypatch.setattr("diffulm.checkpoint.load.load", returning((lm.denoiser, lm.tokenizer)))
    monkeypatch.setattr("diffulm.checkpoint.save.save", returning(None))
    for made in (adopt("gpt2", mask_token=7, dtype=torch.bfloat16), load(tmp_path, mask_token_id=9)):
        assert made.denoiser is lm.denoiser
        assert made.tokenizer is lm.tokenizer
    lm.save(tmp_path)
    assert calls == [
        ("gpt2", None, 7, "keep", torch.bfloat16),
        (tmp_path, 9, None),
        (lm.denoiser, lm.tokenizer, tmp_path, False),
    ]
