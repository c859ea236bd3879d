"""Tables of a compared run, as data frames."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from samebits.harness.records import Record, RunHeader, Verdict
from samebits.reports import text
from samebits.reports.findings import DID_NOT_RUN, grouped, relation_place
from samebits.reports.regression import ComparedCell, Comparison, State

VERDICTS = tuple(verdict.value for verdict in Verdict)
STATES = tuple(state.value for state in State)

_CELL_COLUMNS = (
    "state",
    "change",
    "versions_changed",
    "cell_id",
    "suite",
    "backend",
    "implementation",
    "version",
    "operation",
    "relation",
    "case",
    "geometry",
    "mask",
    "dtype",
    "tier",
    "control",
    "claimed",
    "verdict",
    "baseline_verdict",
    "reasons",
    "compared",
    "mismatches",
    "max_ulp",
    "baseline_max_ulp",
    "error_budget",
    "baseline_error_budget",
    "digest",
    "baseline_digest",
    "smallest_batch",
    "repro",
    "seconds",
    "device",
    "threads",
    "versions",
    "configuration",
    "seed",
    "command",
)
BUDGET_COLUMNS = ("implementation", "dtype", "cells", "worst", "median", "max_ulp")
_RELATION_COUNTS = ("relations", "claimed", "held")
_FROM_CELL = ("cell_id", "suite", "version", "dtype", "tier", "control", "seed")
_FROM_RECORD = (
    "backend",
    "operation",
    "relation",
    "case",
    "geometry",
    "mask",
    "claimed",
    "compared",
    "mismatches",
    "max_ulp",
    "digest",
    "smallest_batch",
    "repro",
    "seconds",
    "command",
)


def cell_table(comparison: Comparison) -> pd.DataFrame:
    """One line per cell with its state, missing cells among them: what `regression.csv` holds."""
    lines = [[values.get(column) for column in _CELL_COLUMNS] for values in map(_cell, comparison.cells)]
    # Columns of objects: as numbers, a column with a gap in it would turn counts into floats.
    return pd.DataFrame(lines, columns=list(_CELL_COLUMNS), dtype=object)


def implementation_table(cells: pd.DataFrame) -> pd.DataFrame:
    """One line per implementation and suite: relations, verdicts, the worst figures and the states; without controls.

    Args:
        cells: of `cell_table`.

    Returns:
        Columns `implementation` and `suite`; `relations` that ran, and how many of them are `claimed`, and `held` in
        every cell; `cells`, and how many came to each verdict; the worst `error_budget` and `max_ulp`, of cells that
        fail as is known apart; how many cells are in each state.
    """
    own = cells[~cells["control"].astype(bool)]
    lines = [
        {"implementation": label, "suite": suite} | _implementation(group)
        for (label, suite), group in own.groupby(["implementation", "suite"], sort=False)
    ]
    columns = ["implementation", "suite", *_RELATION_COUNTS, "cells", *VERDICTS, "error_budget", "max_ulp", *STATES]
    return pd.DataFrame(lines, columns=columns, dtype=object)


def budget_table(cells: pd.DataFrame) -> pd.DataFrame:
    """How right each implementation is in each dtype, of the cells that are judged against the reference alone.

    Cells that fail as is known are told elsewhere, and would hide all others here.

    Args:
        cells: of `cell_table`.

    Returns:
        Columns `implementation`, `dtype`, `cells`; `worst` and `median` error budget; `max_ulp`.
    """
    own = _measured(cells[~cells["control"].astype(bool) & (cells["suite"] == "dtype")])
    lines = [
        {
            "implementation": label,
            "dtype": dtype,
            "cells": len(group),
            "worst": _largest(group["error_budget"]),
            "median": _median(group["error_budget"]),
            "max_ulp": _largest(group["max_ulp"]),
        }
        for (label, dtype), group in own.groupby(["implementation", "dtype"], sort=False)
    ]
    return pd.DataFrame(lines, columns=list(BUDGET_COLUMNS), dtype=object)


def claims_table(records: Iterable[Record], header: RunHeader) -> pd.DataFrame:
    """What each implementation claims of each relation, against what was found: relations down, implementations across.

    Only implementations of which a cell ran have a column.

    Args:
        records: of a run.
        header: of the run.
    """
    own = [record for record in records if not record.control]
    columns = {
        label: {relation: claim_held(group) for relation, group in grouped(of_label, "relation").items()}
        for label, of_label in grouped(own, "label").items()
        if any(_ran(record) for record in of_label)
    }
    relations = sorted({record.relation for record in own}, key=lambda relation: relation_place(relation, header))
    return pd.DataFrame(columns, index=relations, dtype=object).fillna("")


def claim_held(records: Sequence[Record]) -> str:
    """In a word or two: what became of the claim of one implementation on one relation."""
    ran = [record for record in records if _ran(record)]
    if not ran:
        return records[0].verdict.value
    wrong = sum(record.verdict is Verdict.FAIL and not record.mismatches for record in ran)
    told = {
        "broken": sum(record.verdict is Verdict.FAIL for record in ran) - wrong,
        "wrong": wrong,
        "error": sum(record.verdict is Verdict.ERROR for record in ran),
        "known": sum(record.verdict is Verdict.KNOWN for record in ran),
        "varies": sum(record.verdict is Verdict.VARIES for record in ran),
    }
    bad = [f"{word} {number}/{len(ran)}" for word, number in told.items() if number]
    if bad:
        return ", ".join(bad)
    return {True: "held", False: "holds, unclaimed", None: "pass"}[ran[0].claimed]


def to_csv(cells: pd.DataFrame) -> str:
    """A cell table as CSV, one line per cell, that a spreadsheet can open without running any of it."""
    safe = pd.DataFrame(
        [[text.csv_cell(value) if isinstance(value, str) else value for value in line] for line in cells.to_numpy()],
        columns=cells.columns,
        dtype=object,
    )
    return safe.to_csv(index=False, lineterminator="\n")


def _cell(cell: ComparedCell) -> dict[str, object]:
    known, record, row = cell.known, cell.record, cell.row
    values: dict[str, object] = {name: getattr(known, name) for name in _FROM_CELL}
    values |= {
        "state": cell.state.value,
        "change": cell.note,
        "versions_changed": _pairs({name: f"{old} -> {new}" for name, (old, new) in cell.versions.items()}),
        "implementation": known.label,
        "device": known.environment.device,
        "threads": known.environment.threads,
        "versions": _pairs(known.environment.versions),
        "configuration": _pairs(known.configuration),
    }
    if record is not None:
        values |= {name: getattr(record, name) for name in _FROM_RECORD}
        values |= {
            "verdict": record.verdict.value,
            "reasons": "; ".join(record.reasons),
            "error_budget": _unbounded(record.error_budget),
        }
    if row is not None:
        values |= {
            "baseline_verdict": row.verdict.value,
            "baseline_max_ulp": row.max_ulp,
            "baseline_error_budget": _unbounded(row.error_budget),
            "baseline_digest": row.digest,
        }
    return values


def _implementation(cells: pd.DataFrame) -> dict[str, object]:
    """The figures of one implementation in one suite."""
    ran = _with_other_verdicts(cells, *DID_NOT_RUN)
    measured = _measured(cells)
    relations = ran.groupby("relation")
    verdicts, states = cells["verdict"].value_counts(), cells["state"].value_counts()
    return {
        "relations": relations.ngroups,
        "claimed": sum(bool(group["claimed"].eq(True).all()) for _, group in relations),
        "held": sum(bool((group["verdict"] == Verdict.PASS.value).all()) for _, group in relations),
        "cells": int(cells["verdict"].count()),
        "error_budget": _largest(measured["error_budget"]),
        "max_ulp": _largest(measured["max_ulp"]),
        **{verdict: int(verdicts.get(verdict, 0)) for verdict in VERDICTS},
        **{state: int(states.get(state, 0)) for state in STATES},
    }


def _measured(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells whose figures say how good an implementation is: one that fails as is known would hide all others."""
    return _with_other_verdicts(cells, *DID_NOT_RUN, Verdict.KNOWN)


def _with_other_verdicts(cells: pd.DataFrame, *left_out: Verdict) -> pd.DataFrame:
    """Cells of the run, but for some verdicts; a missing cell has none."""
    return cells[cells["verdict"].notna() & ~cells["verdict"].isin([verdict.value for verdict in left_out])]


def _unbounded(budget: float | None) -> float | None:
    """NaN as infinite: it would pass for a gap in a table, and be smaller than anything."""
    return math.inf if budget is not None and math.isnan(budget) else budget


def _largest(values: pd.Series) -> float | None:
    found = [value for value in values if not pd.isna(value)]
    return max(found) if found else None


def _median(values: pd.Series) -> float | None:
    found = [value for value in values if not pd.isna(value)]
    return statistics.median(found) if found else None


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


def _ran(record: Record) -> bool:
    return record.verdict not in DID_NOT_RUN
