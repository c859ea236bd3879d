"""Controls of the relations of attention: one correct kernel, whose schedule lets one thing of the batch in.

A check that cannot fail proves nothing, so every relation is run on a control in the same session and must report it
broken. The correct kernel adds keys up in chunks at fixed positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from samebits.backends.contract import AttentionMetadata, Claims, Tiling
from samebits.backends.problem import Mask
from samebits.backends.support import Support
from samebits.harness.controls.kernels import AttentionControl, Call, finite
from samebits.harness.matrix import Flaw, Symptom

_CHUNK = 32


def _by_base_2(values: torch.Tensor) -> torch.Tensor:
    return values.log2() * math.log(2.0)


@dataclass(frozen=True)
class Schedule:
    """How the keys of one request are added up.

    Attributes:
        chunk: keys per chunk; chunks are accumulated from zero and merged in order.
        origin: a position at which a chunk begins; the others follow from it in both directions.
        physical_order: merge the chunks in the order of their pages in memory rather than in the sequence.
        tail: keys read behind the last, with weight 0.
        shift: subtracted from the scores in place of their maximum; None for the maximum.
        scale: factor on the scores, 1 where they are right.
        logarithm: how the natural logarithm of the denominator is taken.
    """

    chunk: int = _CHUNK
    origin: int = 0
    physical_order: bool = False
    tail: int = 0
    shift: float | None = None
    scale: float = 1.0
    logarithm: Callable[[torch.Tensor], torch.Tensor] = torch.log


@dataclass(frozen=True)
class RequestView:
    """What a flaw may look at: one request, and the batch around it.

    Attributes:
        index: place in the batch.
        query_len, context_len: of the request.
        metadata: of the batch.
        largest_query: largest absolute value of the batch's queries.
        contiguous: whether the request's keys follow one another in memory.
    """

    index: int
    query_len: int
    context_len: int
    metadata: AttentionMetadata
    largest_query: float
    contiguous: bool


@dataclass(frozen=True)
class ScheduleFlaw(Flaw):
    """A way to break a relation.

    Attributes:
        schedule: the flawed schedule of a request.
    """

    schedule: Callable[[RequestView], Schedule]
    symptom: Symptom = field(default=Symptom.BITS, kw_only=True)


FLAWS: tuple[ScheduleFlaw, ...] = (
    ScheduleFlaw(
        "split_by_batch_size",
        "batch_size",
        "the number of splits is chosen from the batch size",
        lambda view: Schedule(chunk=8 * min(8, view.metadata.num_requests)),
    ),
    ScheduleFlaw(
        "split_by_size_class",
        "batch_size",
        "batches of 33 to 64 requests take another split length than smaller and larger ones",
        lambda view: Schedule(chunk=2 * _CHUNK if 33 <= view.metadata.num_requests <= 64 else _CHUNK),
    ),
    ScheduleFlaw(
        "wrong_scale",
        "batch_size",
        "scores are 2% too large: invariant, and wrong",
        lambda view: Schedule(scale=1.02),
        symptom=Symptom.VALUES,
    ),
    ScheduleFlaw(
        "lse_by_batch_size",
        "batch_size",
        "the log-sum-exp alone takes another way, that of base 2, in a batch of several requests",
        lambda view: Schedule(logarithm=_by_base_2 if view.metadata.num_requests > 1 else torch.log),
    ),
    ScheduleFlaw(
        "split_by_position",
        "position",
        "the split length depends on the place in the batch",
        lambda view: Schedule(chunk=_CHUNK + 8 * view.index),
    ),
    ScheduleFlaw(
        "tile_by_longest_query",
        "neighbour_lengths",
        "the tile is chosen from the longest query of the batch",
        lambda view: Schedule(chunk=_CHUNK if view.metadata.max_query_len < 16 else 2 * _CHUNK),
    ),
    ScheduleFlaw(
        "split_by_longest_context",
        "neighbour_lengths",
        "the split length is doubled beside a request of more than 512 keys",
        lambda view: Schedule(chunk=2 * _CHUNK if view.metadata.max_seq_len > 512 else _CHUNK),
    ),
    ScheduleFlaw(
        "maximum_of_batch",
        "neighbour_contents",
        "scores are shifted by a maximum taken over the whole batch",
        lambda view: Schedule(shift=view.largest_query),
    ),
    ScheduleFlaw(
        "physical_page_order",
        "pages",
        "keys are added in the order of their pages in memory",
        lambda view: Schedule(physical_order=True),
    ),
    ScheduleFlaw(
        "contiguous_fast_path",
        "pages",
        "a request whose pages follow one another takes another split length",
        lambda view: Schedule(chunk=2 * _CHUNK if view.contiguous else _CHUNK),
    ),
    ScheduleFlaw(
        "split_by_table_width",
        "table_width",
        "the split length is chosen from the width of the block table",
        lambda view: Schedule(chunk=4 * view.metadata.block_table.shape[1]),
    ),
    ScheduleFlaw(
        "split_by_max_seq_len",
        "max_seq_len",
        "the split length is chosen from the bound on the lengths",
        lambda view: Schedule(chunk=max(1, math.ceil(view.metadata.max_seq_len / 4))),
    ),
    ScheduleFlaw(
        "split_by_padded_tokens",
        "padding",
        "the split length is chosen from the padded number of tokens",
        lambda view: Schedule(chunk=view.metadata.num_tokens),
    ),
    ScheduleFlaw(
        "split_by_many_tokens",
        "padding",
        "the split length is doubled above 2048 tokens, padded ones among them",
        lambda view: Schedule(chunk=2 * _CHUNK if view.metadata.num_tokens > 2048 else _CHUNK),
    ),
    ScheduleFlaw(
        "reads_page_tail",
        "unread_memory",
        "values behind the last key are multiplied by a weight of 0",
        lambda view: Schedule(tail=1),
    ),
    ScheduleFlaw(
        "tiles_from_context",
        "chunked_prefill",
        "tiles begin at the context length rather than at 0",
        lambda view: Schedule(origin=max(0, view.context_len)),
    ),
    ScheduleFlaw(
        "extend_tile",
        "extend",
        "a request with context takes another tile than one without",
        lambda view: Schedule(chunk=_CHUNK if view.context_len > 0 else 2 * _CHUNK),
    ),
    ScheduleFlaw(
        "decode_split",
        "decode",
        "a single query takes another split than a row of many",
        lambda view: Schedule(chunk=_CHUNK if view.query_len == 1 else 2 * _CHUNK),
    ),
)


class ChunkedKernel(AttentionControl):
    """A plain correct kernel: chunks of keys at fixed positions, merged in order, one request after another."""

    name = "correct"
    claims = Claims(batch_invariant=True, schedule_invariant=True, source="fixed chunks, merged in order")
    support = Support(dtypes=("fp32",), masks=(Mask.CAUSAL,), softcap=False, lse=True)
    tiling = Tiling(query_tile=16, kv_tile=_CHUNK, kv_split=2 * _CHUNK)

    @property
    def parent(self) -> ChunkedKernel:
        """The correct kernel."""
        return ChunkedKernel()

    def schedule_of(self, view: RequestView) -> Schedule:
        """How the keys of a request are added up."""
        return Schedule()

    def compute(self, call: Call) -> None:
        """Computes one request after another."""
        config, metadata, every_row = call.plan.config, call.plan.metadata, call.plan.query_rows
        largest_query = float(call.query[: every_row[-1].stop].abs().max())
        for index, (rows, seq_len) in enumerate(zip(every_row, metadata.seq_lens.tolist(), strict=True)):
            query_len = rows.stop - rows.start
            contiguous = bool((_slots(metadata.block_table[index], seq_len, config.page_size).diff() == 1).all())
            view = RequestView(index, query_len, seq_len - query_len, metadata, largest_query, contiguous)
            schedule = self.schedule_of(view)
            slots = _slots(metadata.block_table[index], seq_len + schedule.tail, config.page_size)
            query = call.query[rows] * (config.scale * schedule.scale)
            call.output[rows], call.lse[:, rows] = _attend(
                query, call.key_cache, call.value_cache, slots, view, seq_len, schedule
            )


class ScheduledKernel(ChunkedKernel):
    """The correct kernel on a flawed schedule."""

    flaw: ScheduleFlaw

    def __init__(self, flaw: ScheduleFlaw) -> None:
        """Takes the flaw's name."""
        self.flaw, self.name = flaw, flaw.name
        if flaw.check == "unread_memory":
            # The NaN it reads must be seen by the relation, which compares bits, and not by the error budget.
            self.claims = replace(self.claims, ignores_unread_memory=False)

    def schedule_of(self, view: RequestView) -> Schedule:
        """The flawed one."""
        return self.flaw.schedule(view)


def _slots(pages: torch.Tensor, length: int, page_size: int) -> torch.Tensor:
    token = torch.arange(length)
    return pages[token // page_size].to(torch.int64) * page_size + token % page_size


def _chunks(length: int, slots: torch.Tensor, schedule: Schedule) -> list[slice]:
    """Divides `length` keys into the schedule's chunks, in the order of their merging."""
    first = schedule.origin % schedule.chunk
    bounds = sorted({0, length, *range(first, length, schedule.chunk)})
    chunks = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    if schedule.physical_order:
        chunks.sort(key=lambda chunk: int(slots[chunk.start]))
    return chunks


def _attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    view: RequestView,
    seq_len: int,
    schedule: Schedule,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One request: output `[query_len, num_heads, head_dim]` and log-sum-exp `[num_heads, query_len]`.

    Products are summed element by element and never through a matrix product, whose order of additions depends on the
    number of rows.
    """
    num_heads, head_dim = query.shape[1], query.shape[2]
    group = num_heads // key_cache.shape[2]
    position = torch.arange(view.query_len).unsqueeze(1) + view.context_len
    rows = query.transpose(0, 1).contiguous()
    maximum = torch.full((num_heads, view.query_len), -torch.inf)
    denominator = torch.zeros(num_heads, view.query_len)
    accumulator = torch.zeros(num_heads, view.query_len, head_dim)
    for chunk in _chunks(len(slots), slots, schedule):
        key, value = (
            cache.flatten(0, 1)[slots[chunk]].transpose(0, 1).repeat_interleave(group, dim=0)
            for cache in (key_cache, value_cache)
        )
        token = torch.arange(chunk.start, chunk.stop)
        visible = (token <= position) & (token < seq_len)
        scores = torch.stack([(rows * key[:, j : j + 1]).sum(dim=2) for j in range(key.shape[1])], dim=2)
        scores = scores.masked_fill(~visible, -torch.inf)
        chunk_maximum = scores.amax(dim=2) if schedule.shift is None else torch.full_like(maximum, schedule.shift)
        weights = torch.exp(scores - finite(chunk_maximum).unsqueeze(2))
        chunk_sum = torch.zeros_like(denominator)
        chunk_output = torch.zeros_like(accumulator)
        for j in range(key.shape[1]):
            chunk_sum = chunk_sum + weights[:, :, j]
            chunk_output = chunk_output + weights[:, :, j : j + 1] * value[:, j : j + 1]
        merged = torch.maximum(maximum, chunk_maximum)
        old, new = (torch.exp(part - finite(merged)) for part in (maximum, chunk_maximum))
        denominator = denominator * old + chunk_sum * new
        accumulator = accumulator * old.unsqueeze(2) + chunk_output * new.unsqueeze(2)
        maximum = merged
    seen = denominator > 0
    output = torch.where(seen.unsqueeze(2), accumulator / denominator.unsqueeze(2), 0.0)
    return output.transpose(0, 1), torch.where(seen, finite(maximum) + schedule.logarithm(denominator), -torch.inf)
