"""A run's report.html: self-contained, made from metrics.jsonl and config.yaml alone, so it can be made again at any time."""

import html
import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from diffulm.errors import BadInput
from diffulm.evaluation.charts import Line, chart
from diffulm.training import health
from diffulm.training.run_folder import read_metrics

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:left}
svg{width:100%}pre{background:#f4f4f4;padding:.8rem;overflow-x:auto}
.verdict{padding:.6rem 1rem;border-left:5px solid #3b8a3e;background:#f2f8f2}.wrong{border-color:#b3261e;background:#fbeeed}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(25rem,1fr));gap:0 2rem}
.legend{margin:.2rem 0;font-size:.85rem}.legend span{margin-right:1rem}.how{margin:.2rem 0;font-size:.9rem;color:#555}"""
LEVELS = tuple(range(5, 100, 10))
COLUMNS = (
    *("ar", "bound", "left_to_right", "future", "eos", "repeats", "entropy", "perplexity"),
    *("exact", "empty", "ended", "length_error"),
)
Rows = list[dict[str, Any]]


def write_report(folder: Path, title: str, facts: dict[str, Any], sections: str = "") -> Path:
    """Write `folder`/report.html: verdict, charts, `facts` as a table, `sections` (HTML), settings. Returns its path."""
    rows = read_metrics(folder / "metrics.jsonl")
    settings = (folder / "config.yaml").read_text("utf-8")
    config = yaml.safe_load(settings)
    found = health.examine(rows, config)
    kind = "verdict wrong" if found.warnings else "verdict"
    more = "".join(f"<li>{html.escape(warning)}</li>" for warning in [*found.warnings.values()][1:])
    body = (
        f"<h1>{html.escape(title)}</h1>"
        f'<div class="{kind}"><b>{html.escape(found.line)}</b>{f"<ul>{more}</ul>" if more else ""}</div>'
        f"<p>{html.escape(_where(rows))}</p>"
        f'<div class="charts">{"".join(_panels(rows, config))}</div>'
        f"{table(['', ''], [[k, v] for k, v in facts.items()])}{sections}{_evaluations(rows)}"
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}<h2>Config</h2><pre>{html.escape(settings)}</pre></body></html>\n"
    )
    partial = folder / f"report.html.{os.getpid()}.tmp"  # a run and `diffulm report` may write it at the same moment
    try:
        partial.write_text(page, "utf-8", errors="backslashreplace")  # names of files need not be text
        os.replace(partial, folder / "report.html")
    finally:
        partial.unlink(missing_ok=True)
    return folder / "report.html"


def title_of(config: dict[str, Any]) -> str:
    return f"DiffuLM: {config['model']}, {config['objective']}"


def remade(folder: Path) -> dict[str, Any]:
    """Make the report of a run that has ended or goes on; returns where it is, the verdict and what looks wrong.

    Raises:
        BadInput: the folder holds no run.
    """
    if not (folder / "config.yaml").is_file():
        raise BadInput(f"{folder}: holds no run (no config.yaml); name the folder that was given as out=...")
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    done = folder / "report.json"
    page = write_report(folder, title_of(config), json.loads(done.read_text("utf-8")) if done.is_file() else {})
    found = health.examine(read_metrics(folder / "metrics.jsonl"), config)
    return {"report": str(page), "verdict": found.line, "warnings": found.warnings}


def table(head: list[str], rows: list[list[Any]]) -> str:
    """An HTML table; numbers are rounded to what can be read."""
    cells = ["".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) for row in rows]
    top = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>" if any(head) else ""
    return "<table>" + top + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _where(rows: Rows) -> str:
    """How far the run is, in a line."""
    last = next((row for row in reversed(rows) if "loss" in row), None)
    if last is None:
        return "No step has been logged yet."
    said = [f"Step {last['step']:,}", f"{last['tokens'] / 1e6:,.2f}M tokens"]
    if "tokens_per_second" in last:
        said.append(f"{last['tokens_per_second']:,.0f} tokens a second")
    if "utilisation" in last:
        said.append(f"{last['utilisation']:.0%} of the device's peak")
    if left := round(last.get("time_to_go", 0)):
        said.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} to go")
    return ", ".join(said) + "."


def _evaluations(rows: Rows) -> str:
    """Every evaluation in numbers, folded away."""
    looks = [row for row in rows if any(f"eval_{name}" in row for name in COLUMNS)]
    names = [name for name in COLUMNS if any(f"eval_{name}" in row for row in looks)]
    body = [[row["step"], *(row.get(f"eval_{name}") for name in names)] for row in looks]
    return f"<details><summary>All evaluations in numbers</summary>{table(['step', *names], body)}</details>"


def _panels(rows: Rows, config: dict[str, Any]) -> list[str]:
    """One chart after the other with a sentence each on how to read it; those without data are left out."""
    start = next((row for row in rows if "eval_unigram" in row), {})
    tokens_a_step = config.get("global_batch", 1) * config.get("length", 1)

    def line(key: str, label: str, faint: bool = False) -> Line:
        points = [(row["step"] * tokens_a_step / 1e6, float(row[key])) for row in rows if key in row]
        return Line(label, points, faint)

    def levels(**named: str) -> dict[str, float]:
        return {name.replace("_", " "): start[key] for name, key in named.items() if key in start}

    references = levels(parent="eval_parent", unigram_entropy="eval_unigram")
    if config.get("scratch"):
        references.pop("parent", None)
    judge = {"parent on text": math.exp(references["parent"])} if "parent" in references else {}
    by_level = [_by_level(row, label) for row, label in _first_and_last([r for r in rows if "eval_bound" in r])]
    x = "tokens seen (millions)"
    held_out = [
        line("loss", "training", faint=True),
        line("eval_bound", "bound"),
        line("eval_left_to_right", "left to right"),
    ]
    quality = [line("eval_eos", "EOS"), line("eval_repeats", "repeated 4-grams")]
    of_text = levels(EOS_in_text="eval_data_eos", repeats_in_text="eval_data_repeats")
    return [
        _panel("Loss, nats a token", chart(x, [*held_out, line("eval_ar", "AR loss")], references), LOSS),
        _panel("Loss by share of masked tokens", chart("share masked", by_level, references), NOISE),
        _panel("Gradient norm", chart(x, [line("grad_norm", "before clipping")], log=True), GRADIENT),
        _panel("Learning rate", chart(x, [line("learning_rate", "learning rate")]), "Rises in warm-up, then falls."),
        _panel("Annealing ratio", chart(x, [line("anneal_ratio", "share of the future that is open")]), ANNEALING),
        _panel("Help from the right side", chart(x, [line("eval_future", "nats a token")], {"none": 0.0}), FUTURE),
        _panel("Replies", chart(x, [line(f"eval_{name}", name) for name in ("exact", "empty", "ended")]), REPLIES),
        _panel("Replies: length", chart(x, [line("eval_length_error", "tokens off")]), LENGTH),
        _panel("Samples: EOS and repeats", chart(x, quality, of_text), QUALITY),
        _panel("Samples: entropy", chart(x, [line("eval_entropy", "nats")], levels(text="eval_data_entropy")), ENTROPY),
        _panel("Samples: perplexity", chart(x, [line("eval_perplexity", "by the parent")], judge, log=True), PERPLEXITY),
        _panel("Tokens a second", chart(x, [line("tokens_per_second", "tokens a second")]), "Flat, but for evaluations."),
        _panel("Utilisation", chart(x, [line("utilisation", "share of the peak")]), UTILISATION),
    ]  # fmt: skip


LOSS = (
    "Falls fast, then slowly, below the unigram entropy. The bound averages over all orders and stays above the parent; left "
    "to right is the like of the parent's loss."
)
NOISE = (
    "Rises with the share that is masked: at the left it should end below the parent's loss (both sides help), at the right "
    "near the unigram entropy and not above it. The first line is the parent as it stood, under full attention."
)
GRADIENT = "High at the start and while attention opens, then lower and steady. Growing: the learning rate is too high."
ANNEALING = "From causal attention, 0, to full attention, 1."
FUTURE = "What seeing the text to the right saves. Below 0 until attention is open, then above; exactly 0: attention is causal."
QUALITY = "Both near the dashed lines. EOS far above the text's: collapse. Many repeats: too few steps of training."
REPLIES = (
    "Shares of greedy replies to held-out prompts: word for word the one in the data, nothing at all, ended by the token that "
    "ends a reply. Empty should be 0 and ended 1; exact says something where a prompt has one right reply."
)
LENGTH = "How far the lengths of these replies are from those in the data, in the mean. Falls; to 0 where one reply is right."
ENTROPY = "Near the text's. Much lower: samples use few words again and again."
PERPLEXITY = "Falls towards the parent's on real text; to be read with the entropy, as dull text is cheap."
UTILISATION = "Operations that the training needs over what the device could do at most."


def _panel(title: str, drawn: str, how: str) -> str:
    return f'<div><h3>{html.escape(title)}</h3>{drawn}<p class="how">{html.escape(how)}</p></div>' if drawn else ""


def _first_and_last(looks: Rows) -> list[tuple[dict[str, Any], str]]:
    named = [(row, "the parent as it was" if row["step"] == 0 else f"step {row['step']:,}") for row in looks]
    return named if len(named) < 2 else [named[0], named[-1]]


def _by_level(row: dict[str, Any], label: str) -> Line:
    points = [(level / 100, row[f"eval_noise_{level:02}"]) for level in LEVELS if f"eval_noise_{level:02}" in row]
    return Line(label, points)
