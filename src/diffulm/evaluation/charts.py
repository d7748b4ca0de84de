"""Charts as inline SVG: small, sharp, and made in a millisecond, so that a report can be made at every evaluation."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class Bar:
    """A figure of one series; low and high: its interval."""

    series: str
    value: float
    low: float | None = None
    high: float | None = None


def bars(x_label: str, groups: Sequence[tuple[str, Sequence[Bar]]], levels: Mapping[str, float] | None = None) -> str:
    """Horizontal bars from 0, those of a group below each other, with their intervals; "" where there is nothing to draw.

    levels: by group, a dashed mark across its bars (what guessing gets, say).
    """
    drawn = [(name, [bar for bar in of if math.isfinite(bar.value)]) for name, of in groups]
    drawn = [(name, of) for name, of in drawn if of]
    if not drawn:
        return ""
    series = list(dict.fromkeys(bar.series for _, of in drawn for bar in of))
    colours = dict(zip(series, COLOURS * len(series), strict=False))
    left, thick = 12 + 6.5 * max(len(name) for name, _ in drawn), 11
    reach = [x for _, of in drawn for bar in of for x in (bar.value, bar.low, bar.high) if x is not None]
    at, ticks = axis(min(0.0, *reach), max(0.0, *reach, *(levels or {}).values()), left, WIDTH - EDGE)
    shapes, top = [], float(EDGE)
    for name, of in drawn:
        bottom = top + thick * len(of)
        shapes.append(f'<text x="{left - 6}" y="{(top + bottom) / 2 + 4}" text-anchor="end">{html.escape(name)}</text>')
        for i, bar in enumerate(of):
            y, ends = top + thick * i, sorted((at(0), at(bar.value)))
            shape = f'x="{ends[0]:.1f}" y="{y + 1}" width="{ends[1] - ends[0]:.1f}" height="{thick - 2}"'
            shapes.append(f'<rect {shape} fill="{colours[bar.series]}"><title>{_told(bar)}</title></rect>')
            if bar.low is not None and bar.high is not None:
                middle = f'y1="{y + thick / 2}" y2="{y + thick / 2}"'
                shapes.append(f'<line x1="{at(bar.low):.1f}" x2="{at(bar.high):.1f}" {middle} stroke="#555"/>')
        if name in (levels or {}):
            x = at((levels or {})[name])
            shapes.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 2}" y2="{bottom + 2}" stroke="#555" stroke-dasharray="3 2"/>'
            )
        top = bottom + 9
    shapes += [f'<text x="{at(x):.1f}" y="{top + 10}" text-anchor="middle">{_short(x)}</text>' for x in ticks]
    shapes.append(f'<text x="{(left + WIDTH) / 2}" y="{top + 25}" text-anchor="middle">{html.escape(x_label)}</text>')
    legend = " ".join(_entry(colours[name], name, "solid") for name in series)
    return (
        f'<svg viewBox="0 0 {WIDTH} {top + 30}" role="img" font-size="12" fill="#555">{"".join(shapes)}</svg>'
        f'<p class="legend">{legend}</p>'
    )


def _told(bar: Bar) -> str:
    between = f" ({_short(bar.low)} to {_short(bar.high)})" if bar.low is not None and bar.high is not None else ""
    return html.escape(f"{bar.series}: {_short(bar.value)}{between}")


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
