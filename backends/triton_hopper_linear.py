"""Launching our linear kernel for Hopper GPUs, for what it can compute: the bits are those of the portable kernel.

It reads and writes with the tensor memory accelerator, which wants rows at aligned addresses, evenly spaced. Everything
else is left to the portable kernel.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.operations import LinearTensors
from samebits.backends.platform import multiprocessors

KERNELS = "samebits.kernels.triton.hopper_linear"

# Rows of a warpgroup, and features of a tile, which lie side by side in shared memory: see the kernel.
WARPGROUP_ROWS = 64
_FEATURE_TILE = 64
_ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class Tile:
    """A shape in which the output may be computed. No bit follows from it.

    Attributes:
        warpgroups: of 64 rows each.
        columns: of the output.
        stages: tiles of features that a program has room for.
    """

    warpgroups: int
    columns: int
    stages: int

    @property
    def rows(self) -> int:
        """Rows of the output."""
        return self.warpgroups * WARPGROUP_ROWS

    def count(self, num_rows: int, out_features: int) -> int:
        """Tiles of an output."""
        return -(-num_rows // self.rows) * -(-out_features // self.columns)


TILES = (Tile(2, 256, 3), Tile(2, 128, 5), Tile(1, 128, 7), Tile(1, 64, 10), Tile(1, 32, 14))


def computes(tensors: LinearTensors, row_stride: int) -> bool:
    """Whether the kernel can read and write these tensors: of 16 bits, in rows that begin at 16 bytes.

    Args:
        tensors: of the layer.
        row_stride: elements from a row of the input to the next, which is the same for all.
    """
    elements = _ALIGNMENT_BYTES // 2
    matrices = (tensors.input, tensors.weight, tensors.output)
    return (
        tensors.input.dtype.itemsize == 2
        and all(size % elements == 0 for size in (*tensors.weight.shape, row_stride))
        # Rows that share memory are no matrix.
        and row_stride >= tensors.weight.shape[1]
        and all(tensor.data_ptr() % _ALIGNMENT_BYTES == 0 for tensor in matrices)
    )


@functools.cache
def tile_for(num_rows: int, out_features: int, programs: int) -> Tile:
    """The tile that takes the least time, which what a program has to load decides.

    Args:
        num_rows: of the output.
        out_features: its columns.
        programs: that run at once.
    """
    return min(TILES, key=lambda tile: -(-tile.count(num_rows, out_features) // programs) * (tile.rows + tile.columns))


def launch_on_hopper(tensors: LinearTensors, row_stride: int) -> None:
    """Launches the kernel.

    Args:
        tensors: that it `computes`, of one row at least.
        row_stride: as there.
    """
    out_features, in_features = tensors.weight.shape
    num_rows = tensors.output.numel() // out_features
    programs = multiprocessors(tensors.input.device)
    tile = tile_for(num_rows, out_features, programs)
    _kernel()[(min(tile.count(num_rows, out_features), programs),)](
        _matrix(tensors.input, num_rows, in_features, row_stride, (WARPGROUP_ROWS, _FEATURE_TILE)),
        _matrix(tensors.weight, out_features, in_features, in_features, (tile.columns, _FEATURE_TILE)),
        _matrix(tensors.output, num_rows, out_features, out_features, (WARPGROUP_ROWS, tile.columns)),
        tensors.bias,
        STAGES=tile.stages,
        WARPGROUPS=tile.warpgroups,
        num_warps=4,
    )


@functools.cache
def _kernel() -> Any:  # noqa: ANN401 -- Triton's, which has no types
    return importlib.import_module(KERNELS).linear_kernel


def _matrix(tensor: torch.Tensor, num_rows: int, row_size: int, row_stride: int, box: tuple[int, int]) -> Any:  # noqa: ANN401
    """A tensor as a matrix that is read or written in boxes."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(tensor, [num_rows, row_size], [row_stride, 1], list(box), _box_layout(box[1]))


@functools.cache
def _box_layout(columns: int) -> Any:  # noqa: ANN401
    from triton.experimental.gluon import language as gl

    return gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * columns), element_bitwidth=16, rank=2)
