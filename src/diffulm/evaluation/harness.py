"""`diffulm eval MODEL --tasks a,b,c`: tasks by the names that lm-eval has for them, those of this package in front."""

import functools
import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from diffulm.checkpoint.opening import first_line
from diffulm.errors import BadInput, nearest, shown
from diffulm.evaluation import harness_results
from diffulm.evaluation import tasks as own
from diffulm.evaluation.cells import Cell, absent
from diffulm.evaluation.data import NoData
from diffulm.evaluation.harness_model import DiffuLM, TaskManager, lm_eval, simple_evaluate
from diffulm.evaluation.subject import Subject
from diffulm.evaluation.trial import Trial

BOOTSTRAP = 1000  # draws of the errors that lm-eval estimates so, in its own results alone


def check(names: Sequence[str], folder: Path | None = None) -> None:
    """BadInput, with the nearest, for a name that is no task, group or tag and matches none."""
    _entries(_manager(names, folder), names)


def run(subject: Subject, names: Sequence[str], trial: Trial) -> tuple[list[Cell], dict[str, Any]]:
    """(a cell for each figure, lm-eval's own results without samples) of tasks by lm-eval's names, ours in front.

    A task without data, or that cannot be read, is a cell that says so. BadInput for a name that is none.
    """
    model = DiffuLM(
        subject=subject,
        method=trial.method,
        draws=trial.draws,
        steps=trial.steps,
        seed=trial.seed,
        batch_size=trial.batch_size,
        journal=trial.journal,
        end=True,
    )
    with _quiet():
        manager = _manager(names, trial.data)
        found, missing = _loaded(manager, _entries(manager, names), trial)
        results: Any = (
            simple_evaluate(
                model=model,
                tasks=found,
                num_fewshot=trial.shots,
                limit=trial.limit,
                bootstrap_iters=BOOTSTRAP,
                task_manager=manager,
                fewshot_random_seed=trial.seed,
            )
            if found
            else {}
        )
    if not results:
        return missing, {}
    tasks = manager.load(found)["tasks"]
    about = {name: _about(model, task, results["n-shot"].get(name, 0)) for name, task in tasks.items()}
    made = harness_results.cells(results, tasks, model.scored, about)
    return made + missing, {key: value for key, value in results.items() if key != "samples"}


def _manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    """Our tasks in front; lm-eval's ten thousand files are read, for ten seconds, only where a name is not one of ours."""
    return _read(set(names) <= set(own.names()), folder)


@functools.cache
def _read(ours: bool, folder: Path | None) -> TaskManager:
    metadata: Any = {"data_dir": str(folder)} if folder else {}
    with _quiet():
        return TaskManager(include_path=list(own.__path__), include_defaults=not ours, metadata=metadata)


def _entries(manager: TaskManager, names: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        matched = [name] if name.endswith(".yaml") and Path(name).is_file() else manager.match_tasks([name])
        if not matched:
            near = nearest(name, manager.all_tasks)
            hint = f"did you mean {near!r}?" if near else "`lm-eval ls tasks` lists those of lm-eval"
            raise BadInput(f"unknown task {shown(name)}; {hint}")
        found |= dict.fromkeys(matched)
    return list(found)


def _loaded(manager: TaskManager, names: Sequence[str], trial: Trial) -> tuple[list[Any], list[Cell]]:
    """(tasks and groups as lm-eval takes them, cells for those that cannot be asked)."""
    found, missing = [], []
    for name in names:
        try:
            loaded = manager.load([name])
            for task in loaded["tasks"].values():
                _give_shots(task, trial)
        except NoData:
            missing.append(absent(name, "", "no data"))
        except BadInput as error:
            missing.append(absent(name, "", str(error)))
        except Exception as error:  # not on the hub, no network, a metric that is not installed
            missing.append(absent(name, "", f"lm-eval cannot load it: {first_line(error)}"))
        else:
            groups = loaded.get("groups", {})
            found += [groups[name]] if name in groups else list(loaded["tasks"].values())
    return found, missing


def _give_shots(task: Any, trial: Trial) -> None:
    """Shots come from rows of their own; where a task has none, from rows that are not asked, if a limit leaves any."""
    if not trial.shots or not hasattr(task, "sampler"):
        return
    if task.fewshot_cfg.split in (None, task.config.test_split) and trial.limit is not None:
        rest = [task.eval_docs[i] for i in range(trial.limit, len(task.eval_docs))]
        if len(rest) > trial.shots:
            task.sampler.replace_df(rest)
    if len(task.sampler.df) <= trial.shots:
        raise BadInput(f"{trial.shots} shots wanted, and there are {len(task.sampler.df)} rows to take them from")


def _about(model: DiffuLM, task: Any, shots: int) -> dict[str, Any]:
    """`length`, `note` and `settings` of the cells of a task."""
    reads, method = model.subject.autoregressive, model.methods.get(task.task_name)
    settings: dict[str, Any] = {"shots": shots, "task_version": task.VERSION, "lm_eval": lm_eval.__version__}
    if method is None:
        settings |= {"steps": None if reads else model.steps or "one a token", "seed": model.seed}
        length, _, settings["temperature"] = model._how(task.config.generation_kwargs or {})
        return {"length": "none" if reads else "free", "settings": settings | {"most_tokens": length}}
    settings["method"] = method
    if method in ("bound", "published"):
        settings |= {"draws": model.draws, "seed": model.seed}
    note = "an upper bound" if method == "bound" and task.OUTPUT_TYPE == "loglikelihood_rolling" else ""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        settings["eos"] = "appended, scored"
    return {"length": "none" if reads else "oracle", "note": note, "settings": settings}


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval prints, warns and draws bars; what is worth knowing stands in the cells."""
    logger = logging.getLogger("lm_eval")
    before, level = os.environ.get("DISABLE_MULTIPROC"), logger.level
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would fork a process that has torch's threads
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
