"""How long a call takes, with none of its inputs in a cache: on a processor by its clock, on a GPU by the GPU's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

Action = Callable[[], object]

# Of the last level that a processor's cores share, in Linux.
_CACHE_SIZES = Path("/sys/devices/system/cpu/cpu0/cache")
# What is read before each run: a multiple of the largest cache, and bytes at least and at most.
_CACHE_MULTIPLE, _LEAST_EVICTED, _MOST_EVICTED = 2, 256 << 20, 1 << 30
# Where nothing is known of caches.
_USUAL_CACHE = 64 << 20
# While the GPU evicts, the host launches what comes next. A launch that takes longer is hidden by several evictions,
# as long as they are not too many, and with some time to spare.
_MOST_EVICTIONS, _SPARE_TIME = 32, 1.5


@dataclass(frozen=True)
class Call:
    """Something to time.

    Attributes:
        action: launches it on a GPU, and computes it on a processor.
        launching: seconds that the host takes for it, as far as is known: they are hidden.
    """

    action: Action
    launching: float = 0.0


@dataclass(frozen=True)
class Lap:
    """One run of a call.

    Attributes:
        seconds: on the device.
        launching: of the host, until the call returned.
    """

    seconds: float
    launching: float


class Stopwatch(Protocol):
    """Times calls.

    Attributes:
        launches: whether a call only launches, so that the host's part of it is told apart.
    """

    launches: bool

    @property
    def evicted(self) -> int:
        """Bytes that are read before each run."""

    @property
    def eviction_seconds(self) -> float:
        """How long that takes."""

    def laps(self, calls: Sequence[Call]) -> list[Lap]:
        """Runs each call once, one after another, each with cold caches, and waits for all."""

    def synchronize(self) -> None:
        """Waits for all that was launched."""


class ProcessorStopwatch:
    """Times calls on a processor.

    Args:
        evicted: bytes that are read before each run.
        clock: seconds since some moment.
    """

    launches = False

    def __init__(self, evicted: int | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.evicted = evicted_bytes(torch.device("cpu")) if evicted is None else evicted
        self._clock = clock
        self._memory = torch.zeros(self.evicted // 4, dtype=torch.float32)
        self._memory.sum()
        began = clock()
        self._memory.sum()
        self.eviction_seconds = clock() - began

    def laps(self, calls: Sequence[Call]) -> list[Lap]:
        """See `Stopwatch`."""
        return [self._lap(call) for call in calls]

    def synchronize(self) -> None:
        """Does nothing: a call that returned is done."""

    def _lap(self, call: Call) -> Lap:
        self._memory.sum()
        began = self._clock()
        call.action()
        seconds = self._clock() - began
        return Lap(seconds, seconds)


class GpuStopwatch:
    """Times calls on a GPU by events, between which there is nothing but the call.

    What evicts is read, not written: lines of a cache that were written would be written back while the call runs.

    Args:
        device: the GPU.
    """

    launches = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.evicted = evicted_bytes(device)
        self._memory = torch.zeros(self.evicted // 4, dtype=torch.float32, device=device)
        self._sum = torch.zeros((), dtype=torch.float32, device=device)
        self._evict()
        self.synchronize()
        begin, end = _event(), _event()
        begin.record()
        self._evict()
        end.record()
        self.synchronize()
        self.eviction_seconds = begin.elapsed_time(end) / 1000

    def laps(self, calls: Sequence[Call]) -> list[Lap]:
        """See `Stopwatch`. The host waits once, behind the last call."""
        events = [(_event(), _event()) for _ in calls]
        launching = []
        for call, (begin, end) in zip(calls, events, strict=True):
            for _ in range(self._evictions(call)):
                self._evict()
            begin.record()
            began = time.perf_counter()
            call.action()
            launching.append(time.perf_counter() - began)
            end.record()
        self.synchronize()
        return [
            Lap(begin.elapsed_time(end) / 1000, of_host)
            for (begin, end), of_host in zip(events, launching, strict=True)
        ]

    def synchronize(self) -> None:
        """Waits for the GPU."""
        torch.cuda.synchronize(self._device)

    def _evict(self) -> None:
        torch.sum(self._memory, dim=0, out=self._sum)

    def _evictions(self, call: Call) -> int:
        needed = math.ceil(_SPARE_TIME * call.launching / self.eviction_seconds)
        return int(min(max(1, needed), _MOST_EVICTIONS))


def stopwatch_for(device: torch.device) -> Stopwatch:
    """What times calls on a device."""
    return ProcessorStopwatch() if device.type == "cpu" else GpuStopwatch(device)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def evicted_bytes(device: torch.device) -> int:
    """How much must be read on a device so that its caches hold nothing else."""
    if device.type == "cpu":
        cache = max(_processor_caches(), default=_USUAL_CACHE)
    else:
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", _USUAL_CACHE)
    return min(max(_CACHE_MULTIPLE * cache, _LEAST_EVICTED), _MOST_EVICTED)


def _processor_caches() -> Iterator[int]:
    """Bytes of each cache that the first processor has or shares, such as `32768K`."""
    for path in _CACHE_SIZES.glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            yield int(text[:-1]) << 10
