"""The CPU backend: samebits' own C++ kernel, and torch's scaled dot product attention request by request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from samebits.backends.contract import (
    AttentionConfig,
    AttentionMetadata,
    Availability,
    Claims,
    Implementation,
    Tiling,
)
from samebits.backends.cpu_operations import Bundled, operations
from samebits.backends.gathered import (
    GatheredRequest,
    additive_mask,
    gaps_of_flash_kernel,
    gather_request,
    gathered_requests,
    write_blind_rows,
)
from samebits.backends.problem import Mask
from samebits.backends.subject import GraphSupport, PaddingRows, Subject
from samebits.backends.support import Support
from samebits.backends.vllm_cpu import vllm_cpu_attention
from samebits.kernels.cpu.amx import has_amx
from samebits.kernels.cpu.attention import (
    LANES,
    ROW_BLOCK,
    AttentionParameters,
    Schedule,
    paged_attention,
    schedule_batch,
)
from samebits.kernels.cpu.build import SOURCE_DIRECTORY
from samebits.kernels.cpu.lasting_schedule import lasting_schedule, refill_schedule

# Two chunks are crossed by a few hundred keys; a chunk's partial sums are 1/32 of the bf16 keys and values it reads.
DEFAULT_CHUNK_SIZE = 128
# A batch is planned for at least as many threads, so that long requests are shared, and their parts merged, on a single
# one too: the merge is then in daily use wherever the matrix runs, and no bit depends on it.
SHARED_BY = 4


class BundledAttention(Bundled, Implementation[Schedule]):
    """Samebits' own C++ kernel, compiled on first use.

    Args:
        chunk_size: keys per chunk, a multiple of 16; another than the default is a variant of its own.
        source_directory: where the kernel's sources are.
        shared_by: threads that a batch is planned for at least. It changes no bit.
        amx: whether bf16 is multiplied by AMX, which it then must be possible to; None for wherever it is.
    """

    platforms = ("cpu",)
    claims = Claims(
        batch_invariant=True,
        schedule_invariant=True,
        thread_invariant=True,
        ignores_unread_memory=True,
        ignores_hidden_keys=True,
        # No graph captures what runs on a processor; a plan serves other batches all the same.
        cuda_graph=GraphSupport.ALWAYS,
        padding_rows=PaddingRows.UNTOUCHED,
        refuses_contradictions=True,
        source=(
            "kernels/cpu/attention.cpp: chunks at fixed positions, each from zero, merged in ascending order; "
            "a key that a row cannot see is never multiplied into it, or by 0 if its value is a finite number"
        ),
    )
    support = Support(
        dtypes=("fp32", "bf16", "fp16"),
        masks=(Mask.CAUSAL, Mask.NON_CAUSAL, Mask.SLIDING_WINDOW, Mask.CROSS, Mask.PER_REQUEST),
        encoder_offset=True,
        lse=True,
        sinks=True,
    )

    def __init__(
        self,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        source_directory: Path = SOURCE_DIRECTORY,
        shared_by: int = SHARED_BY,
        amx: bool | None = None,
    ) -> None:
        super().__init__(source_directory)
        self._chunk_size = chunk_size
        self._shared_by = shared_by
        self.variant = "" if chunk_size == DEFAULT_CHUNK_SIZE else f"chunk_size={chunk_size}"
        self.tiling = Tiling(query_tile=ROW_BLOCK, kv_tile=LANES, kv_split=chunk_size)
        self._amx = has_amx() if amx is None else amx
        self.configuration = {
            "chunk_size": str(chunk_size),
            "lanes": str(LANES),
            "accumulator": "fp32",
            "bf16 products": "amx" if self._amx else "fma",
        }

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Divides the batch into tasks and allocates scratch for the long ones."""
        self.require(config)
        return self._schedule(self._parameters(config), config.mask, metadata)

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> Schedule:
        """Allocates what any batch of these sizes needs, and fills in this one's tasks."""
        self.require(config)
        parameters = self._parameters(config)
        plan = lasting_schedule(
            parameters, metadata.block_table, metadata.num_tokens, metadata.max_seq_len, self._num_threads()
        )
        refill_schedule(plan, self._schedule(parameters, config.mask, metadata))
        return plan

    def refill(self, config: AttentionConfig, plan: Schedule, metadata: AttentionMetadata) -> None:
        """Writes the tasks of the batch over those of the one before."""
        refill_schedule(plan, self._schedule(plan.parameters, config.mask, metadata))

    def _parameters(self, config: AttentionConfig) -> AttentionParameters:
        return AttentionParameters(
            num_kv_heads=config.num_kv_heads,
            group_size=config.group_size,
            head_dim=config.head_dim,
            page_size=config.page_size,
            scale=config.scale,
            softcap=config.softcap,
            window=config.window,
            chunk_size=self._chunk_size,
            sinks=config.sinks,
            amx=self._amx,
        )

    def _num_threads(self) -> int:
        return max(self._shared_by, torch.get_num_threads())

    def _schedule(self, parameters: AttentionParameters, mask: Mask, metadata: AttentionMetadata) -> Schedule:
        query_start_loc, kv_starts, kv_lens, causal = (
            tensor.to(device="cpu", dtype=torch.int64).numpy()
            for tensor in (
                metadata.query_start_loc,
                metadata.kv_starts(mask),
                metadata.kv_lens(mask),
                metadata.causal_of_requests(),
            )
        )
        return schedule_batch(
            parameters, metadata.block_table, query_start_loc, kv_starts, kv_lens, causal, self._num_threads()
        )

    def run(
        self,
        plan: Schedule,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Launches the kernel on torch's number of threads."""
        paged_attention(self._library(), plan, query, key_cache, value_cache, output, lse)


@dataclass(frozen=True)
class SdpaPlan:
    """A batch of `SdpaAttention`: its requests, and what is added to the scores of each."""

    config: AttentionConfig
    requests: tuple[GatheredRequest, ...]
    masks: tuple[torch.Tensor | None, ...]


class SdpaAttention(Implementation[SdpaPlan]):
    """`torch.nn.functional.scaled_dot_product_attention` over the gathered pages of one request at a time.

    That function returns no log-sum-exp: it is computed beside it, from scores of its own.
    """

    backend = "CPU"
    platforms = ("cpu",)
    name = "torch"
    claims = Claims(
        batch_invariant=True,
        schedule_invariant=False,
        ignores_unread_memory=True,
        refuses_contradictions=True,
        source="backends/gathered.py: each request is computed alone, from copies of the keys and values it sees",
    )
    support = Support(
        dtypes=("fp32", "bf16", "fp16"),
        masks=(Mask.CAUSAL, Mask.NON_CAUSAL, Mask.SLIDING_WINDOW, Mask.CROSS, Mask.PER_REQUEST),
        softcap=False,
        encoder_offset=True,
        lse=True,
        sinks=True,
    )
    # What ATen's flash kernel tiles by: 512 keys, and 32 rows of a short query.
    tiling = Tiling(query_tile=32, kv_tile=512, kv_split=512)
    known_gaps = gaps_of_flash_kernel("all_nan", "seen_nan", "nan_query")
    configuration = MappingProxyType(
        {"api": "torch.nn.functional.scaled_dot_product_attention", "lse": "torch.logsumexp of float32 scores"}
    )

    def probe(self) -> Availability:
        """Always available: torch is what samebits stands on."""
        return Availability(version=torch.__version__)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> SdpaPlan:
        """Finds each request's slots and mask."""
        self.require(config)
        requests = gathered_requests(config, metadata)
        return SdpaPlan(config, requests, tuple(additive_mask(request, config) for request in requests))

    def run(
        self,
        plan: SdpaPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Gathers and computes the requests one after another."""
        config = plan.config
        for request, mask in zip(plan.requests, plan.masks, strict=True):
            write_blind_rows(request, config, output, lse)
            if not request.num_rows:
                continue
            queries, keys, values = gather_request(request, config, query, key_cache, value_cache)
            result = torch.nn.functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=config.scale, enable_gqa=config.group_size > 1
            )
            output[request.rows] = result[0].transpose(0, 1)
            if lse is not None:
                lse[:, request.rows] = _log_sum_exp(queries, keys, mask, config)


def implementations() -> list[Subject]:
    """What the CPU backend offers."""
    return [BundledAttention(), SdpaAttention(), *vllm_cpu_attention(), *operations()]


def _log_sum_exp(
    queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None, config: AttentionConfig
) -> torch.Tensor:
    """Log-sum-exp of one request's scores in float32: `[num_heads, num_rows]`."""
    key = keys[0].float().repeat_interleave(config.group_size, dim=0)
    scores = queries[0].float() @ key.transpose(1, 2) * config.scale
    return torch.logsumexp(scores if mask is None else scores + mask[0], dim=2)
