"""The FLEX_ATTENTION backend: torch's compiled FlexAttention over the paged cache, through a block mask."""

from __future__ import annotations

import math
import os
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from samebits.backends.consistency import refuse_contradictions
from samebits.backends.contract import (
    AttentionConfig,
    AttentionMetadata,
    Availability,
    Claims,
    Implementation,
    Tiling,
)
from samebits.backends.plan_tensors import plan_tensors
from samebits.backends.platform import Platform, accelerator, import_or_reason
from samebits.backends.problem import Mask, Problem, Strides
from samebits.backends.subject import GraphSupport, PaddingRows, Subject
from samebits.backends.support import Support
from samebits.backends.torch_operations import operations
from samebits.backends.triton_kernels import next_power_of_two
from samebits.kernels.flex.tiles import Sequences, TileShape, Visibility

# Importing it imports torch's compiler, which takes a second: left to those who probe or run this backend.
KERNEL_MODULE = "samebits.kernels.flex.attention"
if TYPE_CHECKING:
    from samebits.kernels.flex.attention import Capacity, FlexPlan
    from samebits.kernels.flex.compiled import Pipeline

# Rows and keys that a matrix unit takes at least. It is also the tile of vLLM's FlexAttention under batch invariance.
_SMALLEST_TILE = 16
# Rows that the matrix unit of a Hopper GPU takes.
_TILE_ON_GPU = 64
# Queries, and two stages of keys and values, fit the shared memory of a GPU in float32: 5 times 32 KiB.
_TILE_ELEMENTS_ON_GPU = 8192
_HEAD_DIMS_ON_GPU = range(_SMALLEST_TILE, _TILE_ELEMENTS_ON_GPU // _SMALLEST_TILE + 1)
# With more stages than the least, two programs are still to fit a multiprocessor: one computes while another waits.
_SHARED_BYTES, _STAGES = 112 << 10, range(2, 5)
# Of a tile, so that its results stay in registers.
_ELEMENTS_OF_A_WARP = 2048


class FlexAttention(Implementation["FlexPlan"]):
    """`torch.nn.attention.flex_attention`, compiled once for every batch, mask and number of heads.

    Args:
        platform: where it computes.
        tile: rows per tile, fewer on a GPU where heads are large; and keys per block where the page size allows it,
            else the largest power of two that divides both; a power of two of at least 16. None for the one that is
            fastest here: 16 on a processor, and 64 on a GPU. Another is a variant of its own.

    On the processor the log-sum-exp is computed beside the kernel, which has none to give. With sinks the keys and
    values that a batch reads are copied, behind a block of zeros for the sink; without, the cache is read in place.
    """

    backend = "FLEX_ATTENTION"
    name = "torch"
    compiles_each_shape = True
    claims = Claims(
        batch_invariant=True,
        schedule_invariant=True,
        # The kernels multiply a whole block of values by weights that are 0 where the mask says so, and 0 * NaN is NaN.
        ignores_unread_memory=False,
        # Tiles and blocks are laid out on the host, into tensors with room for any batch of the padded sizes.
        cuda_graph=GraphSupport.ALWAYS,
        padding_rows=PaddingRows.FINITE,
        refuses_contradictions=True,
        source=(
            "kernels/flex/tiles.py: tiles of one request, blocks in the order of its tokens; unread memory: "
            "torch/_inductor/kernel/flex/templates/common.py.jinja and codegen/cpp_flex_attention_template.py load "
            "whole blocks of values"
        ),
    )

    def __init__(self, platform: Platform, tile: int | None = None) -> None:
        on_processor = platform.kind == "cpu"
        own = _SMALLEST_TILE if on_processor else _TILE_ON_GPU
        tile = own if tile is None else tile
        self._platform = platform
        self._tile = tile
        self.variant = "" if tile == own else f"tile={tile}"
        # A block lies inside a page. Blocks of a single key come out wrong on the processor in 16 bits (torch 2.13).
        smallest_block = 2 if on_processor else _SMALLEST_TILE
        self.support = Support(
            dtypes=("fp32", "bf16", "fp16"),
            masks=tuple(Mask),
            head_dims=lambda head_dim: on_processor or head_dim in _HEAD_DIMS_ON_GPU,
            page_sizes=lambda page_size: page_size % smallest_block == 0,
            encoder_offset=True,
            lse=True,
            sinks=True,
        )
        self.tiling = Tiling(query_tile=tile, kv_tile=tile, kv_split=tile)
        self.configuration = {
            "query_rows": str(tile),
            "max_key_block": str(tile),
            "log_sum_exp": "beside the kernel in float64" if on_processor else "of the kernel",
        }

    def probe(self) -> Availability:
        """Imports what is called, and asks for what inductor compiles it with; the first run compiles."""
        _, reason = import_or_reason(KERNEL_MODULE)
        if not reason and torch._dynamo.config.disable:
            reason = "torch.compile is switched off, by TORCHDYNAMO_DISABLE=1 or in torch._dynamo.config"
        if not reason:
            on_processor = self._platform.kind == "cpu"
            reason = _processor_reason() if on_processor else import_or_reason("triton.compiler")[1]
        return Availability(reason=reason, version=torch.__version__, device=self._platform.device)

    def reasons(self, problem: Problem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        found = super().reasons(problem)
        geometry = problem.geometry
        # With sinks the blocks are copied, from wherever they are.
        if geometry.sinks:
            return found
        if problem.layout.strides is Strides.MIXED_ORDER and geometry.num_kv_heads > 1:
            found.append(
                "keys slot by slot beside values head by head are not supported: "
                "one list of blocks leads to the pages of both, which must be as many slots apart"
            )
        if problem.layout.far_pages:
            found.append(
                "pages further apart than 32 bits count elements are not supported: "
                "a position is kept for each block of the memory between them"
            )
        return found

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> FlexPlan:
        """Lays the batch out in tiles on the host."""
        return self._plan(config, metadata)

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> FlexPlan:
        """Lays the batch out with room for any other of these sizes."""
        from samebits.kernels.flex.attention import Capacity

        capacity = Capacity.of(
            metadata.num_requests,
            metadata.num_tokens,
            config.group_size,
            metadata.max_seq_len,
            num_pages,
            self._tile_shape(config),
        )
        return self._plan(config, metadata, capacity)

    def refill(self, config: AttentionConfig, plan: FlexPlan, metadata: AttentionMetadata) -> None:
        """Lays the batch out anew, with as much room, and copies that over the tensors of the plan."""
        capacity = plan.capacity
        assert capacity is not None, "only a plan for a graph serves other batches"
        held = plan_tensors(plan)
        for name, tensor in plan_tensors(self._plan(config, metadata, capacity)).items():
            held[name].copy_(tensor)

    def _tile_shape(self, config: AttentionConfig) -> TileShape:
        rows = self._tile
        if self._platform.kind != "cpu":
            rows = min(rows, _TILE_ELEMENTS_ON_GPU // next_power_of_two(config.head_dim))
        return TileShape(rows, keys=math.gcd(config.page_size, rows))

    def _pipeline(self, config: AttentionConfig) -> Pipeline:
        """A warp for 16 rows at least, and so many that results stay in registers; as many stages as there is room for.

        All follows from the layer alone: where heads are so wide that warps share rows, they do so in every batch.
        """
        from samebits.kernels.flex.compiled import Pipeline

        shape, columns = self._tile_shape(config), next_power_of_two(config.head_dim)
        row_bytes = columns * config.dtype.itemsize
        stages = (_SHARED_BYTES - shape.rows * row_bytes) // (2 * shape.keys * row_bytes)
        warps = max(shape.rows // _SMALLEST_TILE, shape.rows * columns // _ELEMENTS_OF_A_WARP)
        return Pipeline(num_warps=warps, num_stages=max(_STAGES[0], min(stages, _STAGES[-1])))

    def _plan(self, config: AttentionConfig, metadata: AttentionMetadata, capacity: Capacity | None = None) -> FlexPlan:
        self.require(config)
        refuse_contradictions(config, metadata)
        from samebits.kernels.flex.attention import Layer, plan_batch

        query_start_loc, seq_lens, first_slots, num_keys = (
            tensor.to(device="cpu", dtype=torch.int64)
            for tensor in (
                metadata.query_start_loc,
                metadata.seq_lens,
                metadata.kv_starts(config.mask),
                metadata.kv_lens(config.mask),
            )
        )
        query_lens = query_start_loc.diff()
        return plan_batch(
            Layer(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                page_size=config.page_size,
                scale=config.scale,
                softcap=config.softcap,
                sinks=config.sinks,
                dtype=config.dtype,
                device=config.device,
            ),
            Sequences(query_lens, seq_lens - query_lens, first_slots, num_keys),
            Visibility(metadata.causal_of_requests().cpu(), config.window),
            metadata.block_table.cpu(),
            self._tile_shape(config),
            self._pipeline(config),
            capacity,
        )

    def run(
        self,
        plan: FlexPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Copies the queries into their rows, attends, and copies the results out. Compiles at a graph's first call."""
        from samebits.kernels.flex.attention import paged_attention

        paged_attention(plan, query, key_cache, value_cache, output, lse)


def implementations() -> list[Subject]:
    """FlexAttention on the accelerator, or on the processor where there is none, and the operations on tokens."""
    platform = accelerator()
    tiles = (None,) if platform.kind == "cpu" else (None, _SMALLEST_TILE)
    attention = [FlexAttention(platform, tile) for tile in tiles]
    return [*attention, *operations(FlexAttention.backend, platform.device)]


def _processor_reason() -> str:
    """Why inductor cannot compile FlexAttention for this processor, as one sentence; empty when it can."""
    if not torch.cpu._is_avx2_supported() or os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        return "inductor compiles FlexAttention for processors with AVX2 only, and torch finds or may use none here"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"inductor compiles FlexAttention with a C++ compiler, and {compiler!r} (from CXX) is not on the path"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"inductor compiles FlexAttention against Python's headers, and {header} does not exist"
    return ""
