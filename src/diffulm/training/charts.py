"""Line charts as inline SVG: small, sharp, and made in a millisecond, so that a report can be made at every evaluation."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 460, 250, 52, 34, 8
COLOURS = ("#2563a8", "#c2571a", "#3b8a3e", "#7a4fa3")
POINTS = 200  # of a line; more are averaged

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """points: (x, y). faint: in the background, grey."""

    label: str
    points: Points
    faint: bool = False


def chart(x_label: str, lines: list[Line], levels: dict[str, float] | None = None, log: bool = False) -> str:
    """The lines, and `levels` as dashed ones across, with a legend; "" where there is nothing to draw. log: the y axis."""
    drawn = [Line(line.label, thinned(_finite(line.points, log)), line.faint) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    across = {name: y for name, y in (levels or {}).items() if math.isfinite(y)}
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + list(across.values())
    at_x, x_ticks = axis(min(xs), max(xs), LEFT, WIDTH - EDGE)
    at_y, y_ticks = axis(min(ys), max(ys), HEIGHT - BOTTOM, EDGE, log)
    grid = [_tick(at_y(y), y, log) for y in y_ticks]
    grid += [f'<text x="{at_x(x):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{_short(x)}</text>' for x in x_ticks]
    grid += [f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{html.escape(x_label)}</text>']
    legend, marks, colours = [], [], iter(COLOURS * len(drawn))
    for line in sorted(drawn, key=lambda line: not line.faint):
        colour = "#aaa" if line.faint else next(colours)
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(line.points) < 30 and not line.faint:
            marks += [
                f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="2.6" fill="{colour}"/>' for x, y in line.points
            ]
        legend.append(_entry(colour, line.label, "solid"))
    for (name, y), dash in zip(across.items(), ("6 4", "2 3", "8 3 2 3") * len(across), strict=False):
        ends = f'x1="{LEFT}" x2="{WIDTH - EDGE}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"'
        marks.append(f'<line {ends} stroke="#555" stroke-dasharray="{dash}"/>')
        legend.append(_entry("#555", f"{name} {_short(y)}", "dashed" if dash == "6 4" else "dotted"))
    shapes = "".join(grid + marks)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="12" fill="#555">{shapes}</svg>'
        f'<p class="legend">{" ".join(legend)}</p>'
    )


def _entry(colour: str, label: str, style: str) -> str:
    return f'<span style="border-bottom:2px {style} {colour}">{html.escape(label)}</span>'


def _tick(at: float, y: float, log: bool) -> str:
    label = f"{y:g}" if log else _short(y)
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - EDGE}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e4e4e4"/>'
        f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
    )


def axis(
    low: float, high: float, start: float, end: float, log: bool = False
) -> tuple[Callable[[float], float], list[float]]:
    """(value -> pixel, round values to mark) of an axis that runs from pixel `start` to `end`."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last = max(last, first + 1)
        marks = [10.0**power for power in range(first, last + 1)][:: 1 + (last - first) // 8]
        return lambda value: start + (end - start) * (math.log10(value) - first) / (last - first), marks
    if high - low < 1e-12 * max(abs(high), 1e-12) or high == low:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    margin = (high - low) * 0.04
    low, high = low - margin, high + margin
    marks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return lambda value: start + (end - start) * (value - low) / (high - low), marks


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most POINTS points: the means of equal stretches."""
    size = -(-len(points) // POINTS) or 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _finite(points: Points, log: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]


def _short(value: float) -> str:
    """A number as short as it can be read: 1,200 or 0.35 or 2e-05."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
