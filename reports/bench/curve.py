"""The price of invariance as a drawing, readable by day and night: a panel for each batch, over its length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from samebits.reports.bench.price import Price
from samebits.reports.html.palette import DAY, NIGHT, Palette

_PANEL_WIDTH, _PANEL_HEIGHT, _GAP, _LEFT, _TOP = 220, 150, 48, 52, 62
_LEGEND_ROW, _BOTTOM = 18, 40
# Lines are told apart by their tone, and where tones come again by their dashes.
_TONES = ("link", "bad", "good", "varies", "known")
_DASHES = ("", "6 3", "2 3")
# Grid lines of the axis of prices.
_PRICES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

_MEASURES: tuple[tuple[str, Callable[[Price], float]], ...] = (
    ("over the fastest setting of the same library", lambda price: price.own),
    ("over the fastest of all", lambda price: price.over_best),
)


def price_curve(prices: Sequence[Price], title: str) -> str:
    """The drawing as the text of an SVG file.

    Args:
        prices: of one dtype, one at least.
        title: what is told above it, and to who cannot see it.
    """
    batches = sorted({price.batch for price in prices})
    libraries = list(dict.fromkeys(price.library for price in prices))
    width = _LEFT + len(batches) * (_PANEL_WIDTH + _GAP)
    row_height = _PANEL_HEIGHT + _TOP + _BOTTOM
    legend_top = len(_MEASURES) * row_height + 12
    height = legend_top + _LEGEND_ROW * len(libraries) + 8
    panels = [
        _panel(
            [price for price in prices if price.batch == batch],
            prices,
            libraries,
            measure,
            (_LEFT + column * (_PANEL_WIDTH + _GAP), row * row_height + _TOP),
            f"batch {batch}",
        )
        for row, (_, measure) in enumerate(_MEASURES)
        for column, batch in enumerate(batches)
    ]
    headings = [
        Markup('<text class="heading" x="{}" y="{}">{}</text>').format(
            _LEFT, row * row_height + 22, f"Invariant {told}"
        )
        for row, (told, _) in enumerate(_MEASURES)
    ]
    legend = [
        _legend_entry(library, place, _LEFT, legend_top + place * _LEGEND_ROW)
        for place, library in enumerate(libraries)
    ]
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" '
            'aria-label="{2}"><title>{2}</title><style>{3}</style><rect class="surface" width="{0}" height="{1}"/>'
            "{4}</svg>\n"
        ).format(width, height, title, Markup(_style()), Markup("").join([*headings, *panels, *legend]))
    )


def _style() -> str:
    """The colours of both palettes: a browser chooses by what its user prefers."""
    return (
        "text{font:12px system-ui,sans-serif}text.heading{font-weight:600}path{fill:none;stroke-width:2}"
        f"{_colours(DAY)}@media(prefers-color-scheme:dark){{{_colours(NIGHT)}}}"
    )


def _colours(palette: Palette) -> str:
    lines = "".join(
        f".{tone}{{stroke:{getattr(palette, tone)}}}circle.{tone}{{fill:{getattr(palette, tone)}}}" for tone in _TONES
    )
    return (
        f".surface{{fill:{palette.surface}}}text{{fill:{palette.ink}}}text.quiet{{fill:{palette.quiet}}}"
        f".grid{{stroke:{palette.line}}}.one{{stroke:{palette.edge}}}{lines}"
    )


def _panel(
    prices: Sequence[Price],
    every: Sequence[Price],
    libraries: Sequence[str],
    measure: Callable[[Price], float],
    corner: tuple[float, float],
    heading: str,
) -> Markup:
    """One batch: both axes are logarithmic, and the same in all panels of a row."""
    left, top = corner
    lengths = sorted({price.kv_len for price in every})
    values = [measure(price) for price in every]
    low, high = math.log2(min(0.9, *values)), math.log2(max(2.2, *values))
    first, last = math.log2(lengths[0]), math.log2(lengths[-1])

    def x(kv_len: int) -> float:
        return left + _PANEL_WIDTH * (math.log2(kv_len) - first) / max(1e-9, last - first)

    def y(value: float) -> float:
        return top + _PANEL_HEIGHT * (high - math.log2(value)) / (high - low)

    drawn = [Markup('<text x="{:g}" y="{:g}">{}</text>').format(left, top - 12, heading)]
    for value in _PRICES:
        if low <= math.log2(value) <= high:
            drawn.append(
                Markup('<line class="{}" x1="{:g}" x2="{:g}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    "one" if value == 1 else "grid", left, left + _PANEL_WIDTH, y(value), y(value)
                )
            )
            drawn.append(_label(left - 6, y(value) + 4, f"{value:g}x", "end"))
    shown = {price.kv_len for price in prices}
    drawn += [_label(x(length), top + _PANEL_HEIGHT + 18, _short(length), "middle") for length in sorted(shown)]
    for place, library in enumerate(libraries):
        points = [(x(price.kv_len), y(measure(price))) for price in prices if price.library == library]
        drawn.append(_line(points, place))
    return Markup("").join(drawn)


def _line(points: Sequence[tuple[float, float]], place: int) -> Markup:
    tone, dashes = _look(place)
    path = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    dots = Markup("").join(
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(tone, x, y) for x, y in points
    )
    if len(points) < 2:
        return dots
    return Markup('<path class="{}" stroke-dasharray="{}" d="{}"/>').format(tone, dashes, path) + dots


def _legend_entry(library: str, place: int, left: float, top: float) -> Markup:
    line = _line([(left, top), (left + 28, top)], place)
    return line + Markup('<text x="{:g}" y="{:g}">{}</text>').format(left + 38, top + 4, library)


def _look(place: int) -> tuple[str, str]:
    return _TONES[place % len(_TONES)], _DASHES[place // len(_TONES) % len(_DASHES)]


def _label(x: float, y: float, words: str, side: str) -> Markup:
    return Markup('<text class="quiet" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, side, words)


def _short(length: int) -> str:
    """A length as it is read: short for thousands."""
    return f"{length >> 10}k" if length % 1024 == 0 else str(length)
