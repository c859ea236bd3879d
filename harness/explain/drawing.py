"""Trees of additions drawn side by side: keys from left to right, each sum a bar over what it adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from samebits.harness.explain.order import Node
from samebits.harness.explain.telling import Level, level_of

_WIDTH, _BAR, _GAP, _TITLE = 1000.0, 18, 3, 26
# Bars narrower than this, in pixels, are not drawn one by one.
_NARROWEST = 1.5
# Sums in order and all others, so that neither is told by its colour alone: the first have an arrow.
_FILLS = {True: "#c6dbef", False: "#fdd0a2"}


def drawn_trees(trees: Sequence[tuple[str, Node]]) -> str:
    """An SVG of trees, one below another on one scale.

    Args:
        trees: a title and a tree each.
    """
    num_keys = max(tree.terms[-1] + 1 for _, tree in trees)
    body: list[str] = []
    top = 0
    for title, tree in trees:
        body.append(f'<text x="0" y="{top + _TITLE - 9}" font-weight="bold">{escape(title)}</text>')
        top += _TITLE
        bars = list(_bars(tree, 0, _WIDTH / num_keys))
        body += [_bar(level, depth, top, _WIDTH / num_keys) for depth, level in bars]
        top += (1 + max(depth for depth, _ in bars)) * (_BAR + _GAP) + _GAP
    style = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {top}" {style}>'
    return "\n".join([head, *body, "</svg>", ""])


def _bars(node: Node, depth: int, scale: float) -> Iterator[tuple[int, Level]]:
    """The sums that are wide enough to be seen, each with how many are above it."""
    level = level_of(node)
    if not level.addends or (node.terms[-1] + 1 - node.first) * scale < _NARROWEST:
        return
    yield depth, level
    for addend in level.addends:
        yield from _bars(addend, depth + 1, scale)


def _bar(level: Level, depth: int, top: int, scale: float) -> str:
    node = level.node
    left, width = node.first * scale, (node.terms[-1] + 1 - node.first) * scale
    number = len(level.addends)
    told = f"{node.first} to {node.terms[-1]}: {number}{' in order' if level.in_order else ''}"
    y = top + depth * (_BAR + _GAP)
    label = f"{number} \N{RIGHTWARDS ARROW}" if level.in_order else f"{number}"
    text = f'<text x="{left + 3:.2f}" y="{y + 13}">{label}</text>' if width > 30 else ""
    return (
        f'<g><title>{escape(told)}</title><rect x="{left:.2f}" y="{y}" width="{max(width - 0.5, 0.5):.2f}" '
        f'height="{_BAR}" fill="{_FILLS[level.in_order]}" stroke="#444" stroke-width="0.5"/>{text}</g>'
    )
