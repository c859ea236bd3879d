"""The order in which a sum is accumulated, recovered from outside by what it loses.

Of two terms let one be `M` and the other `-M`, so large that a partial sum which holds one of them loses whatever is
added to it, and let all other terms be 1. What is left in the end is what was added after both had met. So the sum
tells how many terms lie below the place where the two meet, and these numbers, over pairs of terms, tell the whole
tree (Xie, Gao, Wu and Wu, "FPRev: revealing the order of floating-point summation", USENIX ATC '25).

Nothing is known of a term that is added in arithmetic in which 1 is not lost beside `M`, or of sums in integers.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from samebits.harness.records import UnusableInput

# Absorbs 2^16 terms of 1 in float32, and more where there is less precision; every dtype but float16 holds it.
_ABSORBING = 2.0**40
# Of what may be regular, one term in so many is asked for at first: no power of two, as lanes and tiles are.
_STRIDE = 7
# What takes no more calls than these is asked for as a whole.
_CHEAP_CALLS = 3
# Pairs of terms that a guess is held against.
_PAIRS_HELD_AGAINST = 128

# Sums of `[num_terms, num_sums]` float64 terms: `[num_sums]` float64, in units of one term of 1.
Summation = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Node:
    """A partial sum: of one term, or of parts that are added at once or in an order that does not show.

    Attributes:
        terms: places of all terms below, ascending.
        parts: nodes of two or more parts, by their first terms; none where there is one term.
        shape: digest of the tree below without its place: the same for two nodes that add alike.
    """

    terms: tuple[int, ...]
    # Told and compared by `shape`, since a sum in order is deeper than Python's stack.
    parts: tuple[Node, ...] = field(default=(), repr=False, compare=False)
    shape: str = field(init=False)

    def __post_init__(self) -> None:
        told = ",".join(f"{part.first - self.first}:{part.shape}" for part in self.parts)
        object.__setattr__(self, "shape", hashlib.blake2b(told.encode(), digest_size=16).hexdigest())

    @functools.cached_property
    def members(self) -> frozenset[int]:
        """The same terms, to look for one."""
        return frozenset(self.terms)

    def moved(self, by: int) -> Node:
        """The same tree at other places."""
        # Parts of a chain lie as deep as it has terms.
        made: dict[int, Node] = {}
        pending = [self]
        while pending:
            node = pending[-1]
            missing = [part for part in node.parts if id(part) not in made]
            if missing:
                pending += missing
                continue
            pending.pop()
            made[id(node)] = Node(tuple(term + by for term in node.terms), tuple(made[id(part)] for part in node.parts))
        return made[id(self)]

    @property
    def first(self) -> int:
        """Place of the first term."""
        return self.terms[0]


def accumulation_order(
    summation: Summation, num_terms: int, sums_at_once: int, counted: int, guesses: Sequence[Node] = ()
) -> Node:
    """Recovers the tree of a summation.

    Most trees are regular, so a few questions make a guess of the whole, which is then held against many. Where that
    fails, every term is asked for.

    Args:
        summation: deterministic; the order must not depend on the terms.
        num_terms: at least one.
        sums_at_once: how many sums `summation` is given at most.
        counted: up to how many terms of 1 a sum tells exactly.
        guesses: trees that it may be.

    Raises:
        UnusableInput: the sums follow no order of additions.
    """
    probes = _Probes(summation, num_terms, sums_at_once, counted)
    if num_terms == 1:
        return Node((0,))
    for guess in guesses:
        if len(guess.terms) == num_terms and probes.agree(guess):
            return guess
    for meeting_sizes in (probes.few_meeting_sizes, probes.meeting_sizes):
        try:
            sketched = _Builder(meeting_sizes, repeats=True).tree(range(num_terms))
            if probes.agree(sketched):
                return sketched
        except _NoOrder:
            continue  # A guess that contradicts itself is a wrong one.
    return _Builder(probes.meeting_sizes, repeats=False).tree(range(num_terms))


class _NoOrder(UnusableInput):
    """What is lost follows no tree."""

    def __init__(self) -> None:
        super().__init__("what is lost of sums of large and small terms follows no order of additions")


class _Probes:
    """How many terms lie below the place where two of them meet."""

    def __init__(self, summation: Summation, num_terms: int, sums_at_once: int, counted: int) -> None:
        self._summation, self._num_terms, self._sums_at_once = summation, num_terms, sums_at_once
        self._counted = [range(start, min(start + counted, num_terms)) for start in range(0, num_terms, counted)]

    def meeting_sizes(self, term: int, others: Sequence[int]) -> dict[int, int]:
        """Terms below the place where `term` meets each other one, both among them."""
        columns = [(term, other, counted) for other in others for counted in self._counted]
        found = dict.fromkeys(others, 2)
        for (_, other, _), lost in zip(columns, self._lost(columns), strict=True):
            found[other] += lost
        return found

    def few_meeting_sizes(self, term: int, others: Sequence[int]) -> dict[int, int]:
        """As `meeting_sizes`, where it is guessed that what lies between two equal ones is equal to them."""
        if len(others) * len(self._counted) <= _CHEAP_CALLS * self._sums_at_once:
            return self.meeting_sizes(term, others)
        places = sorted({*range(0, len(others), _STRIDE), len(others) - 1})
        found = self.meeting_sizes(term, [others[place] for place in places])
        while between := [
            (low + high) // 2
            for low, high in itertools.pairwise(places)
            if high - low > 1 and found[others[low]] != found[others[high]]
        ]:
            found |= self.meeting_sizes(term, [others[place] for place in between])
            places = sorted({*places, *between})
        for low, high in itertools.pairwise(places):
            found |= dict.fromkeys(others[low + 1 : high], found[others[low]])
        return found

    def agree(self, tree: Node) -> bool:
        """Whether random pairs of terms meet where they do in a tree."""
        generator = random.Random(self._num_terms)
        columns = []
        for number in range(min(_PAIRS_HELD_AGAINST, self._num_terms**2)):
            term, other = generator.sample(range(self._num_terms), 2)
            columns.append((term, other, self._counted[number % len(self._counted)]))
        try:
            lost = self._lost(columns)
        except _NoOrder:
            return False
        below = [set(_meeting(tree, term, other).terms) - {term, other} for term, other, _ in columns]
        return lost == [len(terms.intersection(counted)) for terms, (_, _, counted) in zip(below, columns, strict=True)]

    def _lost(self, columns: Sequence[tuple[int, int, range]]) -> list[int]:
        """Of two terms and some that are counted, how many of the latter are lost."""
        found: list[int] = []
        for first in range(0, len(columns), self._sums_at_once):
            asked = columns[first : first + self._sums_at_once]
            terms = torch.zeros(self._num_terms, len(asked), dtype=torch.float64)
            for column, (term, other, counted) in enumerate(asked):
                terms[counted.start : counted.stop, column] = 1.0
                terms[term, column], terms[other, column] = _ABSORBING, -_ABSORBING
            ones = (terms == 1.0).sum(dim=0)
            lost = (ones - self._summation(terms)).round()
            if not bool(((lost >= 0) & (lost <= ones)).all()):
                raise _NoOrder
            found += lost.to(torch.int64).tolist()
        return found


def _meeting(tree: Node, term: int, other: int) -> Node:
    """The node at which two terms meet."""
    while True:
        below = [part for part in tree.parts if term in part.members]
        if not below or other not in below[0].members:
            return tree
        tree = below[0]


class _Builder:
    """Puts a tree together from where its terms meet.

    Args:
        meeting_sizes: where a term meets others.
        repeats: whether terms that are spaced as others before them are guessed to be added up as those are.
    """

    def __init__(self, meeting_sizes: Callable[[int, Sequence[int]], dict[int, int]], *, repeats: bool) -> None:
        self._meeting_sizes, self._repeats = meeting_sizes, repeats
        self._known: dict[tuple[int, ...], list[Node]] = {}

    def tree(self, terms: Sequence[int], sizes: Mapping[int, int] | None = None) -> Node:
        """The node of some terms, which are all that there are below it.

        From the first term upwards, each size is a node: who meets it there forms the other parts of that node.

        Args:
            terms: ascending.
            sizes: where the others meet the first one, if that is known.
        """
        first, *others = terms
        sizes = self._meeting_sizes(first, others) if sizes is None and others else sizes or {}
        node = Node((first,))
        for size in sorted({sizes[other] for other in others}):
            joining = [other for other in others if sizes[other] == size]
            parts = sorted((node, *self._parts(joining, size)), key=lambda part: part.first)
            node = Node(tuple(sorted(term for part in parts for term in part.terms)), tuple(parts))
            if len(node.terms) != size:
                raise _NoOrder
        return node

    def _parts(self, terms: Sequence[int], size: int) -> list[Node]:
        """The parts of a node of `size` terms that `terms` form: those that meet below it are one part."""
        spaced = tuple(term - terms[0] for term in terms)
        if self._repeats and spaced in self._known:
            known = self._known[spaced]
            return [part.moved(terms[0] - known[0].first) for part in known]
        found: list[Node] = []
        rest = terms
        while rest:
            first, *others = rest
            sizes = self._meeting_sizes(first, others) if others else {}
            found.append(self.tree([first, *(other for other in others if sizes[other] < size)], sizes))
            rest = [other for other in others if sizes[other] >= size]
        self._known[spaced] = found
        return found
