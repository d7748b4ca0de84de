"""A run's report.html: self-contained, made from metrics.jsonl alone, so it can be made again at any time."""

import base64
import html
import io
from pathlib import Path
from typing import Any

from diffulm.training.run_folder import read_metrics

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:left}
img{max-width:100%}pre{background:#f4f4f4;padding:.8rem;overflow-x:auto}"""


def write_report(folder: Path, title: str, facts: dict[str, Any], sections: str = "") -> Path:
    """Write `folder`/report.html: the loss curves, `facts` as a table, then `sections` (HTML). Returns its path."""
    rows = read_metrics(folder / "metrics.jsonl")
    config = (folder / "config.yaml").read_text("utf-8")
    body = f"<h1>{html.escape(title)}</h1>{_plot(rows)}{table(['', ''], [[k, v] for k, v in facts.items()])}{sections}"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}<h2>Config</h2><pre>{html.escape(config)}</pre></body></html>\n"
    )
    file = folder / "report.html"
    file.write_text(page, "utf-8", errors="backslashreplace")  # names of files need not be text
    return file


def table(head: list[str], rows: list[list[Any]]) -> str:
    """An HTML table; numbers are rounded to what can be read."""
    cells = ["".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) for row in rows]
    top = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>" if any(head) else ""
    return "<table>" + top + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plot(rows: list[dict[str, Any]]) -> str:
    """Loss and bound by tokens as an inline picture; a sentence where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "<p>No plot: matplotlib is not installed (<code>pip install diffulm[plot]</code>).</p>"
    train = [(row["tokens"] / 1e6, row["loss"]) for row in rows if "loss" in row]
    scale = train[-1][0] / max(row["step"] for row in rows) if train else 0.0
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color="#bbb", label="training loss")
    for name, label in (("eval_bound", "bound, held-out text"), ("eval_ar", "AR loss, held-out text")):
        points = [(row["step"] * scale, row[name]) for row in rows if name in row]
        if points and not (name == "eval_ar" and len(points) < 2):
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    parent = next((row["eval_parent"] for row in rows if "eval_parent" in row), None)
    if parent is not None and any("eval_bound" in row for row in rows):
        axes.axhline(parent, linestyle="--", color="#444", label="AR parent, held-out text")
    axes.set(xlabel="tokens seen (millions)", ylabel="nats a token")
    axes.legend()
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    picture = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="loss by tokens seen" src="data:image/png;base64,{picture}">'
