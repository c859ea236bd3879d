"""What the machine does at most, measured beside what is timed: datasheets name clocks that no machine holds."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch

from samebits.backends.contract import DTYPES
from samebits.harness.bench.records import Rate, Timing
from samebits.harness.bench.rounds import in_turns
from samebits.harness.bench.stopwatch import Call, Stopwatch

# Bytes that are streamed: many times any cache.
_STREAMED = 1 << 30
# Sides of square matrices: large enough for a GPU; on a processor the best of two, as caches differ.
_GPU_SIDES, _PROCESSOR_SIDES = (8192,), (1024, 2048)
_WARM_RUNS = 2


def measured_rates(
    stopwatch: Stopwatch, device: torch.device, dtypes: Sequence[str], runs: int, streamed: int = _STREAMED
) -> Iterator[Rate]:
    """Measures what the machine does at most.

    Args:
        stopwatch: that times it.
        device: what computes.
        dtypes: of matrix products; products of float32 are of IEEE's numbers, as torch's default is.
        runs: of each.
        streamed: bytes that are read, and copied.
    """
    source = torch.ones(streamed // 4, dtype=torch.float32, device=device)
    copied = torch.empty_like(source)
    read, copy = _timed(stopwatch, [Call(source.sum), Call(functools.partial(copied.copy_, source))], runs)
    yield Rate("read", source.nbytes / read.median, f"sum of {source.nbytes >> 20} MiB of float32", read)
    yield Rate("copy", 2 * source.nbytes / copy.median, f"copy of {source.nbytes >> 20} MiB, counted twice", copy)
    del source, copied
    for dtype in dtypes:
        products = [_product(stopwatch, device, dtype, side, runs) for side in _sides(device)]
        yield max(products, key=lambda rate: rate.value)


def _sides(device: torch.device) -> tuple[int, ...]:
    return _PROCESSOR_SIDES if device.type == "cpu" else _GPU_SIDES


def _product(stopwatch: Stopwatch, device: torch.device, dtype: str, side: int, runs: int) -> Rate:
    left, right = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    result = torch.empty_like(left)
    (timing,) = _timed(stopwatch, [Call(lambda: torch.matmul(left, right, out=result))], runs)
    return Rate(f"matrix {dtype}", 2 * side**3 / timing.median, f"torch.matmul of {side} x {side} matrices", timing)


def _timed(stopwatch: Stopwatch, calls: Sequence[Call], runs: int) -> list[Timing]:
    for _ in range(_WARM_RUNS):
        stopwatch.laps(calls)
    laps = in_turns(stopwatch, calls, [runs] * len(calls))
    return [Timing.of([lap.seconds for lap in of_call]) for of_call in laps]
