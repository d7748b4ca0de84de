"""Which token becomes the mask, and which stands at position 0."""

from types import SimpleNamespace

import pytest

from diffulm.checkpoint.opening import beginning
from diffulm.denoiser.mask_token import choose
from models import bad, tokenizer

RESERVED = "<|reserved_special_token_0|>"
CHAT = "{{ '<|turn|>' + messages[0]['content'] + '<|reserved_special_token_1|>' }}"
BUSY = tokenizer(
    special=("<|turn|>", "<|reserved_special_token_1|>", "<|reserved_special_token_2|>", "[unused1]", RESERVED),
    template=CHAT,
    pad_token="[unused1]",
    cls_token=RESERVED,
)
TAKEN = tokenizer(special=("<mask>",), mask_token="<mask>")
SPARE = tokenizer(special=("<|turn|>", RESERVED))


@pytest.mark.parametrize(
    ("words", "rows", "wanted", "found", "emit", "new", "policy"),
    [
        (TAKEN, 64, "auto", 63, False, False, "the tokenizer's mask token '<mask>'"),
        (TAKEN, 63, "auto", 64, False, True, "a new row"),  # its row does not exist
        (SPARE, 64, "auto", 63, False, False, f"the reserved special token {RESERVED!r}"),
        # 60 is a marker of the chat template, 62 pads, 63 is cls
        (BUSY, 64, "auto", 61, False, False, "the reserved special token '<|reserved_special_token_2|>'"),
        (tokenizer(), 64, "auto", 64, False, True, "a new row, id 64"),
        (tokenizer(), 80, "auto", 64, False, True, "a new row, id 64"),
        (tokenizer(mask_token="</s>"), 64, "auto", 64, False, True, "a new row"),  # never a working token
        (None, 64, "auto", 64, False, True, "a new row, id 64"),
        (SPARE, 64, "new", 64, False, True, "a new row"),
        (TAKEN, 64, "w7", 7, True, False, "the named ordinary token 'w7' (id 7), reused"),
        (TAKEN, 64, 7, 7, True, False, "the named ordinary token 'w7' (id 7), reused"),
        (TAKEN, 64, "7", 7, True, False, "the named ordinary token 'w7' (id 7), reused"),
        (TAKEN, 64, "<mask>", 63, False, False, "the named special token '<mask>' (id 63)"),
        (SPARE, 64, RESERVED, 63, False, False, f"the named special token {RESERVED!r}"),
        (tokenizer(), 80, 70, 70, False, False, "the named unused row with id 70"),
        (None, 64, 11, 11, True, False, "the named ordinary token with id 11, reused"),
    ],
)
def test_the_choice_of_mask_token(words, rows, wanted, found, emit, new, policy):
    mask = choose(words, rows, wanted)
    assert (mask.id, mask.emit, mask.new) == (found, emit, new)
    assert mask.policy.startswith(policy)


@pytest.mark.parametrize(
    ("words", "wanted", "reason"),
    [
        (TAKEN, 64, "mask token 64: id 64 lies outside the vocabulary of 64 rows"),
        (TAKEN, "-1", "id -1 lies outside"),
        (TAKEN, "<unk>", "it is the tokenizer's unk_token"),
        (TAKEN, 1, "it is the tokenizer's bos_token"),
        (TAKEN, "</s>", "it is the tokenizer's eos_token"),
        (BUSY, "[unused1]", "it is the tokenizer's pad_token"),
        (BUSY, "<|turn|>", "it is the tokenizer's marker of the chat template"),
        (TAKEN, "no such", "mask token 'no such': is not a token"),
        (TAKEN, "9" * 5000, "999...999.*: is not a token"),
        (None, "<mask>", "is not a token"),
        (tokenizer(special=("<|mask|>",)), "new", "has a token '<|mask|>' already"),
    ],
)
def test_mask_tokens_that_are_refused(words, wanted, reason):
    with bad(reason.replace("|", r"\|")):
        choose(words, 64, wanted)


# --- BOS ---


@pytest.mark.parametrize(
    ("words", "config", "found"),
    [
        ({"bos_token_id": 3, "eos_token_id": 4}, {"bos_token_id": 5}, 3),
        ({"bos_token_id": None, "eos_token_id": 4}, {"bos_token_id": 5}, 4),
        (None, {"bos_token_id": 5, "eos_token_id": 6}, 5),
        (None, {"bos_token_id": 0, "eos_token_id": 6}, 0),
        (None, {"bos_token_id": None, "eos_token_id": [7, 8]}, 7),
    ],
)
def test_bos(words, config, found):
    words = None if words is None else SimpleNamespace(**words)
    assert beginning(words, SimpleNamespace(**config), 9, "m") == found


@pytest.mark.parametrize(
    ("words", "config", "reason"),
    [
        ({"bos_token_id": None, "eos_token_id": None}, {"bos_token_id": 5}, "neither a BOS nor an EOS"),
        (None, {}, "neither a BOS nor an EOS"),
        (None, {"bos_token_id": 9}, "bos_token_id 9 lies outside the vocabulary of 9 rows"),
        (None, {"bos_token_id": None, "eos_token_id": [-1]}, "eos_token_id -1 lies outside"),
    ],
)
def test_no_bos_no_adoption(words, config, reason):
    words = None if words is None else SimpleNamespace(**words)
    with bad(f"^m: .*{reason}"):
        beginning(words, SimpleNamespace(**config), 9, "m")
