"""What the launchers of our kernels for Hopper GPUs share: its sizes, and tensors as matrices copied in boxes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

# Rows of one instruction of a warpgroup, and columns of 16 bits that lie side by side in shared memory.
WARPGROUP_ROWS = 64
SPAN = 64
# What the tensor memory accelerator asks of addresses and strides.
ALIGNMENT_BYTES = 16


def boxed_matrix(tensor: torch.Tensor, shape: Sequence[int], row_stride: int, box: tuple[int, int]) -> Any:  # noqa: ANN401
    """A tensor of 16-bit elements as a matrix that the tensor memory accelerator reads or writes in boxes.

    Args:
        tensor: where the matrix begins.
        shape: of the matrix, `[rows, columns]`.
        row_stride: elements from a row to the next.
        box: rows and columns of a box.
    """
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(tensor, list(shape), [row_stride, 1], list(box), _layout(box[1]))


@functools.cache
def _layout(columns: int) -> Any:  # noqa: ANN401
    """Of a box in shared memory, in spans of at most 128 bytes."""
    from triton.experimental.gluon import language as gl

    return gl.NVMMASharedLayout(swizzle_byte_width=min(2 * SPAN, 2 * columns), element_bitwidth=16, rank=2)
