"""How much of a GPU's memory one process may hold: so much that every case fits, and others find room beside it."""

from __future__ import annotations

import functools

import torch

MOST_BYTES = 8 << 30


@functools.cache
def limit_memory(device: torch.device) -> None:
    """Lets torch hold at most `MOST_BYTES` of a GPU in this process; what asks for more is told that there is none.

    Args:
        device: any; only a GPU's memory is limited.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(min(1.0, MOST_BYTES / total), index)
