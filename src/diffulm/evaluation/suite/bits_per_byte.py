"""Bits per byte of held-out text: WikiText-2 and TinyStories, each document with its EOS."""

from diffulm.errors import BadInput
from diffulm.evaluation import rolling, tasks
from diffulm.evaluation.cells import Cell, absent
from diffulm.evaluation.data import NoData, why
from diffulm.evaluation.rolling import Document
from diffulm.evaluation.trial import Trial
from diffulm.scoring import Method

TITLE = "bits per byte of documents"
TASKS = ("wikitext2", "tinystories")
WINDOWS = 4  # of a document, where the rows are limited


def run(trial: Trial) -> list[Cell]:
    return [_cell(trial, task) for task in TASKS]


def _cell(trial: Trial, name: str) -> Cell:
    subject = trial.subject
    try:
        documents = tasks.documents(tasks.load(name), trial.data, trial.limit)
    except (NoData, BadInput) as error:
        return absent(name, "bits a byte", why(error), better="lower", normalisation="byte")
    method: Method = "autoregressive" if subject.autoregressive else "bound"
    most = None if trial.limit is None else WINDOWS
    how = {"method": method, "draws": trial.draws, "seed": trial.seed, "most": most}
    kept = trial.journal.map(
        f"{name} of {subject.name}, {how}",
        [(f"{name} {number}", one["text"]) for number, one in enumerate(documents)],
        lambda group: [
            one and vars(one) for one in rolling.documents(subject, group, method, trial.draws, trial.seed, most)
        ],
        together=16,
    )
    settings = {"method": method, "eos": "appended, scored", "context": subject.context}
    if method == "bound":
        settings |= {"draws_a_document": trial.draws, "seed": trial.seed}
    if most is not None:
        settings["windows_a_document_at_most"] = most
    return rolling.bits_per_byte(
        name,
        [Document(**one) for one in kept if one],
        length="none" if subject.autoregressive else "oracle",
        note="" if subject.autoregressive else "an upper bound",
        settings=settings,
    )
