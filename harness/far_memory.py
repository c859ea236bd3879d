"""Caches whose pages begin further apart than 32 bits count, in memory of which next to nothing is ever touched.

An anonymous mapping takes memory where it is touched, and where the system is asked to reserve none it may be larger
than all there is. A cache in it takes no more than its pages do. What lies between them reads as zeros, and not as the
poison of other gaps: it is there so that an offset which lost its upper bits leads to memory, and to wrong values.
"""

from __future__ import annotations

import functools
import math
import mmap
import platform
import sys

import torch

from samebits.backends.problem import Problem
from samebits.backends.token_problem import TokenProblem

# Elements from the beginning of one page to that of the next. A stride fits 32 bits, as the strides of real caches do;
# from the second page on its product with a page's number does not.
PAGE_DISTANCE = 3 << 29
# What 32 bits count, and half of it where they have a sign: an offset that was cut leads no further.
_REACH = 1 << 32
# As most of Linux has it; Python names it from 3.12 on.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_MACHINES = ("x86_64", "aarch64")
_TRIED_BYTES = 1 << 40


def far_cache(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A cache of zeros with its pages far apart, on the host.

    Args:
        shape: `[num_pages, page_size, num_kv_heads, head_dim]`.
        dtype: of its elements.

    Raises:
        OSError: the operating system does not map as much.
    """
    page = tuple(math.prod(shape[dimension:]) for dimension in range(2, len(shape) + 1))
    spanned = max((shape[0] - 1) * PAGE_DISTANCE + math.prod(shape[1:]), _REACH)
    memory = torch.frombuffer(_mapped((_REACH // 2 + spanned) * dtype.itemsize), dtype=dtype)
    return memory.as_strided(shape, (PAGE_DISTANCE, *page), _REACH // 2)


def distance_reasons(problem: Problem | TokenProblem, device: str) -> list[str]:
    """Why the pages of a problem cannot lie as far apart as it asks, as one sentence; none where they can.

    Args:
        problem: its layout says whether they must.
        device: torch's device type.
    """
    if not (isinstance(problem, Problem) and problem.layout.far_pages):
        return []
    if device != "cpu":
        return [f"pages this far apart need more memory than they use, and it computes on {device}"]
    return [] if _maps_far() else ["pages this far apart need more memory than this machine maps"]


@functools.cache
def _maps_far() -> bool:
    """Whether this machine maps memory far beyond what it has."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    try:
        _mapped(_TRIED_BYTES)
    except OSError:
        return False
    return True


def _mapped(num_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
