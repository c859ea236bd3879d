"""Ways in which kernels are known to add up the weights of a row: what the order of a denominator is sought among.

A scheme adds leaves with an addition that it is given, so that it makes numbers of numbers and trees of trees. A leaf
may be missing, where a tile reaches beyond the keys that a row sees.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")
Add = Callable[[T, T], T]
Leaves = Sequence[T | None]

# Lanes of vector units, times the vectors that are kept at once; keys of tiles.
_LANES = (2, 4, 8, 16, 32, 64, 128)
_TILES = (16, 32, 64, 128, 256, 512, 1024)


def in_order(leaves: Leaves[T], add: Add[T]) -> T | None:
    """One after another."""
    # Most are missing where few keys weigh anything, and hundreds of schemes are tried.
    there = [leaf for leaf in leaves if leaf is not None]
    return functools.reduce(add, there) if there else None


def by_halves(leaves: Leaves[T], add: Add[T]) -> T | None:
    """The upper half onto the lower, again and again, of leaves filled up to a power of two."""
    rest = _filled(leaves)
    while len(rest) > 1:
        half = len(rest) // 2
        rest = [_sum(rest[place], rest[place + half], add) for place in range(half)]
    return rest[0]


def by_neighbours(leaves: Leaves[T], add: Add[T]) -> T | None:
    """Each second onto the one before it, again and again, of leaves filled up to a power of two."""
    rest = _filled(leaves)
    while len(rest) > 1:
        rest = [_sum(rest[place], rest[place + 1], add) for place in range(0, len(rest), 2)]
    return rest[0]


def in_eights(leaves: Leaves[T], add: Add[T]) -> T | None:
    """As numpy sums what lies together: by halves down to 128, which eight sums share, and what is left one by one."""
    if len(leaves) < 8:
        return in_order(leaves, add)
    if len(leaves) > 128:
        middle = len(leaves) // 2 // 8 * 8
        return _sum(in_eights(leaves[:middle], add), in_eights(leaves[middle:], add), add)
    whole = len(leaves) // 8 * 8
    eight = [in_order(leaves[place:whole:8], add) for place in range(8)]
    return in_order([by_neighbours(eight, add), *leaves[whole:]], add)


_REDUCTIONS = {"in_order": in_order, "by_halves": by_halves, "by_neighbours": by_neighbours, "in_eights": in_eights}
_OF_LANES = ("by_halves", "by_neighbours", "in_order")
_WORDS = {
    "in_order": "one after another",
    "by_halves": "by halves",
    "by_neighbours": "in pairs of neighbours",
    "in_eights": "as numpy does, in eight sums",
}


@dataclass(frozen=True)
class Tiles:
    """Tiles of keys, each summed from zero, one after another into an accumulator.

    Attributes:
        keys: of a tile; 0 for all keys in one.
        lanes: sums that take turns in a tile; 1 for none.
        reduction: how the lanes of a tile, or its keys where there are none, are added.
        tail: whether keys that fill no round of lanes are added one by one to what the lanes came to.
        accumulated: whether lanes go on from tile to tile, and are added at the end alone.
        split: tiles of a split, each from zero and merged in order; 0 for one split.
        backwards: whether the last tile comes first.
    """

    keys: int
    lanes: int
    reduction: str
    tail: bool = False
    accumulated: bool = False
    split: int = 0
    backwards: bool = False

    def __str__(self) -> str:
        told = [f"splits of {self.split * self.keys} keys, merged in order"] if self.split else []
        if self.keys:
            told.append(f"tiles of {self.keys} keys, " + ("the last first" if self.backwards else "one after another"))
        if self.lanes == 1:
            told.append(f"the keys of a tile {_WORDS[self.reduction]}" if self.keys else _WORDS[self.reduction])
        else:
            place = "over all tiles" if self.accumulated else "in each" if self.keys else "in all"
            told.append(f"{place} {self.lanes} lanes that take turns, added {_WORDS[self.reduction]}")
        return "; ".join([*told, *(["then the keys that fill no round of lanes"] if self.tail else [])])

    def sum(self, leaves: Leaves[T], first_position: int, add: Add[T]) -> T | None:
        """Adds up leaves, the first of which is at a position of the sequence."""
        padded = [None] * (first_position % self.keys if self.keys else 0) + list(leaves)
        size = self.keys or len(padded)
        tiles = [padded[start : start + size] for start in range(0, len(padded), size)]
        if not self.tail:
            tiles = [tile + [None] * (size - len(tile)) for tile in tiles]
        per_split = self.split or len(tiles)
        splits = [tiles[start : start + per_split] for start in range(0, len(tiles), per_split)]
        return in_order([self._split(split, add) for split in splits], add)

    def _split(self, tiles: Sequence[Leaves[T]], add: Add[T]) -> T | None:
        ordered = tiles[::-1] if self.backwards else tiles
        if self.accumulated:
            return self._tile([leaf for tile in ordered for leaf in tile], add)
        return in_order([self._tile(tile, add) for tile in ordered], add)

    def _tile(self, tile: Leaves[T], add: Add[T]) -> T | None:
        if all(leaf is None for leaf in tile):
            return None
        reduce = _REDUCTIONS[self.reduction]
        if self.lanes == 1:
            return reduce(tile, add)
        whole = len(tile) // self.lanes * self.lanes if self.tail else len(tile)
        lanes = [in_order(tile[lane : whole : self.lanes], add) for lane in range(self.lanes)]
        return in_order([reduce(lanes, add), *tile[whole:]], add)


def schemes(num_keys: int, tile_keys: Sequence[int]) -> Iterator[Tiles]:
    """Everything that is tried, the likelier first.

    Args:
        num_keys: of the row.
        tile_keys: sizes of tiles that are likely.
    """
    sizes = [size for size in dict.fromkeys((*tile_keys, *_TILES, 0)) if size < 2 * num_keys]
    plain = [Tiles(size, lanes, reduction) for size in sizes for lanes, reduction in _within(size or num_keys)]
    yield from plain
    yield from (replace(scheme, backwards=True) for scheme in plain if scheme.keys)
    yield from (replace(scheme, tail=True) for scheme in plain if scheme.lanes > 1)
    for size in filter(None, sizes):
        for lanes in _LANES:
            if lanes <= size:
                yield from (Tiles(size, lanes, reduction, accumulated=True) for reduction in _OF_LANES)
    for size in filter(None, sizes):
        num_tiles = -(-num_keys // size)
        # As many splits as there may be processors for, or splits of so many tiles.
        splits = dict.fromkeys((2, 4, 8, 16, *(-(-num_tiles // number) for number in range(2, 9))))
        for split in (split for split in splits if 1 < split < num_tiles):
            yield from (Tiles(size, lanes, reduction, split=split) for lanes, reduction in _within(size))


def _within(size: int) -> Iterator[tuple[int, str]]:
    """How a tile may be added up: lanes and reduction."""
    yield from ((1, reduction) for reduction in _REDUCTIONS)
    for lanes in _LANES:
        if lanes < size:
            yield from ((lanes, reduction) for reduction in _OF_LANES)


def _sum(left: T | None, right: T | None, add: Add[T]) -> T | None:
    if left is None or right is None:
        return right if left is None else left
    return add(left, right)


def _filled(leaves: Leaves[T]) -> list[T | None]:
    size = 1 << (max(len(leaves), 1) - 1).bit_length()
    return [*leaves, *[None] * (size - len(leaves))]
