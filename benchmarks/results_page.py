"""The tables and plots of docs/results.md, from the JSON that `benchmarks/results.py measure` writes.

python benchmarks/results_page.py            # from the committed file, without measuring
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

OUT = Path("benchmarks/results/2026-11-21-results.json")
PAGE, IMAGES = Path("docs/results.md"), Path("docs/images")
READINGS = {"left_to_right": "left to right", "bound": "any-order bound"}
GAPS = {"left_to_right": "left to right − parent", "averaging": "bound − left to right", "bound": "bound − parent"}
GPT2 = {**GAPS, "sum": "bound − parent, as the sum of the first two"}
Report = dict[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def plus_minus(found: list[float] | None, digits: int = 3, sign: str = "") -> str:
    """A figure and what stands behind it: its standard error, or the half width of its 95% interval."""
    return "" if found is None else f"{found[0]:{sign}.{digits}f} ± {found[1]:.{digits}f}"


def interval(found: list[float], digits: int = 2) -> str:
    return f"{found[0]:.{digits}f} ({found[1]:.{digits}f} to {found[2]:.{digits}f})"


def losses(report: Report, kind: str) -> str:
    rows = []
    for name, found in report["losses"][kind].items():
        cells = [plus_minus(found.get(reading)) for reading in ("autoregressive", "left_to_right", "bound")]
        rows.append([name, *cells, f"{found['draws']:.3f}" if found["draws"] else ""])
    return table(["model", "AR reading", "left to right", "any-order bound", "error of its draws"], rows)


def differences(report: Report, kind: str) -> str:
    models = {name: found for name, found in report["losses"][kind].items() if "bound" in found}
    others = [key for key in next(iter(models.values())) if key.startswith("minus ") and key != "minus it"]
    head = ["model"]
    for key in others:
        whom = key.removeprefix("minus ")
        head += [f"{reading} − {whom}" for reading in READINGS.values()]
    rows = [
        [name, *(plus_minus(found[key][reading], 2, "+") for key in others for reading in READINGS)]
        for name, found in models.items()
    ]
    return table(head, rows)


def pairs(report: Report) -> str:
    rows = [
        [
            f"{name} − {found['against']}",
            *(plus_minus(found["minus it"][key], 3, "+") for key in ("autoregressive", *READINGS)),
        ]
        for kind in report["losses"].values()
        for name, found in kind.items()
        if "against" in found
    ]
    return table(["pair", "AR reading", *READINGS.values()], rows)


def orders(report: Report) -> str:
    readings = [key for key in next(iter(report["orders"].values())) if key not in ("lost", "averaging")]
    rows = [
        [
            name,
            *(f"{found[key][0]:.2f}" for key in readings),
            *(plus_minus(found[key], 2, "+") for key in ("lost", "averaging")),
        ]
        for name, found in report["orders"].items()
    ]
    titles = ["AR reading" if key == "autoregressive" else key for key in readings]
    return table(["model", *titles, "left to right − parent", "bound − left to right"], rows)


def samples(report: Report, told: Callable[[dict[str, Any]], str]) -> str:
    steps = sorted({one["steps"] for found in report["sampled"].values() for one in found if "steps" in one})
    rows = []
    for name, found in report["sampled"].items():
        if "steps" not in found[0]:
            rows += [[f"{name}: {one['sampler']}", *[""] * (len(steps) - 1), told(one)] for one in found]
            continue
        for sampler in dict.fromkeys(one["sampler"] for one in found):
            mine = {one["steps"]: told(one) for one in found if one["sampler"] == sampler}
            rows.append([f"{name}: {sampler.replace('_', ' ')}", *(mine[n] for n in steps)])
    return table(["model: sampler; steps for 127 tokens", *map(str, steps)], rows)


def likely(one: dict[str, Any]) -> str:
    return f"{math.exp(one['nats'][0]):.3g} / {one['entropy'][0]:.2f}"


def varied(one: dict[str, Any]) -> str:
    return f"{one['distinct_2'][0]:.2f} / {one['repeated_4'][0]:.0%}"


def holes(report: Report) -> str:
    steps = [key for key in next(iter(report["filled"].values())) if key.isdigit()]
    rows = []
    for name, found in report["filled"].items():
        cells = [f"{found[key][0]:.1%} ± {found[key][1]:.1%}" for key in steps]
        beside = [
            f"{100 * found[key][0]:+.1f} ± {100 * found[key][1]:.1f}" if key in found else ""
            for key in ("minus greedy", "minus best")
        ]
        rows.append([name, *cells, *beside])
    most = steps[-1]
    return table(["model; steps, or draws of a parent", *steps, f"{most} − greedy", f"{most} − best of {most}"], rows)


def points(report: Report) -> str:
    law, rows = report["law"]["points"], []
    tokens = list(dict.fromkeys(point["tokens"] for point in law))
    for reading, title in GAPS.items():
        for size in dict.fromkeys(point["size"] for point in law):
            mine = [point for point in law if point["size"] == size]
            start = [title, f"{mine[0]['parameters']:,}", *(plus_minus(mine[0][key]) for key in ("parent", "control"))]
            rows.append([*start, *(plus_minus(point[reading]) for point in mine)])
    return table(["gap", "parameters", "parent", "trained on", *(f"{n / 1e6:g}M tokens" for n in tokens)], rows)


def fits(report: Report) -> str:
    rows = []
    for reading, both in report["law"]["fits"].items():
        for name, found in both.items():
            cells = [interval(found["constants"][key]) if name == "floor" or key != "E" else "0" for key in "EAab"]
            rows.append([GAPS[reading], *cells, f"{found['residual']:.1%}", f"{found['left_out']:.1%}"])
    return table(["gap", "E", "A", "a (of N)", "b (of D)", "residual", "a size left out"], rows)


def checks(report: Report) -> str:
    rows = [
        [check["name"], f"{check['parameters']:,}", f"{check['tokens'] / 1e6:g}M", GAPS[reading],
         plus_minus(check[reading], 2), *(interval(check["predicted"][reading][fit]) for fit in ("no floor", "floor"))]
        for check in report["law"]["checks"] for reading in GAPS
    ]  # fmt: skip
    return table(["model", "parameters", "tokens", "gap", "measured", "law without floor", "with"], rows)


def gpt2(report: Report) -> str:
    rows = [
        [GPT2[one["reading"]], f"{one['tokens'] / 1e9:g}B", one["fit"], interval(one["gap"])]
        for one in report["law"]["gpt2"]
    ]
    return table(["gap", "tokens of adaptation", "fit", "predicted, nats a token (95%)"], rows)


def tables(report: Report) -> dict[str, str]:
    """Every generated table of the page, by the name that its markers carry."""
    return {
        "losses stories": losses(report, "stories"),
        "losses pocket": losses(report, "pocket"),
        "differences stories": differences(report, "stories"),
        "differences pocket": differences(report, "pocket"),
        "pairs": pairs(report),
        "orders": orders(report),
        "samples likely": samples(report, likely),
        "samples varied": samples(report, varied),
        "holes": holes(report),
        "law points": points(report),
        "law fits": fits(report),
        "law checks": checks(report),
        "law gpt2": gpt2(report),
    }


def refreshed(page: str, report: Report) -> str:
    """The page with the tables of this report between its markers."""
    for name, text in tables(report).items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(begin)
        if not found or end not in rest:
            raise SystemExit(f"{PAGE}: should hold the marker {begin.strip()}, and {end} below it")
        page = f"{before}{begin}{text}\n{rest[rest.index(end) :]}"
    return page


def write(report: Report) -> None:
    """Plots and tables."""
    from results_plots import plots  # matplotlib, which the tables do without

    plots(report, IMAGES)
    PAGE.write_text(refreshed(PAGE.read_text("utf-8"), report), "utf-8")


if __name__ == "__main__":
    write(json.loads(OUT.read_text("utf-8")))
