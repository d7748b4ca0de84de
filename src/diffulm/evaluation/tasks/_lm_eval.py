"""The tasks as lm-eval reads them: what the YAML files beside this one name."""

import os
from pathlib import Path
from typing import Any

from diffulm.evaluation import tasks
from diffulm.evaluation.data import NoData

SHOTS = 512  # rows that shots are drawn from: a train file of the hub may have hundreds of thousands


def dataset(definition: str, data_dir: str | None = None, **_: Any) -> dict[str, Any]:
    """The splits `test` and, where shots have rows of their own, `shots`.

    definition: a task's name. data_dir (by `--metadata data_dir=...`, else the environment variable DIFFULM_DATA_DIR): the
    folder of files, without it the hub. The rest of lm-eval's metadata is ignored.
    """
    from datasets import Dataset

    task = tasks.load(definition)
    folder = data_dir or os.environ.get("DIFFULM_DATA_DIR")
    where = Path(folder) if folder else None
    found = {"test": tasks.documents(task, where)}
    if hasattr(task, "SHOTS"):
        try:
            shots, asked = tasks.documents(task, where, SHOTS, task.SHOTS), {one["context"] for one in found["test"]}
            found["shots"] = [one for one in shots if one["context"] not in asked]  # MAWPS has some questions in both
        except NoData:  # a file of which nothing may be asked; lm-eval says so when shots are
            found["shots"] = []
    return {split: Dataset.from_list([_row(one) for one in documents]) for split, documents in found.items()}


def _row(document: tasks.Document) -> dict[str, Any]:
    """lm-eval puts the space between a context and what follows by itself, and counts a choice's characters without it."""
    row = {"query": document.get("context"), **document}
    if "suffix" not in document:
        row["choices"] = [one.removeprefix(" ") for one in document.get("choices", ())]
        row["continuation"] = document.get("continuation", "").removeprefix(" ")
    return row
