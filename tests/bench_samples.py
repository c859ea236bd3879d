"""A benchmark as several test modules need it: measurements by hand, and a clock that only tests move."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from samebits.harness.bench.records import Bench, BenchHeader, Group, LeftOut, Measurement, Rate, Role, Timing

from .samples import GPU

# Round figures, so that a test's sums can be done in the head.
RATES = {
    rate.name: rate
    for rate in (
        Rate("read", 2e12, "a sum", Timing(1e-3, 1e-3, 1e-3, 5)),
        Rate("copy", 1e12, "a copy", Timing(1e-3, 1e-3, 1e-3, 5)),
        Rate("matrix bf16", 1e15, "a product", Timing(1e-3, 1e-3, 1e-3, 5)),
    )
}


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def timing(seconds: float) -> Timing:
    return Timing(seconds, 0.9 * seconds, 1.1 * seconds, 7)


def measured(label: str, microseconds: float | None, problem: str = "D8", **changes: object) -> Measurement:
    """What an implementation took for a decode that moves 200 MB, or that it failed."""
    backend, name, variant = re.fullmatch(r"([\w-]+)/([\w-]+)(?:\[(.*)\])?", label).groups("")  # type: ignore[union-attr]
    found = Measurement(
        problem=problem,
        group=Group.TABLE,
        told="8 x 1 query on 16384 keys",
        operation="attention",
        dtype="bf16",
        batch=8,
        query_len=1,
        kv_len=16384,
        nbytes=200_000_000,
        flops=1_000_000,
        role=Role.IMPLEMENTATION,
        backend=backend,
        implementation=name,
        variant=variant,
        version="1",
        batch_invariant=name == "bundled" or variant == "num_splits=1",
        eager=None if microseconds is None else timing(microseconds * 1e-6),
        reason="it raised ValueError: no such luck" if microseconds is None else "",
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def bench_of(*measurements: Measurement, left_out: tuple[LeftOut, ...] = (), truncated: bool = False) -> Bench:
    names = dict.fromkeys(f"{row.problem} {row.dtype}" for row in measurements)
    header = BenchHeader(
        run_id="20261121T093400Z",
        started="2026-11-21T09:34:00+00:00",
        environment=GPU,
        problems=tuple(names),
        asked=(),
        rounds=7,
        evicted=1 << 20,
    )
    return Bench(header, RATES, measurements, left_out, truncated=truncated)
