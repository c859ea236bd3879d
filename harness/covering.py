"""Covering tables: few rows of options in which the values of two or three of them meet, each with each.

A bug often needs two options at once: a mask and a page size, a batch of decodes and an odd number of heads in a group;
and some need three. All combinations of a dozen options are millions, but any two values meet in a few dozen rows
(Cohen, Dalal, Fredman and Patton: "The AETG system: an approach to testing based on combinatorial design", IEEE TSE
23(7), 1997). The rows here are found greedily, one at a time, without chance: the same options give the same rows.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

# An option's name and one of its values.
Choice = tuple[str, Hashable]
Row = Mapping[str, Hashable]
Options = Mapping[str, Sequence[Hashable]]
# Names of options whose values must meet, each with each.
Meeting = tuple[str, ...]


def covering_rows(
    options: Options, excluded: Callable[[Choice, Choice], bool], meetings: Iterable[Meeting]
) -> tuple[Row, ...]:
    """Rows in which any values of the options of a meeting occur together that may.

    Each row starts from choices that no row has together yet. Every further option then takes the value that completes
    most of what is still missing, and of several such the one that fewest rows have for its share.

    Args:
        options: values of each option; where there is a choice, one that is listed twice is taken twice as often.
        excluded: whether two choices may not meet; asked in either order. For any choices made so far, every option
            must have a value that none of them excludes.
        meetings: options that must meet. Fewer rows are needed where those of more options come first.

    Returns:
        Rows with a value of each option, in the order of the options.
    """
    missing = dict.fromkeys(combinations_of(options, excluded, meetings))
    holding: defaultdict[Choice, list[frozenset[Choice]]] = defaultdict(list)
    for combination in missing:
        for choice in combination:
            holding[choice].append(combination)
    uses: Counter[Choice] = Counter()
    rows = []
    while missing:
        row: dict[str, Hashable] = dict(next(iter(missing)))
        for name, values in options.items():
            if name in row:
                continue
            ranks = {}
            for value in values:
                choice, chosen = (name, value), row.items()
                if not any(excluded(other, choice) for other in chosen):
                    whole = {*chosen, choice}
                    completed = sum(found in missing and found <= whole for found in holding[choice])
                    ranks[value] = (-completed, uses[choice] / values.count(value))
            row[name] = min(ranks, key=ranks.__getitem__)
        whole = set(row.items())
        for combination in [combination for combination in missing if combination <= whole]:
            del missing[combination]
        uses.update(whole)
        rows.append({name: row[name] for name in options})
    return tuple(rows)


def rows_with_every_value(rows: Sequence[Row]) -> tuple[Row, ...]:
    """A few of some rows in which every value occurs that occurs in any, in their order; found greedily."""
    missing = {choice for row in rows for choice in row.items()}
    found = []
    while missing:
        found.append(max(rows, key=lambda row: len(missing & set(row.items()))))
        missing -= set(found[-1].items())
    return tuple(row for row in rows if row in found)


def meetings_of(options: Options, count: int, limit: float = math.inf) -> list[Meeting]:
    """Any so many options, in their order.

    Args:
        options: values of each option.
        count: how many meet.
        limit: of the combinations of their values; who has more is left out.
    """

    def size(meeting: Meeting) -> int:
        return math.prod(len(set(options[name])) for name in meeting)

    return [meeting for meeting in itertools.combinations(options, count) if size(meeting) <= limit]


def combinations_of(
    options: Options, excluded: Callable[[Choice, Choice], bool], meetings: Iterable[Meeting]
) -> list[frozenset[Choice]]:
    """All choices that may meet of the options of each meeting, in their order."""
    found = [
        tuple(zip(meeting, values, strict=True))
        for meeting in meetings
        for values in itertools.product(*(dict.fromkeys(options[name]) for name in meeting))
    ]
    return [
        frozenset(choices)
        for choices in found
        if not any(excluded(one, other) for one, other in itertools.combinations(choices, 2))
    ]
