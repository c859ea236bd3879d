"""Distributions as inline SVG: how much of the error budget cells use, and how far apart their results are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from samebits.reports import text

# Decades of the axis of budgets, and bars to a decade. What uses less is counted with the least.
_FIRST_DECADE, _LAST_DECADE, _BARS = -3, 1, 8
_WIDTH, _HEIGHT, _BASE, _TOP = 320, 64, 48, 8
_MOST_ULP_BARS = 24
_MOST_LABELS = 10


@dataclass(frozen=True)
class Distribution:
    """Some figures of a chart in words, for those who do not look and those who want numbers.

    Attributes:
        name: of what is told, a dtype for example.
        cells: how many values there are.
        median, most, largest: the middle one, that which 95% do not exceed, and the worst, as they are shown.
        chart: the drawing.
    """

    name: str
    cells: int
    median: str
    most: str
    largest: str
    chart: Markup


def budget_distribution(name: str, budgets: Sequence[float]) -> Distribution:
    """How much of the error budget cells use, on a logarithmic axis with a line where it is used up.

    Args:
        name: of the dtype.
        budgets: of some cells, one at least; what is no number counts as infinite.
    """
    values = sorted(math.inf if math.isnan(budget) else budget for budget in budgets)
    bars = [0] * ((_LAST_DECADE - _FIRST_DECADE) * _BARS)
    for value in values:
        bars[_budget_bar(value, len(bars))] += 1
    told = _figures(values, text.budget)
    limit = round(_WIDTH * -_FIRST_DECADE / (_LAST_DECADE - _FIRST_DECADE), 1)
    axis = Markup("").join(
        _label(_WIDTH * (decade - _FIRST_DECADE) / (_LAST_DECADE - _FIRST_DECADE), f"{10.0**decade:g}")
        for decade in range(_FIRST_DECADE, _LAST_DECADE + 1)
    )
    line = Markup('<line class="limit" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(limit, _BASE)
    drawn = _bars(bars, wrong_from=-_FIRST_DECADE * _BARS)
    said = f"Error budget used in {name}: {_said(told)}"
    return Distribution(name, len(values), *told, _drawing(said, drawn + line + axis))


def ulp_distribution(name: str, distances: Sequence[int]) -> Distribution:
    """How far apart results are, in bars that double: 0, 1, 2 to 3, 4 to 7 and so on.

    Args:
        name: of what the distances are between.
        distances: in units in the last place, one at least.
    """
    values = sorted(distances)
    bars = [0] * (1 + min(_MOST_ULP_BARS - 1, max(8, values[-1].bit_length())))
    for value in values:
        bars[min(value.bit_length(), len(bars) - 1)] += 1
    told = _figures([float(value) for value in values], lambda value: text.whole(int(value)))
    step = _WIDTH / len(bars)
    axis = Markup("").join(
        _label(step * (place + 0.5), "0" if place == 0 else _power(place - 1))
        for place in range(0, len(bars), math.ceil(len(bars) / _MOST_LABELS))
    )
    said = f"Largest ULP distance of each cell, {name}: {_said(told)}"
    return Distribution(name, len(values), *told, _drawing(said, _bars(bars) + axis))


def element_distances(elements: Mapping[str, int]) -> Markup:
    """How many elements of one result are how far from the other's, a bar for each distance that is told.

    Args:
        elements: counts by distance in words, of an explanation; their order is that of the bars.
    """
    step = _WIDTH / len(elements)
    # Only as many labels as do not touch one another.
    stride = math.ceil(len(elements) / _MOST_LABELS)
    axis = Markup("").join(
        _label(step * (place + 0.5), distance.partition(" to ")[0])
        for place, distance in enumerate(elements)
        if place % stride == 0
    )
    said = ", ".join(f"{distance} in {number:,}" for distance, number in elements.items() if number)
    return _drawing(f"Elements by their distance in ULP: {said}", _bars(list(elements.values())) + axis)


def _budget_bar(value: float, bars: int) -> int:
    if value <= 10.0**_FIRST_DECADE:
        return 0
    if math.isinf(value):
        return bars - 1
    # What uses the budget up exactly is still right, and stands left of the line.
    return min(bars - 1, max(0, math.ceil((math.log10(value) - _FIRST_DECADE) * _BARS) - 1))


def _figures(values: Sequence[float], shown: Callable[[float], str]) -> tuple[str, str, str]:
    most = values[math.ceil(0.95 * len(values)) - 1]
    return shown(statistics.median_low(values)), shown(most), shown(values[-1])


def _said(told: tuple[str, str, str]) -> str:
    median, most, largest = told
    return f"median {median}, 95% of cells at most {most}, worst {largest}"


def _bars(counts: Sequence[int], wrong_from: int | None = None) -> Markup:
    """Bars as high as the root of their count, so that a single cell is seen beside hundreds.

    Args:
        counts: cells of each bar.
        wrong_from: the first bar of what is wrong; None where nothing is.
    """
    step, highest = _WIDTH / len(counts), math.sqrt(max(1, *counts))
    split = len(counts) if wrong_from is None else wrong_from
    paths = {"bar": "", "bar wrong": ""}
    for place, count in enumerate(counts):
        if count:
            height = max(2.0, (_BASE - _TOP) * math.sqrt(count) / highest)
            # From the foot of the bar up, across, and down again.
            outline = f"M{place * step + 0.5:.4g} {_BASE}v-{height:.3g}h{step - 1:.3g}v{height:.3g}z"
            paths["bar" if place < split else "bar wrong"] += outline
    return Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(css_class, outline)
        for css_class, outline in paths.items()
        if outline
    )


def _label(x: float, words: str) -> Markup:
    side = "start" if x < 10 else "end" if x > _WIDTH - 10 else "middle"
    return Markup('<text x="{:g}" y="{}" text-anchor="{}">{}</text>').format(round(x, 1), _HEIGHT - 3, side, words)


def _power(exponent: int) -> str:
    """A power of two as it is read: short for thousands and millions."""
    value = 1 << exponent
    for size, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size:
            return f"{value // size}{letter}"
    return str(value)


def _drawing(said: str, content: Markup) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<line class="axis" x1="0" x2="{}" y1="{}" y2="{}"/>{}</svg>'
    ).format(_WIDTH, _HEIGHT, said, _WIDTH, _BASE, _BASE, content)
