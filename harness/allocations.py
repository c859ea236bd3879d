"""How much memory a piece of code asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def total_allocated(action: Callable[[], object], device: torch.device) -> int:
    """Runs something and says how many bytes it allocated in all, whether it kept them or gave them back.

    A large tensor that is made piece by piece counts whole, however small the pieces are and however soon each is given
    back. Only torch's allocator is asked: on a processor the profiler sees what operators allocate, compiled code and
    those written in C++ among them, on the thread that calls; on an accelerator the allocator keeps the sum.

    Args:
        action: what to run.
        device: whose memory is watched.
    """
    if device.type == "cuda":
        before = _allocated_so_far(device)
        action()
        torch.cuda.synchronize(device)
        return _allocated_so_far(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    # The public events hold sums over operators, in which what an operator allocates and frees again is 0.
    events = profiler.profiler.kineto_results.events()
    return sum(max(event.nbytes(), 0) for event in events)


def _allocated_so_far(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device)["allocated_bytes.all.allocated"])
