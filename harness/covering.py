"""Covering tables: few rows of options in which any two values of different options meet.

A bug often needs two options at once: a mask and a page size, a batch of decodes and an odd number of heads in a group.
All combinations of a dozen options are millions, but any two values meet in a few dozen rows (Cohen, Dalal, Fredman and
Patton: "The AETG system: an approach to testing based on combinatorial design", IEEE TSE 23(7), 1997). The rows here
are found greedily, one at a time, without chance: the same options give the same rows.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

# An option's name and one of its values.
Choice = tuple[str, Hashable]
Row = Mapping[str, Hashable]


def covering_rows(
    options: Mapping[str, Sequence[Hashable]], excluded: Callable[[Choice, Choice], bool]
) -> tuple[Row, ...]:
    """Rows in which any two choices meet that may.

    Each row starts from a pair of choices that no row has yet. Every further option then takes the value that meets
    most of the row's choices for the first time, and of several such the one that fewest rows have for its share.

    Args:
        options: values of each option; where there is a choice, one that is listed twice is taken twice as often.
        excluded: whether two choices may not meet; asked in either order. For any choices made so far, every option
            must have a value that none of them excludes.

    Returns:
        Rows with a value of each option, in the order of the options.
    """
    missing = dict.fromkeys(pairs_of(options, excluded))
    uses: Counter[Choice] = Counter()
    rows = []
    while missing:
        row: dict[str, Hashable] = dict(next(iter(missing)))
        for name, values in options.items():
            if name in row:
                continue
            allowed = [value for value in values if not any(excluded(choice, (name, value)) for choice in row.items())]
            ranks = {
                value: (
                    -sum(_pair(choice, (name, value)) in missing for choice in row.items()),
                    uses[name, value] / values.count(value),
                )
                for value in allowed
            }
            row[name] = min(allowed, key=lambda value: ranks[value])
        for pair in itertools.combinations(row.items(), 2):
            missing.pop(_pair(*pair), None)
        uses.update(row.items())
        rows.append({name: row[name] for name in options})
    return tuple(rows)


def pairs_of(
    options: Mapping[str, Sequence[Hashable]], excluded: Callable[[Choice, Choice], bool]
) -> list[frozenset[Choice]]:
    """All pairs of choices of different options that may meet, in the order of the options."""
    return [
        _pair((one, left), (other, right))
        for one, other in itertools.combinations(options, 2)
        for left, right in itertools.product(options[one], options[other])
        if not excluded((one, left), (other, right))
    ]


def _pair(one: Choice, other: Choice) -> frozenset[Choice]:
    return frozenset((one, other))
