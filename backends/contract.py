"""The contract that every attention implementation keeps, bundled or third-party.

An implementation says where it runs (`probe`), what it supports (`support`), what it promises (`claims`), and computes
a batch in two steps: `plan` may look at lengths on the host, `run` only launches. Everything else in samebits knows
implementations through this module alone.

Tensors carry the field's names and layouts:

* `query` and `output`: `[num_tokens, num_heads, head_dim]`, requests packed one after another.
* `key_cache` and `value_cache`: `[num_pages, page_size, num_kv_heads, head_dim]`, any strides with the last one 1.
* `lse`: `[num_heads, num_tokens]`, float32, natural logarithm of the sum of `exp(score)`; `-inf` for a row that sees
  no key. Such a row's output is 0.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from samebits.backends.problem import Mask, Problem
from samebits.backends.support import Support

PlanT = TypeVar("PlanT")

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class AttentionConfig:
    """What an engine fixes once per layer.

    Attributes:
        num_heads, num_kv_heads, head_dim, page_size: see `Geometry`.
        dtype: of query, cache and output.
        mask: which keys a query sees.
        window: keys a query sees, its own among them; None for no window.
        softcap: cap on the scaled scores; None for none.
        scale: factor on `q . k`.
        device: where the tensors are.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    mask: Mask
    window: int | None
    softcap: float | None
    scale: float
    device: torch.device

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True)
class AttentionMetadata:
    """Where each request of a batch lies. All tensors are on the config's device.

    Attributes:
        query_start_loc: int32 `[num_requests + 1]`; request `b` owns query rows
            `query_start_loc[b]:query_start_loc[b + 1]`. Rows after the last are padding.
        seq_lens: int32 `[num_requests]`, decoder tokens in the cache, this step's included.
        block_table: int32 `[num_requests, max_pages_per_request]`; entries past a request's own pages are stale.
        slot_mapping: int64 `[num_tokens]`, `page * page_size + offset` of each query token's key; -1 is padding.
        max_query_len: longest query of the batch.
        max_seq_len: upper bound on the keys any request attends to.
        causal: False for `NON_CAUSAL` and `CROSS`.
        encoder_seq_lens: int32 `[num_requests]` or None when the batch has no encoder tokens. A request's slots hold
            its encoder tokens first: self-attention reads slots `encoder_len : encoder_len + seq_len`,
            cross-attention reads slots `0 : encoder_len`.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    max_query_len: int
    max_seq_len: int
    causal: bool
    encoder_seq_lens: torch.Tensor | None = None

    @property
    def num_requests(self) -> int:
        """Requests of the batch, padding ones included."""
        return int(self.seq_lens.shape[0])

    @property
    def num_tokens(self) -> int:
        """Rows of the query tensor, padding ones included."""
        return int(self.slot_mapping.shape[0])

    def kv_lens(self, mask: Mask) -> torch.Tensor:
        """Keys each request attends to under `mask`: int32 `[num_requests]`."""
        if mask is not Mask.CROSS:
            return self.seq_lens
        return torch.zeros_like(self.seq_lens) if self.encoder_seq_lens is None else self.encoder_seq_lens

    def kv_starts(self, mask: Mask) -> torch.Tensor:
        """Slot of each request's first attended key, counted from the request's own first slot: int32."""
        if mask is Mask.CROSS or self.encoder_seq_lens is None:
            return torch.zeros_like(self.seq_lens)
        return self.encoder_seq_lens


@dataclass(frozen=True)
class Availability:
    """Whether an implementation can run here, found out by importing exactly what will be called.

    Attributes:
        reason: why not, as one sentence; empty when it can.
        version: of the library that holds the kernel; empty when unknown.
        device: torch device type the implementation computes on, for example `cpu` or `cuda`.
    """

    reason: str = ""
    version: str = ""
    device: str = "cpu"

    @property
    def available(self) -> bool:
        """True when the implementation can run."""
        return not self.reason


@dataclass(frozen=True)
class Claims:
    """What an implementation says of itself. Audited, never trusted.

    Attributes:
        batch_invariant: a request's bits do not depend on its batch: size, position, neighbours, pages, padding.
        schedule_invariant: nor on how its tokens were divided over steps: chunked prefill, extend, decode.
        ignores_unread_memory: memory outside a request's keys may hold anything, NaN included.
        source: where the claim is made: a document, a line of code.
    """

    batch_invariant: bool = False
    schedule_invariant: bool = False
    ignores_unread_memory: bool = True
    source: str = ""


@dataclass(frozen=True)
class Tiling:
    """Lengths at which an implementation's arithmetic changes, so that cases can cross them.

    Attributes:
        query_tile: query rows per tile.
        kv_tile: keys per tile.
        kv_split: keys per split, or what a split is a multiple of.
    """

    query_tile: int = 64
    kv_tile: int = 64
    kv_split: int = 256


@dataclass(frozen=True)
class KnownGap:
    """A failure that is known, by the issue that tracks it. A cell that matches and passes is red.

    Attributes:
        issue: name or address of the issue.
        relation, mask, dtype: what the gap is confined to; None for any.
    """

    issue: str
    relation: str | None = None
    mask: Mask | None = None
    dtype: str | None = None

    def matches(self, relation: str, mask: Mask, dtype: str) -> bool:
        """Whether a cell lies inside the gap."""
        return self.relation in (None, relation) and self.mask in (None, mask) and self.dtype in (None, dtype)


class Implementation(abc.ABC, Generic[PlanT]):
    """One concrete kernel library behind a backend.

    A subclass sets the attributes below (on the class or on the instance) and implements `probe`, `plan` and `run`.
    Constructing one must be cheap and must not import the library: `probe` does that.

    Attributes:
        backend: the name users select, for example `TRITON_ATTN`.
        name: the implementation's, for example `bundled`.
        variant: a setting that changes its bits, for example `num_splits=1`; empty for none.
        claims: what it promises.
        support: what it can compute.
        tiling: where its arithmetic changes.
        configuration: kernel settings that decide bits, recorded with every result.
        known_gaps: failures that are tracked elsewhere.
        costly: True where a small batch takes seconds, as an interpreted kernel of many programs may. The default tier
            then gives it the cases of the smoke tier only.
    """

    backend: str
    name: str
    variant: str = ""
    claims: Claims = Claims()
    support: Support
    tiling: Tiling = Tiling()
    configuration: Mapping[str, str] = {}
    known_gaps: tuple[KnownGap, ...] = ()
    costly: bool = False

    @property
    def label(self) -> str:
        """`BACKEND/name`, with `[variant]` where there is one."""
        variant = f"[{self.variant}]" if self.variant else ""
        return f"{self.backend}/{self.name}{variant}"

    def reasons(self, problem: Problem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        return self.support.reasons(problem)

    @abc.abstractmethod
    def probe(self) -> Availability:
        """Finds out whether the implementation can run here. Never raises for a missing or broken library."""

    @abc.abstractmethod
    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PlanT:
        """Prepares a batch. May read lengths on the host, allocate scratch and choose launch parameters."""

    @abc.abstractmethod
    def run(
        self,
        plan: PlanT,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes the planned batch into `output`, and into `lse` when it is not None.

        Writes every row of every request, and may leave padding rows as they are. Launches only: no allocation that
        depends on lengths, no synchronisation with the host. `lse` is None unless `support.lse` is True.
        """
