"""report.html of an evaluation: tables, charts and the settings of every cell in one file that asks no host for anything."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffulm.evaluation import paper, table
from diffulm.evaluation.charts import Bar, Line, bars, chart
from diffulm.evaluation.table import Grid, Row

STYLE = """:root{color-scheme:light dark;--ink:#222;--page:#fff;--rule:#ccc;--quiet:#555;--faint:#f4f4f4}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--page:#16181b;--rule:#444;--quiet:#a5a5a5;--faint:#222529}
svg line[stroke="#e4e4e4"]{stroke:#34373b}svg line[stroke="#555"]{stroke:#aaa}
svg polyline,svg circle,svg rect{filter:brightness(1.35)}}
body{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--page)}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .7rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top;white-space:pre-line}
td small,.how,.note{color:var(--quiet)}tr.paper{color:var(--quiet);font-style:italic}
svg{width:100%}svg text{fill:var(--quiet)}pre{background:var(--faint);padding:.8rem;overflow-x:auto}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(25rem,1fr));gap:0 2rem}.charts>div{max-width:38rem}
.legend{margin:.2rem 0;font-size:.85rem}.legend span{margin-right:1rem}.how,.note{margin:.2rem 0;font-size:.9rem}"""


def write_page(file: Path, document: Row) -> None:
    """Write the report, whole or not at all."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(page(document), "utf-8", errors="backslashreplace")  # names of files need not be text
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def page(document: Row) -> str:
    title = f"DiffuLM: {document['model']}" + (f" and its parent {document['parent']}" if document["parent"] else "")
    first, second = table.table_1(document), table.others(document)
    charts = "".join(_panels(document))
    body = [f"<h1>{html.escape(title)}</h1>"]
    if first:
        body += ["<h2>As the paper's Table 1</h2>", _grid(first), _note(f"{table.MEANING} {table.PAPER}")]
        body += [_note(f"The paper: {paper.SOURCE}.")]
    body += [f'<h2>Charts</h2><div class="charts">{charts}</div>'] if charts else []
    if second:
        body += ["<h2>Everything else, and the differences</h2>", _grid(second), _note(table.DIFFERENCES)]
    body += ["<h2>What repeats each figure</h2>", *(_settings(cell) for cell in document["cells"])]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body>{''.join(body)}<p>Versions: {html.escape(versions)}.</p></body></html>\n"
    )


def _grid(grid: Grid) -> str:
    def row(cells: Sequence[Sequence[str]], tag: str, kind: str = "") -> str:
        shown = (
            f"<{tag}>{html.escape(first)}{''.join(f'<br><small>{html.escape(line)}</small>' for line in rest)}</{tag}>"
            for first, *rest in cells
        )
        return f"<tr{kind}>{''.join(shown)}</tr>"

    printed = len(grid.rows) - grid.references
    body = (row(cells, "td", ' class="paper"' if i >= printed else "") for i, cells in enumerate(grid.rows))
    notes = "".join(_note(f"[{i}] {note}") for i, note in enumerate(grid.notes, 1))
    return f'<div class="scroll"><table>{row([[name] for name in grid.head], "th")}{"".join(body)}</table></div>{notes}'


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _settings(cell: Row) -> str:
    value, error = table.figure(cell)
    name = " · ".join(filter(None, (cell["model"], cell["task"], cell["metric"], cell["variant"])))
    shown = "-" if value is None else table.number(value) + ("" if error is None else f" ±{table.number(error)}")
    facts = {"questions": cell["count"], "note": cell["note"], **cell["counts"], **table.settings(cell)}
    lines = (
        f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(_said(v))}</td></tr>" for k, v in facts.items() if v != ""
    )
    return f"<details><summary>{html.escape(name)}: {shown}</summary><table>{''.join(lines)}</table></details>"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _panels(document: Row) -> list[str]:
    """The charts, each with a sentence on how to read it; those without data are left out."""
    return [
        _panel("Accuracy, %", _accuracies(document), "Bars with 95% intervals; dashed: what guessing gets."),
        _panel("The order gap", _order_gap(document), ORDER_GAP),
        *_lines(document, "generation", "steps", "steps", GENERATION),
        *_lines(document, "speed", "positions", "positions of a text", SPEED),
    ]


ORDER_GAP = (
    "From the parent to left to right: what adaptation lost. From there to the any-order bound: what averaging over orders "
    "costs, which is no loss of the model's."
)
GENERATION = (
    "To be read together: dull text is cheap, so a perplexity that falls while entropy falls with it is no gain."
)
SPEED = "A diffusion model takes its steps whatever the length; an AR model one forward a token."


def _panel(title: str, drawn: str, how: str) -> str:
    return f'<div><h3>{html.escape(title)}</h3>{drawn}<p class="how">{html.escape(how)}</p></div>' if drawn else ""


def _accuracies(document: Row) -> str:
    groups: dict[str, list[Bar]] = {}
    levels: dict[str, float] = {}
    cells = [cell for cell in document["cells"] if cell["metric"] == "accuracy" and cell["value"] is not None]
    for cell in sorted(cells, key=lambda cell: cell["role"] != "parent"):
        name = cell["task"] + (f" ({cell['variant']})" if cell["variant"] else "")
        ends = (100 * end for end in cell["interval"] or (None, None) if end is not None)
        groups.setdefault(name, []).append(Bar(_series(cell), 100 * cell["value"], *ends))
        if cell["settings"].get("chance") is not None:
            levels[name] = 100 * cell["settings"]["chance"]
    return bars("accuracy, %", list(groups.items()), levels)


def _order_gap(document: Row) -> str:
    cells = [cell for cell in document["cells"] if cell["part"] == "order_gap" and cell["value"] is not None]
    groups: dict[str, list[Bar]] = {}
    for cell in sorted(cells, key=lambda cell: cell["role"] != "parent"):
        name = cell["task"].removeprefix("order gap, ")
        groups.setdefault(name, []).append(Bar(_series(cell), cell["value"], *(cell["interval"] or ())))
    return bars(cells[0]["metric"] if cells else "", list(groups.items()))


def _lines(document: Row, part: str, key: str, x_label: str, how: str) -> list[str]:
    """A chart for each metric of a part over one of its settings; who has no such setting is a line across."""
    cells = [cell for cell in document["cells"] if cell["part"] == part and table.figure(cell)[0] is not None]
    made = []
    for metric in dict.fromkeys(cell["metric"] for cell in cells):
        own = sorted((one for one in cells if one["metric"] == metric), key=lambda one: one["role"] != "parent")
        swept = [cell for cell in own if isinstance(cell["settings"].get(key), int)]
        lines: dict[str, list[tuple[float, float]]] = {}
        for cell in swept:
            lines.setdefault(_series(cell), []).append((float(cell["settings"][key]), _value(cell)))
        levels = {_level(cell): _value(cell) for cell in own if cell not in swept}
        ordered = [Line(name, sorted(points)) for name, points in lines.items()]
        made.append(_panel(metric, chart(x_label, ordered, levels, log="perplexity" in metric), how))
    return made


def _level(cell: Row) -> str:
    """What a line across is called: a text, or who wrote it from left to right."""
    what = cell["task"].partition(", ")[2]
    return what if what.startswith("text of") else f"{cell['model']}, {what}"


def _value(cell: Row) -> float:
    value, _ = table.figure(cell)
    assert value is not None
    return value


def _series(cell: Row) -> str:
    return f"{cell['model']} ({cell['role']})"
