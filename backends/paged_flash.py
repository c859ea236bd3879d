"""FlashAttention's kernels for paged caches: what a call takes, whichever library makes it."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Implementation
from samebits.backends.encoder_tokens import refuse_encoder_lengths, refuse_encoder_tokens
from samebits.backends.flash_limits import head_dim_supported, page_size_supported
from samebits.backends.problem import Problem
from samebits.backends.support import Support


@dataclass(frozen=True)
class PagedPlan:
    """A batch as the kernels take it.

    Attributes:
        config: of the layer.
        query_start_loc: int32 `[num_requests + 1]`.
        kv_lens: int32 `[num_requests]`, keys that each request attends to.
        block_table: int32 `[num_requests, max_pages_per_request]`.
        num_rows: query rows that are handed over.
        max_query_len, max_kv_len: upper bounds.
        causal: whether a query sees no later key.
        sinks: `[num_heads]` in the dtype that the kernel wants, or None.
    """

    config: AttentionConfig
    query_start_loc: torch.Tensor
    kv_lens: torch.Tensor
    block_table: torch.Tensor
    num_rows: int
    max_query_len: int
    max_kv_len: int
    causal: bool
    sinks: torch.Tensor | None = None


class PagedFlash(Implementation[PagedPlan]):
    """Attention by a build of FlashAttention that reads pages.

    Args:
        num_splits: parts that a request's keys are divided into; 0 for the kernel's choice.
    """

    backend = "FLASH_ATTN"
    support = Support(dtypes=("bf16", "fp16"), head_dims=head_dim_supported, page_sizes=page_size_supported, lse=True)

    def __init__(self, num_splits: int) -> None:
        self.num_splits = num_splits
        self.variant = f"num_splits={num_splits}"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PagedPlan:
        """Takes the batch as it is.

        Raises:
            ValueError: the layer or the batch is outside of `support`.
        """
        self.require(config)
        refuse_encoder_tokens(self.label, config, metadata)
        return self._as_it_is(config, metadata)

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> PagedPlan:
        """Takes the batch as it is: nothing is read on the host.

        Raises:
            ValueError: the layer is outside of `support`, or there may be encoder tokens before a request's keys.
        """
        self.require(config)
        refuse_encoder_lengths(self.label, config, metadata)
        return self._as_it_is(config, metadata)

    def _as_it_is(self, config: AttentionConfig, metadata: AttentionMetadata) -> PagedPlan:
        return PagedPlan(
            config=config,
            query_start_loc=metadata.query_start_loc,
            kv_lens=metadata.kv_lens(config.mask),
            block_table=metadata.block_table,
            num_rows=metadata.num_tokens,
            max_query_len=metadata.max_query_len,
            max_kv_len=metadata.max_seq_len,
            causal=metadata.causal,
        )

    def run(
        self,
        plan: PagedPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes the batch in one call, and in none where nobody has a query, which FlashAttention 2 refuses."""
        if not plan.num_rows:
            return
        rows = slice(plan.num_rows)
        computed_lse = self._attend(plan, query[rows], key_cache, value_cache, output[rows])
        if lse is not None:
            # FlashAttention 2 says +inf where a row sees no key.
            lse[:, rows] = computed_lse.masked_fill(computed_lse == torch.inf, -torch.inf)

    @abc.abstractmethod
    def _attend(
        self,
        plan: PagedPlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> torch.Tensor:
        """Calls the kernel, which writes `output`, and returns the log-sum-exp `[num_heads, num_rows]`."""


class PagedFlashWithSinks(PagedFlash):
    """As `PagedFlash`, with a kernel that takes sinks in bfloat16 only.

    Attributes:
        most_heads_with_sinks: more cannot have sinks; None for any number.
    """

    support = replace(PagedFlash.support, sinks=True)
    most_heads_with_sinks: int | None = None

    def reasons(self, problem: Problem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        found = super().reasons(problem)
        if problem.geometry.sinks:
            found += self._sink_reasons(problem.dtype == "bf16", problem.geometry.num_heads)
        return found

    def _as_it_is(self, config: AttentionConfig, metadata: AttentionMetadata) -> PagedPlan:
        # With the sinks in bfloat16, which is lossless in a layer of that dtype.
        plan = super()._as_it_is(config, metadata)
        if config.sinks is None:
            return plan
        refusals = self._sink_reasons(config.dtype is torch.bfloat16, config.num_heads)
        if refusals:
            raise ValueError(f"{self.label} cannot compute this layer: {'; '.join(refusals)}")
        return replace(plan, sinks=config.sinks.to(torch.bfloat16))

    def _sink_reasons(self, in_bf16: bool, num_heads: int) -> list[str]:
        found = [] if in_bf16 else ["sinks are supported in bf16 only"]
        most = self.most_heads_with_sinks
        if most is not None and num_heads > most:
            found.append(f"sinks of {num_heads} heads are not supported, only of {most} or fewer")
        return found
