"""How much of a GPU's memory one process may hold: so much that every case fits, and others find room beside it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import torch

from samebits.harness.records import UnusableInput
from samebits.harness.worker_gpu import WORKERS_ON_GPU

MOST_BYTES = 8 << 30
# What all workers together may hold: kernels that spill ask for stacks, which are nobody's share.
_SHARED_OUT = 0.9
# What a process holds besides torch's tensors: the context, and the code of compiled kernels.
_CONTEXT_BYTES = 3 << 29
# Of torch's tensors: a case of full size with its reference.
_LEAST_BYTES = 2 << 30


def limit_memory(device: torch.device) -> None:
    """Lets torch hold no more of a GPU than this process's share; what asks for more is told that there is none.

    Args:
        device: any; only a GPU's memory is limited.

    Raises:
        UnusableInput: so many workers share the GPU that no share is large enough.
    """
    if device.type == "cuda":
        _limit(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _limit(index: int) -> None:
    total = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(share_of(total, workers_on_gpu(os.environ)) / total, index)


def workers_on_gpu(environment: Mapping[str, str]) -> int:
    """How many workers of a run share this process's GPU.

    Args:
        environment: of this process.
    """
    return int(environment.get(WORKERS_ON_GPU) or environment.get("PYTEST_XDIST_WORKER_COUNT") or 1)


def share_of(total: int, workers: int) -> int:
    """Bytes of torch's tensors that one of some workers may hold.

    A share is `MOST_BYTES`, context included, and less where so many workers would not fit beside one another.

    Args:
        total: bytes of the GPU's memory.
        workers: that share it.

    Raises:
        UnusableInput: too many.
    """
    room = int(_SHARED_OUT * total)
    share = min(MOST_BYTES, room // workers) - _CONTEXT_BYTES
    if share < min(_LEAST_BYTES, room - _CONTEXT_BYTES):
        most = max(1, room // (_LEAST_BYTES + _CONTEXT_BYTES))
        raise UnusableInput(
            f"{workers} workers share a GPU of {total / 2**30:.0f} GiB, which leaves too little for each; give at most "
            f"{most} with -n {most}"
        )
    return share
