"""AITER/triton: the Triton kernels of AMD's `amd-aiter`, for paged caches.

Two kernels are two rows, since they compute with different tiles and splits and support different masks:

* `[unified]` is `aiter.ops.triton.unified_attention.unified_attention`: the whole batch in one launch, causal only.
  From the batch it chooses by itself between a kernel that walks a request's keys and one that splits them, and the
  tile sizes of either.
* `[kvcache]` is `aiter.ops.triton.mha_v3.flash_attn_with_kvcache`: any mask, every request of a call with the same
  number of query tokens and the same mask, and a number of splits that it chooses from the number of requests and the
  longest one.

Those choices are AITER's own and stay in force: whether they show in a request's bits is what the harness asks. See
docs/aiter.md for how the kernels are reached where there is no ROCm.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from samebits.backends.aiter_adapter import EntryPoint, availability, reach, substitutions
from samebits.backends.aiter_operations import operations
from samebits.backends.contract import (
    AttentionConfig,
    AttentionMetadata,
    Availability,
    Claims,
    Implementation,
    KnownGap,
    Subject,
    Tiling,
)
from samebits.backends.encoder_tokens import refuse_encoder_lengths, refuse_encoder_tokens
from samebits.backends.platform import accelerator
from samebits.backends.problem import Mask, Problem, Strides
from samebits.backends.subject import GraphSupport
from samebits.backends.support import Support

_UNIFIED = EntryPoint(
    module="aiter.ops.triton.unified_attention",
    function="unified_attention",
    parameters=(
        "q",
        "k",
        "v",
        "out",
        "cu_seqlens_q",
        "max_seqlen_q",
        "seqused_k",
        "max_seqlen_k",
        "softmax_scale",
        "causal",
        "window_size",
        "block_table",
        "softcap",
        "q_descale",
        "k_descale",
        "v_descale",
        "sinks",
    ),
)
_KVCACHE = EntryPoint(
    module="aiter.ops.triton.mha_v3",
    function="flash_attn_with_kvcache",
    parameters=(
        "q",
        "k_cache",
        "v_cache",
        "cache_seqlens",
        "softmax_scale",
        "causal",
        "window_size",
        "return_softmax_lse",
        "page_table",
    ),
)
_DTYPES = ("fp32", "bf16", "fp16")
_NO_WINDOW = (-1, -1)
# In fp32 the rounding costs nothing to speak of, and in fp16 little.
_ROUNDED_QUERIES = "docs/aiter.md, queries are rounded after scaling"
_KVCACHE_GAPS = (
    *(
        KnownGap(_ROUNDED_QUERIES, relation=relation, dtype=dtype)
        for relation in (
            *("large_scores", "huge_scores", "negative_scores", "window"),
            *("lse_large_scores", "lse_huge_scores", "lse_negative_scores", "lse_ties"),
        )
        for dtype in ("bf16", "fp16")
    ),
    # About as far off as it may be.
    KnownGap(_ROUNDED_QUERIES, relation="scale", dtype="bf16", always=False),
    KnownGap(_ROUNDED_QUERIES, relation="crossed", dtype="bf16", always=False),
    # A log-sum-exp of many keys may be off by little, and all of a row's scores are off together.
    *(
        KnownGap(_ROUNDED_QUERIES, geometry=geometry, dtype="bf16", always=False)
        for geometry in ("llama3-8b-full", "gemma3-12b-full")
    ),
    *(
        KnownGap("docs/aiter.md, a maximum that hides NaN", relation=relation)
        for relation in ("lse_seen_nan", "all_nan", "lse_all_nan", "nan_query")
    ),
    KnownGap("docs/aiter.md, offsets of pages in 32 bits", relation="far_pages"),
    # One key can be all that a request has.
    KnownGap("docs/aiter.md, a maximum that hides NaN", relation="seen_nan", batch="decode", always=False),
)


def _fills_a_tile(length: int) -> bool:
    """Whether a length can be the side of a Triton tile that is multiplied: a power of two from 16 on."""
    return length >= 16 and length & (length - 1) == 0


@dataclass(frozen=True)
class UnifiedPlan:
    """A batch as `unified_attention` takes it: as it is."""

    config: AttentionConfig
    metadata: AttentionMetadata


class UnifiedAttention(Implementation[UnifiedPlan]):
    """AITER's `unified_attention`."""

    backend = "AITER"
    name = "triton"
    variant = "unified"
    # A tile that is as long as a page is loaded whole, and 0 * NaN is NaN: what lies behind a request's last key in its
    # last page reaches the output.
    claims = Claims(
        ignores_unread_memory=False,
        # It chooses kernel, tiles and splits by padded sizes and by bounds, and reads lengths on the device.
        cuda_graph=GraphSupport.ALWAYS,
        source="amd-aiter declares no batch invariance; unified_attention.py loads whole pages unmasked",
    )
    known_gaps = (
        KnownGap("docs/aiter.md, a row whose first tile is hidden", relation="window"),
        # Of some windows the first tile holds a key that is seen, or no score is low enough.
        KnownGap(
            "docs/aiter.md, a row whose first tile is hidden",
            relation="crossed",
            mask=Mask.SLIDING_WINDOW,
            always=False,
        ),
        KnownGap("docs/aiter.md, a softcap of exponentials", relation="softcap"),
        # The one case whose layer has a softcap.
        KnownGap("docs/aiter.md, a softcap of exponentials", relation="seen_inf", mask=Mask.SLIDING_WINDOW),
        # AMD's units have as much shared memory where it fits.
        KnownGap(
            "docs/aiter.md, head_dim 256 in fp32",
            dtype="fp32",
            geometry="gemma3-12b-full",
            device="cuda",
            raises="OutOfResources",
            always=False,
        ),
    )
    # Pages can become tiles, and `reduce_segments` names an undefined variable where head_dim fills no tile. A query
    # that sees no key at all divides by zero wherever its tile is computed for another, so its output is NaN, not 0.
    support = Support(
        dtypes=_DTYPES,
        masks=(Mask.CAUSAL, Mask.SLIDING_WINDOW),
        head_dims=_fills_a_tile,
        page_sizes=_fills_a_tile,
        query_longer_than_kv=False,
        empty_kv=False,
        sinks=True,
    )
    # Splits are whole pages, and need a bound on the lengths above 512.
    tiling = Tiling(query_tile=16, kv_tile=64, kv_split=64)
    triton_kernels: Mapping[str, tuple[str, ...]] = {
        "decode": ("kernel_unified_attention_3d", "reduce_segments"),
        "prefill": ("kernel_unified_attention_2d",),
    }

    def __init__(self) -> None:
        """Records what the adapter substitutes."""
        self.configuration = substitutions()
        self.interpreted = accelerator().kind == "cpu"

    def probe(self) -> Availability:
        """Imports `unified_attention`."""
        return availability(_UNIFIED)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> UnifiedPlan:
        """Leaves everything to AITER.

        Raises:
            ValueError: the layer or the batch is outside of `support`.
        """
        self.require(config)
        refuse_encoder_tokens(self.label, config, metadata)
        return UnifiedPlan(config=config, metadata=metadata)

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> UnifiedPlan:
        """As `plan`, which reads nothing on the host here.

        Raises:
            ValueError: the layer is outside of `support`, or there may be encoder tokens before a request's keys.
        """
        self.require(config)
        refuse_encoder_lengths(self.label, config, metadata)
        return UnifiedPlan(config=config, metadata=metadata)

    def run(
        self,
        plan: UnifiedPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes the batch in one call."""
        config, metadata = plan.config, plan.metadata
        kernel = reach(_UNIFIED)
        with kernel.launching():
            kernel.function(
                q=query,
                k=key_cache,
                v=value_cache,
                out=output,
                cu_seqlens_q=metadata.query_start_loc,
                max_seqlen_q=metadata.max_query_len,
                seqused_k=metadata.seq_lens,
                max_seqlen_k=metadata.max_seq_len,
                softmax_scale=config.scale,
                causal=metadata.causal,
                window_size=config.window_sides or _NO_WINDOW,
                block_table=metadata.block_table,
                softcap=config.softcap or 0.0,
                q_descale=None,
                k_descale=None,
                v_descale=None,
                sinks=config.sinks,
            )


@dataclass(frozen=True)
class UniformCall:
    """The requests of a batch that have the same number of query tokens and the same mask: what one call can compute.

    Attributes:
        query_len: query tokens of each request.
        causal: whether their queries see no later key.
        rows: int64 `[num_requests * query_len]`, their query rows.
        kv_lens: int32 `[num_requests]`, keys that each attends to.
        block_table: int32 `[num_requests, max_pages_per_request]`.
    """

    query_len: int
    causal: bool
    rows: torch.Tensor
    kv_lens: torch.Tensor
    block_table: torch.Tensor


@dataclass(frozen=True)
class KVCachePlan:
    """The calls that compute a batch, in ascending order of their query tokens, non-causal ones first."""

    config: AttentionConfig
    calls: tuple[UniformCall, ...]


class FlashAttentionWithKVCache(Implementation[KVCachePlan]):
    """AITER's `flash_attn_with_kvcache`, called once for each number of query tokens and each mask in the batch.

    It takes no ragged queries together with `cache_seqlens`, and one `causal` for all of them. Requests of one
    query_len and one mask therefore form a call, unpadded: padding would move the diagonal of the causal mask, and a
    call for each request would hide what AITER makes of a batch. A request's neighbours, as far as AITER is concerned,
    are those of its own call.
    """

    backend = "AITER"
    name = "triton"
    variant = "kvcache"
    # Tiles left of a window are loaded and given the weight 0, and 0 * NaN is NaN.
    claims = Claims(
        ignores_unread_memory=False,
        source="amd-aiter declares no batch invariance; fwd_decode.py loads keys that a window hides from all queries",
    )
    # Where head_dim is padded to a power of two, `_splitK_reduce` reads behind the end of its scratch.
    support = Support(dtypes=_DTYPES, masks=tuple(Mask), head_dims=_fills_a_tile, softcap=False, lse=True)
    # A tile holds 64 keys, but none of another page, and splits are at least 64 keys long.
    tiling = Tiling(query_tile=16, kv_tile=16, kv_split=64)
    known_gaps = _KVCACHE_GAPS
    triton_kernels: Mapping[str, tuple[str, ...]] = {"decode": ("_fwd_kernel_splitK", "_splitK_reduce")}

    def __init__(self) -> None:
        """Records what the adapter substitutes."""
        self.configuration = substitutions()
        # Its `_splitK_reduce` runs two programs for each row and head, which fill half of an interpreted run.
        self.costly = self.interpreted = accelerator().kind == "cpu"

    def probe(self) -> Availability:
        """Imports `flash_attn_with_kvcache`."""
        return availability(_KVCACHE)

    def reasons(self, problem: Problem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        found = super().reasons(problem)
        if problem.layout.strides is Strides.MIXED_ORDER and problem.geometry.num_kv_heads > 1:
            found.append(
                "keys slot by slot beside values head by head are not supported: "
                "one block table leads to the pages of both, which must be as many slots apart"
            )
        return found

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> KVCachePlan:
        """Groups the requests by query_len and mask.

        Raises:
            ValueError: the layer or the batch is outside of `support`.
        """
        self.require(config)
        refuse_encoder_tokens(self.label, config, metadata)
        query_start_loc = metadata.query_start_loc.tolist()
        causal_of = metadata.causal_of_requests().tolist()
        requests_of: dict[tuple[int, bool], list[int]] = {}
        for request, (first, last) in enumerate(itertools.pairwise(query_start_loc)):
            if last > first:
                requests_of.setdefault((last - first, causal_of[request]), []).append(request)
        kv_lens = metadata.kv_lens(config.mask)
        calls = []
        for (query_len, causal), requests in sorted(requests_of.items()):
            chosen = torch.tensor(requests, dtype=torch.int64, device=config.device)
            first_rows = metadata.query_start_loc[chosen].to(torch.int64)
            rows = first_rows.unsqueeze(1) + torch.arange(query_len, device=config.device)
            calls.append(UniformCall(query_len, causal, rows.flatten(), kv_lens[chosen], metadata.block_table[chosen]))
        return KVCachePlan(config=config, calls=tuple(calls))

    def run(
        self,
        plan: KVCachePlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes the groups one after another.

        AITER reads the longest length back to the host to choose its splits, so a CUDA graph cannot capture this.

        Raises:
            ValueError: no block table leads to the pages of both caches.
        """
        config = plan.config
        distance = _page_distance(key_cache, value_cache)
        kernel = reach(_KVCACHE)
        for call in plan.calls:
            with kernel.launching():
                call_output, call_lse = kernel.function(
                    q=query[call.rows].view(-1, call.query_len, config.num_heads, config.head_dim),
                    k_cache=key_cache,
                    v_cache=value_cache,
                    cache_seqlens=call.kv_lens,
                    softmax_scale=config.scale,
                    causal=call.causal,
                    window_size=config.window_sides or _NO_WINDOW,
                    return_softmax_lse=True,
                    page_table=call.block_table * distance,
                )
            output[call.rows] = call_output.flatten(0, 1)
            if lse is not None:
                # [num_requests, num_heads, query_len]
                lse[:, call.rows] = call_lse.transpose(0, 1).flatten(1)


def implementations() -> list[Subject]:
    """Both kernels of attention, and the operations on tokens."""
    return [UnifiedAttention(), FlashAttentionWithKVCache(), *operations()]


def _page_distance(key_cache: torch.Tensor, value_cache: torch.Tensor) -> int:
    """How many pages lie from the beginning of one to that of the next, those of a gap among them.

    AITER takes it for 1: it computes a page's address as `page * page_size * stride(1)`. Page numbers that are
    multiplied by the distance lead it to pages with gaps between them, and to pages that hold one head after another.

    Raises:
        ValueError: it is no whole number, or not the same in both caches.
    """
    distances = []
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        page = cache.shape[1] * cache.stride(1)
        distance, rest = divmod(cache.stride(0), page)
        if rest:
            raise ValueError(
                f"{name} has strides {cache.stride()}; flash_attn_with_kvcache needs a first one that is a multiple of "
                f"page_size times the second, {page}"
            )
        distances.append(distance)
    if distances[0] != distances[1]:
        raise ValueError(
            f"key_cache has strides {key_cache.stride()} and value_cache {value_cache.stride()}; "
            f"flash_attn_with_kvcache needs the same ratio of the first to the second in both"
        )
    return distances[0]
