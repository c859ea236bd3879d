"""TRITON_ATTN/bundled: our paged Triton kernel, compiled where there is a GPU and interpreted where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch

from samebits.backends import triton_hopper
from samebits.backends.contract import (
    AttentionConfig,
    AttentionMetadata,
    Availability,
    Claims,
    Implementation,
    Tiling,
)
from samebits.backends.platform import accelerator, compute_capability, multiprocessors
from samebits.backends.problem import Mask
from samebits.backends.subject import GraphSupport, PaddingRows, Subject
from samebits.backends.support import Support
from samebits.backends.triton_kernels import load_kernels, next_power_of_two, probe_kernels
from samebits.backends.triton_operations import operations
from samebits.backends.vllm_triton import vllm_triton_attention

LOG2_E = math.log2(math.e)
KERNELS = "samebits.kernels.triton.paged_attention"

# An accumulator of this width fills the registers of the programs below.
MAX_HEAD_DIM = 256

# Beyond this, sharing a request among programs costs more memory than the time it saves is worth.
MAX_PARTIAL_BYTES = 256 << 20


@dataclass(frozen=True)
class KernelConfiguration:
    """Settings of the kernel. All but `num_stages` decide bits, so none may depend on the batch.

    Attributes:
        block_rows: rows of a tile: query tokens times the query heads that share a key/value head. Rounded up where a
            group has more heads.
        kv_tile: keys of a tile.
        kv_chunk: keys that are attended to from zero and then merged; a multiple of `kv_tile`.
        num_warps: warps of a program.
        num_stages: tiles in flight.
    """

    block_rows: int
    kv_tile: int
    kv_chunk: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())

    def __post_init__(self) -> None:
        if self.kv_chunk % self.kv_tile:
            raise ValueError(
                f"kernel configuration has kv_chunk={self.kv_chunk}, which is not a multiple of kv_tile={self.kv_tile}"
            )


# Columns of a program that merges chunks, and chunks whose partials it loads at once: what keeps the registers of its
# few warps busy.
MERGED_COLUMNS = 32
MERGED_BATCH = 32

# By what is computed; `_configuration_for` chooses. Float32 products take no tensor cores and many registers, and wide
# heads twice the registers and shared memory of others (64 KiB of it on an MI300).
COMPILED = {
    "16-bit": KernelConfiguration(block_rows=64, kv_tile=64, kv_chunk=512, num_warps=4, num_stages=2),
    "16-bit wide": KernelConfiguration(block_rows=64, kv_tile=64, kv_chunk=512, num_warps=8, num_stages=1),
    "fp32": KernelConfiguration(block_rows=32, kv_tile=64, kv_chunk=512, num_warps=8, num_stages=1),
}
# Where heads are those that the kernel for Hopper computes, the other computes in its tiles, and so has its bits.
HOPPER = KernelConfiguration(block_rows=64, kv_tile=128, kv_chunk=1024, num_warps=4, num_stages=2)
HOPPER_WIDE = replace(HOPPER, kv_tile=64)


def _hopper_case(head_dims: tuple[int, ...]) -> str:
    return f"16-bit, head_dim {', '.join(map(str, head_dims))}"


COMPILED_FOR_HOPPER = {
    _hopper_case(triton_hopper.HEAD_DIMS): HOPPER,
    _hopper_case(triton_hopper.WIDE_HEAD_DIMS): HOPPER_WIDE,
    **COMPILED,
}
# Small, so that short requests cross several tiles and chunks.
INTERPRETED = KernelConfiguration(block_rows=32, kv_tile=32, kv_chunk=64, num_warps=1, num_stages=1)
# Programs that fill the interpreter: fewer, and requests are shared, so that both ways to merge are in daily use.
INTERPRETED_PROGRAMS = 4


@dataclass(frozen=True)
class TritonPlan:
    """A batch made ready to launch.

    Attributes:
        config: of the layer.
        metadata: of the batch. The kernel reads its tensors on the device; the host's part are upper bounds.
        kv_lens, kv_starts: int32 `[num_requests]`, see `AttentionMetadata`.
        configuration: of the kernel.
        num_tiles: upper bound on tiles of query rows.
        num_segments: programs that share a tile's keys.
        hopper: how the kernel for Hopper is launched; None where it cannot compute the batch.
        partials: scratch of the chunks' maxima and sums, float32 `[num_tokens, num_heads, chunks]`, and outputs,
            `[num_tokens, num_heads, chunks, head_dim]`; None with one segment.
    """

    config: AttentionConfig
    metadata: AttentionMetadata
    kv_lens: torch.Tensor
    kv_starts: torch.Tensor
    configuration: KernelConfiguration
    num_tiles: int
    num_segments: int
    hopper: triton_hopper.HopperPlan | None
    partials: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None


class TritonAttention(Implementation[TritonPlan]):
    """Our paged Triton kernel.

    Args:
        kernel_configuration: one for everything; None for the defaults of the platform.
        num_segments: programs that share a tile's keys; None to follow the load. It changes no bit.
        kernels: name of the module that defines `paged_attention_kernel` and `merge_chunks_kernel`.
        on_hopper: whether a Hopper GPU computes what it can with the kernel that is written for it. It changes no bit.
    """

    backend = "TRITON_ATTN"
    name = "bundled"
    claims = Claims(
        batch_invariant=True,
        schedule_invariant=True,
        # The launch follows from padded sizes and bounds alone, and lengths are read on the device.
        cuda_graph=GraphSupport.ALWAYS,
        padding_rows=PaddingRows.UNTOUCHED,
        source="docstring of samebits/kernels/triton/paged_attention.py",
    )
    support = Support(
        dtypes=("fp32", "bf16", "fp16"),
        masks=tuple(Mask),
        head_dims=lambda head_dim: head_dim <= MAX_HEAD_DIM,
        encoder_offset=True,
        lse=True,
        sinks=True,
    )
    triton_kernels: Mapping[str, tuple[str, ...]] = {
        "decode": ("paged_attention_kernel", "merge_chunks_kernel"),
        "prefill": ("paged_attention_kernel",),
    }

    def __init__(
        self,
        kernel_configuration: KernelConfiguration | None = None,
        num_segments: int | None = None,
        kernels: str = KERNELS,
        on_hopper: bool = True,
    ) -> None:
        self.device = accelerator().device
        self.interpreted = self.device == "cpu"
        self.num_segments = num_segments
        self.kernels = kernels
        hopper = compute_capability() == (9, 0) and kernel_configuration is None and kernels == KERNELS
        self.on_hopper = hopper and on_hopper
        if hopper:
            self._configurations = COMPILED_FOR_HOPPER
        elif kernel_configuration is None and not self.interpreted:
            self._configurations = COMPILED
        else:
            self._configurations = {"all": kernel_configuration or INTERPRETED}
        self.kernel_configuration = usual = next(iter(self._configurations.values()))
        self.tiling = Tiling(query_tile=usual.block_rows, kv_tile=usual.kv_tile, kv_split=usual.kv_chunk)
        self.configuration = {name: str(settings) for name, settings in self._configurations.items()}

    def probe(self) -> Availability:
        """Imports Triton, and the kernels as they will be run."""
        found = probe_kernels(self.kernels, self.device)
        return probe_kernels(triton_hopper.KERNELS, self.device) if found.available and self.on_hopper else found

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> TritonPlan:
        """Sizes the launch by upper bounds and decides how many programs share a tile's keys."""
        self.require(config)
        configuration = self._configuration_for(config)
        if config.group_size > configuration.block_rows:
            configuration = replace(configuration, block_rows=next_power_of_two(config.group_size))
        num_tiles = metadata.num_tokens // (configuration.block_rows // config.group_size) + metadata.num_requests
        partial_shape = (
            metadata.num_tokens,
            config.num_heads,
            math.ceil(metadata.max_seq_len / configuration.kv_chunk),
        )
        on_hopper = self.on_hopper and triton_hopper.computes(config, metadata)
        num_segments = self.num_segments
        if num_segments is None:
            if on_hopper:
                programs = triton_hopper.programs_at_once(config, metadata)
                tiles = triton_hopper.num_tiles_for(config, metadata)
                least = triton_hopper.least_segments(config, metadata)
            else:
                programs, tiles, least = self._programs_at_once(config), num_tiles, 1
            num_segments = _segments_for_load(config, programs, tiles, least, partial_shape)
        partials = None
        if num_segments > 1:
            maxima, sums = torch.empty((2, *partial_shape), dtype=torch.float32, device=config.device)
            outputs = torch.empty((*partial_shape, config.head_dim), dtype=torch.float32, device=config.device)
            partials = (maxima, sums, outputs)
        return TritonPlan(
            config=config,
            metadata=metadata,
            kv_lens=metadata.kv_lens(config.mask),
            kv_starts=metadata.kv_starts(config.mask),
            configuration=configuration,
            num_tiles=num_tiles,
            num_segments=num_segments,
            hopper=(
                triton_hopper.plan_on_hopper(config, metadata, num_segments, configuration.kv_tile)
                if on_hopper
                else None
            ),
            partials=partials,
        )

    def run(
        self,
        plan: TritonPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Launches the kernel, and the merge where requests are shared among programs.

        Raises:
            ValueError: the elements of a head do not lie side by side in one of the tensors.
        """
        tensors = {"query": query, "key_cache": key_cache, "value_cache": value_cache, "output": output}
        for name, tensor in tensors.items():
            if tensor.stride(-1) != 1:
                raise ValueError(f"{name} has a last stride of {tensor.stride(-1)}; it must be 1")
        config, metadata, configuration = plan.config, plan.metadata, plan.configuration
        kernels = load_kernels(self.kernels, self.device)
        partial_max, partial_sum, partial_output = plan.partials or (None, None, None)
        partial_chunks = 0 if partial_max is None else partial_max.shape[2]
        results = (output, lse, config.sinks, partial_max, partial_sum, partial_output)
        result_strides = (
            *output.stride()[:2],
            *((0, 0) if lse is None else lse.stride()),
            0 if config.sinks is None else config.sinks.stride(0),
        )
        score_scale = config.scale / config.softcap if config.softcap is not None else config.scale * LOG2_E
        shape = {
            "GROUP": config.group_size,
            "HEAD_DIM": config.head_dim,
            "CAUSAL": metadata.causal,
            "WINDOW": config.window or 0,
            "CHUNK": configuration.kv_chunk,
        }
        padded_head_dim = max(next_power_of_two(config.head_dim), 16)
        if plan.hopper is not None and triton_hopper.computes_caches(key_cache, value_cache):
            triton_hopper.launch_on_hopper(
                plan.hopper,
                config,
                metadata,
                plan.kv_lens,
                plan.num_segments,
                query,
                key_cache,
                value_cache,
                results,
                result_strides,
                partial_chunks=partial_chunks,
                score_scale=score_scale,
                kv_tile=configuration.kv_tile,
                kv_chunk=configuration.kv_chunk,
            )
        else:
            kernels.paged_attention_kernel[(plan.num_tiles, config.num_kv_heads, plan.num_segments)](
                query,
                key_cache,
                value_cache,
                *results,
                metadata.query_start_loc,
                plan.kv_lens,
                plan.kv_starts,
                metadata.causal_requests,
                metadata.block_table,
                metadata.num_requests,
                partial_chunks,
                score_scale,
                config.softcap * LOG2_E if config.softcap is not None else None,
                *query.stride()[:2],
                *key_cache.stride()[:3],
                *value_cache.stride()[:3],
                *result_strides,
                metadata.block_table.stride(0),
                HEAD_DIM_PADDED=padded_head_dim,
                PAGE_SIZE=config.page_size,
                BLOCK_ROWS=configuration.block_rows,
                KV_TILE=configuration.kv_tile,
                num_warps=configuration.num_warps,
                num_stages=configuration.num_stages,
                enable_fp_fusion=False,
                **shape,
            )
        if plan.partials is not None:
            merged = self._merging(config, configuration, padded_head_dim)
            tiles = metadata.num_tokens // (merged["BLOCK_ROWS"] // config.group_size) + metadata.num_requests
            blocks = padded_head_dim // merged["BLOCK_COLUMNS"]
            kernels.merge_chunks_kernel[(tiles, config.num_kv_heads, blocks)](
                *results,
                metadata.query_start_loc,
                plan.kv_lens,
                metadata.causal_requests,
                metadata.num_requests,
                partial_chunks,
                *result_strides,
                enable_fp_fusion=False,
                **merged,
                **shape,
            )

    def _merging(
        self, config: AttentionConfig, configuration: KernelConfiguration, padded_head_dim: int
    ) -> dict[str, int]:
        """Sizes of the programs that merge chunks: many small ones, but for the interpreter, where each takes long."""
        if self.interpreted:
            return {
                "BLOCK_ROWS": configuration.block_rows,
                "BLOCK_COLUMNS": padded_head_dim,
                "BATCH": 2,
                "num_warps": 1,
            }
        rows = next_power_of_two(config.group_size)
        columns = min(MERGED_COLUMNS, padded_head_dim)
        num_warps = max(1, min(4, rows * columns // 32))
        return {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns, "BATCH": MERGED_BATCH, "num_warps": num_warps}

    def _configuration_for(self, config: AttentionConfig) -> KernelConfiguration:
        if "all" in self._configurations:
            return self._configurations["all"]
        if config.dtype == torch.float32:
            return self._configurations["fp32"]
        for head_dims in (triton_hopper.HEAD_DIMS, triton_hopper.WIDE_HEAD_DIMS):
            if config.head_dim in head_dims and _hopper_case(head_dims) in self._configurations:
                return self._configurations[_hopper_case(head_dims)]
        return self._configurations["16-bit wide" if config.head_dim > 128 else "16-bit"]

    def _programs_at_once(self, config: AttentionConfig) -> int:
        return INTERPRETED_PROGRAMS if self.interpreted else 2 * multiprocessors(config.device)


def _segments_for_load(
    config: AttentionConfig, programs: int, num_tiles: int, least: int, partial_shape: tuple[int, int, int]
) -> int:
    if math.prod(partial_shape) * (config.head_dim + 2) * 4 > MAX_PARTIAL_BYTES:
        return 1
    return max(1, min(partial_shape[-1], max(least, programs // (num_tiles * config.num_kv_heads))))


def implementations() -> list[Subject]:
    """Our kernel of attention, vLLM's, and the operations on tokens."""
    return [TritonAttention(), *vllm_triton_attention(), *operations()]
