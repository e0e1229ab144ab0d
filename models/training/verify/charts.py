"""Small charts as inline SVG, styled by the page around them.

All are 360 units wide, so that they are legible on a phone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360
LEFT, RIGHT, TOP = 40, 10, 12


@dataclass(frozen=True, slots=True)
class Bar:
    """A value between 0 and 1 with its label. low, high: its interval; strong: drawn in the accent colour."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    strong: bool = False


def line_chart(points: Sequence[tuple[float, float]], title: str, x_label: str) -> str:
    """points: (x, y), x ascending, at least one."""
    height, bottom = 180, 30
    xs, ys = [x for x, _ in points], [y for _, y in points]
    (left, right), (low, high) = _range(xs), _range(ys)
    inner, tall = WIDTH - LEFT - RIGHT, height - TOP - bottom
    at = [(LEFT + inner * (x - left) / (right - left), TOP + tall * (1 - (y - low) / (high - low))) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    parts = [
        *(_grid(TOP + tall * (1 - share), _number(low + share * (high - low))) for share in (0, 0.5, 1)),
        f'<polyline class="line" points="{path}"/>',
        *(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in at if len(at) <= 40),
        _text(LEFT, height - 10, _number(left), "start"),
        _text(LEFT + inner / 2, height - 10, x_label, "middle"),
        _text(WIDTH - RIGHT, height - 10, _number(right), "end"),
    ]
    return _svg(height, title, parts)


def bar_chart(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """Groups of horizontal bars, from 0 to 1."""
    parts, y, start = [], 0, 64
    inner = WIDTH - start - 48
    for name, bars in groups:
        parts.append(_text(0, y + 14, name, "start", "head"))
        y += 20
        for bar in bars:
            parts += _bar(bar, start, y, inner)
            y += 20
        y += 8
    return _svg(y, title, parts)


def histogram(edges: Sequence[float], counts: Sequence[int], title: str, marks: Sequence[tuple[str, float]]) -> str:
    """edges: B + 1; counts: B; marks: labelled values along the x axis."""
    height, bottom = 190, 26
    top = 34
    inner, tall, most = WIDTH - LEFT - RIGHT, height - top - bottom, max(1, *counts)
    first, last = edges[0], edges[-1]

    def across(value: float) -> float:
        return LEFT + inner * (value - first) / (last - first)

    parts = [_grid(height - bottom, "0"), _grid(top, f"{most:,}")]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        tip = f"{low:.3f} to {high:.3f}: {count:,}"
        box = f'x="{across(low):.1f}" width="{max(1.0, across(high) - across(low) - 1):.1f}"'
        size = f'y="{height - bottom - tall * count / most:.1f}" height="{tall * count / most:.1f}"'
        parts.append(f'<rect class="fill" {box} {size}><title>{tip}</title></rect>')
    for row, (name, value) in enumerate(marks):
        x = across(value)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{6 + 12 * row}" y2="{height - bottom}"/>')
        beside = (x - 4, "end") if x > WIDTH / 2 else (x + 4, "start")
        parts.append(_text(beside[0], 13 + 12 * row, f"{name} {value:.3f}", beside[1]))
    for share in (0, 0.5, 1):
        anchor = ("start", "middle", "end")[round(2 * share)]
        parts.append(_text(LEFT + inner * share, height - 8, _number(first + share * (last - first)), anchor))
    return _svg(height, title, parts)


def _bar(bar: Bar, start: int, y: int, inner: int) -> list[str]:
    end = start + inner * min(max(bar.value, 0.0), 1.0)
    colour = "fill" if bar.strong else "pale"
    parts = [
        _text(start - 8, y + 11, bar.label, "end"),
        f'<rect class="{colour}" x="{start}" y="{y}" width="{end - start:.1f}" height="14" rx="2"/>',
    ]
    if bar.low is not None and bar.high is not None:
        low, high = (start + inner * min(max(value, 0.0), 1.0) for value in (bar.low, bar.high))
        end = max(end, high)
        parts.append(f'<path class="mark" d="M{low:.1f} {y + 3}v8M{low:.1f} {y + 7}H{high:.1f}M{high:.1f} {y + 3}v8"/>')
    return [*parts, _text(end + 6, y + 11, f"{bar.value:.3f}", "start")]


def _grid(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, label, "end")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, title: str, parts: Iterable[str]) -> str:
    name = escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value, moved apart if they are the same."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.3g}"
