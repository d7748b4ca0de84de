"""Messages <-> token ids: what stands before a reply, and what a reply is, in training and at decoding alike.

    template = template_of(lm.tokenizer)
    template.opening([{"role": "user", "content": "say: a b c"}])   # fixed on the canvas; the reply is free

A reply begins where the template's generation prompt ends, so its first token is encoded apart from what stands before it:
that is where the canvas becomes free. What people wrote never becomes a special token, whatever it spells.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from diffulm.canvas import Canvas, continued, encode
from diffulm.errors import BadInput, nearest, shown

ROLES = ("system", "user", "assistant")
BUILT_IN = Path(__file__).parent / "presets" / "templates"
# Stand for contents while a template is rendered: no text holds them, and no template changes them.
_OPEN, _CLOSE = "\U000f0d1f", "\U000f0d2f"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


class Message(TypedDict):
    role: str
    content: str


def conversation(messages: Any) -> list[Message]:
    """The messages of a conversation, checked: at most one system message, and it is first; then user and assistant in turn.

    BadInput for anything else, and for a message without text. A caller who knows the file and row puts them in front.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise BadInput("a conversation is a list of messages, at least one")
    found: list[Message] = []
    for number, one in enumerate(messages, 1):
        if not isinstance(one, dict) or not isinstance(one.get("role"), str):
            raise BadInput(f'message {number} is not of the form {{"role": ..., "content": ...}}')
        role, content = one["role"], one.get("content")
        if role not in ROLES:
            near = nearest(role, ROLES)
            hint = f"; did you mean {near}?" if near else f"; known are {', '.join(ROLES)}"
            raise BadInput(f"message {number} has the unknown role {shown(role)}{hint}")
        if not isinstance(content, str) or not content.strip():
            raise BadInput(f"message {number}, the {role}'s, has no text")
        found.append({"role": role, "content": content})
    _in_turn([one["role"] for one in found])
    return found


def _in_turn(roles: list[str]) -> None:
    if roles.count("system") > 1:
        raise BadInput("a conversation has two system messages; keep one")
    if "system" in roles[1:]:
        raise BadInput("the system message is not the first one")
    talk = roles[1:] if roles[0] == "system" else roles
    if not talk:
        raise BadInput("a conversation has no message but the system's")
    for number, role in enumerate(talk):
        wanted = ("user", "assistant")[number % 2]
        if role != wanted:
            what = "begins with the assistant's turn" if not number else f"has two turns of the {role} in a row"
            raise BadInput(f"a conversation {what}; user and assistant take turns, the user first")


@dataclass(frozen=True)
class Template:
    """A chat template of a tokenizer. source: Jinja, as transformers renders it."""

    tokenizer: Any
    source: str

    @property
    def end(self) -> int:
        """The token that ends a reply: the first special token behind it, else EOS."""
        return self._closing[1]

    @property
    def pad(self) -> int:
        """What stands on a canvas behind the end of a reply: the tokenizer's padding, else that end again."""
        pad = self.tokenizer.pad_token_id
        return self.end if pad is None else pad

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """(n,) ids of all that stands before the assistant's next reply, without the BOS that a canvas begins with.

        messages: as `conversation` gives them, the last one the user's. BadInput for a template that cannot render them.
        """
        parts = self._rendered(messages, opened=True)
        if parts and parts[0] == self.tokenizer.bos_token_id:
            parts = parts[1:]
        return self._ids(parts, inside=False)

    def answer(self, text: str) -> list[int]:
        """(n,) ids of a reply, its end included."""
        return [*self._ids([text + self._closing[0]], inside=True), self.end]

    def reply(self, text: str) -> str:
        """What a model has said, without what the template puts behind every reply."""
        return text.removesuffix(self.tail)

    @property
    def tail(self) -> str:
        """The text that the template puts behind every reply."""
        return self._closing[0]

    def part(self, text: str) -> list[int]:
        """(n,) ids of what begins a reply."""
        return self._ids([text], inside=True)

    @cached_property
    def _closing(self) -> tuple[str, int]:
        """(text, special token) that the template puts behind a reply."""
        pair: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        text = self._render(pair, opened=False)
        for number, one in enumerate(pair):
            if f"{_OPEN}{number}{_CLOSE}" not in text:
                raise BadInput(
                    f"the chat template leaves out what the {one['role']} says; it should have message.content"
                )
        parts = self._split(text.partition(f"{_OPEN}1{_CLOSE}")[2])
        special = next((one for one in parts if isinstance(one, int)), None)
        if special is None:
            return "", self._eos
        return (parts[0] if isinstance(parts[0], str) else ""), special

    @property
    def _eos(self) -> int:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise BadInput("the tokenizer has no EOS and its chat template ends a reply with no special token: add one")
        return eos

    @cached_property
    def _special(self) -> dict[str, int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        found = {str(token): index for index, token in added.items() if token.special}
        return found | dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))

    def _render(self, messages: Sequence[Message], opened: bool) -> str:
        """The text of a conversation, each content a mark with its number."""
        marked = [{"role": one["role"], "content": f"{_OPEN}{n}{_CLOSE}"} for n, one in enumerate(messages)]
        try:
            return self.tokenizer.apply_chat_template(
                marked, chat_template=self.source, tokenize=False, add_generation_prompt=opened
            )
        except Exception as error:  # whatever a template makes Jinja or Python raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadInput(f"the chat template cannot render this conversation: {reason}") from None

    def _rendered(self, messages: Sequence[Message], opened: bool) -> list[str | int]:
        """Text, contents in it, and the template's own special tokens as ids between."""
        parts = self._split(self._render(messages, opened))
        return [
            part if isinstance(part, int) else _MARK.sub(lambda mark: messages[int(mark[1])]["content"], part)
            for part in parts
        ]

    def _split(self, text: str) -> list[str | int]:
        names = sorted(self._special, key=len, reverse=True)
        pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
        return [self._special.get(piece, piece) for piece in pieces if piece]

    def _ids(self, parts: Iterable[str | int], inside: bool) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else encode(self.tokenizer, part, inside=inside or bool(ids))
        return ids


def template_of(tokenizer: Any, name: str = "auto") -> Template:
    """A tokenizer's own chat template, else the built-in `plain`; or a built-in one, or a Jinja file, by name.

    BadInput for a name that is neither, and a template that ends no reply.
    """
    own = getattr(tokenizer, "chat_template", None)
    if name == "auto" and own:
        source = tokenizer.get_chat_template()
    else:
        file = template_file("plain" if name == "auto" else name)
        try:
            source = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{file}: is not UTF-8 text ({error.reason})") from None
    found = Template(tokenizer, source)
    _ = found.end  # so that what cannot be rendered is known before anything else is done
    return found


def template_names() -> list[str]:
    return sorted(file.stem for file in BUILT_IN.glob("*.jinja"))


def template_file(name: str) -> Path:
    """Where a built-in template lies, or one that is named by its file. BadInput where there is none."""
    if name in template_names():
        return BUILT_IN / f"{name}.jinja"
    file = Path(name).expanduser()
    if file.suffix == ".jinja" and file.is_file():
        return file
    near = nearest(name, template_names())
    hint = f"did you mean {near}?" if near else f"there are auto, {', '.join(template_names())}; or name a .jinja file"
    raise BadInput(f"template {shown(name)}: no such template; {hint}")


def fitted(template: Template, messages: Sequence[Message], room: int) -> tuple[list[Message], int]:
    """(messages, how many were left out): the oldest turns go until what stands before the reply takes at most `room` ids.

    A system message stays, and so does the last turn: BadInput where these alone take more.
    """
    head = list(messages[:1]) if messages[0]["role"] == "system" else []
    rest = list(messages[len(head) :])
    needed = 0
    for first in range(0, len(rest), 2):
        kept = [*head, *rest[first:]]
        needed = len(template.opening(kept))
        if needed <= room:
            return kept, first
    raise BadInput(f"the last message takes {needed} tokens, and there is room for {room}: say less, or ask for less")


def reply_canvas(
    template: Template,
    messages: Sequence[Message],
    bos_token_id: int | None,
    mask_token_id: int,
    length: int | None,
    usual: int,
    limit: int | None,
) -> Canvas:
    """The canvas of the assistant's next reply: BOS, the conversation, `length` masks (None: `usual`, or what fits).

    BadInput for messages out of turn, and where the reply leaves the `limit` of the model's context.
    """
    talk = conversation(messages)
    if talk[-1]["role"] != "user":
        raise BadInput("the last message is the assistant's: there is nothing to reply to; end with the user's")
    opening, bos = template.opening(talk), [] if bos_token_id is None else [bos_token_id]
    limit = limit or 10**9
    room = limit - len(bos) - len(opening)
    length = min(room, usual) if length is None else length
    if room < max(1, length):
        raise BadInput(
            f"the conversation takes {limit - room} positions and its reply {length}; the model's context is {limit}: "
            "leave out the oldest turns, or ask for less"
        )
    return continued(template.tokenizer, bos, opening, mask_token_id, length, (template.end, template.pad))
