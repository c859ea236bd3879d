"""The contract that every attention implementation keeps, bundled or third-party.

An implementation says where it runs (`probe`), what it supports (`support`), what it promises (`claims`), and computes
a batch in two steps: `plan` may look at lengths on the host, `run` only launches. Everything else in samebits knows
implementations through this module alone.

Tensors carry the field's names and layouts. Their last stride is 1; the others may be any, each tensor's its own:

* `query` and `output`: `[num_tokens, num_heads, head_dim]`, requests packed one after another.
* `key_cache` and `value_cache`: `[num_pages, page_size, num_kv_heads, head_dim]`.
* `lse`: `[num_heads, num_tokens]`, float32, natural logarithm of the sum of `exp(score)`, a sink's among them; `-inf`
  for a row that sees neither a key nor a sink. The output of a row that sees no key is 0.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from samebits.backends.plan_tensors import plan_tensors
from samebits.backends.problem import Mask, Problem
from samebits.backends.subject import Availability, Claims, KnownGap, Subject, Tiling
from samebits.backends.support import Support

__all__ = [
    "DTYPES",
    "AttentionConfig",
    "AttentionMetadata",
    "Availability",
    "Claims",
    "Implementation",
    "KnownGap",
    "Subject",
    "Tiling",
    "dtype_name",
]

PlanT = TypeVar("PlanT")

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype: samebits' own where it has one, else torch's."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class AttentionConfig:
    """What an engine fixes once per layer.

    Attributes:
        num_heads, num_kv_heads, head_dim, page_size: see `Geometry`.
        dtype: of query, cache and output.
        mask: which keys a query sees.
        window: keys a query sees, its own among them; None for no window.
        softcap: cap on the scaled scores; None for none.
        scale: factor on `q . k`, greater than 0.
        device: where the tensors are.
        sinks: float32 `[num_heads]`, representable in `dtype`, or None. The logit of a key that every query sees, in
            whatever mask, and that has no value: `exp(sink)` enters the denominator, and so the log-sum-exp, alone.

    Raises:
        ValueError: the mask, the window, the softcap, the scale or the sinks are outside of these rules, for every
            implementation alike.
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
    sinks: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Mask):
            raise ValueError(f"mask is {self.mask!r}; it must be one of {', '.join(map(str, Mask))}")
        windowed = self.mask is Mask.SLIDING_WINDOW
        if windowed and (self.window is None or self.window < 1):
            raise ValueError(f"window is {self.window} under mask {self.mask}; it must be at least 1")
        if not windowed and self.window is not None:
            raise ValueError(f"window is {self.window} under mask {self.mask}; only sliding_window has one")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap is {self.softcap}; it must be greater than 0, or None")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; it must be greater than 0")
        sinks = self.sinks
        if sinks is not None and (sinks.dtype is not torch.float32 or sinks.shape != (self.num_heads,)):
            given = f"{dtype_name(sinks.dtype)} {list(sinks.shape)}"
            raise ValueError(f"sinks are {given}; they must be fp32 [{self.num_heads}], one for each head")

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def window_sides(self) -> tuple[int, int] | None:
        """Keys that a query sees to the left and right of its own, as FlashAttention counts; None for no window."""
        return None if self.window is None else (self.window - 1, 0)


@dataclass(frozen=True)
class AttentionMetadata:
    """Where each request of a batch lies. All tensors are on the config's device.

    Attributes:
        query_start_loc: int32 `[num_requests + 1]`; request `b` owns query rows
            `query_start_loc[b]:query_start_loc[b + 1]`. Rows after the last are padding.
        seq_lens: int32 `[num_requests]`, decoder tokens in the cache, this step's included.
        block_table: int32 `[num_requests, max_pages_per_request]`; entries past a request's own pages are stale.
            Rows may lie further apart than they are long; the last stride is 1.
        slot_mapping: int64 `[num_tokens]`, `page * page_size + offset` of each query token's key; -1 is padding.
        max_query_len: longest query of the batch.
        max_seq_len: upper bound on the keys any request attends to.
        causal: True for `CAUSAL` and `SLIDING_WINDOW`.
        encoder_seq_lens: int32 `[num_requests]` or None when the batch has no encoder tokens. A request's slots hold
            its encoder tokens first: self-attention reads slots `encoder_len : encoder_len + seq_len`,
            cross-attention reads slots `0 : encoder_len`.
        causal_requests: bool `[num_requests]` under `PER_REQUEST`, where it takes the place of `causal`; else None.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    max_query_len: int
    max_seq_len: int
    causal: bool
    encoder_seq_lens: torch.Tensor | None = None
    causal_requests: torch.Tensor | None = None

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

    def causal_of_requests(self) -> torch.Tensor:
        """Whether each request is causal, under any mask: bool `[num_requests]`."""
        if self.causal_requests is not None:
            return self.causal_requests
        return torch.full_like(self.seq_lens, self.causal, dtype=torch.bool)


class Implementation(Subject, Generic[PlanT]):
    """Attention by one concrete kernel library behind a backend.

    A subclass sets the attributes of `Subject` and `support`, and implements `probe`, `plan` and `run`.

    Attributes:
        support: what it can compute.
    """

    operation = "attention"
    support: Support

    def reasons(self, problem: Problem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        return self.support.reasons(problem)

    def require(self, config: AttentionConfig) -> None:
        """Refuses a layer outside of `support`, in the words of `reasons`: the first thing that `plan` does.

        Raises:
            ValueError: what the layer asks for is not supported.
        """
        refusals = self.support.refusals(
            dtype=dtype_name(config.dtype),
            mask=config.mask,
            head_dim=config.head_dim,
            page_size=config.page_size,
            softcap=config.softcap,
            sinks=config.sinks is not None,
        )
        if refusals:
            raise ValueError(f"{self.label} cannot compute this layer: {'; '.join(refusals)}")

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

    def launch(
        self,
        plan: PlanT,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> Callable[[], None]:
        """What computes a planned batch again and again on the same tensors, as a benchmark times it.

        By default it calls `run`. A library that keeps a cache in a layout of its own, which engines fill as they store
        keys, and whose `run` has to convert ours each time, converts it here, once.

        What the tensors hold does not change between its calls. They are those of `run`, without a log-sum-exp.
        """
        return lambda: self.run(plan, query, key_cache, value_cache, output, None)

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> PlanT:
        """Prepares a batch whose `run` a CUDA graph may capture, as far as `claims.cuda_graph` goes.

        The graph will be replayed on other batches of the same padded sizes: other lengths, pages, slots and numbers of
        requests. What `run` reads must therefore stay where it is, and be as large as any such batch needs. Unlike in
        `plan`, numbers of the host may follow from shapes and bounds alone, never from what tensors hold now.

        Args:
            config: of the layer; its tensors stay as they are.
            metadata: of persistent tensors, which hold a batch and will hold others. Requests and tokens up to their
                sizes are padding, `max_query_len` and `max_seq_len` are bounds on all batches.
            num_pages: pages of the cache, a bound on what block tables will name.

        Returns:
            By default that of `plan`: right where a plan keeps the metadata's own tensors, upper bounds and scratch.
        """
        return self.plan(config, metadata)

    def refill(self, config: AttentionConfig, plan: PlanT, metadata: AttentionMetadata) -> None:
        """Brings a plan of `plan_for_graph` up to date, in place, before a replay. May read lengths on the host.

        Args:
            config: that the plan was made for.
            plan: whose `run` was captured.
            metadata: the tensors that the plan was made from, which hold another batch by now.

        By default nothing is done: right where the plan keeps no tensor but those, and scratch.
        """

    def buffers(self, plan: PlanT) -> Mapping[str, torch.Tensor]:
        """Every tensor that a captured `run` reads besides its arguments, by name; those it only writes may be among.

        By default all that are found in the plan, see `plan_tensors`. Who keeps others, in the implementation itself
        for example, adds them.
        """
        return plan_tensors(plan)
