"""How much of a GPU's memory one process may hold: so much that every case fits, and others find room beside it."""

from __future__ import annotations

import functools
import os

import torch

MOST_BYTES = 8 << 30
# What all workers together may hold: kernels that spill ask for stacks, which are nobody's share.
_SHARED_OUT = 0.9
# What a process holds besides torch's tensors: the context, and the code of compiled kernels.
_CONTEXT_BYTES = 3 << 29


@functools.cache
def limit_memory(device: torch.device) -> None:
    """Lets torch hold no more of a GPU than this process's share; what asks for more is told that there is none.

    A share is `MOST_BYTES`, context included, and less where so many workers would not fit beside one another.

    Args:
        device: any; only a GPU's memory is limited.
    """
    if device.type != "cuda":
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = min(MOST_BYTES, int(_SHARED_OUT * total) // workers) - _CONTEXT_BYTES
    torch.cuda.set_per_process_memory_fraction(max(share, 0) / total, index)
