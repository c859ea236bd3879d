"""Copy to a persistent buffer: what a captured graph reads is refilled where it lies.

A graph holds addresses, shapes and strides of its capture. New data must therefore go into a slice of the buffer, by
the buffer's own strides, and not into its first elements whatever those are; and what the new data leave must not keep
what an earlier, larger batch left there.
"""

from __future__ import annotations

import math

import torch

from samebits.backends.contract import dtype_name
from samebits.backends.platform import import_or_reason
from samebits.backends.triton_kernels import load_kernels

TRITON_KERNELS = "samebits.kernels.triton.persistent_copy"
MAX_DIMENSIONS = 4
# Elements of a program: no bit follows from it.
_COMPILED_BLOCK, _INTERPRETED_BLOCK = 1024, 16384
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def copy_to_persistent(source: torch.Tensor, destination: torch.Tensor, padding: float) -> None:
    """Copies a tensor into the leading slice of a persistent one, and fills the rest of it. Launches only.

    Args:
        source: any strides, one to four dimensions.
        destination: as many dimensions, each at least as large; the same dtype and device; its strides stay.
        padding: what every element outside of the slice is set to.

    Raises:
        ValueError: the tensors do not fit each other, two elements of the destination share memory, or they share it
            with the source, or the destination's dtype cannot hold the padding.
    """
    refuse_copy(source, destination, padding)
    if destination.device.type == "cuda" and not import_or_reason("triton.language")[1]:
        copy_by_triton(source, destination, padding)
    else:
        copy_by_torch(source, destination, padding)


def copy_by_torch(source: torch.Tensor, destination: torch.Tensor, padding: float) -> None:
    """The copy by torch: one launch for the slice and one for each dimension that is left over.

    The arguments are those of `copy_to_persistent`, and fit each other.
    """
    inner = destination
    for dimension, (size, whole) in enumerate(zip(source.shape, destination.shape, strict=True)):
        if size < whole:
            inner.narrow(dimension, size, whole - size).fill_(padding)
            inner = inner.narrow(dimension, 0, size)
    inner.copy_(source)


def copy_by_triton(source: torch.Tensor, destination: torch.Tensor, padding: float) -> None:
    """The copy by our Triton kernel: one launch; interpreted on a processor.

    The arguments are those of `copy_to_persistent`, and fit each other.
    """
    elements = destination.numel()
    if not elements:
        return
    bits = _BITS[destination.element_size()]
    padding_bits = int(torch.tensor(padding, dtype=destination.dtype).view(bits).item())
    missing = MAX_DIMENSIONS - destination.dim()
    device = destination.device.type
    block = _INTERPRETED_BLOCK if device == "cpu" else _COMPILED_BLOCK
    load_kernels(TRITON_KERNELS, device).persistent_copy_kernel[(math.ceil(elements / block),)](
        source.view(bits),
        destination.view(bits),
        padding_bits,
        elements,
        *([1] * missing + list(destination.shape))[1:],
        *([1] * missing + list(source.shape)),
        *([0] * missing + list(source.stride())),
        *([0] * missing + list(destination.stride())),
        BLOCK=block,
    )


def refuse_copy(source: torch.Tensor, destination: torch.Tensor, padding: float) -> None:
    """Refuses what cannot be copied, in the same words whoever copies.

    Raises:
        ValueError: see `copy_to_persistent`.
    """
    given, held = list(source.shape), list(destination.shape)
    if len(given) != len(held) or any(size > whole for size, whole in zip(given, held, strict=True)):
        raise ValueError(f"source has shape {given}; it must fit into the destination's {held}")
    if not 1 <= len(held) <= MAX_DIMENSIONS:
        raise ValueError(f"destination has shape {held}; it must have one to {MAX_DIMENSIONS} dimensions")
    if source.dtype != destination.dtype:
        given_name, held_name = dtype_name(source.dtype), dtype_name(destination.dtype)
        raise ValueError(f"source is {given_name}; it must be {held_name} as the destination is")
    if source.device != destination.device:
        raise ValueError(f"source is on {source.device}; it must be on {destination.device} as the destination is")
    if _shares_elements(destination):
        raise ValueError(
            f"destination has shape {held} and strides {destination.stride()}, by which elements share memory; "
            "each must have its own"
        )
    if _overlap(source, destination):
        raise ValueError("source lies in the memory of the destination; it must lie elsewhere")
    if not destination.is_floating_point() and not _holds(destination.dtype, padding):
        raise ValueError(f"padding is {padding}; it must be a number that {dtype_name(destination.dtype)} holds")


def _shares_elements(tensor: torch.Tensor) -> bool:
    """Whether two elements may lie at one address: each stride must reach past all that smaller ones span."""
    span = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= span:
                return True
            span += (size - 1) * stride
    return False


def _overlap(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether the memory from the first element of one to its last holds any of the other."""
    if not first.numel() or not second.numel() or first.device != second.device:
        return False
    (first_start, first_stop), (second_start, second_stop) = _range(first), _range(second)
    return first_start < second_stop and second_start < first_stop


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def _holds(dtype: torch.dtype, value: float) -> bool:
    if not math.isfinite(value) or value != int(value):
        return False
    if dtype is torch.bool:
        return value in (0, 1)
    limits = torch.iinfo(dtype)
    return limits.min <= value <= limits.max
