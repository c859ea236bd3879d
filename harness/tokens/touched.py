"""Memory that tells how much of it was touched, by whomever: by torch, by numpy, by a kernel in C++.

A process looks up each page of its memory when it first touches it. The pages of a shared mapping can be forgotten
without losing what they hold, and the kernel of Linux tells which of them have been looked up since (`man 5
proc_pid_pagemap`). It looks up some of the neighbours too, 64 KiB in all, so that small tensors tell little.
"""

from __future__ import annotations

import functools
import mmap
from pathlib import Path

import numpy as np
import torch

_PAGEMAP = Path("/proc/self/pagemap")
_ENTRY_BYTES = 8
# Bit 63 of a page's entry: it is present.
_PRESENT = np.uint64(1 << 63)


class TouchedMemory:
    """A copy of a tensor in such memory.

    Attributes:
        tensor: the copy.
    """

    def __init__(self, values: torch.Tensor) -> None:
        """Copies a contiguous tensor of the host."""
        self._memory = mmap.mmap(-1, values.nbytes)
        # A huge page would be touched as a whole.
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.tensor = torch.frombuffer(self._memory, dtype=values.dtype).view(values.shape)
        self.tensor.copy_(values)

    def forget(self) -> None:
        """Begins anew: nothing has been touched."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def touched_bytes(self) -> int:
        """How much has been touched since, in whole pages."""
        first, pages = self.tensor.data_ptr() // mmap.PAGESIZE, -(-self.tensor.nbytes // mmap.PAGESIZE)
        with _PAGEMAP.open("rb", buffering=0) as pagemap:
            pagemap.seek(first * _ENTRY_BYTES)
            entries = np.frombuffer(pagemap.read(pages * _ENTRY_BYTES), dtype=np.uint64)
        return min(int(np.count_nonzero(entries & _PRESENT)) * mmap.PAGESIZE, self.tensor.nbytes)


@functools.cache
def tells_touched() -> bool:
    """Whether this machine tells: it runs Linux, and nothing between keeps the answer to itself."""
    if not all(hasattr(mmap, advice) for advice in ("MADV_NOHUGEPAGE", "MADV_DONTNEED")):
        return False
    values = torch.arange(1 << 18, dtype=torch.int32)
    try:
        memory = TouchedMemory(values)
        memory.forget()
        before = memory.touched_bytes()
        kept = torch.equal(memory.tensor, values)
        return kept and (before, memory.touched_bytes()) == (0, values.nbytes)
    except OSError:
        return False
