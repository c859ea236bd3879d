"""Why the two sides of a cell differ, as data: where first, by how much, and in which order either side adds up.

This module needs neither torch nor a backend, so that reports can be made on any machine. An order is kept as parts
that are grouped when alike, so it takes a few entries whatever the number of keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

# More than any sequence that fits on a device has keys.
MOST_ADDENDS = 1 << 20


class Manner(StrEnum):
    """How the addends of a sum are added.

    * `ONE_BY_ONE`: one after another, into what has been added up before.
    * `AT_ONCE`: all of them at once, or in an order that does not show; two have no other.
    """

    ONE_BY_ONE = "one_by_one"
    AT_ONCE = "at_once"


@dataclass(frozen=True)
class Sum:
    """What a sum of some keys is made of.

    Attributes:
        first, last: positions of its first and last key in the sequence that the request attends to.
        keys: how many keys.
        step: distance of each key to the next; 0 where it is not always the same.
        manner: how the addends are added.
        addends: in the order in which they are added; those that are alike and evenly spaced in one entry. None where
            there is one key.
        left_out: addends after those that are told: an order without any pattern is cut off.
    """

    first: int
    last: int
    keys: int
    step: int
    manner: Manner = Manner.AT_ONCE
    addends: tuple[Addends, ...] = ()
    left_out: int = 0

    def __post_init__(self) -> None:
        """Refuses what adds up nothing: a file may hold anything.

        Raises:
            ValueError: a number is none of a sum.
        """
        if self.keys < 1 or self.left_out < 0:
            raise ValueError(
                f"a sum has {self.keys} keys, and leaves out {self.left_out}; they must be at least 1 and 0"
            )

    @property
    def num_addends(self) -> int:
        """How many there are, those that are left out among them."""
        return sum(addends.number for addends in self.addends) + self.left_out

    @property
    def is_run(self) -> bool:
        """Whether the keys lie next to one another."""
        return self.last - self.first == self.keys - 1


@dataclass(frozen=True)
class Addends:
    """Addends that are made alike, as they follow one another in a sum: one by one, or several by turns.

    Attributes:
        times: how many rounds there are.
        spacing: how many keys each round begins behind the one before; negative where they go backwards, 0 for a single
            one.
        round: the addends of the first round, in their order; those of the others are the same at other positions.
    """

    times: int
    spacing: int
    round: tuple[Sum, ...]

    def __post_init__(self) -> None:
        """Refuses what is none, or so many that to go through them has no end: a file may hold anything.

        Raises:
            ValueError: a number is out of its bounds.
        """
        if not 1 <= self.times * len(self.round) <= MOST_ADDENDS:
            raise ValueError(
                f"there are {self.times} rounds of {len(self.round)} addends; there must be from 1 to {MOST_ADDENDS:,} "
                "addends"
            )

    @property
    def number(self) -> int:
        """How many addends there are."""
        return self.times * len(self.round)

    def placed(self) -> Iterator[tuple[Sum, int]]:
        """Each addend, as that of the first round that is alike, with the position of its first key."""
        return ((each, each.first + turn * self.spacing) for turn in range(self.times) for each in self.round)


@dataclass(frozen=True)
class Order:
    """The order in which something is added up, or why it is not told.

    Attributes:
        sum: of all keys that the row sees; None where it is not told.
        note: why it is not, in a sentence; empty where it is.
        scheme: the way of adding that it is, in words, where it is one of those that are known by name.
    """

    sum: Sum | None = None
    note: str = ""
    scheme: str = ""


@dataclass(frozen=True)
class Side:
    """One side of a comparison, as far as the row that differs first is concerned.

    Attributes:
        batch: that the row is computed in.
        values: order of the values, under weights that are all alike.
        denominator: order of the weights in the denominator of the softmax.
    """

    batch: str
    values: Order
    denominator: Order


@dataclass(frozen=True)
class Explanation:
    """What can be said of a difference.

    Attributes:
        request: the request that differs first, as batches name it.
        position: of its first row that differs, in its sequence.
        place: that row's first element that differs, in words: tensor, position, head and element of attention.
        difference: its two values, and how far they are apart.
        ulps: how many elements of that request are how many units in the last place apart.
        sides: left and right, where attention is computed; else none.
    """

    request: str
    position: int
    place: str
    difference: str
    ulps: Mapping[str, int] = field(default_factory=dict)
    sides: tuple[Side, ...] = ()

    def __post_init__(self) -> None:
        """Refuses one side alone, and distances that no element has: a file may hold anything.

        Raises:
            ValueError: there are neither two sides nor none, or a count is below 0, or all are 0.
        """
        if len(self.sides) not in (0, 2):
            raise ValueError(f"an explanation has {len(self.sides)} sides; it must have two, or none")
        least, most = min(self.ulps.values(), default=0), max(self.ulps.values(), default=1)
        if least < 0:
            raise ValueError(f"an explanation has {least} elements of one distance; there cannot be fewer than none")
        if most == 0:
            raise ValueError("an explanation has no element of any distance; there must be one")
