"""The smallest batch that shows a difference, drawn: each request a bar over its keys, its queries at their end.

It is read from the text that a record has of it: `[r1:q1c130] against [r1:q1c130 r2:q1c0] with poison large and nan`,
where `r1:q4c128` is a request of 4 query tokens behind 128 cached ones, `e` counts its encoder tokens, a word may
follow, and a side may be computed in steps, with `then` between them. What is wrong by itself has one side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from samebits.reports import text

_REQUEST = re.compile(r"r(\d{1,9}):q(\d{1,9})c(-?\d{1,9})(?:e(\d{1,9}))?(\S*)", re.ASCII)
_STEP = re.compile(r"\[([^\]]*)\]|\bthen (\d+ more)\b", re.ASCII)
_WIDTH, _ROW, _BAR, _LEFT, _RIGHT = 560, 20, 12, 86, 118
# A token is a pixel or more, as long as the longest request leaves room.
_LEAST = 2.0


@dataclass(frozen=True)
class DrawnRequest:
    """A request of a drawn batch.

    Attributes:
        key: names its data.
        query_len, context_len, encoder_len: its tokens; `context_len` is negative where there are fewer keys than
            queries.
        note: what else the text says of it, for example that it is not causal.
    """

    key: int
    query_len: int
    context_len: int
    encoder_len: int
    note: str

    @property
    def keys(self) -> int:
        """Keys that it may attend to: encoder tokens, cached ones, its own."""
        return self.encoder_len + max(0, self.context_len + self.query_len)


@dataclass(frozen=True)
class Row:
    """A line of the drawing: a request, or words for what the text leaves out."""

    request: DrawnRequest | None
    words: str = ""


@dataclass(frozen=True)
class Batch:
    """Both sides of a comparison, or the one batch that is wrong by itself.

    Attributes:
        sides: of each, its lines.
        apart: what else differs between the sides, in words; empty for nothing.
    """

    sides: tuple[tuple[Row, ...], ...]
    apart: str

    @property
    def victims(self) -> frozenset[int]:
        """Keys of the requests that both sides compute, of which the bits must agree; none where there is one side."""
        if len(self.sides) == 1:
            return frozenset()
        left, right = (frozenset(row.request.key for row in side if row.request) for side in self.sides)
        return left & right


def parse_batch(told: str) -> Batch | None:
    """Reads the text of a record; None where it is not written as expected, which then stays text."""
    sides, _, apart = told.partition(" with ")
    read = tuple(_rows(side) for side in sides.split(" against "))
    return Batch(read, apart) if len(read) <= 2 and all(any(row.request for row in rows) for rows in read) else None


def draw_batch(told: str, unit: str = "key") -> Markup | None:
    """The drawing as inline SVG; None where the text cannot be read.

    Args:
        told: text of a record.
        unit: what a bar counts: keys, where something is attended to.
    """
    batch = parse_batch(told)
    if batch is None:
        return None
    longest = max(row.request.keys for side in batch.sides for row in side if row.request)
    scale = (_WIDTH - _LEFT - _RIGHT) / max(1, longest)
    parts, y = [], 0
    titles = ("One side", "The other side") if len(batch.sides) == 2 else ("The batch",)
    for title, rows in zip(titles, batch.sides, strict=True):
        parts.append(Markup('<text class="side" x="0" y="{}">{}</text>').format(y + 13, title))
        y += _ROW
        for row in rows:
            parts.append(_row(row, y, scale, batch.victims, unit))
            y += _ROW
        y += 6
    parts.append(_axis(y, text.counted(longest, unit)))
    height = y + 18
    return Markup('<svg class="batch" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, height, _said(batch, unit), Markup("").join(parts)
    )


def _rows(side: str) -> tuple[Row, ...]:
    rows: list[Row] = []
    steps = list(_STEP.finditer(side))
    for number, step in enumerate(steps, start=1):
        requests, left_out = step.groups()
        if left_out:
            rows.append(Row(None, f"{left_out} steps"))
            continue
        if len(steps) > 1:
            rows.append(Row(None, "first" if number == 1 else "last" if number == len(steps) else "then"))
        rows += _requests(requests)
    return tuple(rows)


def _requests(told: str) -> list[Row]:
    rows = [Row(_request(*found.groups(""))) for found in _REQUEST.finditer(told)]
    left_out = re.search(r"\((\d+ more)\)", told, re.ASCII)
    if left_out:
        rows.insert(len(rows) // 2, Row(None, f"{left_out[1]} requests"))
    return rows


def _request(key: str, query_len: str, context_len: str, encoder_len: str, note: str) -> DrawnRequest:
    return DrawnRequest(int(key), int(query_len), int(context_len), int(encoder_len or 0), note.lstrip(":"))


def _row(row: Row, y: int, scale: float, victims: frozenset[int], unit: str) -> Markup:
    request = row.request
    if request is None:
        return Markup('<text class="aside" x="{}" y="{}">… {}</text>').format(_LEFT, y + 13, row.words)
    victim = request.key in victims
    name = Markup('<text class="{}" x="0" y="{}">{}r{}</text>').format(
        "victim" if victim else "neighbour", y + 13, "▶ " if victim else "", request.key
    )
    lengths = f"{request.query_len} q, {text.counted(request.keys, unit)}" + (
        f" {request.note}" if request.note else ""
    )
    ends = _LEFT + max(_LEAST, request.keys * scale)
    behind = Markup('<text class="aside" x="{:g}" y="{}">{}</text>').format(round(ends + 6, 1), y + 13, lengths)
    return name + _bar(request, y, scale, "victim" if victim else "neighbour") + behind


def _bar(request: DrawnRequest, y: int, scale: float, css_class: str) -> Markup:
    """Encoder tokens, cached ones and the request's own, one behind the other."""
    own = min(request.query_len, max(0, request.context_len + request.query_len))
    parts = (("encoder", request.encoder_len), ("context", max(0, request.context_len)), ("query", own))
    drawn, x = [], float(_LEFT)
    for what, tokens in parts:
        if tokens:
            width = max(_LEAST, tokens * scale)
            drawn.append(
                Markup('<rect class="{} {}" x="{:g}" y="{}" width="{:g}" height="{}"/>').format(
                    css_class, what, round(x, 1), y + 3, round(width, 1), _BAR
                )
            )
            x += width
    return Markup("").join(drawn)


def _axis(y: int, longest: str) -> Markup:
    end = _WIDTH - _RIGHT
    return Markup(
        '<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
        '<text class="aside" x="{0}" y="{3}">0</text>'
        '<text class="aside" x="{1}" y="{3}" text-anchor="end">{4}</text>'
    ).format(_LEFT, end, y, y + 14, longest)


def _said(batch: Batch, unit: str) -> str:
    """The drawing in words."""
    if len(batch.sides) == 1:
        return f"The batch computes {_said_side(batch.sides[0], unit)}."
    left, right = (_said_side(rows, unit) for rows in batch.sides)
    victims = ", ".join(f"r{key}" for key in sorted(batch.victims)) or "no request"
    apart = f" What differs besides: {batch.apart}." if batch.apart else ""
    return f"One side computes {left}; the other {right}. On both sides, and so the victim: {victims}.{apart}"


def _said_side(rows: Sequence[Row], unit: str) -> str:
    told = [row.words if row.request is None else _said_request(row.request, unit) for row in rows]
    return ", ".join(told)


def _said_request(request: DrawnRequest, unit: str) -> str:
    queries = text.counted(request.query_len, "query token")
    return f"request r{request.key} with {queries} over {text.counted(request.keys, unit)}"
