"""The tasks: each a module with `SOURCE` (where its rows stand), `document(row)` (what is asked) and, where shots have rows of
their own, `SHOTS`; beside it the same for lm-eval. No torch in here.

A document of choices: {"context", "choices", "label"}; where text goes on behind the choice also "suffix", and the same read
from left to right as "contexts" and one "continuation". A document with an answer to write: {"context", "continuation",
"answer", "aliases"}; `continuation` is what a shot shows. A document to read: {"text"}. What stands between a context and what
follows it (a space, a newline) is at the head of what follows, never lost, never twice.
"""

import functools
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from diffulm.errors import BadInput, shown, unknown
from diffulm.evaluation import data

Document = dict[str, Any]


@functools.cache
def names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


def load(name: str) -> ModuleType:
    """The module of a task. BadInput for a name that is none."""
    if name not in names():
        raise unknown("task", name, names())
    return import_module(f"diffulm.evaluation.tasks.{name}")


def documents(
    task: ModuleType, folder: Path | None, limit: int | None = None, source: data.Source | None = None
) -> list[Document]:
    """The first `limit` documents of a task; source: other rows of it, as `task.SHOTS`. NoData and BadInput as
    `data.rows`, and BadInput with file and row for values of which no question can be made."""
    return list(islice(_documents(task, folder, limit, source or task.SOURCE), limit))


def _documents(task: ModuleType, folder: Path | None, limit: int | None, source: data.Source) -> Iterator[Document]:
    found = task.rows(folder) if hasattr(task, "rows") else data.rows(source, folder, limit)
    for number, row in enumerate(found, 1):
        try:
            yield task.document(row)
        except BadInput as error:
            raise BadInput(f"{source.file}, row {number}: {error}") from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__} {error}"
            raise BadInput(f"{source.file}, row {number}: not as its fields should be ({what}): {shown(row)}") from None


def choices(context: str, options: list[str], label: Any, gap: str = " ", first: int = 0) -> Document:
    """A document of choices, `gap` at the head of each. label: which is right, counted from `first`; digits will do."""
    for option in options:
        if not isinstance(option, str) or not option.strip():
            raise BadInput(f"an empty choice among {shown(options)}; mend or delete this row")
    if len(options) < 2:
        raise BadInput(f"{len(options)} choices, at least 2 are needed; mend or delete this row")
    right = int(label) - first if str(label).strip().isdigit() else -1
    if not 0 <= right < len(options):
        raise BadInput(
            f"label {shown(label)} is none of {first} to {len(options) - 1 + first}; mend or delete this row"
        )
    return {"context": context, "choices": [gap + option for option in options], "label": right}


def answered(context: str, answer: str, continuation: str | None = None, aliases: list[str] | None = None) -> Document:
    """A document with an answer to write. continuation: what a shot shows, the answer after a space by default."""
    if not answer.strip():
        raise BadInput("an empty answer; mend or delete this row")
    known = dict.fromkeys([answer, *(aliases or ())])
    shot = f" {answer}" if continuation is None else continuation
    return {"context": context, "continuation": shot, "answer": answer, "aliases": list(known)}
