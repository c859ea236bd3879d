"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tabulate import tabulate


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> Iterator[str]:
    """A table and the empty line behind it.

    Args:
        headings: of the columns, as they are shown.
        rows: cells, as they are shown.
        numbers: how many of the last columns are set to the right, as numbers are.
    """
    sides = ["left"] * (len(headings) - numbers) + ["right"] * numbers
    yield tabulate(rows, headings, tablefmt="pipe", disable_numparse=True, colalign=sides if rows else None)
    yield ""
