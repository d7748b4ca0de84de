"""Shots: answered questions that stand before one that is asked."""

from collections.abc import Sequence
from types import ModuleType

from diffulm.canvas import encode
from diffulm.evaluation import data, tasks
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.tasks import Document
from diffulm.evaluation.trial import Trial


def asked_and_shown(task: ModuleType, trial: Trial, shots: int) -> tuple[list[Document], list[Document]]:
    """(documents to ask, at most `trial.limit`; `shots` others, none of which asks the same). NoData as `tasks.documents`.

    Shots are rows of the task's train file, else the last rows of the file asked from, which are then not asked.
    """
    if not shots:
        return tasks.documents(task, trial.data, trial.limit), []
    whole = tasks.documents(task, trial.data)
    shown: list[Document] = []
    if hasattr(task, "SHOTS"):
        try:
            questions = {one["context"] for one in whole}
            others = tasks.documents(task, trial.data, shots * 4, source=task.SHOTS)
            shown = [one for one in others if one["context"] not in questions][:shots]
        except data.NoData:
            pass
    if len(shown) < shots:  # from the end, whatever the limit, so that a run of all questions shows the same
        count = min(shots, len(whole) - 1)
        whole, shown = whole[: len(whole) - count], whole[len(whole) - count :]
    return whole[: trial.limit], shown


def shot(document: Document) -> str:
    """A question with its answer, of any kind, and an empty line."""
    if "contexts" in document:
        text = document["contexts"][document["label"]] + document["continuation"]
    elif "continuation" in document:
        text = document["context"] + document["continuation"]
    else:
        text = document["context"] + document["choices"][document["label"]] + document.get("suffix", "")
    return f"{text}\n\n"


def before(subject: Subject, shots: Sequence[Document], texts: Sequence[str], length: int) -> tuple[str, int]:
    """(as many whole shots as leave room for each of the texts and an answer of `length` behind it, how many those are)."""
    for count in range(len(shots), 0, -1):
        shown = "".join(map(shot, shots[:count]))
        longest = max(len(encode(subject.tokenizer, shown + text)) for text in texts)
        if len(subject.bos) + longest + length <= subject.context:
            return shown, count
    return "", 0
