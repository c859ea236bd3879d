"""What every call of a compiled kernel that treats tokens by themselves is told of its tensors.

Nothing is checked here or in the calls: they take what `samebits.backends.operations` has found to keep the rules.
"""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.attention import ELEMENTS

# Waking a thread takes a few microseconds, in which another handles about this many elements.
_ELEMENTS_PER_THREAD = 1 << 14


class Heads(ctypes.Structure):
    """`Heads` in rows.h."""

    _fields_ = [("elements", ctypes.c_void_p), ("token_stride", ctypes.c_int64), ("head_stride", ctypes.c_int64)]


class Pages(ctypes.Structure):
    """`Pages` in rows.h."""

    _fields_ = [
        ("elements", ctypes.c_void_p),
        *((f"{axis}_stride", ctypes.c_int64) for axis in ("page", "slot", "head")),
    ]


class LeadingDimensions(ctypes.Structure):
    """`LeadingDimensions` in rows.h: those before a tensor's last, filled up in front with sizes of 1."""

    _fields_ = [("sizes", ctypes.c_int64 * 3), ("strides", ctypes.c_int64 * 3)]


def heads_of(tensor: torch.Tensor) -> Heads:
    """Where the heads of `[num_tokens, num_heads, head_dim]` lie."""
    return Heads(tensor.data_ptr(), *tensor.stride()[:2])


def pages_of(cache: torch.Tensor) -> Pages:
    """Where the heads of `[num_pages, page_size, num_kv_heads, head_dim]` lie."""
    return Pages(cache.data_ptr(), *cache.stride()[:3])


def leading_dimensions(tensor: torch.Tensor) -> LeadingDimensions:
    """Sizes and strides of a tensor's dimensions but the last, of which there are one to three."""
    sizes, strides = tensor.shape[:-1], tensor.stride()[:-1]
    missing = 3 - len(sizes)
    return LeadingDimensions(
        (ctypes.c_int64 * 3)(*[1] * missing, *sizes), (ctypes.c_int64 * 3)(*[0] * missing, *strides)
    )


def element_of(tensor: torch.Tensor) -> int:
    """The dtype of a tensor as the kernels number it."""
    return ELEMENTS[tensor.dtype]


def num_threads(elements: int) -> int:
    """Torch's number of threads, or fewer where they would only wait. It changes no bit.

    Args:
        elements: how many are read, computed and rounded, or what takes as long.
    """
    return min(torch.get_num_threads(), 1 + elements // _ELEMENTS_PER_THREAD)
