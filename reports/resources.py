"""What compiled kernels ask of devices that are not here, as a table."""

from __future__ import annotations

from collections.abc import Iterable

from samebits.harness.records import Record
from samebits.reports import text

COLUMNS = ("implementation", "kernel", "dtype", "registers", "spills", "scratch bytes", "shared bytes", "threads")
# The first columns are words, the others numbers.
WORDS = 3


def resource_rows(records: Iterable[Record]) -> list[list[str]]:
    """A row of `COLUMNS` for each kernel that was compiled ahead of time; controls are left out.

    `-` stands for none, so that kernels which spill are seen.
    """
    return [
        [
            text.plain(record.label),
            text.plain(record.case),
            record.dtype,
            *(text.count(record.resources.get(column.replace(" ", "_"), 0)) for column in COLUMNS[WORDS:]),
        ]
        for record in records
        if record.resources and not record.control
    ]
