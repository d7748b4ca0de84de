"""`diffulm eval MODEL --parent pocket-ar --suite lambada,choices --limit 20`"""

from __future__ import annotations

import sys

import typer

from diffulm.cli import _common, _process


def eval(
    model: str = _common.MODEL,
    suite: str = typer.Option("", "--suite", help="paper (all of it), instruct, or parts: a,b.", show_default=False),
    tasks: str = typer.Option("", "--tasks", help="Tasks of lm-eval: a,b.", show_default=False),
    parent: str | None = typer.Option(None, "--parent", help="The AR model to measure beside it.", show_default=False),
    data_dir: str | None = typer.Option(
        None, "--data-dir", help="The folder of the tasks' files.  [default: the hub]", show_default=False
    ),
    limit: int | None = typer.Option(
        None, "--limit", help="Rows of each task, samples of each generative part.  [default: all]", show_default=False
    ),
    out: str | None = typer.Option(
        None, "--out", help="The folder of the results.  [default: a new one in runs]", show_default=False
    ),
    judge: str | None = typer.Option(
        None, "--judge", help="The AR model that judges samples.  [default: the parent]", show_default=False
    ),
    method: str | None = typer.Option(
        None,
        "--method",
        help="How answers are scored: left_to_right, bound, multi_order, published.  [default: exactly where that is cheaper]",
        show_default=False,
    ),
    draws: int = typer.Option(32, "--draws", help="Monte-Carlo draws of a bound."),
    steps: int | None = typer.Option(
        None, "--steps", help="Forwards of a generated text.  [default: as each part says]", show_default=False
    ),
    shots: int | None = typer.Option(
        None, "--shots", help="Answered examples before a question.  [default: as each part says]", show_default=False
    ),
    seed: int = _common.SEED,
    batch_size: int = typer.Option(16, "--batch-size", help="Texts at a time. Changes memory, not results."),
    mask_token_id: int | None = _common.MASK_TOKEN_ID,
    dtype: str | None = _common.DTYPE,
    device: str = typer.Option("auto", "--device", help="auto (a GPU where there is one), cpu or cuda."),
    as_json: bool = _common.JSON,
) -> None:
    """Measure a model, and its parent beside it.

    The paper's suite in one table with errors, and tasks of lm-eval. The same command, given again, goes on where it was
    stopped; the folder of the results holds results.json, results.md and report.html.
    """
    from diffulm.options import checked

    _process.when_stopped("the same command goes on where it was")
    with _common.only_result() as result:
        from diffulm.recipes.evaluate import EvalConfig, run

        asked = {"suite": suite, "tasks": tasks, "parent": parent, "data_dir": data_dir, "limit": limit, "out": out}
        asked |= {"judge": judge, "method": method, "draws": draws, "steps": steps, "shots": shots, "seed": seed}
        asked |= {"batch_size": batch_size, "mask_token_id": mask_token_id, "dtype": dtype, "device": device}
        found = run(checked(EvalConfig, model=model, **asked))
        if as_json:
            _common.write_json(found, result)
        else:
            _show(found, result)
            print("results.md and report.html are beside results.json", file=sys.stderr)


def _show(found: dict, result) -> None:
    from rich.console import Console

    from diffulm.evaluation.table import show

    show(found, Console(file=result, highlight=False))
