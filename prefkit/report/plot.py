"""Small inline SVG plots with labelled axes. Every plot function returns a complete element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, isfinite, isnan, log10, nan

import numpy as np

from prefkit.report.html import number, text
from prefkit.report.html import value as exactly

WIDTH, HEIGHT = 380, 220
RIGHT, TOP, BOTTOM = 12, 24, 40
#: width of a character of a label, in pixels
CHARACTER = 6.4
MAX_POINTS = 300
#: beyond these magnitudes, differences of numbers overflow or underflow
LARGEST, SMALLEST = 1e300, 1e-290


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers (1, 2, 5 times a power of ten) inside [low, high]."""
    span = high - low
    if not isfinite(span) or span <= 0:
        return [low]
    raw = span / count
    power = floor(log10(raw))
    step = next(10.0**power * m for m in (1, 2, 5, 10) if 10.0**power * m >= raw * 0.999)
    first = ceil(low / step - 1e-9)
    return [float(round((first + i) * step, 1 - power)) for i in range(int((high - first * step) / step + 1e-9) + 1)]


class Frame:
    """Maps data to pixels of the plot area, and draws the axes.

    The left margin is as wide as the longest tick label of the y axis; the title of that axis stands above the plot.
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = widened(*x), widened(*y)
        self.labels = labels(ticks(*self.y))
        self.left = round(12 + CHARACTER * max(len(label) for label in self.labels))

    def px(self, x: float) -> float:
        low, high = self.x
        return round(self.left + (x - low) / (high - low) * (WIDTH - self.left - RIGHT), 1)

    def py(self, y: float) -> float:
        low, high = self.y
        return round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def across(self, css: str, y: float) -> str:
        """Draw a horizontal line at `y`."""
        return line(css, self.left, self.py(y), WIDTH - RIGHT, self.py(y))

    def axes(self, xlabel: str, ylabel: str) -> str:
        right, bottom, parts = WIDTH - RIGHT, HEIGHT - BOTTOM, []
        for value, label in zip(ticks(*self.y), self.labels):
            parts.append(self.across("grid", value))
            parts.append(f'<text x="{self.left - 6}" y="{self.py(value) + 4}" text-anchor="end">{label}</text>')
        for value, label in self._below():
            x = self.px(value)
            parts.append(line("axis", x, bottom, x, bottom + 4))
            parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
        parts.append(line("axis", self.left, bottom, right, bottom))
        middle = (self.left + right) / 2
        parts.append(
            f'<text class="label" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">{text(xlabel, 60)}</text>'
        )
        parts.append(f'<text class="label" x="0" y="11">{text(ylabel, 40)}</text>')
        return "".join(parts)

    def _below(self) -> list[tuple[float, str]]:
        """Return the ticks of the x axis with their labels: so few that no label covers the next."""
        for count in (5, 3, 2):
            values = ticks(*self.x, count)
            shown = labels(values)
            if CHARACTER * (max(map(len, shown)) + 2) * len(shown) <= WIDTH - self.left:
                break
        return list(zip(values, shown))


def labels(values: Sequence[float]) -> list[str]:
    """Return ticks as text, with as many decimals as tell neighbours apart."""
    step = abs(values[1] - values[0]) if len(values) > 1 else 0.0
    largest = max(abs(value) for value in values)
    if not step or largest >= 1e6 or largest < 1e-4:
        digits = 2 if not step else max(0, floor(log10(largest)) - floor(log10(step) + 1e-9))
        return [f"{value:.{digits}e}" if value else "0" for value in values]
    return [f"{value:,.{max(0, -floor(log10(step) + 1e-9))}f}" for value in values]


def widened(low: float, high: float) -> tuple[float, float]:
    """Widen an interval whose ends are equal up to rounding, so that its length can be a divisor."""
    largest = max(abs(low), abs(high))
    if high - low > max(1e-9 * largest, SMALLEST):
        return low, high
    pad = 0.5 if largest < SMALLEST else largest * 0.5
    return low - pad, high + pad


def line(css: str, x1: float, y1: float, x2: float, y2: float, title: str = "") -> str:
    inner = f"<title>{title}</title>" if title else ""
    return f'<line class="{css}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}">{inner}</line>'


def svg(body: str, alt: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(alt, 200)}">'
        f"<title>{text(alt, 200)}</title>{body}</svg>"
    )


def histogram(values: np.ndarray, xlabel: str, ylabel: str = "candidates", bins: int = 40) -> str:
    """Draw a histogram of the finite values, with a line at the median. At least one value must be finite."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)].clip(-LARGEST, LARGEST)
    low, high = widened(float(values.min()), float(values.max()))
    counts, edges = np.histogram(values, min(bins, max(5, int(np.sqrt(len(values))) * 2)), (low, high))
    frame = Frame((low, high), (0, float(counts.max()) * 1.05))
    bars = []
    for count, left, right in zip(counts, edges[:-1], edges[1:]):
        if count:
            x, y = frame.px(left), frame.py(float(count))
            width = max(0.5, frame.px(right) - x - 0.6)
            bars.append(
                f'<rect class="bar" x="{x}" y="{y}" width="{width:.1f}" height="{HEIGHT - BOTTOM - y:.1f}">'
                f"<title>{number(float(left))} to {number(float(right))}: {count:,}</title></rect>"
            )
    median = float(np.median(values))
    x = frame.px(median)
    mark = line("mark", x, TOP, x, HEIGHT - BOTTOM, "median")
    alt = f"Histogram of {xlabel}: {len(values):,} values from {number(low)} to {number(high)}, median {number(median)}"
    return svg(frame.axes(xlabel, ylabel) + "".join(bars) + mark, alt)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ylabel: str,
    xlabel: str = "step",
    zero: float | None = None,
    ordered: bool = False,
) -> str:
    """Draw the curves in `series`, name -> (x, y), with a gap at each y that is not finite.

    At least one y of all the curves together must be finite.

    zero: y of a horizontal reference line. ordered: draw the curves (timestep bins) in colours between two, instead of in
    distinct styles. Long curves are averaged down to 300 points.
    """
    drawn = {name: thinned(*xy) for name, xy in series.items()}
    drawn = {name: (x, y.clip(-LARGEST, LARGEST)) for name, (x, y) in drawn.items()}
    xs = np.concatenate([x for x, _ in drawn.values()])
    ys = np.concatenate([y[np.isfinite(y)] for _, y in drawn.values()])
    low, high = float(ys.min()), float(ys.max())
    if zero is not None:
        low, high = min(low, zero), max(high, zero)
    pad = (high - low) * 0.06
    frame = Frame((float(xs.min()), float(xs.max())), (low - pad, high + pad))
    body = frame.axes(xlabel, ylabel)
    if zero is not None:
        body += frame.across("mark", zero)
    for i, (name, (x, y)) in enumerate(drawn.items()):
        body += f"<g>{curve(frame, x, y, *style(i, len(drawn), ordered))}<title>{text(name)}</title></g>"
    last = {name: y[np.isfinite(y)][-1:] for name, (_, y) in drawn.items()}
    ends = ", ".join(f"{name} ends at {number(float(y[0]))}" for name, y in last.items() if len(y))
    return svg(body, f"{ylabel} by {xlabel}: {ends}")


def style(i: int, count: int, ordered: bool) -> tuple[str, str]:
    """Return the CSS class and the style attribute for the i-th of `count` curves and for its legend entry."""
    if not ordered:
        return f"s{min(i, 5)}", ""
    tone = f"color-mix(in srgb,var(--accent) {round(100 * i / max(1, count - 1))}%,var(--first))"
    return "ordered", f' style="stroke:{tone};border-color:{tone}"'


def curve(frame: Frame, x: np.ndarray, y: np.ndarray, css: str, inline: str) -> str:
    """Draw each run of finite points as a polyline, and an isolated point as a dot."""
    parts, points = [], []
    for a, b in [*zip(x, y), (0.0, float("nan"))]:
        if isfinite(b):
            points.append((frame.px(a), frame.py(b)))
            continue
        if len(points) > 1:
            parts.append(f'<polyline class="line {css}"{inline} points="{" ".join(f"{p},{q}" for p, q in points)}"/>')
        elif points:
            parts.append(f'<circle class="dot" cx="{points[0][0]}" cy="{points[0][1]}" r="2.5"/>')
        points = []
    return "".join(parts)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to at most MAX_POINTS points, each the mean of neighbouring points."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) <= MAX_POINTS:
        return a, b
    runs = np.array_split(np.arange(len(a)), MAX_POINTS)
    return np.array([a[r].mean() for r in runs]), np.array([b[r].mean() for r in runs])


def interval(low: float, middle: float, high: float, name: str = "win rate") -> str:
    """Draw a fraction with its interval on a scale from 0 to 1, with a tick at 1/2."""

    def px(value: float) -> float:
        return round(4 + 132 * min(max(value, 0.0), 1.0), 1)

    alt = f"{name} {middle:.2f}, 95 % interval {low:.2f} to {high:.2f}"
    return (
        f'<svg class="interval" viewBox="0 0 140 20" role="img" aria-label="{alt}"><title>{alt}</title>'
        f"{line('grid', 4, 10, 136, 10)}{line('mark', 70, 2, 70, 18)}{line('reach', px(low), 10, px(high), 10)}"
        f'<circle class="dot" cx="{px(middle)}" cy="10" r="4"/></svg>'
    )


def strengths(low: float, middle: float, high: float, reach: float) -> str:
    """Draw a strength with its interval on a scale from -reach to reach, with a tick at 0."""

    def px(value: float) -> float:
        return round(70 + 66 * min(max(value / max(reach, SMALLEST), -1.0), 1.0), 1)

    alt = f"strength {middle:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}"
    return (
        f'<svg class="interval" viewBox="0 0 140 20" role="img" aria-label="{alt}"><title>{alt}</title>'
        f"{line('grid', 4, 10, 136, 10)}{line('mark', 70, 2, 70, 18)}{line('reach', px(low), 10, px(high), 10)}"
        f'<circle class="dot" cx="{px(middle)}" cy="10" r="4"/></svg>'
    )


def matrix(names: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """Draw a correlation matrix as a table whose colours show the strength of each correlation."""
    head = "".join(f'<th scope="col" class="n">{text(name, 24)}</th>' for name in names)
    rows = []
    for name, row in zip(names, values):
        cells = []
        for value in row:
            value = nan if value is None else value
            percent = 0 if isnan(value) else round(abs(value) * 55)
            tone = "accent" if value >= 0 else "warn"
            shown = "–" if isnan(value) else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
            background = f"color-mix(in srgb,var(--{tone}) {percent}%,transparent)"
            cells.append(f'<td class="n" style="background:{background}">{exactly(value, shown)}</td>')
        rows.append(f'<tr><th scope="row">{text(name, 24)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
