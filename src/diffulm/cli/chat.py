"""`diffulm chat MODEL`"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

import typer

from diffulm.cli import _common
from diffulm.errors import BadInput

if TYPE_CHECKING:
    from diffulm.dialogue import Dialogue

# All that some reader takes for the end of a line.
_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@partial(_common.fills, without=("n", "batch_size", "watch", "save_animation", "as_json"))
def chat(
    model: str = _common.MODEL,
    system: str = typer.Option("", "--system", help="What the model is to keep in mind.", show_default=False),
    length: int | None = typer.Option(
        None,
        "--length",
        help="Tokens an answer may have.  [default: as many as it was fine-tuned on, or 64]",
        show_default=False,
    ),
    history: bool = typer.Option(
        False, "--history", help="With a pipe: the lines are the turns of one conversation, not each one of its own."
    ),
    as_json: bool = typer.Option(
        False, "--json", help="A JSON document a line, with the exact reply, its seconds and forwards."
    ),
    **shared: Any,
) -> None:
    """Talk to a model.

    In a terminal it says how, with /help. With a pipe there is one reply for each line of standard input, on a line of its
    own and nothing else: a line end within a reply is written \\n (--json keeps it), an empty line gets an empty one, and
    no line is a command. Each line is a conversation of its own; with --history they are the turns of one, and what no
    longer fits the model's context is left out from the oldest turn on, and said on standard error.
    """
    from diffulm.options import GenerateOptions, checked

    mask_token_id, dtype = shared.pop("mask_token_id"), shared.pop("dtype")
    options = shared | ({} if length is None else {"length": length})
    checked(GenerateOptions, **options)
    talking = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    with _common.only_result() as out:
        lm = _common.open_model(model, mask_token_id, dtype)
        from diffulm.dialogue import Dialogue

        talk = Dialogue(lm, options, system)
        _say_untuned(model, lm)
        if not talking:
            _replies(talk, out, as_json, history)
            return
    from diffulm.cli._talk import talk_in_terminal

    talk_in_terminal(talk, model, out)


def _say_untuned(model: str, lm: Any) -> None:
    if "sft" not in lm.record.notes and not getattr(lm.tokenizer, "chat_template", None):
        line = (
            f"{model} was never taught to answer: it goes on with the text of the conversation; diffulm sft teaches it"
        )
        print("diffulm:", line, file=sys.stderr)


def _replies(talk: Dialogue, out: TextIO, as_json: bool, history: bool) -> None:
    """A reply for each line of standard input. BadInput for a line that is not UTF-8 or too long, which is named."""
    said = False
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not history:
            talk.turns, talk.left_out = [], 0
        try:
            text = line.decode("utf-8").rstrip("\r\n")
            made = talk.say(text) if text.strip() else None
        except UnicodeDecodeError:
            raise BadInput(f"standard input, line {number}: is not UTF-8; convert it") from None
        except BadInput as error:
            raise BadInput(f"standard input, line {number}: {error}") from None
        reply, left_out = made.completion if made else "", talk.left_out
        if as_json:
            spent = {"forwards": made.forwards if made else 0, "seconds": made.seconds if made else 0.0}
            document = {"message": text, "reply": reply, **spent, "left_out": left_out}
            reply = json.dumps(document, ensure_ascii=False)
            reply = re.sub(f"[{_ENDS}]", lambda end: f"\\u{ord(end[0]):04x}", reply)
        else:
            reply = re.sub(f"[{_ENDS}]", lambda end: end[0].encode("unicode_escape").decode(), reply)
        print(reply, file=out, flush=True)
        if left_out and not said:
            said = True
            line_of = f"standard input, line {number}: the conversation has outgrown the model's context"
            print(f"diffulm: {line_of}; from here on its oldest turns are left out", file=sys.stderr)
