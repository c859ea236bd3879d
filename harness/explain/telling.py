"""A tree of additions in words: what is added one after another, in parts of which size, and what is alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from samebits.harness.explain.order import Node

# Groups of addends that are told one by one.
_TOLD_GROUPS = 6


@dataclass(frozen=True)
class Level:
    """A node as it is told: its addends, where a chain of two at a time is one sum.

    Attributes:
        node: the node.
        addends: what is added, in the order in which it is; none for a single term.
        in_order: whether one is added after another; else all at once, or in an order that does not show.
    """

    node: Node
    addends: tuple[Node, ...]
    in_order: bool


def level_of(node: Node) -> Level:
    """A node's addends.

    Two parts are an addend and what has been added up before it, unless both are as large: those are halves.
    """
    chain: list[Node] = []
    head = node
    while len(head.parts) == 2 and len(head.parts[0].terms) > len(head.parts[1].terms):
        head, last = head.parts
        chain.append(last)
    # Where it began, both are as large as what comes after them.
    begun = bool(chain) and len(head.parts) == 2 and len(head.parts[1].terms) == len(chain[-1].terms)
    addends = (*(head.parts if begun else (head,)), *reversed(chain))
    return Level(node, addends, in_order=True) if len(addends) > 2 else Level(node, node.parts, in_order=False)


def told_tree(node: Node) -> str:
    """The tree in text, a line for each sum; of sums that are alike and lie side by side, the first is told."""
    return "\n".join(_lines(node))


def _lines(node: Node) -> Iterator[str]:
    level = level_of(node)
    yield f"{_span(node)}: {_told(level)}"
    groups = [tuple(alike) for _, alike in groupby(level.addends, key=lambda addend: addend.shape)]
    inner = [group for group in groups if group[0].parts]
    blocks = [_block(group) for group in inner[:_TOLD_GROUPS]]
    if len(inner) > _TOLD_GROUPS:
        blocks.append([f"and {len(inner) - _TOLD_GROUPS} other groups"])
    for block in blocks:
        first, rest = ("└─ ", "   ") if block is blocks[-1] else ("├─ ", "│  ")
        yield from (f"{rest if number else first}{line}" for number, line in enumerate(block))


def _block(group: Sequence[Node]) -> list[str]:
    """The lines of the first of some nodes that are alike."""
    first, *lines = _lines(group[0])
    if len(group) > 1:
        first += f" (and {len(group) - 1} more alike, to {group[-1].terms[-1]})"
    return [first, *lines]


def _told(level: Level) -> str:
    number = len(level.addends)
    if not number:
        return "one key"
    sizes = [len(addend.terms) for addend in level.addends]
    manner = "one after another" if level.in_order else "at once" if number > 2 else "in one addition"
    if set(sizes) == {1}:
        return f"{number} keys, {manner}"
    return f"{number} parts of {_told_sizes(sizes)} keys, {manner}"


def _told_sizes(sizes: Sequence[int]) -> str:
    groups = [(size, len(list(same))) for size, same in groupby(sizes)]
    told = [str(size) if number == 1 else f"{number} x {size}" for size, number in groups]
    return ", ".join(told if len(told) <= _TOLD_GROUPS else [*told[:_TOLD_GROUPS], "..."])


def _span(node: Node) -> str:
    if len(node.terms) == 1:
        return f"key {node.first}"
    if node.is_run:
        return f"keys {node.first} to {node.terms[-1]}"
    steps = {later - earlier for earlier, later in zip(node.terms, node.terms[1:], strict=False)}
    if len(steps) == 1:
        return f"keys {node.first} to {node.terms[-1]} in steps of {steps.pop()}"
    return f"{len(node.terms)} of keys {node.first} to {node.terms[-1]}"
