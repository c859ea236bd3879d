"""Words for audited claims in Markdown, which the parts of the implementations page share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from samebits.backends.problem import DTYPE_NAMES
from samebits.harness.records import Record, Verdict
from samebits.reports import text
from samebits.reports.audits import Audit


def verdict_counts(records: Iterable[Record]) -> str:
    """How many cells came to each verdict, `7 pass, 1 fail` for example."""
    verdicts = Counter(record.verdict for record in records)
    return ", ".join(f"{verdicts[verdict]:,} {verdict}" for verdict in Verdict if verdicts[verdict])


def ordered_dtypes(records: Iterable[Record]) -> list[str]:
    """Dtypes of some cells, the widest first."""
    found = {record.dtype for record in records}
    return sorted(found, key=lambda name: (DTYPE_NAMES.index(name) if name in DTYPE_NAMES else len(DTYPE_NAMES), name))


def dtypes(records: Iterable[Record]) -> str:
    """Dtypes of some cells, with commas."""
    return text.markdown(", ".join(ordered_dtypes(records)))


def relations(records: Iterable[Record]) -> str:
    """Relations of some cells, with commas."""
    return text.markdown(text.joined(record.relation for record in records))


def versions(records: Iterable[Record]) -> str:
    """Versions of the libraries of some cells, with commas; `-` where none is known."""
    return text.markdown(text.joined(record.version for record in records if record.version)) or "-"


def set_aside(audit: Audit) -> str:
    """Cells that ran and judge nothing, since what they computed is wrong; empty where there are none."""
    cells = audit.unjudged
    return f"; {text.counted(len(cells), 'wrong cell')} aside ({dtypes(cells)})" if cells else ""
