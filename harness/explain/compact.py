"""A tree of additions as reports keep it: chains as one sum, addends that are alike and evenly spaced as one entry."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from samebits.harness.explain.order import Node
from samebits.harness.explanation import Addends, Manner, Sum

# Addends of a whole tree that are written down. Kernels need a few; an order without any pattern is cut off.
_MOST_WRITTEN = 96
# Addends that may follow one another by turns.
_LONGEST_ROUND = 8


def compact(tree: Node, first_position: int) -> Sum:
    """A tree in a few entries.

    Args:
        tree: over keys that lie next to one another.
        first_position: that of the key that the tree numbers 0.
    """
    return _Writer(first_position).sum_of(tree)


class _Writer:
    """Writes one tree, as long as there is room."""

    def __init__(self, first_position: int) -> None:
        self._first_position = first_position
        self._room = _MOST_WRITTEN

    def sum_of(self, node: Node) -> Sum:
        addends, manner = addends_of(node)
        told: list[Addends] = []
        begun = 0
        for times, length in _rounds([addend.shape for addend in addends], [addend.first for addend in addends]):
            if self._room < length:
                break
            self._room -= length
            spacing = addends[begun + length].first - addends[begun].first if times > 1 else 0
            written = tuple(self.sum_of(addend) for addend in addends[begun : begun + length])
            told.append(Addends(times, spacing, written))
            begun += times * length
        return Sum(
            first=self._first_position + node.terms[0],
            last=self._first_position + node.terms[-1],
            keys=len(node.terms),
            step=_step(node.terms),
            manner=manner,
            addends=tuple(told),
            left_out=len(addends) - begun,
        )


def addends_of(node: Node) -> tuple[tuple[Node, ...], Manner]:
    """What a node is the sum of, in the order in which it is added, where a chain of two at a time is one sum.

    Of two parts the larger is what has been added up before, unless both are as large: those are halves. Where a chain
    begins does not show: a first addend that is a chain itself, and an accumulator that takes its keys one by one, are
    one tree. It is told to begin with an addend whose keys are evenly spaced where further inwards addends become
    smaller, which tails alone do outwards.
    """
    chain: list[Node] = []
    head = node
    while len(head.parts) == 2:
        smaller, larger = sorted(head.parts, key=lambda part: len(part.terms))
        if len(smaller.terms) == len(larger.terms):
            break
        if chain and len(smaller.terms) < len(chain[-1].terms) and _step(head.terms):
            break
        chain.append(smaller)
        head = larger
    chain.reverse()
    if chain and _begins(head, chain[0]):
        # Which of the first two came first does not show: they are told in the direction of the others.
        backwards = chain[0].first < min(part.first for part in head.parts)
        chain[:0] = sorted(head.parts, key=lambda part: part.first, reverse=backwards)
    elif chain:
        chain.insert(0, head)
    return (tuple(chain), Manner.ONE_BY_ONE) if len(chain) > 2 else (node.parts, Manner.AT_ONCE)


def _take_turns(head: Node) -> bool:
    """Whether the keys of some parts lie between those of others."""
    parts = sorted(head.parts, key=lambda part: part.first)
    return any(later.first < earlier.terms[-1] for earlier, later in itertools.pairwise(parts))


def _begins(head: Node, following: Node) -> bool:
    """Whether two parts are the first two addends of a chain, and not an addend's own."""
    sizes = sorted(len(part.terms) for part in head.parts)
    if len(sizes) != 2 or _take_turns(head):
        return False
    # A tail may be what comes first, or what comes last.
    return len(following.terms) in sizes or (sizes[0] == sizes[1] and sizes[0] > len(following.terms))


def _rounds(shapes: Sequence[str], firsts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Addends by rounds that are alike and evenly spaced: how many of them, and how many addends each has.

    Args:
        shapes: of the addends.
        firsts: their first terms.
    """
    begun = 0
    while begun < len(shapes):
        counted = [(_times(shapes[begun:], firsts[begun:], length), length) for length in range(1, _LONGEST_ROUND + 1)]
        # What takes the most addends; of such, the shortest round.
        repeating = [(times, length) for times, length in counted if times > 1] or [(1, 1)]
        times, length = max(repeating, key=lambda found: (found[0] * found[1], -found[1]))
        yield times, length
        begun += times * length


def _times(shapes: Sequence[str], firsts: Sequence[int], length: int) -> int:
    """How often a round of the first addends is repeated, evenly spaced."""
    if len(shapes) < 2 * length:
        return 1
    spacing = firsts[length] - firsts[0]
    same = length
    while same < len(shapes) and shapes[same] == shapes[same - length]:
        if firsts[same] - firsts[same - length] != spacing:
            break
        same += 1
    return same // length


def _step(terms: Sequence[int]) -> int:
    """The distance of each term to the next, where it is always the same; 1 for a single term."""
    steps = {later - earlier for earlier, later in itertools.pairwise(terms)} or {1}
    return steps.pop() if len(steps) == 1 else 0
