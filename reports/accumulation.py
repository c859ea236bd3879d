"""Orders of additions drawn: keys from left to right, each sum a bar over what it adds, both sides on one scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from samebits.harness.explanation import Explanation, Manner, Order, Sum
from samebits.reports.accumulation_words import adds_runs, order_sentences, told_sum

_WIDTH, _BAR, _GAP, _LINE = 1000.0, 20, 4, 20
# Bars narrower than this, in pixels, are not drawn one by one.
_NARROWEST = 3.0
# Of a character of a label, in pixels, and what is left free beside it.
_CHARACTER, _MARGIN = 6.6, 8
# Bars of one order, so that a page of many stays small.
_MOST_BARS = 300


@dataclass(frozen=True)
class _Bar:
    """A sum as it is drawn.

    Attributes:
        sum: the sum, as the first that is alike has it.
        first: position of its first key.
        depth: sums that it is part of.
        ordinal: its place among the addends of the sum above; 0 where that adds all at once.
    """

    sum: Sum
    first: int
    depth: int
    ordinal: int


def has_orders(explanation: Explanation) -> bool:
    """Whether there is an order to draw."""
    return any(order.sum is not None for side in explanation.sides for order in (side.values, side.denominator))


def drawn_orders(explanation: Explanation) -> str:
    """An SVG of the orders of both sides, one below the other on one scale.

    It takes the colour of the text around it, and says by labels what it says by shades.

    Args:
        explanation: of a row.

    Returns:
        An `svg` element that may stand in a page or in a file of its own; empty where no order is told.
    """
    if not has_orders(explanation):
        return ""
    sums = [order.sum for side in explanation.sides for order in (side.values, side.denominator) if order.sum]
    scale = _Scale(min(each.first for each in sums), max(each.last for each in sums) + 1)
    body: list[str] = []
    top = 0
    for name, side in zip(("Left", "Right"), explanation.sides, strict=True):
        top += _LINE
        body.append(_text(0, top - 6, f"{name}: {side.batch}", bold=True))
        for what, order in (("values", side.values), ("denominator", side.denominator)):
            lines, height = _drawn_order(what, order, top, scale)
            body += lines
            top += height
        top += _GAP
    name = f"Order of additions at {explanation.place} of request {explanation.request}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {top}" role="img" '
        f'aria-label="{escape(name)}" font-family="sans-serif" font-size="12" fill="currentColor">'
    )
    described = " ".join(order_sentences(explanation))
    return "\n".join([head, f"<title>{escape(name)}</title>", f"<desc>{escape(described)}</desc>", *body, "</svg>", ""])


@dataclass(frozen=True)
class _Scale:
    """Where positions `first` to `end` (exclusive) lie in the drawing."""

    first: int
    end: int

    def place(self, position: int) -> float:
        """Pixels from the left."""
        return (position - self.first) * _WIDTH / (self.end - self.first)


def _drawn_order(what: str, order: Order, top: int, scale: _Scale) -> tuple[list[str], int]:
    """One order below `top`, and its height."""
    if order.sum is None:
        return ([_text(0, top + _LINE - 6, f"{what}: {order.note}")], _LINE) if order.note else ([], 0)
    bars = [bar for _, bar in zip(range(_MOST_BARS), _bars(order.sum, order.sum.first, 0, 0, scale), strict=False)]
    lines = [_text(0, top + _LINE - 6, f"{what}: {order.scheme}" if order.scheme else what)]
    lines += [_drawn_bar(bar, top + _LINE, scale, named=bool(order.scheme)) for bar in bars]
    depth = 1 + max(bar.depth for bar in bars)
    return lines, _LINE + depth * (_BAR + _GAP)


def _bars(whole: Sum, first: int, depth: int, ordinal: int, scale: _Scale) -> Iterator[_Bar]:
    """The sums that are wide enough to be seen, those of a row of bars in the order in which they are added."""
    yield _Bar(whole, first, depth, ordinal)
    placed = [placed for addends in whole.addends for placed in addends.placed()]
    # Bars of sums whose keys lie between one another's would hide each other: the label says what they are.
    if not adds_runs(whole):
        return
    for place, (each, start) in enumerate(placed, start=1):
        if each.keys > 1 and scale.place(each.last + 1) - scale.place(each.first) >= _NARROWEST:
            inner = place if whole.manner is Manner.ONE_BY_ONE else 0
            yield from _bars(each, first + start - whole.first, depth + 1, inner, scale)


def _drawn_bar(bar: _Bar, top: int, scale: _Scale, *, named: bool) -> str:
    """A bar and its label, which leaves to the name of a scheme, where there is one, what lanes do."""
    end = bar.first + bar.sum.last - bar.sum.first
    left = scale.place(bar.first)
    width = max(scale.place(end + 1) - left - 1, 0.5)
    y = top + bar.depth * (_BAR + _GAP)
    in_order = bar.sum.manner is Manner.ONE_BY_ONE
    ordinal = f"#{bar.ordinal} " if bar.ordinal else ""
    told = f"{ordinal}keys {bar.first} to {end}"
    if not named or adds_runs(bar.sum):
        told += f": {told_sum(bar.sum)}"
    look = 'fill-opacity="0.08"' if in_order else 'fill-opacity="0.2" stroke-dasharray="4 2"'
    labels = (told, f"{ordinal}{bar.sum.keys} keys", ordinal.strip())
    label = next((label for label in labels if len(label) * _CHARACTER + _MARGIN <= width), "")
    drawn_label = _text(left + _MARGIN / 2, y + 14, label) if label else ""
    return (
        f'<g><title>{escape(told)}</title><rect x="{left:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}" '
        f'stroke="currentColor" stroke-width="0.75" {look}/>{drawn_label}</g>'
    )


def _text(x: float, y: float, label: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.2f}" y="{y:g}"{weight}>{escape(label)}</text>'
