"""Kernels that do to their process what nobody should: right everywhere but in the relation `max_seq_len`."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


def implementations() -> list[Faulty]:
    """One for each fault."""
    return [Faulty(name, fault) for name, fault in FAULTS.items()]
