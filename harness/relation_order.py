"""The order in which relations are told, found from the order in which suites have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def merged_order(sequences: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Puts the names of several sequences into one order, in which each name has its place between its neighbours.

    A case leaves out relations that say nothing about it, so no single one need have them all.

    Args:
        sequences: names in order. Where two disagree, the earlier one decides.
    """
    order: list[str] = []
    for sequence in sequences:
        known = next((order.index(name) for name in sequence if name in order), len(order))
        for name in sequence:
            if name in order:
                known = order.index(name) + 1
            else:
                order.insert(known, name)
                known += 1
    return tuple(order)
