"""Messages <-> ids: what a template lays out is what transformers renders, a reply is encoded apart, no text is a command."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffulm.canvas import decode, encode
from diffulm.chat import Template, conversation, fitted, template_file, template_names, template_of
from diffulm.data.conversations import Counts, Shape, examples
from diffulm.recipes import pocket
from models import bad
from runs import WORDS

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (  # no system, no generation prompt, EOS behind a reply
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no\nsystem here') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
STRIPS = CHATML.replace("m.content", "m.content.strip()")
BUILT_IN = {name: template_file(name).read_text("utf-8") for name in template_names()}
SOURCES = {"chatml": CHATML, "inst": INST, "strips": STRIPS, **BUILT_IN}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]


@pytest.fixture(scope="module")
def words():
    """A tokenizer of bytes and their pairs, with special tokens that a template can use."""
    made = pocket.tokenizer([" ".join(WORDS) * 20], 300)
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    made.add_special_tokens({"additional_special_tokens": SPECIAL[2:4]})
    return made


def template(words, name: str) -> Template:
    return Template(words, SOURCES[name])


def talk(*contents: str, system: str | None = None) -> list:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    return ([] if system is None else [{"role": "system", "content": system}]) + turns


def shown(words, ids: list[int]) -> str:
    return words.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("system", [None, "be kind"])
@pytest.mark.parametrize("name", SOURCES)
def test_it_is_what_transformers_renders(words, name, system):
    if (name, system) == ("inst", "be kind"):
        return
    mine, said = template(words, name), talk("the cat", "a dog", "and then?", system=system)
    whole = words.apply_chat_template(said, chat_template=mine.source, tokenize=False, add_generation_prompt=True)
    begin = "" if not whole.startswith("<s>") else "<s>"
    assert begin + shown(words, mine.opening(said)) == whole
    done = words.apply_chat_template(
        [*said, {"role": "assistant", "content": "one ball"}], chat_template=mine.source, tokenize=False
    )
    both = begin + shown(words, mine.opening(said)) + shown(words, mine.answer("one ball"))
    if name == "inst":  # its space in front of a reply is no part of what is asked for
        both = both.replace("[/INST]one", "[/INST] one")
    assert done.startswith(both) and not done[len(both) :].strip(), "up to the token that ends the reply"


def test_ids_are_those_of_transformers_where_special_tokens_part_the_turns(words):
    mine, said = template(words, "chatml"), talk("the cat sat", "on a mat", "and?", system="be kind")
    theirs = words.apply_chat_template(said, chat_template=CHATML, add_generation_prompt=True, return_dict=False)
    assert [words.bos_token_id, *mine.opening(said)] == theirs
    answered = [*said, {"role": "assistant", "content": "a dog"}]
    theirs = words.apply_chat_template(answered, chat_template=CHATML, return_dict=False)
    ours = [words.bos_token_id, *mine.opening(said), *mine.answer("a dog")]
    assert theirs[: len(ours)] == ours and decode(words, theirs[len(ours) :]) == "\n"


@pytest.mark.parametrize(
    ("name", "end"), [("chatml", "<|im_end|>"), ("inst", "</s>"), ("strips", "<|im_end|>"), ("plain", "</s>")]
)
def test_what_ends_a_reply_and_what_follows(words, name, end):
    mine = template(words, name)
    assert (mine.end, mine.pad) == (words.convert_tokens_to_ids(end), words.pad_token_id)
    assert mine.answer("a dog")[-1] == mine.end and mine.end not in mine.part("a dog")
    words.pad_token, pad = None, words.pad_token
    assert mine.pad == mine.end
    words.pad_token = pad


PIECES = ["the cat", " ", "\n", "é日", "🦜", "{{ x }}", "{% if %}", "[INST]", "</", *SPECIAL]
text = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join).filter(str.strip)
few = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_that_is_written_becomes_a_special_token_or_is_lost(words, name):
    mine = template(words, name)
    special = set(words.all_special_ids)
    plain = [token for token in mine.opening(talk("a", "a", "a")) if token in special]

    @few
    @given(text, text, text)
    def hold(first: str, reply: str, second: str) -> None:
        opening = mine.opening(talk(first, reply, second))
        assert [token for token in opening if token in special] == plain
        read = decode(words, opening)
        assert read.find(first) <= read.rfind(second) and first in read and second in read and reply in read
        answer = mine.answer(reply)
        assert [token for token in answer if token in special] == [mine.end]
        assert decode(words, answer).rstrip() == reply.rstrip()
        assert decode(words, mine.part(reply)) == reply

    hold()


@few
@given(first=text, reply=text)
def test_a_reply_does_not_depend_on_what_stands_before_it(words, first, reply):
    """The canvas is free from there on, so its tokens are those of the reply alone; training lays out no others."""
    mine = template(words, "chatml")
    row = next(iter(_examples([{"prompt": first, "response": reply}], mine, words.bos_token_id)))
    assert row.opening == [words.bos_token_id, *mine.opening(talk(first))]
    assert row.reply == mine.answer(reply) == [*encode(words, reply, inside=True), mine.end]


def _examples(rows: list[dict], mine: Template, bos: int | None):
    from diffulm.data import conversations

    for row in rows:
        yield from conversations._examples(conversations.messages_of(row), mine, [] if bos is None else [bos], "each")


def test_which_template_it_is(words, tmp_path):
    assert template_of(words).source == BUILT_IN["plain"]
    words.chat_template = CHATML
    try:
        assert template_of(words).source == CHATML and template_of(words, "paper").source == BUILT_IN["paper"]
    finally:
        words.chat_template = None
    (tmp_path / "mine.jinja").write_text(INST)
    assert template_of(words, str(tmp_path / "mine.jinja")).source == INST
    with bad("template 'papr': no such template; did you mean paper"):
        template_of(words, "papr")
    with bad("template 'zzzz': no such template; there are auto, alpaca, paper, plain; or name a .jinja file"):
        template_of(words, "zzzz")
    with bad("none.jinja': no such template"):
        template_of(words, str(tmp_path / "none.jinja"))


def test_the_paper_s_layout(words):
    """[bos] prompt [sep] answer [eos], section 4.3; a newline where the tokenizer has no separator."""
    mine = template(words, "paper")
    newline = encode(words, "the cat\n")
    assert mine.opening(talk("the cat")) == newline
    words.sep_token = "<|im_start|>"
    try:
        assert mine.opening(talk("the cat")) == [*encode(words, "the cat"), words.sep_token_id]
        assert mine.answer("a dog") == [*encode(words, "a dog", inside=True), words.eos_token_id]
    finally:
        words.sep_token = None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (INST, "cannot render this conversation: no"),
        ("{% for m in messages %}", "the chat template cannot render this conversation: "),
        ("{{ messages[0].nothing.more }}", "cannot render this conversation: .*nothing"),
        ("{{ 1 / 0 }}", "cannot render this conversation: division by zero"),
    ],
)
def test_a_template_that_fails(words, source, said):
    with bad(said):
        Template(words, source).opening(talk("a", system="b"))


def test_a_tokenizer_without_eos(words):
    words.eos_token, eos = None, words.eos_token
    try:
        assert template(words, "chatml").end == words.convert_tokens_to_ids("<|im_end|>")
        with bad("the tokenizer has no EOS and its chat template ends a reply with no special token"):
            template_of(words, "plain")
    finally:
        words.eos_token = eos


def test_the_oldest_turns_are_left_out(words):
    mine = template(words, "plain")
    said = talk("one two", "three", "four", "five", "six", system="be kind")
    whole = len(mine.opening(said))
    assert fitted(mine, said, whole) == (said, 0)
    kept, left = fitted(mine, said, whole - 1)
    assert left == 2 and kept == [said[0], *said[3:]]
    least = len(mine.opening([said[0], said[-1]]))
    assert fitted(mine, said, least) == ([said[0], said[-1]], 4)
    with bad(f"the last message takes {least} tokens, and there is room for {least - 1}: say less, or ask for less"):
        fitted(mine, said, least - 1)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "a conversation is a list of messages, at least one"),
        ("hello", "a conversation is a list of messages"),
        ([{"role": "user"}], "message 1, the user's, has no text"),
        ([{"role": "user", "content": " \n"}], "message 1, the user's, has no text"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "message 1, the user's, has no text"),
        ([{"content": "a"}], "message 1 is not of the form"),
        (["a"], "message 1 is not of the form"),
        ([{"role": 3, "content": "a"}], "message 1 is not of the form"),
        ([{"role": "asistant", "content": "a"}], "unknown role 'asistant'; did you mean assistant"),
        ([{"role": "gpt", "content": "a"}], "unknown role 'gpt'; known are system, user, assistant"),
        (talk("a", "b", system="c")[:1], "has no message but the system's"),
        ([*talk("a", system="c"), *talk(system="d")], "two system messages; keep one"),
        ([*talk("a"), *talk(system="d")], "the system message is not the first one"),
        (talk("a", "b")[1:], "begins with the assistant's turn"),
        ([*talk("a"), *talk("b")], "has two turns of the user in a row"),
        ([*talk("a", "b"), *talk("a", "b")[1:]], "has two turns of the assistant in a row"),
    ],
)
def test_messages_that_are_no_conversation(messages, said):
    with bad(said):
        conversation(messages)


def test_a_row_that_a_template_refuses_is_named(words, tmp_path):
    file = tmp_path / "a.jsonl"
    row = '{"messages": [%s{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    file.write_text(row % "" + row % '{"role": "system", "content": "x"}, ')
    with bad("a.jsonl, line 2: the chat template cannot render this conversation: no"):
        list(examples(str(file), template(words, "inst"), 0, Shape(64), Counts()))


def test_a_template_that_says_nothing_of_an_end_and_one_that_says_nothing_at_all(words, tmp_path):
    mine = Template(words, "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert mine.end == words.eos_token_id and mine.answer("a dog") == [*mine.part("a dog"), mine.end]
    for role, source in {"user": "{{ messages[1].content }}", "assistant": "{{ messages[0].content }}"}.items():
        (tmp_path / "mine.jinja").write_text(source)
        with bad(f"the chat template leaves out what the {role} says; it should have message.content"):
            template_of(words, str(tmp_path / "mine.jinja"))
    (tmp_path / "mine.jinja").write_bytes(b"\xff")
    with bad("mine.jinja: is not UTF-8 text"):
        template_of(words, str(tmp_path / "mine.jinja"))
