"""What invariance costs: a library's fastest setting that claims it, over its fastest, and over anybody's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from samebits.harness.bench.records import Group, Measurement, Role
from samebits.reports.bench.standings import Standing, of_groups, seconds_of


@dataclass(frozen=True)
class Price:
    """What invariance costs with one library, in a batch of one query token a request.

    Attributes:
        library: `BACKEND/name`.
        dtype: of the batch.
        batch, kv_len: requests, and keys of each.
        invariant: its fastest setting that claims batch invariance.
        fastest: its fastest setting.
        best: anybody's fastest setting.
    """

    library: str
    dtype: str
    batch: int
    kv_len: int
    invariant: Measurement
    fastest: Measurement
    best: Measurement

    @property
    def own(self) -> float:
        """Over the library's fastest setting."""
        return seconds_of(self.invariant) / seconds_of(self.fastest)

    @property
    def over_best(self) -> float:
        """Over anybody's fastest setting."""
        return seconds_of(self.invariant) / seconds_of(self.best)


def prices(found: Iterable[Standing]) -> list[Price]:
    """The price of each library that has a setting which claims batch invariance, by dtype, batch and length."""
    told = []
    for standing in of_groups(list(found), (Group.TABLE, Group.PRICE)):
        timed = [row for row in standing.timed if row.role is Role.IMPLEMENTATION]
        if not timed or timed[0].query_len != 1:
            continue
        for library in dict.fromkeys(row.library for row in timed):
            own = [row for row in timed if row.library == library]
            invariant = next((row for row in own if row.batch_invariant), None)
            if invariant is not None:
                told.append(
                    Price(library, standing.dtype, invariant.batch, invariant.kv_len, invariant, own[0], timed[0])
                )
    return sorted(told, key=lambda price: (price.dtype, price.batch, price.kv_len))
