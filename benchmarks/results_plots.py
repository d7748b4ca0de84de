"""The plots of docs/results.md."""

import io
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

Report = dict[str, Any]
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")
GAPS = {"left_to_right": "left to right − parent", "averaging": "bound − left to right", "bound": "bound − parent"}
READINGS = {"left_to_right": "left to right", "bound": "any-order bound"}


def plots(report: Report, folder: Path) -> None:
    made = {"kept": kept, "tokens": tokens, "steps": steps, "law": law}
    for name, draw in made.items():
        draw(report).savefig(drawn := io.BytesIO(), dpi=90)
        # a palette: a third of the size, and nothing to be seen of it
        Image.open(drawn).convert("RGB").quantize(64).save(folder / f"results-{name}.png", optimize=True)


def kept(report: Report) -> Figure:
    """Three readings of every model, and its parents as lines."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    grid = figure.subplots(1, 2, width_ratios=(1, 1))
    lines = {"stories": (("parent", ":"), ("parent, trained on", "--")), "pocket": (("pocket-ar", ":"),)}
    for axes, (kind, models) in zip(grid, report["losses"].items(), strict=True):
        names = [name for name in models if "bound" in models[name]][::-1]
        for colour, (key, label) in zip(COLOURS, {**READINGS, "autoregressive": "AR reading"}.items(), strict=False):
            values, errors = ([models[name][key][i] for name in names] for i in (0, 1))
            axes.errorbar(values, range(len(names)), xerr=errors, fmt="o", ms=5, color=colour, label=label, alpha=0.8)
        for name, style in lines[kind]:
            axes.axvline(models[name]["autoregressive"][0], linestyle=style, color="#444", label=f"AR loss: {name}")
        axes.set(
            yticks=range(len(names)),
            yticklabels=names,
            xlabel="nats a token, held-out text",
            ylim=(-0.6, len(names) - 0.4),
        )
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=7, loc="best")
    return figure


def tokens(report: Report) -> Figure:
    """Held-out bound by tokens seen, along the runs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    along = report["along"]
    for axes, names, parent in (
        (left, ("adapted, tiny", "from scratch, tiny"), report["losses"]["stories"]["parent"]["autoregressive"][0]),
        (right, ("pocket", "pocket-ar"), None),
    ):
        for colour, name in zip(COLOURS, names, strict=False):
            rows = [row for row in along[name] if row["tokens"] > 0]
            key = "bound" if "bound" in rows[0] else "ar"
            at, values = [row["tokens"] / 1e6 for row in rows], [row[key] for row in rows]
            axes.plot(
                at, values, "o-", ms=3, color=colour, label=f"{name}: {'AR loss' if key == 'ar' else 'any-order bound'}"
            )
        if parent is not None:
            axes.axhline(parent, linestyle=":", color="#444", label="AR loss: parent")
        axes.set(xlabel="tokens seen (millions)", ylabel="nats a token, held-out text")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def steps(report: Report) -> Figure:
    """Perplexity, entropy and repetition of samples by steps, and the holes by steps."""
    sampled = {name: found for name, found in report["sampled"].items() if "steps" in found[0]}
    parents = {name: "pocket-ar" if name.startswith("pocket") else "parent" for name in sampled}
    panels = {
        "nats": "perplexity under the AR parent",
        "entropy": "entropy of a sample (nats)",
        "repeated_4": "repeated 4-grams",
    }
    figure = Figure(figsize=(3 * len(sampled), 7.5), layout="constrained")
    grid = figure.subplots(len(panels), len(sampled), squeeze=False, sharex=True, sharey="row")
    for column, (name, found) in enumerate(sampled.items()):
        for row, (key, label) in enumerate(panels.items()):
            axes = grid[row, column]
            shown = math.exp if key == "nats" else float
            for colour, sampler in zip(COLOURS, dict.fromkeys(one["sampler"] for one in found), strict=False):
                mine = [one for one in found if one["sampler"] == sampler]
                at = [one["steps"] for one in mine]
                axes.plot(
                    at, [shown(one[key][0]) for one in mine], "o-", ms=3, color=colour, label=sampler.replace("_", " ")
                )
            for style, one in zip((":", "--"), report["sampled"][parents[name]], strict=True):
                axes.axhline(shown(one[key][0]), linestyle=style, lw=1, color="#444", label=f"parent: {one['sampler']}"
                             if one["sampler"] == "its own" else one["sampler"])  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_xticks(at, [str(n) for n in at])
            if key == "nats":
                axes.set_yscale("log")
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
        grid[0, column].set_title(name)
        grid[-1, column].set_xlabel("steps for 127 tokens")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)
    return figure


def law(report: Report) -> Figure:
    """Gaps by tokens, a colour a size, with the law; below what the law leaves."""
    found = report["law"]
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, len(GAPS), sharex="col", height_ratios=(3, 1.2))
    sizes = list(dict.fromkeys(point["size"] for point in found["points"]))
    for column, (reading, label) in enumerate(GAPS.items()):
        for colour, size in zip(COLOURS, sizes, strict=False):
            mine = [point for point in found["points"] if point["size"] == size]
            at = [point["tokens"] / 1e6 for point in mine]
            values, errors = ([point[reading][i] for point in mine] for i in (0, 1))
            grid[0, column].errorbar(
                at, values, errors, fmt="o", ms=4, color=colour, label=f"{mine[0]['parameters']:,} parameters"
            )
            fitted = [point["predicted"][reading]["no floor"][0] for point in mine]
            grid[0, column].plot(at, fitted, lw=1, color=colour)
            left = [math.log(value / wanted) for value, wanted in zip(values, fitted, strict=True)]
            grid[1, column].plot(at, left, "o", ms=4, color=colour)
        grid[0, column].set(title=label, xscale="log", ylabel="gap (nats a token)" if column == 0 else "")
        grid[1, column].axhline(0, color="#444", lw=0.8)
        grid[1, column].set(
            xlabel="tokens of adaptation (millions)", ylabel="log(measured / law)" if column == 0 else ""
        )
        grid[1, column].set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        for axes in grid[:, column]:
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return figure
