"""Draw charts as inline SVG, without JavaScript or inline styles."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from markupsafe import Markup

from conductor import Series

#: Column of `throughput` -> its CSS class.
_LINES = {"delivered": "area", "failed": "busy", "dead": "bad"}

#: Size of the large chart, in its own units.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 1000, 200, 44, 22


def spark(values: Sequence[float], words: str) -> Markup:
    """Draw a sparkline; `words` describe it to screen readers."""
    width, height = 104, 22
    top = max(values, default=0)
    if not top:
        return Markup(
            '<svg class="spark" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">'
            '<path class="flat" d="M0 {3}H{0}"/></svg>'
        ).format(width, height, words, height - 2)
    points = _points(values, top, 0, width, 2, height - 2)
    return Markup(
        '<svg class="spark" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">'
        '<path class="under" d="M0 {1}L{3}L{0} {1}Z"/><path class="line" d="M{3}"/></svg>'
    ).format(width, height, words, points)


def chart(series: Series, words: str) -> Markup:
    """Draw delivered, failed and dead per minute, with a scale and the first and last time."""
    rates = {name: series.per_minute(name) for name in _LINES}
    top = _round_up(max(max(values, default=0.0) for values in rates.values()))
    low = _HEIGHT - _BOTTOM
    parts = [
        Markup(
            '<line class="grid" x1="{0}" x2="{1}" y1="{2:g}" y2="{2:g}"/>'
            '<text x="{3}" y="{4:g}" text-anchor="end">{5:g}</text>'
        ).format(_LEFT, _WIDTH, y, _LEFT - 8, y + 4, value)
        for value, y in ((top, 10.0), (top / 2, (10 + low) / 2), (0, float(low)))
    ]
    for name, kind in _LINES.items():
        if kind == "area" or any(rates[name]):
            line = _points(rates[name], top, _LEFT, _WIDTH, 10, low)
            if kind == "area":
                parts.append(Markup('<path class="under" d="M{0} {1}L{2}L{3} {1}Z"/>').format(_LEFT, low, line, _WIDTH))
            parts.append(Markup('<path class="line {0}" d="M{1}"/>').format(kind, line))
    for at, x, anchor in ((series.at[0], _LEFT, "start"), (series.at[-1] + series.step, _WIDTH, "end")):
        text = f"{datetime.fromtimestamp(at, UTC):%d %b %H:%M} UTC"
        parts.append(Markup('<text x="{0}" y="{1}" text-anchor="{2}">{3}</text>').format(x, _HEIGHT - 4, anchor, text))
    return Markup('<svg class="chart" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">{3}</svg>').format(
        _WIDTH, _HEIGHT, words, Markup("").join(parts)
    )


def _points(values: Sequence[float], top: float, left: float, right: float, high: float, low: float) -> str:
    step = (right - left) / max(len(values) - 1, 1)
    return "L".join(
        f"{left + index * step:.1f} {low - value / top * (low - high):.1f}" for index, value in enumerate(values)
    )


def _round_up(value: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten, for a readable scale."""
    size = 1.0
    while True:
        for factor in (1, 2, 5):
            if factor * size >= value:
                return factor * size
        size *= 10
