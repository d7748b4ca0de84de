"""Questions with choices: HellaSwag, Winogrande, SIQA, PIQA; without shots as in the paper, unless some are asked for."""

import statistics
from dataclasses import replace

from diffulm.errors import BadInput
from diffulm.evaluation import tasks
from diffulm.evaluation.cells import Cell, absent
from diffulm.evaluation.choices import RISK, Question, accuracy, journaled, method_for
from diffulm.evaluation.data import NoData, why
from diffulm.evaluation.shots import asked_and_shown, before
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.tasks import Document
from diffulm.evaluation.trial import Trial

TITLE = "questions with choices"
TASKS = ("hellaswag", "winogrande", "siqa", "piqa")


def run(trial: Trial) -> list[Cell]:
    return [cell for task in TASKS for cell in _cells(trial, task)]


def _cells(trial: Trial, name: str) -> list[Cell]:
    task = tasks.load(name)
    try:
        documents, shown = asked_and_shown(task, trial, trial.shots or 0)
    except (NoData, BadInput) as error:
        return [absent(name, "accuracy", why(error))]
    cells = [_cell(trial, name, documents, shown, task.NORMALISATION)]
    if not trial.subject.autoregressive and "contexts" in documents[0] and trial.subject.lm.record.infills:
        cells.append(_cell(trial, name, documents, shown, task.NORMALISATION, inside=True))
    return cells


def _cell(
    trial: Trial, name: str, documents: list[Document], shown: list[Document], normalisation: str, inside: bool = False
) -> Cell:
    """inside: the choice is scored where it stands, the text on both sides in sight; only a model that fills holes can."""
    questions = [question(name, number, one, inside) for number, one in enumerate(documents)]
    taught = [after(trial.subject, shown, one) for one in questions]
    questions = [one for one, _ in taught]
    texts = [choice for one in questions for _, choice, _ in one.texts]
    method = method_for(trial.subject, texts, trial.draws, trial.method)
    found = journaled(
        trial.journal,
        name,
        trial.subject,
        questions,
        method=method,
        draws=trial.draws,
        seed=trial.seed,
        normalisation=normalisation,
    )
    settings = {"method": method, "shots": len(shown), "seed": trial.seed}
    if shown:
        settings["shots_used"] = round(statistics.fmean(count for _, count in taught), 2)
    if method in ("bound", "published"):
        settings["draws"] = trial.draws
    if method == "bound":
        settings["risk_of_stopping_early"] = RISK
    length = "none" if trial.subject.autoregressive else "oracle"
    chance = 1 / len(documents[0]["choices"])
    task = f"{name}, option given both sides" if inside else name
    note = f"{len(shown)} shots" if shown else ""
    return accuracy(task, found, chance, length=length, normalisation=normalisation, settings=settings, note=note)


def question(name: str, number: int, document: Document, inside: bool = False) -> Question:
    """By default what follows is scored, given each choice, where the text goes on behind it; else the choice itself."""
    key = f"{name} {number}"
    if "contexts" in document and not inside:
        texts = tuple((context, document["continuation"], "") for context in document["contexts"])
    else:
        texts = tuple((document["context"], choice, document.get("suffix", "")) for choice in document["choices"])
    return Question(key, texts, document["label"])


def after(subject: Subject, shown: list[Document], asked: Question) -> tuple[Question, int]:
    """(the question behind as many shots as leave room for all its choices, how many those are)."""
    text, count = before(subject, shown, ["".join(one) for one in asked.texts], 0)
    return replace(asked, texts=tuple((text + context, *rest) for context, *rest in asked.texts)), count
