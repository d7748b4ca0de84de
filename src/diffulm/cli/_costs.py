"""How `inspect` and `adapt --plan` show what they have to say on terminals of any width: sections, sizes, times, cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDE, NARROW = 70, 50  # columns: the table of cards needs so many; two columns of text do


def section(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """A title and names with what is to be said of them: beside each other, on a narrow terminal below."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    # Text, never str: what a model's files say is no markup
    console.print(Text(title, style="bold", overflow="fold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        said = Text(name, style="dim"), Text(value, overflow="fold")
        if console.width < NARROW:
            console.print(said[0], Padding(said[1], (0, 0, 0, 2)), sep="\n")
        else:
            table.add_row(*said)
    if table.row_count:
        console.print(table)
    console.print()


def cards(
    console: Console,
    rows: list[dict[str, Any]],
    cell: Callable[[dict[str, Any], str], str],
    last: tuple[str, dict[str, str]] | None = None,
) -> None:
    """A table of `costs.card_rows`: what `cell` says of a card and a number of devices; last: a column and its cells."""
    from rich import box
    from rich.table import Table

    devices = list(rows[0]["hours"])
    if console.width < WIDE:
        more = {row["card"]: f"; {last[0]}: {last[1][row['card']]}" if last else "" for row in rows}
        told = {row["card"]: ", ".join(f"{n}: {cell(row, n)}" for n in devices) for row in rows}
        section(console, "cards", ((card, said + more[card]) for card, said in told.items()))
        return
    table = Table("card", "TFLOP/s", "memory", *(f"on {n}" for n in devices), *last[:1] if last else (), box=box.SIMPLE)
    for row in rows:
        figures = f"{row['peak_flops'] / 1e12:.0f}", size(row["memory_bytes"])
        cells = [cell(row, n) for n in devices] + ([last[1][row["card"]]] if last else [])
        table.add_row(row["card"], *figures, *cells)
    console.print(table)


def flops(cost: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {part / cost['flops']:.0%}" for name, part in cost["flops_by_part"].items())
    return f"{cost['flops']:.2e}: {parts}"


def memory(parts: dict[str, int]) -> str:
    """`costs.Memory.as_dict`, the total first."""
    named = ", ".join(f"{name} {size(held)}" for name, held in parts.items() if held and name != "total")
    return f"{size(parts['total'])}: {named}"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"


def time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s" if 3600 * hours >= 1 else "< 1 s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
