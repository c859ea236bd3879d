"""What a benchmark's times come to beside each other and beside the machine's limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from samebits.harness.bench.records import Bench, Group, Measurement


@dataclass(frozen=True)
class Standing:
    """Everybody's times for one problem in one dtype.

    Attributes:
        problem, dtype: which.
        rows: one for each contender, those that failed among them.
        limit: seconds that the problem takes at the least on this machine; None where its rates are not known.
        limited_by: `bandwidth` or `arithmetic`, whichever takes longer; empty where the limit is not known.
    """

    problem: str
    dtype: str
    rows: tuple[Measurement, ...]
    limit: float | None
    limited_by: str

    @property
    def group(self) -> Group:
        """Of the problem."""
        return self.rows[0].group

    @property
    def timed(self) -> list[Measurement]:
        """Rows that have times, the fastest first."""
        return sorted((row for row in self.rows if row.eager is not None), key=seconds_of)

    @property
    def best_peer(self) -> Measurement | None:
        """The fastest of other libraries, at any setting."""
        return next((row for row in self.timed if row.is_peer), None)

    @property
    def best_replayed_peer(self) -> float | None:
        """Seconds of the fastest of other libraries in a graph."""
        return min((row.replayed.median for row in self.timed if row.is_peer and row.replayed), default=None)

    def of_library(self, library: str, variant: str | None = None) -> Measurement | None:
        """The fastest row of a library, or of a yardstick; at one of its settings, or at any."""
        return next(
            (row for row in self.timed if row.library == library and variant in (None, row.variant)),
            None,
        )

    def of_limit(self, row: Measurement) -> float | None:
        """What share of its time a row would take at the machine's limit."""
        return None if self.limit is None else self.limit / seconds_of(row)

    def of_best_peer(self, row: Measurement) -> float | None:
        """A row's time as a multiple of the best peer's."""
        peer = self.best_peer
        return None if peer is None else seconds_of(row) / seconds_of(peer)


def seconds_of(row: Measurement) -> float:
    """The median time of a row that has times."""
    assert row.eager is not None, f"{row.label} has no times"
    return row.eager.median


def standings(bench: Bench) -> list[Standing]:
    """The standings of all problems that were begun, in the order of the header."""
    rows: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in bench.measurements:
        rows.setdefault((measurement.problem, measurement.dtype), []).append(measurement)
    order = {name: place for place, name in enumerate(bench.header.problems)}
    keys = sorted(rows, key=lambda key: order.get(" ".join(key), len(order)))
    return [_standing(bench, name, dtype, rows[name, dtype]) for name, dtype in keys]


def of_groups(found: Iterable[Standing], groups: Sequence[Group], dtype: str | None = None) -> list[Standing]:
    """The standings of some groups, in one dtype or in all."""
    return [standing for standing in found if standing.group in groups and dtype in (None, standing.dtype)]


def _standing(bench: Bench, problem: str, dtype: str, rows: Sequence[Measurement]) -> Standing:
    first = rows[0]
    bandwidth = bench.bandwidth(first.group)
    arithmetic = bench.rates.get(f"matrix {dtype}")
    if bandwidth is None or (first.flops and arithmetic is None):
        return Standing(problem, dtype, tuple(rows), None, "")
    moving = first.nbytes / bandwidth
    computing = first.flops / arithmetic.value if first.flops and arithmetic is not None else 0.0
    return Standing(
        problem, dtype, tuple(rows), max(moving, computing), "bandwidth" if moving >= computing else "arithmetic"
    )
