"""FLASH_ATTN/vllm-fa2 and FLASH_ATTN/vllm-fa3: the FlashAttention builds that come with vLLM, over the paged cache.

Each is one compiled file of the `vllm` wheel, and neither needs vLLM, which is never imported. They are called as
`vllm/vllm_flash_attn/flash_attn_interface.py` calls them, with the arguments that vLLM's FLASH_ATTN backend passes
(`vllm/v1/attention/backends/flash_attn.py`, `FlashAttentionImpl.forward`), but for the scheduler metadata that it
computes ahead for FlashAttention 3 and leaves out under batch invariance.

`num_splits=0` lets the kernel choose into how many parts it divides a request's keys; `num_splits=1` is what vLLM asks
for under `VLLM_BATCH_INVARIANT=1`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from samebits.backends.compiled_library import CompiledLibrary
from samebits.backends.contract import AttentionConfig, AttentionMetadata, Availability, Claims, KnownGap, Tiling
from samebits.backends.libraries import TESTED_VERSIONS
from samebits.backends.paged_flash import PagedFlash, PagedFlashWithSinks, PagedPlan
from samebits.backends.platform import nvidia_reason
from samebits.backends.problem import Mask, Problem
from samebits.backends.subject import GraphSupport

_FA2 = CompiledLibrary(
    distribution="vllm",
    relative="vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
    namespace="_vllm_fa2_C",
    operators={
        "varlen_fwd": (
            "q",
            "k",
            "v",
            "out",
            "cu_seqlens_q",
            "cu_seqlens_k",
            "seqused_k",
            "leftpad_k",
            "block_table",
            "alibi_slopes",
            "max_seqlen_q",
            "max_seqlen_k",
            "p_dropout",
            "softmax_scale",
            "zero_tensors",
            "is_causal",
            "window_size_left",
            "window_size_right",
            "softcap",
            "return_softmax",
            "num_splits",
            "gen",
        )
    },
)
_FA3 = CompiledLibrary(
    distribution="vllm",
    relative="vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
    namespace="_vllm_fa3_C",
    operators={
        "fwd": (
            "q",
            "k",
            "v",
            "k_new",
            "v_new",
            "q_v",
            "out",
            "cu_seqlens_q",
            "cu_seqlens_k",
            "cu_seqlens_k_new",
            "seqused_q",
            "seqused_k",
            "max_seqlen_q",
            "max_seqlen_k",
            "page_table",
            "kv_batch_idx",
            "leftpad_k",
            "rotary_cos",
            "rotary_sin",
            "seqlens_rotary",
            "q_descale",
            "k_descale",
            "v_descale",
            "softmax_scale",
            "is_causal",
            "window_size_left",
            "window_size_right",
            "softcap",
            "is_rotary_interleaved",
            "scheduler_metadata",
            "num_splits",
            "pack_gqa",
            "sm_margin",
            "s_aux",
            "cp_world_size",
            "cp_rank",
            "cp_tot_seqused_k",
        )
    },
)
_DECLARED = (
    f"vllm {TESTED_VERSIONS['vllm']}, vllm/v1/attention/backends/flash_attn.py: "
    "FlashAttentionBackend.supports_batch_invariance, max_num_splits = 1 if envs.VLLM_BATCH_INVARIANT and "
    "_cudagraph_support in FlashAttentionMetadataBuilder"
)
_NO_WINDOW = (-1, -1)


def _claims(num_splits: int, cuda_graph: GraphSupport) -> Claims:
    return Claims(batch_invariant=num_splits == 1, cuda_graph=cuda_graph, source=_DECLARED)


_GAPS_OF_VERSION_2 = (
    *(
        KnownGap("docs/vendors.md, FlashAttention 2 takes NaN for no key", relation=relation, always=False)
        for relation in ("lse_seen_nan", "lse_all_nan", "lse_seen_inf", "nan_query")
    ),
    KnownGap(
        "docs/vendors.md, FlashAttention 2 multiplies what its window hides by 0",
        relation="unseen_nan",
        mask=Mask.SLIDING_WINDOW,
        always=False,
    ),
)


class VllmFlashAttention2(PagedFlash):
    """vLLM's build of FlashAttention 2."""

    name = "vllm-fa2"
    # Of the kernel for paged caches at head_dim 128: 64 rows by 128 keys.
    tiling = Tiling(query_tile=64, kv_tile=128, kv_split=256)
    known_gaps = _GAPS_OF_VERSION_2

    def __init__(self, num_splits: int) -> None:
        super().__init__(num_splits)
        self.claims = _claims(num_splits, GraphSupport.UNIFORM_BATCH)

    def absence(self) -> str:
        """Asks the platform, then for the file."""
        return nvidia_reason("vLLM's FlashAttention 2", (8, 0)) or _FA2.missing()

    def probe(self) -> Availability:
        """Asks the platform, then loads the file and looks at the operator that `run` calls."""
        return _FA2.availability(self.absence(), "cuda")

    def reasons(self, problem: Problem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        found = super().reasons(problem)
        if any(request.query_len and not problem.kv_len(request) for request in problem.requests):
            found.append(
                "requests without keys are not supported: it writes what their log-sum-exps should be elsewhere, into "
                "other requests' or behind the tensor, where others' memory is"
            )
        return found

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PagedPlan:
        """As of the base class, without requests that have no query where all others have one.

        The kernel then takes row `i` for request `i`, and cannot take fewer or more rows than requests.
        """
        plan = super().plan(config, metadata)
        if metadata.max_query_len > 1:
            return plan
        query_lens = metadata.query_start_loc.diff().tolist()
        live = [request for request, query_len in enumerate(query_lens) if query_len]
        if live and metadata.num_tokens == metadata.num_requests and live == list(range(len(live))):
            return plan
        chosen = torch.tensor(live, dtype=torch.int64, device=config.device)
        return replace(
            plan,
            query_start_loc=torch.arange(len(live) + 1, dtype=torch.int32, device=config.device),
            kv_lens=plan.kv_lens[chosen],
            block_table=plan.block_table[chosen],
            num_rows=len(live),
        )

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> PagedPlan:
        """Takes the batch as it is: row `i` for request `i` where each has one query, padding behind both.

        Raises:
            ValueError: the layer is outside of `support`, there may be encoder tokens before a request's keys, or there
                are fewer rows than requests.
        """
        plan = super().plan_for_graph(config, metadata, num_pages)
        if metadata.max_query_len > 1:
            return plan
        if metadata.num_tokens < metadata.num_requests:
            raise ValueError(
                f"{self.label} is given {metadata.num_tokens} rows for {metadata.num_requests} requests of one query; "
                "there must be a row for each"
            )
        return replace(plan, num_rows=metadata.num_requests)

    def _attend(
        self,
        plan: PagedPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> torch.Tensor:
        config = plan.config
        window_left, window_right = config.window_sides or _NO_WINDOW
        _, lse = _FA2.loaded.operators["varlen_fwd"](
            q=query,
            k=key_cache,
            v=value_cache,
            out=output,
            cu_seqlens_q=plan.query_start_loc,
            # Not read, as lengths come from the next argument, but asked for.
            cu_seqlens_k=torch.empty_like(plan.query_start_loc),
            seqused_k=plan.kv_lens,
            block_table=plan.block_table,
            max_seqlen_q=plan.max_query_len,
            max_seqlen_k=plan.max_kv_len,
            p_dropout=0.0,
            softmax_scale=config.scale,
            zero_tensors=False,
            is_causal=plan.causal,
            window_size_left=window_left,
            window_size_right=window_right,
            softcap=config.softcap or 0.0,
            return_softmax=False,
            num_splits=self.num_splits,
        )
        return lse  # type: ignore[no-any-return]


def _gaps_of_version_3(num_splits: int) -> tuple[KnownGap, ...]:
    nan, sink = (
        f"docs/vendors.md, FlashAttention 3 {what}" for what in ("takes NaN for no key", "loses a sink that outweighs")
    )
    lengths = "docs/vendors.md, FlashAttention 3 follows the longest query of its batch"
    return (
        *(KnownGap(nan, relation=relation) for relation in ("lse_seen_nan", "lse_all_nan")),
        *(KnownGap(nan, relation=relation, always=False) for relation in ("lse_seen_inf", "nan_query")),
        # Only where the kernel divides a request's keys.
        *(
            KnownGap(nan, relation=relation, always=False)
            for relation in ("seen_nan", "all_nan", "seen_inf")
            if num_splits != 1
        ),
        KnownGap(sink, relation="sinks"),
        KnownGap(sink, relation="crossed", always=False),
        # Without the claim they vary, which is no failure.
        *(
            KnownGap(lengths, relation=relation, geometry=geometry, always=False)
            for relation in ("batch_size", "neighbour_lengths")
            for geometry in ("gpt-oss-20b", "granite-3-2b")
            if num_splits == 1
        ),
    )


class VllmFlashAttention3(PagedFlashWithSinks):
    """vLLM's build of FlashAttention 3, for Hopper."""

    name = "vllm-fa3"
    # 128 rows by 128 to 176 keys; it splits from five such tiles on.
    tiling = Tiling(query_tile=128, kv_tile=128, kv_split=512)
    # "We only support query heads <= 64 with S aux", says the library.
    most_heads_with_sinks = 64

    def __init__(self, num_splits: int) -> None:
        super().__init__(num_splits)
        self.claims = _claims(num_splits, GraphSupport.ALWAYS)
        self.known_gaps = _gaps_of_version_3(num_splits)

    def absence(self) -> str:
        """Asks the platform, then for the file."""
        return nvidia_reason("vLLM's FlashAttention 3", (9, 0), (9, 9)) or _FA3.missing()

    def probe(self) -> Availability:
        """Asks the platform, then loads the file and looks at the operator that `run` calls."""
        return _FA3.availability(self.absence(), "cuda")

    def _attend(
        self,
        plan: PagedPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> torch.Tensor:
        config = plan.config
        window_left, window_right = config.window_sides or _NO_WINDOW
        _, lse, *_ = _FA3.loaded.operators["fwd"](
            q=query,
            k=key_cache,
            v=value_cache,
            out=output,
            cu_seqlens_q=plan.query_start_loc,
            seqused_k=plan.kv_lens,
            max_seqlen_q=plan.max_query_len,
            max_seqlen_k=plan.max_kv_len,
            page_table=plan.block_table,
            softmax_scale=config.scale,
            is_causal=plan.causal,
            window_size_left=window_left,
            window_size_right=window_right,
            softcap=config.softcap or 0.0,
            # Of the rotary embedding, which is not asked for.
            is_rotary_interleaved=True,
            num_splits=self.num_splits,
            sm_margin=0,
            s_aux=plan.sinks,
            cp_world_size=1,
            cp_rank=0,
        )
        return lse  # type: ignore[no-any-return]


def vllm_flash_attention() -> list[PagedFlash]:
    """Both builds, each with its own choice of splits and with one."""
    return [kind(num_splits) for kind in (VllmFlashAttention2, VllmFlashAttention3) for num_splits in (0, 1)]
