"""Columns for a terminal, as narrow as what they hold."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


def columns(headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table under headings of two lines.

    tabulate pads headings of its own too far for a terminal, so these are rows to it.

    Args:
        headings: upper and lower line of each heading.
        rows: cells as they are shown.
        left: how many of the first columns are set to the left; the others are set to the right.
    """
    upper, lower, *lines = tabulate(
        [[heading[0] for heading in headings], [heading[1] for heading in headings], *rows],
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left"] * left + ["right"] * (len(headings) - left),
    ).splitlines()
    rule = "-" * max(map(len, (upper, lower, *lines)))
    return [line.rstrip() for line in ([upper] if upper.strip() else []) + [lower, rule, *lines]]
