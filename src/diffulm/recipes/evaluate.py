"""`diffulm eval`: an adapted model and its AR parent through the paper's suite, and through tasks of lm-eval.

    diffulm eval runs/mine --suite paper --parent gpt2 --data-dir data/eval

Everything measured is kept in a journal as soon as it is there, so the same command goes on where it was interrupted.
"""

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from diffulm.errors import BadInput, unknown
from diffulm.evaluation import suite
from diffulm.evaluation.cells import Cell, absent
from diffulm.evaluation.data import NoData
from diffulm.evaluation.document import Measured, Role, document, plain
from diffulm.evaluation.journal import Journal
from diffulm.options import Count, Draws, Options, Seed, checked
from diffulm.recipes.training import Name

if TYPE_CHECKING:
    from diffulm.evaluation.subject import Subject
    from diffulm.evaluation.trial import Trial
    from diffulm.training.run_folder import RunFolder

# As the columns of the paper's Table 1 come, then what it has in figures; a part that is not named here comes last.
ORDER = (
    *("triviaqa", "lambada", "choices", "gsm8k", "rocstories", "humaneval"),
    *("in_context", "bits_per_byte", "order_gap", "generation", "speed", "mt_bench"),
)
INSTRUCT = ("gsm8k", "mt_bench")  # what only a model can do that was fine-tuned; no table of the paper has the second
PACKAGE = Path(__file__).parents[1]
WHOLE, JOURNAL = "paper", "journal.jsonl"
FREE_KEYS = ("out", "batch_size", "device")  # what may differ between two commands of the same evaluation
DTYPES = Literal["float32", "bfloat16", "float16"]
METHODS = Literal["left_to_right", "bound", "multi_order", "published"]


def parts() -> list[str]:
    """The parts of the suite, by file name: nothing has to be imported to know them."""
    names = {module.name for module in iter_modules(suite.__path__) if not module.name.startswith("_")}
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def suites() -> dict[str, list[str]]:
    """The names that stand for several parts."""
    known = parts()
    whole = [name for name in known if name != "mt_bench"]
    return {WHOLE: whole, "instruct": [name for name in known if name in INSTRUCT]}


def _listed(value: Any) -> Any:
    """ "a,b" -> ["a", "b"]."""
    return [name for name in re.split(r"[,\s]+", value) if name] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class EvalConfig(Options):
    """Every setting of an evaluation."""

    model: Name
    """The diffusion model: a folder, a hub id or a shipped name."""
    parent: Name | None = None
    """Its AR parent, measured beside it."""
    suite: Names = ()
    """Parts of the suite; `paper` is all of them."""
    tasks: Names = ()
    """Tasks of lm-eval."""
    data_dir: Name | None = None
    """The folder of the tasks' files; None: the hub."""
    limit: Count | None = None
    """Rows of each task, samples of each generative part; None: all."""
    batch_size: Count = 16
    """Texts at a time. Changes memory, not results."""
    out: Name | None = None
    """The folder of the results; None: one of its own in `runs`."""
    seed: Seed = 0
    draws: Draws = 32
    """Monte-Carlo draws of a bound."""
    steps: Count | None = None
    """Forwards of a generated text; None: as each part says."""
    shots: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Answered examples before a question; None: as each part says."""
    method: METHODS | None = None
    """How the diffusion model scores answers; None: exactly where that is cheaper."""
    judge: Name | None = None
    """The AR model that judges samples; None: the parent."""
    dtype: DTYPES | None = None
    mask_token_id: Annotated[int, Field(ge=0)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("suite")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in parts() and name not in suites():
                raise unknown("part of the suite", name, [*suites(), *parts()])
        asked = {part for name in names for part in suites().get(name, [name])}
        return tuple(name for name in parts() if name in asked)

    @model_validator(mode="after")
    def _something(self) -> "EvalConfig":
        if not self.suite and not self.tasks:
            raise BadInput(
                f"nothing is asked: give --suite {WHOLE}, parts of it ({', '.join(parts())}), or --tasks with names of lm-eval"
            )
        if self.data_dir is not None and not os.path.isdir(os.path.expanduser(self.data_dir)):
            raise BadInput(f"data_dir={self.data_dir}: no such folder; leave it out to read from the hub")
        return self


def evaluate(model: str | Path, **settings: Any) -> dict[str, Any]:
    """Measure a diffusion model, and its parent beside it. settings: as in `EvalConfig`; `suite` and `tasks` may be lists or
    "a,b". Returns the document that `diffulm eval --json` prints; what else there is lies in the folder `out`.

    Raises BadInput for settings that do not fit, models that cannot be opened, and a folder of another evaluation.
    """
    return run(checked(EvalConfig, **{"model": str(model), **settings}))


def run(config: EvalConfig) -> dict[str, Any]:
    """Measure all that is asked, or go on with what was interrupted, and leave results.json, results.md and report.html."""
    from diffulm.checkpoint import disk
    from diffulm.evaluation.page import write_page
    from diffulm.evaluation.table import markdown, rows
    from diffulm.training.run_folder import RunFolder

    if config.out is not None:  # known to be another's before a model is opened
        RunFolder(Path(config.out).expanduser(), _plain(config), FREE_KEYS).check()
    _check_tasks(config)
    subjects = _opened(config)
    identity = _identity(config, subjects)
    folder = RunFolder(_out(config, identity), _plain(config), FREE_KEYS)
    folder.check()
    print(f"results: {folder.path}", file=sys.stderr)
    begun = folder.path.exists()
    try:
        with folder.claimed(), disk.writing(folder.path, advice="the same command goes on where it was"):
            _same_models(folder, identity)
            measured = _measured(config, subjects, folder)
            found = document(measured, _plain(config, *FREE_KEYS), _about(config, subjects, identity))
            found |= {"table": rows(found)}
            folder.write("results.json", json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
            folder.write("results.md", markdown(found))
            write_page(folder.path / "report.html", found)
    except BadInput:
        if not begun and not (folder.path / JOURNAL).exists():
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return found


def _plain(config: EvalConfig, *without: str) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=set(without))


def _parts(config: EvalConfig) -> list[str]:
    return [*config.suite, *(["tasks"] if config.tasks else [])]


def _folder(config: EvalConfig) -> Path | None:
    return None if config.data_dir is None else Path(config.data_dir).expanduser()


def _check_tasks(config: EvalConfig) -> None:
    if config.tasks:
        from diffulm.evaluation import harness

        harness.check(config.tasks, _folder(config))


def _opened(config: EvalConfig) -> dict[str, "Subject"]:
    """The models by role; a judge that is the parent is opened once."""
    import torch

    from diffulm.evaluation.subject import opened

    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device=cuda: PyTorch finds no GPU here (`diffulm doctor` says what it finds); take device=auto")
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        found = {"child": opened(config.model, config.mask_token_id, dtype)}
    except BadInput as error:
        if "plain AR checkpoint" in str(error):
            raise BadInput(f"{error}; as it is, it can be given as --parent") from None
        raise
    for role, name in (("parent", config.parent), ("judge", config.judge)):
        if name is not None:
            same = found.get("parent") if name == config.parent else None
            found[role] = same or opened(name, dtype=dtype, parent=True)
    for subject in found.values():
        subject.lm.model.to(device)
    return found


def _identity(config: EvalConfig, subjects: dict[str, "Subject"]) -> dict[str, Any]:
    """What the results are the results of: weights and code. Who trains on has another model under the same name."""
    from diffulm.recipes.machine import version

    names = ["diffulm", "torch", "transformers", *(["lm-eval"] if config.tasks else [])]
    weights = {f"weights of {role}": _fingerprint(one.lm.model) for role, one in subjects.items()}
    return weights | {"source": _source()} | {name: version(name) for name in names}


@functools.cache
def _source() -> str:
    """A checksum of this package: what other code has measured is not gone on with, whatever its version is called."""
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _fingerprint(model: Any) -> str:
    """A checksum of a thousand numbers of each tensor: the same on any device, another after a step of training."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        flat = value.detach().flatten()
        digest.update(name.encode())
        digest.update(flat[:: max(1, len(flat) // 1000)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _out(config: EvalConfig, identity: dict[str, Any]) -> Path:
    """The folder asked for, or one whose name tells evaluations apart, so that the same command finds its own again."""
    if config.out is not None:
        return Path(config.out).expanduser()
    key = json.dumps([_plain(config, *FREE_KEYS), identity], sort_keys=True)
    what = WHOLE if list(config.suite) == suites()[WHOLE] else "-".join([*config.suite, *config.tasks])
    name = re.sub(r"[^\w.-]+", "-", f"eval-{Path(config.model).name}-{what}").strip("-")
    return Path("runs") / f"{name[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _same_models(folder: "RunFolder", identity: dict[str, Any]) -> None:
    file = folder.path / "models.json"
    if not file.exists():
        folder.write("models.json", json.dumps(identity, indent=2) + "\n")
        return
    try:
        before = json.loads(file.read_text("utf-8"))
    except ValueError:
        raise BadInput(f"{file}: is damaged; name another folder") from None
    for key in [*before, *identity]:
        if before.get(key) != identity.get(key):
            old, new = before.get(key), identity.get(key)
            raise BadInput(
                f"out={folder.path}: holds another run: {key} is {old!r} there, {new!r} here; name another folder"
            )


def _about(config: EvalConfig, subjects: dict[str, "Subject"], identity: dict[str, Any]) -> dict[str, Any]:
    """What `document` wants to know of the run."""
    precision = {
        role: str(next(one.lm.model.parameters()).dtype).removeprefix("torch.") for role, one in subjects.items()
    }
    versions = {key: value for key, value in identity.items() if key != "source" and not key.startswith("weights")}
    commands = {part: command(config, part) for part in _parts(config)}
    return {"seed": config.seed, "versions": versions, "precision": precision, "command": commands}


def command(config: EvalConfig, part: str) -> str:
    """The command line that repeats one part alone, whatever it was measured together with."""
    usual = EvalConfig.model_construct(model=config.model).model_dump(mode="json")
    words = ["diffulm", "eval", config.model]
    words += ["--tasks", ",".join(config.tasks)] if part == "tasks" else ["--suite", part]
    for key, value in _plain(config, "model", "suite", "tasks", *FREE_KEYS).items():
        if value != usual[key]:
            words += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _measured(config: EvalConfig, subjects: dict[str, "Subject"], folder: "RunFolder") -> list[Measured]:
    """Part by part, the parent after the child."""
    from diffulm.evaluation.trial import Trial
    from diffulm.recipes.evaluation_progress import Overall

    roles: list[Role] = ["child", "parent"] if "parent" in subjects else ["child"]
    units: list[tuple[str, Role]] = [(part, role) for part in _parts(config) for role in roles]
    measured: list[Measured] = []
    with Overall([f"{part}, {subjects[role].name}" for part, role in units]) as overall:
        journal = Journal(folder.path / JOURNAL, overall.told)
        for number, (part, role) in enumerate(units):
            overall.next(number)
            trial = Trial(
                subjects[role],
                subjects.get("parent"),
                subjects.get("judge", subjects.get("parent")),
                _folder(config),
                batch_size=config.batch_size,
                journal=journal,
                **_plain(
                    config,
                    "model",
                    "parent",
                    "judge",
                    "suite",
                    "tasks",
                    "data_dir",
                    "dtype",
                    "mask_token_id",
                    *FREE_KEYS,
                ),
            )
            cells = _of_tasks(trial, config, role, folder) if part == "tasks" else list(_of_part(trial, part))
            measured += [Measured(role, subjects[role].name, part, cell) for cell in cells]
    notes = [one.cell.note for one in measured if one.cell.value is None]
    if config.data_dir is None and len(notes) == len(measured) > 0:
        raise BadInput(f"nothing could be measured: {notes[0]}")  # no hub, most likely
    return measured


def _of_part(trial: "Trial", part: str) -> Iterator[Cell]:
    """The cells of a part; of one that cannot be measured one that says why, so that the others are."""
    import torch

    module = import_module(f"diffulm.evaluation.suite.{part}")
    try:
        yield from module.run(trial)
    except NoData:
        yield absent(part, "", "no data")
    except BadInput as error:
        yield absent(part, "", str(error))
    except FloatingPointError:
        why = "its logits are NaN or infinite: it was trained badly, or needs bfloat16 or float32"
        yield absent(part, "", f"{trial.subject.name}: {why}")
    except torch.OutOfMemoryError:
        yield absent(
            part, "", f"out of memory: the same command with a smaller --batch-size than {trial.batch_size} goes on"
        )


def _of_tasks(trial: "Trial", config: EvalConfig, role: Role, folder: "RunFolder") -> list[Cell]:
    """lm-eval's tasks; its own results go to a file beside ours."""
    from diffulm.evaluation import harness

    cells, results = harness.run(trial.subject, config.tasks, trial)
    text = json.dumps(plain(results), indent=2, allow_nan=False, ensure_ascii=False)
    folder.write(f"lm-eval-{role}.json", text + "\n")
    return cells
