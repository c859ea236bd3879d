"""Kernels that do to their process what nobody should: right everywhere but in the relation `max_seq_len`."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.kernels.cpu.attention import Schedule

# Not named by a type, as its functions are the system's.
LIBC: Any = ctypes.CDLL(None)


def segfaults() -> None:
    print("the last line before", file=sys.stderr)
    ctypes.string_at(0)


def spoils_the_heap() -> None:
    LIBC.malloc.restype = ctypes.c_void_p
    block = LIBC.malloc(1024)
    ctypes.memset(block - 16, 0xFF, 1040)
    LIBC.free(ctypes.c_void_p(block))


def sleeps_with_the_lock() -> None:
    ctypes.PyDLL(None).sleep(1000)


def hoards() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(b"\1") * (1 << 24))
        time.sleep(0.01)


def closes_its_streams() -> None:
    os.close(1)
    sys.stderr.close()


def closes_every_pipe() -> None:
    os.closerange(3, 1 << 10)


def writes_into_every_pipe() -> None:
    for pipe in range(3, 1 << 6):
        try:
            os.write(pipe, b"what nobody asked for")
        except OSError:
            continue


def prints_without_end() -> None:
    warnings.warn("what a kernel warns of", stacklevel=1)
    for _ in range(1 << 10):
        print("a line " * 100)
        print("a line " * 100, file=sys.stderr)


def interrupts() -> None:
    raise KeyboardInterrupt("pressed by nobody")


def exits() -> None:
    raise SystemExit("enough")


def forks() -> None:
    os.fork()


def ends_its_group() -> None:
    os.kill(0, signal.SIGKILL)


def leaves_others_behind() -> None:
    left = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"])
    print(f"left {left.pid}", file=sys.stderr)
    os._exit(1)


def loses_its_device() -> None:
    """As torch has it after an illegal memory access: nothing can be computed in this process any more."""

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand some advice")

    # Set, not assigned: to a type checker the module has no such attribute to give.
    for name, stand_in in (("is_initialized", lambda: True), ("synchronize", lost)):
        setattr(torch.cuda, name, stand_in)


FAULTS: dict[str, Callable[[], None]] = {
    "healthy": lambda: None,
    "aborts": os.abort,
    "exit-code-0": lambda: os._exit(0),
    "exit-code-3": lambda: os._exit(3),
}
FAULTS |= {
    function.__name__.replace("_", "-"): function
    for function in (
        segfaults, spoils_the_heap, sleeps_with_the_lock, hoards, closes_its_streams, closes_every_pipe,
        writes_into_every_pipe, prints_without_end, interrupts, exits, forks, ends_its_group, leaves_others_behind,
        loses_its_device,
    )
}  # fmt: skip


class Faulty(BundledAttention):
    """The C++ kernel, whose plan does something besides where `max_seq_len` is an upper bound."""

    backend = "FAULTS"

    def __init__(self, name: str, fault: Callable[[], None]) -> None:
        """Names it by its fault."""
        super().__init__()
        self.name = name
        self._fault = fault

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans as the kernel does."""
        if metadata.max_seq_len > int(metadata.seq_lens.max()) + 1000:
            self._fault()
        return super().plan(config, metadata)


class DyingOfLess(Faulty):
    """Wrong by a bit where `max_seq_len` is an upper bound, and there its fault comes with a batch of one request."""

    def __init__(self, name: str, fault: Callable[[], None], claims: bool) -> None:
        """Names it, and has it claim what does not hold or not."""
        super().__init__(name, fault)
        self.claims = replace(BundledAttention.claims, batch_invariant=claims)
        self._is_wrong = False

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans as the kernel does."""
        self._is_wrong = metadata.max_seq_len > int(metadata.seq_lens.max())
        if self._is_wrong and metadata.num_requests == 1:
            self._fault()
        return BundledAttention.plan(self, config, metadata)

    def run(self, plan: Schedule, *tensors: Any) -> None:  # noqa: ANN401 -- as the kernel takes them
        """Computes as the kernel does, but for one bit."""
        super().run(plan, *tensors)
        output = tensors[3]
        if self._is_wrong:
            output[0, 0, 0] = torch.nextafter(output[0, 0, 0], torch.tensor(torch.inf))


def implementations() -> list[Faulty]:
    """One for each fault, and two that have theirs when a failure was found already."""
    dying = [DyingOfLess("dies-failing", segfaults, claims=True), DyingOfLess("dies-varying", segfaults, claims=False)]
    return [*(Faulty(name, fault) for name, fault in FAULTS.items()), *dying]
