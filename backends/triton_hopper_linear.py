"""Launching our linear kernel for Hopper GPUs, for what it can compute: the bits are those of the portable kernel.

It reads and writes with the tensor memory accelerator, which wants rows at aligned addresses, evenly spaced. Everything
else is left to the portable kernel.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from samebits.backends.hopper_boxes import ALIGNMENT_BYTES, SPAN, WARPGROUP_ROWS, boxed_matrix
from samebits.backends.operations import LinearTensors
from samebits.backends.platform import multiprocessors
from samebits.backends.triton_kernels import next_power_of_two

KERNELS = "samebits.kernels.triton.hopper_linear"

# Rows that are loaded at least.
_LEAST_ROWS = 16

# Kernels by what they were compiled for.
_COMPILED: dict[tuple[Any, ...], Any] = {}


@dataclass(frozen=True)
class Tile:
    """A shape in which the output may be computed. No bit follows from it.

    Attributes:
        warpgroups: of 64 rows each.
        columns: of the output.
        features: that are loaded together.
        stages: such loads that a program has room for.
    """

    warpgroups: int
    columns: int
    features: int
    stages: int

    @property
    def rows(self) -> int:
        """Rows of the output."""
        return self.warpgroups * WARPGROUP_ROWS

    def count(self, num_rows: int, out_features: int) -> int:
        """Tiles of an output."""
        return -(-num_rows // self.rows) * -(-out_features // self.columns)


TILES = (
    Tile(2, 256, features=64, stages=3),
    Tile(2, 128, features=64, stages=5),
    Tile(1, 256, features=64, stages=4),
    Tile(1, 128, features=64, stages=7),
    Tile(1, 64, features=128, stages=6),
    Tile(1, 32, features=128, stages=8),
)


def computes(tensors: LinearTensors, row_stride: int) -> bool:
    """Whether the kernel can read and write these tensors: of 16 bits, in rows that begin at 16 bytes.

    Args:
        tensors: of the layer.
        row_stride: elements from a row of the input to the next, which is the same for all.
    """
    elements = ALIGNMENT_BYTES // 2
    matrices = (tensors.input, tensors.weight, tensors.output)
    return (
        tensors.input.dtype.itemsize == 2
        and tensors.weight.shape[1] > 0
        and all(size % elements == 0 for size in (*tensors.weight.shape, row_stride))
        # Rows that share memory are no matrix.
        and row_stride >= tensors.weight.shape[1]
        and all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in matrices)
    )


@functools.lru_cache(maxsize=1024)
def tile_for(num_rows: int, out_features: int, programs: int) -> Tile:
    """The tile that takes the least time, which what a program has to load decides.

    Args:
        num_rows: of the output.
        out_features: its columns.
        programs: that run at once.
    """
    box_rows = _box_rows(num_rows)

    def loads(tile: Tile) -> int:
        rounds = -(-tile.count(num_rows, out_features) // programs)
        return rounds * (tile.warpgroups * box_rows + tile.columns)

    return min(TILES, key=loads)


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
    box_rows = _box_rows(num_rows)
    grid = (min(tile.count(num_rows, out_features), programs), 1, 1)
    arguments = (
        boxed_matrix(tensors.input, (num_rows, in_features), row_stride, (box_rows, SPAN)),
        boxed_matrix(tensors.weight, (out_features, in_features), in_features, (tile.columns, tile.features)),
        boxed_matrix(tensors.output, (num_rows, out_features), out_features, (WARPGROUP_ROWS, tile.columns)),
        tensors.bias,
        tile.stages,
        tile.warpgroups,
    )
    # All that it is compiled for. To have Triton find it anew takes longer than the kernel.
    key = (tensors.input.device, tensors.input.dtype, tensors.bias is None, tile, box_rows)
    compiled = _COMPILED.get(key)
    if compiled is not None:
        compiled[grid](*arguments)
        return
    compiled = _kernel()[grid](*arguments, num_warps=4)
    # Where kernels are compiled for another device, none is launched.
    if compiled is not None:
        _COMPILED[key] = compiled


def _box_rows(num_rows: int) -> int:
    """Rows that a warpgroup loads."""
    return min(max(next_power_of_two(num_rows), _LEAST_ROWS), WARPGROUP_ROWS)


@functools.cache
def _kernel() -> Any:  # noqa: ANN401 -- Triton's, which has no types
    return importlib.import_module(KERNELS).linear_kernel
