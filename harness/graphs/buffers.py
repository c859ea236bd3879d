"""The persistent buffers of an engine: allocated once, as large as any batch, and refilled where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.graph_use import GraphUse
from samebits.backends.persistent_copy import copy_to_persistent
from samebits.backends.problem import Mask, Problem
from samebits.harness.batch import Batch, guarded, poison_value
from samebits.harness.placement import NULL_PAGE

# The buffers are for batches of this many times the sizes of the graph: a graph sees slices of them.
SIZES_BEYOND = 2
# Pages that no request will own, the null page among them.
_SPARE_PAGES = 5


@dataclass(frozen=True)
class Capacity:
    """What the largest batch needs.

    Attributes:
        num_requests, num_tokens: of the batch.
        columns: pages of one request.
        num_pages: of the cache.
        encoders: whether there are encoder tokens.
    """

    num_requests: int
    num_tokens: int
    columns: int
    num_pages: int
    encoders: bool

    @classmethod
    def of(cls, problem: Problem, use: GraphUse) -> Capacity:
        """The capacity for batches of a problem's kind at the sizes of a use, and at as many as `SIZES_BEYOND`."""
        num_requests, num_tokens = SIZES_BEYOND * use.num_requests, SIZES_BEYOND * use.num_tokens
        columns = -(-max_slots(problem, use) // problem.geometry.page_size)
        return cls(
            num_requests=num_requests,
            num_tokens=num_tokens,
            # An engine's table is wider than its longest request.
            columns=columns + 2,
            num_pages=num_requests * columns + _SPARE_PAGES,
            encoders=problem.mask is Mask.CROSS or max_encoder_len(problem) > 0,
        )


# Decoder tokens of other batches' requests whose keys are an encoder's: another number than those of cases have.
DECODER_TOKENS_OF_CROSS = 3


def max_encoder_len(problem: Problem) -> int:
    """The longest encoder sequence of a problem's requests."""
    return max(request.encoder_len for request in problem.requests)


def max_slots(problem: Problem, use: GraphUse) -> int:
    """Slots that a request of a use may have: for its keys, and for tokens of the other sequence."""
    if problem.mask is Mask.CROSS:
        return use.max_seq_len + use.max_query_len + DECODER_TOKENS_OF_CROSS
    return use.max_seq_len + max_encoder_len(problem)


@dataclass(frozen=True)
class Arguments:
    """What one graph was captured with: slices of the buffers.

    Attributes:
        metadata: what its plan was made from.
        query, key_cache, value_cache, output, lse: what its `run` was given.
    """

    metadata: AttentionMetadata
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    output: torch.Tensor
    lse: torch.Tensor | None


class PersistentBuffers:
    """All tensors that an engine keeps for the batches of one layer.

    Attributes:
        poison: what memory holds that nobody may read.
    """

    def __init__(self, config: AttentionConfig, capacity: Capacity, poison: str, *, with_lse: bool) -> None:
        """Allocates the buffers, full of poison or padding.

        Args:
            config: of the layer.
            capacity: of the largest batch.
            poison: what memory holds that nobody may read, `nan` or `large`.
            with_lse: whether there is a log-sum-exp.
        """
        device = config.device
        self._config, self._capacity, self.poison = config, capacity, poison_value(poison)
        rows = (capacity.num_tokens, config.num_heads, config.head_dim)
        cache = (capacity.num_pages, config.page_size, config.num_kv_heads, config.head_dim)

        def full(shape: tuple[int, ...], value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self.query = full(rows, self.poison, config.dtype)
        self.key_cache, self.value_cache = (full(cache, self.poison, config.dtype) for _ in range(2))
        self.output = guarded(rows, config.dtype, device, poison)
        self.lse = guarded(rows[1::-1], torch.float32, device, poison) if with_lse else None
        self.query_start_loc = full((capacity.num_requests + 1,), 0, torch.int32)
        self.seq_lens = full((capacity.num_requests,), 0, torch.int32)
        self.block_table = full((capacity.num_requests, capacity.columns), NULL_PAGE, torch.int32)
        self.slot_mapping = full((capacity.num_tokens,), -1, torch.int64)
        self.encoder_seq_lens = full((capacity.num_requests,), 0, torch.int32) if capacity.encoders else None
        per_request = config.mask is Mask.PER_REQUEST
        self.causal_requests = full((capacity.num_requests,), True, torch.bool) if per_request else None

    def fill(self, batch: Batch) -> None:
        """Copies a batch into the buffers; what it leaves of them becomes padding."""
        metadata = batch.metadata
        num_tokens = batch.query_rows[-1].stop
        copy_to_persistent(batch.query[:num_tokens], self.query, self.poison)
        copy_to_persistent(batch.key_cache, self.key_cache, self.poison)
        copy_to_persistent(batch.value_cache, self.value_cache, self.poison)
        # Padding requests begin where the last one ends, and have no tokens.
        copy_to_persistent(metadata.query_start_loc, self.query_start_loc, num_tokens)
        copy_to_persistent(metadata.seq_lens, self.seq_lens, 0)
        columns = min(metadata.block_table.shape[1], self.block_table.shape[1])
        copy_to_persistent(metadata.block_table[:, :columns], self.block_table, NULL_PAGE)
        copy_to_persistent(metadata.slot_mapping[:num_tokens], self.slot_mapping, -1)
        if self.encoder_seq_lens is not None:
            lengths = metadata.encoder_seq_lens
            lengths = torch.zeros_like(metadata.seq_lens) if lengths is None else lengths
            copy_to_persistent(lengths, self.encoder_seq_lens, 0)
        if self.causal_requests is not None and metadata.causal_requests is not None:
            copy_to_persistent(metadata.causal_requests, self.causal_requests, True)

    def poison_results(self) -> None:
        """Fills output and log-sum-exp with poison."""
        self.output.tensor.fill_(self.poison)
        if self.lse is not None:
            self.lse.tensor.fill_(self.poison)

    def arguments(self, num_requests: int, num_tokens: int, use: GraphUse) -> Arguments:
        """The slices for a graph of some sizes, with the bounds of a use."""
        return Arguments(
            metadata=AttentionMetadata(
                query_start_loc=self.query_start_loc[: num_requests + 1],
                seq_lens=self.seq_lens[:num_requests],
                block_table=self.block_table[:num_requests],
                slot_mapping=self.slot_mapping[:num_tokens],
                max_query_len=use.max_query_len,
                max_seq_len=use.max_seq_len,
                causal=self._config.mask in (Mask.CAUSAL, Mask.SLIDING_WINDOW),
                encoder_seq_lens=None if self.encoder_seq_lens is None else self.encoder_seq_lens[:num_requests],
                causal_requests=None if self.causal_requests is None else self.causal_requests[:num_requests],
            ),
            query=self.query[:num_tokens],
            key_cache=self.key_cache,
            value_cache=self.value_cache,
            output=self.output.tensor[:num_tokens],
            lse=None if self.lse is None else self.lse.tensor[:, :num_tokens],
        )

    @property
    def num_pages(self) -> int:
        """Pages of the cache."""
        return self._capacity.num_pages

    def inputs(self) -> dict[str, torch.Tensor]:
        """All that `run` may not change, by name."""
        names = ("query", "key_cache", "value_cache", "query_start_loc", "seq_lens", "block_table", "slot_mapping")
        found = {name: getattr(self, name) for name in (*names, "encoder_seq_lens", "causal_requests")}
        found["sinks"] = self._config.sinks
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def faults(self) -> list[str]:
        """Results of which something lies outside."""
        results = (("output", self.output), ("lse", self.lse))
        return [
            f"run wrote outside the {name} tensor"
            for name, buffer in results
            if buffer is not None and not buffer.intact()
        ]
