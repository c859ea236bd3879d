"""How much memory a piece of code asks for at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def largest_allocation(action: Callable[[], object], device: torch.device) -> int:
    """Runs something and says how large the largest of its allocations was, in bytes.

    On an accelerator that is the growth of the peak, since its allocator keeps no list; on a processor the profiler
    sees every allocation of torch's, those of compiled code and of operators written in C++ among them.

    Args:
        action: what to run.
        device: whose memory is watched.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    # The public events hold sums over operators, in which what an operator allocates and frees again is 0.
    events = profiler.profiler.kineto_results.events()
    return max((event.nbytes() for event in events), default=0)
