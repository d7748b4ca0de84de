"""The tables of an evaluation: one laid out as the paper's Table 1, the paper's own figures marked as such below it, and one
of everything else; for terminals of any width, and as Markdown. Made from the document alone. No torch in here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from diffulm.evaluation import paper

Row = dict[str, Any]
# in two lines, so that the table fits into 80 columns
NAMES = {"TriviaQA": "Trivia\nQA", "LAMBADA": "LAM-\nBADA", "HellaSwag": "Hella-\nSwag", "Winogrande": "Wino-\ngrande"}
TASKS = {"Code": "humaneval", "GSM8K": "gsm8k_symbolic"}  # columns whose task is not called so
PARTS = {
    "TriviaQA": "triviaqa",
    "LAMBADA": "lambada",
    "GSM8K": "gsm8k",
    "ROCStories": "rocstories",
    "Code": "humaneval",
}
SHARES = ("accuracy", "exact match", "pass@", "hit@", "rouge", "self-consistency", "distinct", "repeated", "share")
ROUGE = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
WIDE = 80  # columns of a terminal that the first table needs
MEANING = (
    "Figures of shares in percent, each with its standard error. oracle: the canvas tells the model how long the answer is; "
    "free: it does not; neither word: nothing hidden tells a length."
)
PAPER = "The rows marked (paper) stand in the paper, they were not measured here; *: prefix only."


@dataclass
class Grid:
    """A table of text: a cell is its lines. notes: what the marks [1], [2], ... in it stand for."""

    head: list[str]
    rows: list[list[list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    references: int = 0
    """How many of the last rows are the paper's."""

    def mark(self, note: str) -> str:
        if note not in self.notes:
            self.notes.append(note)
        return f"[{self.notes.index(note) + 1}]"


def share(metric: str) -> bool:
    """Whether a figure lies between 0 and 1 and is shown in percent."""
    return metric.lower().startswith(SHARES)


def figure(cell: Row) -> tuple[float | None, float | None]:
    """(value, standard error), percent for shares; clock readings stand under other keys."""
    for key, error in (("value", "stderr"), ("seconds", "seconds_stderr"), ("per_second", "per_second_stderr")):
        if cell.get(key) is not None:
            factor = 100 if share(cell["metric"]) else 1
            return cell[key] * factor, None if cell[error] is None else cell[error] * factor
    return None, None


def column(cells: Iterable[Row], name: str) -> list[Row]:
    """The cells of a column of Table 1 among those of one model: one, three for ROUGE; none where it was not asked.

    Zero-shot and with the length given where there is a choice, as in the paper; the others stand in the second table.
    """
    task, part = TASKS.get(name, name.lower()), PARTS.get(name, "choices")
    own = [cell for cell in cells if cell["part"] != "tasks"]
    found = [cell for cell in own if cell["task"] == task and not cell["settings"].get("shots")]
    if name == "ROCStories":
        rouge = [next((cell for cell in found if cell["metric"] == metric), None) for metric in ROUGE]
        if all(rouge):
            return [cell for cell in rouge if cell]
    found = [cell for cell in found if share(cell["metric"]) or figure(cell)[0] is None]
    found.sort(key=lambda cell: cell["length"] == "free")
    return found[:1] or [cell for cell in own if cell["part"] == cell["task"] == part and not cell["metric"]][:1]


def roles(document: Row) -> list[tuple[str, str]]:
    """(role, model) in the order of the rows."""
    named = [("parent", document["parent"]), ("child", document["model"])]
    return [(role, model) for role, model in named if model is not None]


def in_table_1(document: Row) -> list[tuple[str, str, dict[str, list[Row]]]]:
    """(role, model, its cells by column) of each model; [] where no column of Table 1 was asked."""
    found = []
    for role, model in roles(document):
        own = [cell for cell in document["cells"] if cell["role"] == role]
        found.append((role, model, {name: column(own, name) for name in paper.COLUMNS}))
    return found if any(cells for *_, columns in found for cells in columns.values()) else []


def rows(document: Row) -> list[Row]:
    """Table 1 for programs: a row each of parent and child, and the paper's; figures in percent."""
    made: list[Row] = []
    for role, model, columns in in_table_1(document):
        shown = {}
        for name, cells in columns.items():
            figures, note = [figure(cell) for cell in cells], "; ".join(cell["note"] for cell in cells if cell["note"])
            about = {"length": cells[0]["length"] if cells else None, "note": note if cells else "not asked"}
            shown[name] = {"values": [v for v, _ in figures], "stderrs": [e for _, e in figures]} | about
        made.append({"model": model, "source": "measured", "role": role, "columns": shown})
    for one in paper.TABLE_1 if made else ():
        shown = {name: {"values": list(values), "note": ""} for name, values in one.values.items()}
        for name in ("ROCStories", "Code") if one.prefix_only else ():
            shown[name]["note"] = "prefix only"
        made.append({"model": one.model, "source": paper.SOURCE, "role": "paper", "columns": shown})
    return made


def table_1(document: Row) -> Grid | None:
    """The first table; None where none of its columns was asked."""
    grid = Grid(["model", *paper.COLUMNS])
    for role, model, columns in in_table_1(document):
        shown = [_cell(grid, cells) for cells in columns.values()]
        grid.rows.append([[model, f"({role})"], *shown])
    if not grid.rows:
        return None
    for one in paper.TABLE_1:
        shown = {name: "/".join(f"{value:.1f}" for value in values) for name, values in one.values.items()}
        for name in ("ROCStories", "Code") if one.prefix_only else ():
            shown[name] += "*"
        grid.rows.append([[one.model, "(paper)"], *([text] for text in shown.values())])
    grid.references = len(paper.TABLE_1)
    return grid


def _cell(grid: Grid, cells: Sequence[Row]) -> list[str]:
    """Value, error, length rule, marks of notes: a line each."""
    if not cells:
        return ["-"]
    figures = [figure(cell) for cell in cells]
    if figures[0][0] is None:
        note = cells[0]["note"]
        return [note] if note == "no data" else [f"- {grid.mark(note)}"]
    lines = ["/".join("-" if value is None else f"{value:.1f}" for value, _ in figures)]
    if any(error is not None for _, error in figures):
        lines.append("±" + "/".join("-" if error is None else f"{error:.1f}" for _, error in figures))
    marks = "".join(grid.mark(note) for note in dict.fromkeys(cell["note"] for cell in cells) if note)
    word = cells[0]["length"] if cells[0]["length"] != "none" else ""
    return [*lines, *([word] if word else []), *([marks] if marks else [])]


def others(document: Row) -> Grid | None:
    """The second table: what is not in the first, parent and child beside each other, and their difference."""
    used = {id(cell) for *_, columns in in_table_1(document) for cells in columns.values() for cell in cells}
    by: dict[tuple[str, ...], dict[str, Row]] = {}
    for cell in document["cells"]:
        if not (cell["note"] == "no data" and id(cell) in used):
            by.setdefault((cell["part"], cell["task"], cell["metric"], cell["variant"]), {})[cell["role"]] = cell
    _one_parent_for_all(by)
    differences = {tuple(one[k] for k in ("part", "task", "metric", "variant")): one for one in document["differences"]}
    names = roles(document)
    pair = len(names) == 2
    grid = Grid(["task", "metric", *(f"{model} ({role})" for role, model in names), *(["difference"] if pair else [])])
    for key, found in by.items():
        difference = differences.get(key)
        if all(id(cell) in used for cell in found.values()) and not difference:
            continue
        shown = [_figure(grid, found.get(role)) for role, _ in names]
        variant = ", ".join(
            word for word in key[3].split(", ") if not word.startswith("length ")
        )  # stands in the cells
        what = [key[1] + (f" ({variant})" if variant else "")], [key[2]]
        grid.rows.append([*what, *shown, *([_difference(difference)] if pair else [])])
    return grid if grid.rows else None


def _one_parent_for_all(by: dict[tuple[str, ...], dict[str, Row]]) -> None:
    """A parent with one cell of a task and metric stands beside each of the child's."""
    for key in [key for key, found in by.items() if list(found) == ["parent"]]:
        alike = [other for other in by if other[:3] == key[:3] and other != key]
        if alike and all(list(by[other]) == ["child"] for other in alike):
            for other in alike:
                by[other]["parent"] = by[key]["parent"]
            del by[key]


def _figure(grid: Grid, cell: Row | None) -> list[str]:
    if cell is None:
        return ["-"]
    value, error = figure(cell)
    if value is None:
        return [cell["note"]] if cell["note"] == "no data" else [f"- {grid.mark(cell['note'] or 'no figure')}"]
    line = number(value) + ("%" if share(cell["metric"]) else "")
    line += "" if error is None else f" ±{number(error)}"
    per = "" if cell["normalisation"] == "none" else f"per {cell['normalisation']}"
    words = [cell["length"] if cell["length"] != "none" else "", per, grid.mark(cell["note"]) if cell["note"] else ""]
    return [line, *([" ".join(filter(None, words))] if any(words) else [])]


def _difference(found: Row | None) -> list[str]:
    """Child minus parent, its interval of 95%, and McNemar's p for answers that are right or wrong."""
    if found is None:
        return [""]
    factor = 100 if share(found["metric"]) else 1
    low, high = (number(factor * end) for end in found["interval"])
    p = "" if found["p"] is None else f"p={found['p']:.2g}"
    return [signed(factor * found["difference"]), f"{low} to {high}", *([p] if p else [])]


def number(value: float) -> str:
    """As short as it can be read."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def show(document: Row, console: Console) -> None:
    """Both tables and their notes. Below `WIDE` columns the first one stands on its side."""
    first, second = table_1(document), others(document)
    if first:
        _print(console, first if console.width >= WIDE else on_its_side(first))
        console.print(_words(f"{MEANING} {PAPER}"))
    if second:
        _print(console, second)
        if document["differences"]:
            console.print(_words(DIFFERENCES))


DIFFERENCES = (
    "difference: child minus parent on the same questions, with its interval of 95%; p: McNemar's exact test, for answers "
    "that are right or wrong."
)


def _words(text: str) -> Any:
    from rich.text import Text

    return Text(text, style="dim")


def on_its_side(grid: Grid) -> Grid:
    """A row a column of the paper; of the paper's models none, for want of room."""
    kept = grid.rows[: len(grid.rows) - grid.references]
    turned = [[[name], *(row[i] for row in kept)] for i, name in enumerate(grid.head) if i]
    return Grid(["task", *(" ".join(row[0]) for row in kept)], turned, grid.notes)


def _print(console: Console, grid: Grid) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE, padding=0, show_edge=False)
    for name in grid.head:
        drawn.add_column(Text(NAMES.get(name, name) if console.width < 2 * WIDE else name), overflow="fold")
    printed = len(grid.rows) - grid.references
    for i, row in enumerate(grid.rows):
        if i == printed:
            drawn.add_section()
            drawn.add_row(Text("(paper)", style="dim"))
        cells = [row[0][:1], *row[1:]] if i >= printed else row
        drawn.add_row(*(Text("\n".join(lines), style="dim" if i >= printed else "") for lines in cells))
    console.print(drawn)
    for i, note in enumerate(grid.notes, 1):
        console.print(_words(f"[{i}] {note}"))
    console.print()


def markdown(document: Row) -> str:
    """Both tables, notes, and the commands that repeat them."""
    title = f"# {document['model']}" + (f" and its parent {document['parent']}" if document["parent"] else "")
    blocks = [title]
    for grid, words in ((table_1(document), f"{MEANING} {PAPER}"), (others(document), DIFFERENCES)):
        if grid is None:
            continue
        lines = [[" ".join(lines) for lines in row] for row in grid.rows]
        drawn = [_line(grid.head), "|" + "---|" * len(grid.head), *map(_line, lines)]
        blocks += ["\n".join(drawn), words, *(f"[{i}] {note}" for i, note in enumerate(grid.notes, 1))]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    commands = dict.fromkeys(cell["settings"]["command"] for cell in document["cells"])
    return "\n\n".join([*blocks, f"Versions: {versions}.", "\n".join(f"    {one}" for one in commands)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def settings(cell: Row) -> Mapping[str, Any]:
    """What repeats a cell, without what does not apply to it."""
    return {key: value for key, value in cell["settings"].items() if value is not None}
