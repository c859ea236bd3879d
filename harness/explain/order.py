"""The order in which a sum is accumulated, recovered from outside by what it loses.

Of two terms let one be `M` and the other `-M`, so large that a partial sum which holds one of them loses whatever is
added to it, and let all other terms be 1. What is left in the end is what was added after both had met. So the sum
tells how many terms lie below the place where the two meet, and these numbers, over pairs of terms, tell the whole
tree (Xie, Gao, Wu and Wu, "FPRev: revealing the order of floating-point summation", USENIX ATC '25).

Nothing is known of a term that is added in arithmetic in which 1 is not lost beside `M`, or of sums in integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

# Absorbs 2^16 terms of 1 in float32, and more where there is less precision; every dtype but float16 holds it.
_ABSORBING = 2.0**40
# Terms of 1 in one sum: as many as are counted in the eight bits of a bfloat16 output.
_COUNTED = 128

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

    @property
    def first(self) -> int:
        """Place of the first term."""
        return self.terms[0]

    @property
    def is_run(self) -> bool:
        """Whether the terms lie next to one another."""
        return self.terms[-1] - self.terms[0] == len(self.terms) - 1


def accumulation_order(summation: Summation, num_terms: int, sums_at_once: int) -> Node:
    """Recovers the tree of a summation.

    Args:
        summation: deterministic; the order must not depend on the terms.
        num_terms: at least one.
        sums_at_once: how many sums `summation` is given at most.
    """
    return _tree(_Probes(summation, num_terms, sums_at_once), range(num_terms))


class _Probes:
    """How many terms lie below the place where two of them meet."""

    def __init__(self, summation: Summation, num_terms: int, sums_at_once: int) -> None:
        self._summation, self._num_terms, self._sums_at_once = summation, num_terms, sums_at_once

    def meeting_sizes(self, term: int, others: Sequence[int]) -> dict[int, int]:
        """Terms below the place where `term` meets each other one, both among them."""
        counted = range(0, self._num_terms, _COUNTED)
        columns = [(other, start) for other in others for start in counted]
        found = dict.fromkeys(others, 2)
        for first in range(0, len(columns), self._sums_at_once):
            asked = columns[first : first + self._sums_at_once]
            terms = torch.zeros(self._num_terms, len(asked), dtype=torch.float64)
            for column, (other, start) in enumerate(asked):
                terms[start : start + _COUNTED, column] = 1.0
                terms[term, column], terms[other, column] = _ABSORBING, -_ABSORBING
            ones = (terms == 1.0).sum(dim=0)
            lost = ones - self._summation(terms).round().to(torch.int64)
            for (other, _), number in zip(asked, lost.tolist(), strict=True):
                found[other] += number
        return found


def _tree(probes: _Probes, terms: Sequence[int], sizes: Mapping[int, int] | None = None) -> Node:
    """The node of some terms, which are all that there are below it.

    From the first term upwards, each size is a node: who meets it there forms the other parts of that node.

    Args:
        probes: asks the summation.
        terms: ascending.
        sizes: where the others meet the first one, if that is known.
    """
    first, *others = terms
    sizes = probes.meeting_sizes(first, others) if sizes is None else sizes
    node = Node((first,))
    for size in sorted({sizes[other] for other in others}):
        joining = [other for other in others if sizes[other] == size]
        parts = sorted((node, *_parts(probes, joining, size)), key=lambda part: part.first)
        node = Node(tuple(sorted(term for part in parts for term in part.terms)), tuple(parts))
    return node


def _parts(probes: _Probes, terms: Sequence[int], size: int) -> Iterator[Node]:
    """The parts of a node of `size` terms that `terms` form: those that meet below it are one part."""
    while terms:
        first, *others = terms
        sizes = probes.meeting_sizes(first, others)
        yield _tree(probes, [first, *(other for other in others if sizes[other] < size)], sizes)
        terms = [other for other in others if sizes[other] >= size]
