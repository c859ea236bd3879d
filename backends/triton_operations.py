"""TRITON_ATTN/bundled's operations on tokens: our Triton kernels, compiled on a GPU and interpreted without one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from samebits.backends import triton_hopper_linear
from samebits.backends.operations import (
    CacheWriteImplementation,
    CacheWriteTensors,
    LinearImplementation,
    LinearTensors,
    MergeImplementation,
    MergeTensors,
    RmsNormImplementation,
    RmsNormTensors,
    RotaryImplementation,
    RotaryTensors,
    TokenImplementation,
)
from samebits.backends.platform import accelerator, compute_capability
from samebits.backends.subject import Availability, Claims, GraphSupport, Subject, Tiling
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding
from samebits.backends.triton_kernels import load_kernels, next_power_of_two, probe_kernels

KERNELS = "samebits.kernels.triton"

# Elements of a program's tile where rows are computed one by one: no bit follows from it. Rotation needs one for each
# thread at least, of which 4 warps have 256 where a warp is 64.
COMPILED_ELEMENTS = 2048
# What is a long row, and the warps whose registers hold it.
LONG_ROW, LONG_ROW_WARPS = 4096, 8
# The interpreter's cost is in the number of programs.
INTERPRETED_ELEMENTS = 16384
# For every kernel but that of the linear, which holds no product outside of `tl.dot`: see the kernels' modules.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@dataclass(frozen=True)
class LinearConfiguration:
    """Settings of the linear's kernel. All but `num_stages` may decide bits, so none may depend on the rows.

    Attributes:
        block_rows, block_columns: shape of a tile of the output.
        feature_tile: features of one `tl.dot`.
        feature_chunk: features that are summed from zero, a multiple of `feature_tile`; None for all of them.
        num_warps: warps of a program.
        num_stages: tiles in flight.
    """

    block_rows: int
    block_columns: int
    feature_tile: int
    feature_chunk: int | None
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())

    def __post_init__(self) -> None:
        if self.feature_chunk is not None and self.feature_chunk % self.feature_tile:
            raise ValueError(
                f"linear configuration has feature_chunk={self.feature_chunk}, which is not a multiple of "
                f"feature_tile={self.feature_tile}"
            )


COMPILED_LINEAR = {
    # The order of the kernel for Hopper, whose tiles leave no room for the sum of chunks.
    "16-bit": LinearConfiguration(64, 128, feature_tile=64, feature_chunk=None, num_warps=8, num_stages=3),
    "fp32": LinearConfiguration(64, 64, feature_tile=32, feature_chunk=1024, num_warps=8, num_stages=2),
}
# Chunks are short, so that small layers have several.
INTERPRETED_LINEAR = LinearConfiguration(64, 128, feature_tile=64, feature_chunk=128, num_warps=1, num_stages=1)
COMPILED_LANES = 1024
# Few, so that short rows go round them several times.
INTERPRETED_LANES = 128


class TritonOperation(Subject):
    """What the operations share: where their kernels are and how they are loaded.

    Args:
        kernels: name of the module that defines the operation's kernel; None for the bundled one.
    """

    backend = "TRITON_ATTN"
    name = "bundled"
    module: str

    def __init__(self, kernels: str | None = None) -> None:
        self.device = accelerator().device
        self.interpreted = self.device == "cpu"
        self.kernels = kernels or f"{KERNELS}.{self.module}"
        self.claims = Claims(
            batch_invariant=True,
            schedule_invariant=True,
            cuda_graph=GraphSupport.ALWAYS,
            source=f"docstring of samebits/kernels/triton/{self.module}.py",
        )

    def probe(self) -> Availability:
        """Imports Triton, and the kernel as it will be run."""
        return probe_kernels(self.kernels, self.device)

    def _block_rows(self, width: int) -> int:
        """Rows of a tile whose rows have `width` elements, a power of 2."""
        return max(1, (INTERPRETED_ELEMENTS if self.interpreted else COMPILED_ELEMENTS) // width)


class TritonRotary(TritonOperation, RotaryImplementation):
    """Rotary embedding by our Triton kernel."""

    module = "rotary"
    triton_kernels: Mapping[str, tuple[str, ...]] = {"tokens": ("rotary_kernel",)}

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates queries and keys in one launch."""
        query, key = tensors.query, tensors.key
        num_tokens, num_heads, _ = query.shape
        num_kv_heads = key.shape[1]
        if num_tokens == 0:
            return
        pairs_padded = next_power_of_two(operation.rotary_dim // 2)
        block_rows = self._block_rows(pairs_padded)
        num_tiles = sum(_ceil_div(num_tokens * heads, block_rows) for heads in (num_heads, num_kv_heads))
        load_kernels(self.kernels, self.device).rotary_kernel[(num_tiles,)](
            query,
            key,
            tensors.positions,
            tensors.cos_sin_cache,
            num_tokens,
            tensors.cos_sin_cache.shape[0],
            *query.stride()[:2],
            *key.stride()[:2],
            tensors.cos_sin_cache.stride(0),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            ROTARY_DIM=operation.rotary_dim,
            INTERLEAVED=operation.interleaved,
            INVERSE=operation.inverse,
            BLOCK_ROWS=block_rows,
            PAIRS_PADDED=pairs_padded,
            **OPTIONS,
        )


class TritonCacheWrite(TritonOperation, CacheWriteImplementation):
    """Cache write by our Triton kernel."""

    module = "cache_write"
    triton_kernels: Mapping[str, tuple[str, ...]] = {"tokens": ("cache_write_kernel",)}

    def compute(self, operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        """Stores keys and values in one launch."""
        key, value = tensors.key, tensors.value
        num_tokens, num_kv_heads, head_dim = key.shape
        if num_tokens == 0:
            return
        head_dim_padded = next_power_of_two(head_dim)
        block_rows = self._block_rows(head_dim_padded)
        load_kernels(self.kernels, self.device).cache_write_kernel[(_ceil_div(num_tokens * num_kv_heads, block_rows),)](
            key,
            value,
            tensors.key_cache,
            tensors.value_cache,
            tensors.slot_mapping,
            num_tokens,
            tensors.key_cache.shape[0] * operation.page_size,
            *key.stride()[:2],
            *value.stride()[:2],
            *tensors.key_cache.stride()[:3],
            *tensors.value_cache.stride()[:3],
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            PAGE_SIZE=operation.page_size,
            BLOCK_ROWS=block_rows,
            HEAD_DIM_PADDED=head_dim_padded,
            **OPTIONS,
        )


class TritonMerge(TritonOperation, MergeImplementation):
    """Merge by log-sum-exp by our Triton kernel."""

    module = "merge"
    triton_kernels: Mapping[str, tuple[str, ...]] = {"tokens": ("merge_states_kernel",)}

    def compute(self, operation: MergeStates, tensors: MergeTensors) -> None:
        """Merges all rows in one launch."""
        output = tensors.output
        num_tokens, num_heads, head_dim = output.shape
        if num_tokens == 0:
            return
        head_dim_padded = next_power_of_two(head_dim)
        block_rows = self._block_rows(head_dim_padded)
        load_kernels(self.kernels, self.device).merge_states_kernel[(_ceil_div(num_tokens * num_heads, block_rows),)](
            tensors.prefix_output,
            tensors.prefix_lse,
            tensors.suffix_output,
            tensors.suffix_lse,
            output,
            tensors.lse,
            num_tokens,
            *tensors.prefix_output.stride()[:2],
            *tensors.suffix_output.stride()[:2],
            *output.stride()[:2],
            tensors.prefix_lse.stride(0),
            tensors.suffix_lse.stride(0),
            tensors.lse.stride(0),
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            BLOCK_ROWS=block_rows,
            HEAD_DIM_PADDED=head_dim_padded,
            **OPTIONS,
        )


class TritonLinear(TritonOperation, LinearImplementation):
    """Linear by our Triton kernel.

    Args:
        kernel_configuration: one for every dtype; None for the defaults of the platform.
        kernels: as `TritonOperation`.
        on_hopper: whether a Hopper GPU computes what it can with the kernel that is written for it. It changes no bit.
    """

    module = "linear"
    triton_kernels: Mapping[str, tuple[str, ...]] = {"tokens": ("linear_kernel",)}

    def __init__(
        self,
        kernel_configuration: LinearConfiguration | None = None,
        kernels: str | None = None,
        on_hopper: bool = True,
    ) -> None:
        super().__init__(kernels)
        usual_kernels = kernel_configuration is None and kernels is None
        self.on_hopper = on_hopper and usual_kernels and compute_capability() == (9, 0)
        if kernel_configuration is None and not self.interpreted:
            self._configurations = COMPILED_LINEAR
        else:
            self._configurations = dict.fromkeys(COMPILED_LINEAR, kernel_configuration or INTERPRETED_LINEAR)
        usual = self._configurations["16-bit"]
        self.tiling = Tiling(query_tile=usual.block_rows)
        self.configuration = {name: str(settings) for name, settings in self._configurations.items()}

    def probe(self) -> Availability:
        """Imports Triton, and the kernels as they will be run."""
        found = super().probe()
        return probe_kernels(triton_hopper_linear.KERNELS, self.device) if found.available and self.on_hopper else found

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        """Computes all rows in one launch."""
        out_features, in_features = tensors.weight.shape
        if tensors.output.numel() == 0:
            return
        num_rows = tensors.output.numel() // out_features
        layout = _row_layout(tensors.input)
        _, evenly_spaced_rows, *_, stride = layout
        row_stride = stride if num_rows > 1 else in_features
        if self.on_hopper and evenly_spaced_rows == num_rows and triton_hopper_linear.computes(tensors, row_stride):
            triton_hopper_linear.launch_on_hopper(tensors, row_stride)
            return
        configuration = self._configurations["fp32" if tensors.input.dtype == torch.float32 else "16-bit"]
        feature_tile = configuration.feature_tile
        grid = (_ceil_div(num_rows, configuration.block_rows), _ceil_div(out_features, configuration.block_columns))
        load_kernels(self.kernels, self.device).linear_kernel[grid](
            tensors.input,
            tensors.weight,
            tensors.bias,
            tensors.output,
            num_rows,
            *layout,
            IN_FEATURES=in_features,
            OUT_FEATURES=out_features,
            BLOCK_ROWS=configuration.block_rows,
            BLOCK_COLUMNS=configuration.block_columns,
            FEATURE_TILE=feature_tile,
            FEATURE_CHUNK=configuration.feature_chunk or max(1, _ceil_div(in_features, feature_tile)) * feature_tile,
            num_warps=configuration.num_warps,
            num_stages=configuration.num_stages,
        )


class TritonRmsNorm(TritonOperation, RmsNormImplementation):
    """RMSNorm by our Triton kernel.

    Args:
        lanes: partial sums of a row, a power of 2; fewer where rows are shorter. None for the platform's default.
        kernels: as `TritonOperation`.
    """

    module = "rms_norm"
    triton_kernels: Mapping[str, tuple[str, ...]] = {"tokens": ("rms_norm_kernel",)}

    def __init__(self, lanes: int | None = None, kernels: str | None = None) -> None:
        super().__init__(kernels)
        self.lanes = lanes or (INTERPRETED_LANES if self.interpreted else COMPILED_LANES)
        self.configuration = {"all": f"lanes={self.lanes}"}

    def compute(self, operation: RmsNorm, tensors: RmsNormTensors) -> None:
        """Normalises all rows in one launch."""
        size = tensors.input.shape[-1]
        num_rows = tensors.input.numel() // size
        if num_rows == 0:
            return
        size_padded = next_power_of_two(size)
        lanes = min(self.lanes, size_padded)
        # Where there are registers, they hold whole rows.
        block_rows = self._block_rows(lanes if self.interpreted else size_padded)
        num_warps = LONG_ROW_WARPS if size_padded >= LONG_ROW else OPTIONS["num_warps"]
        load_kernels(self.kernels, self.device).rms_norm_kernel[(_ceil_div(num_rows, block_rows),)](
            tensors.input,
            tensors.weight,
            tensors.output,
            num_rows,
            *_row_layout(tensors.input),
            operation.epsilon,
            SIZE=size,
            BLOCK_ROWS=block_rows,
            LOG2_LANES=lanes.bit_length() - 1,
            **(OPTIONS | {"num_warps": num_warps}),
        )


def _row_layout(tensor: torch.Tensor) -> tuple[int, int, int, int, int]:
    """Where the rows of a tensor of any leading dimensions lie, as three dimensions.

    Dimensions whose rows are evenly spaced together become one. So a contiguous tensor has one, whatever its shape, and
    no stride that follows the number of tokens makes Triton compile another variant.

    Args:
        tensor: `[..., row]`, with one to three leading dimensions.

    Returns:
        Sizes of the second and the third dimension, and strides of all three.
    """
    dimensions: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if dimensions and dimensions[-1][1] == size * stride:
            dimensions[-1] = (dimensions[-1][0] * size, stride)
        else:
            dimensions.append((size, stride))
    (_, stride_0), (size_1, stride_1), (size_2, stride_2) = [(1, 0)] * (3 - len(dimensions)) + dimensions
    return size_1, size_2, stride_0, stride_1, stride_2


def _ceil_div(dividend: int, divisor: int) -> int:
    return math.ceil(dividend / divisor)


def operations() -> list[TokenImplementation[Any, Any]]:
    """The bundled operations of TRITON_ATTN."""
    return [TritonRotary(), TritonCacheWrite(), TritonMerge(), TritonLinear(), TritonRmsNorm()]
