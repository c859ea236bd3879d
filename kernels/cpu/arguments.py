"""What is checked and derived for every call of a compiled kernel that treats tokens by themselves."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.attention import ELEMENTS

# Waking a thread takes a few microseconds, in which another handles about this many elements.
_ELEMENTS_PER_THREAD = 1 << 14


class LeadingDimensions(ctypes.Structure):
    """`LeadingDimensions` in rows.h: those before a tensor's last, filled up in front with sizes of 1."""

    _fields_ = [("sizes", ctypes.c_int64 * 3), ("strides", ctypes.c_int64 * 3)]


def leading_dimensions(name: str, tensor: torch.Tensor) -> LeadingDimensions:
    """Sizes and strides of a tensor's dimensions but the last.

    Raises:
        ValueError: there are none, or more than three.
    """
    sizes, strides = tensor.shape[:-1], tensor.stride()[:-1]
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have one to three dimensions before the last")
    missing = 3 - len(sizes)
    return LeadingDimensions(
        (ctypes.c_int64 * 3)(*[1] * missing, *sizes), (ctypes.c_int64 * 3)(*[0] * missing, *strides)
    )


def element_of(name: str, tensor: torch.Tensor) -> int:
    """The dtype of a tensor as the kernels number it.

    Raises:
        ValueError: they do not know it.
    """
    if tensor.dtype not in ELEMENTS:
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must be one of {', '.join(map(str, ELEMENTS))}")
    return ELEMENTS[tensor.dtype]


def check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuses a tensor that a kernel would leave the bounds of.

    Raises:
        ValueError: its shape or dtype is another, it is not on the CPU, or its last stride is not 1.
    """
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it must be {dtype} {list(shape)} "
            "on the cpu"
        )
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; the last one must be 1")


def check_contiguous(name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor that does not lie densely in memory.

    Raises:
        ValueError: it does not.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has shape {list(tensor.shape)} and strides {tensor.stride()}; it must be contiguous")


def num_threads(elements: int) -> int:
    """Torch's number of threads, or fewer where they would only wait. It changes no bit.

    Args:
        elements: how many are read, computed and rounded, or what takes as long.
    """
    return min(torch.get_num_threads(), 1 + elements // _ELEMENTS_PER_THREAD)
