"""Controls of the properties suite: flaws that nearly every batch shows, since no batch of it is chosen.

A run draws few batches for each relation, and other ones with another version of Hypothesis. So each flaw changes the
chunks in which keys are added up wherever a request has more than a few.
"""

from __future__ import annotations

from samebits.harness.controls.schedules import RequestView, Schedule, ScheduleFlaw
from samebits.harness.matrix import Symptom

_SHORT, _LONG, _LENGTHS = 4, 9, 11


def _chunk_by(number: int) -> Schedule:
    """Chunks of another length for every number that is near."""
    return Schedule(chunk=_SHORT + number % _LENGTHS)


def _first_page(view: RequestView) -> int:
    return int(view.metadata.block_table[view.index, 0])


DRAWN_FLAWS: tuple[ScheduleFlaw, ...] = (
    ScheduleFlaw(
        "chunks_by_requests",
        "batch_size",
        "the length of chunks follows the number of requests",
        lambda view: _chunk_by(view.metadata.num_requests),
    ),
    ScheduleFlaw(
        "chunks_by_place",
        "position",
        "the length of chunks follows the place in the batch",
        lambda view: _chunk_by(view.index),
    ),
    ScheduleFlaw(
        "chunks_by_lengths",
        "neighbour_lengths",
        "the length of chunks follows the tokens and the longest request of the batch",
        lambda view: _chunk_by(view.metadata.num_tokens + view.metadata.max_seq_len),
    ),
    ScheduleFlaw(
        "maximum_of_all",
        "neighbour_contents",
        "scores are shifted by a maximum taken over the whole batch",
        lambda view: Schedule(shift=view.largest_query),
    ),
    ScheduleFlaw(
        "chunks_by_page",
        "pages",
        "the length of chunks follows the first page's number",
        lambda view: _chunk_by(_first_page(view)),
    ),
    ScheduleFlaw(
        "chunks_by_columns",
        "table_width",
        "the length of chunks follows the width of the block table",
        lambda view: _chunk_by(view.metadata.block_table.shape[1]),
    ),
    ScheduleFlaw(
        "chunks_by_bound",
        "max_seq_len",
        "the length of chunks follows the bound on the lengths",
        lambda view: _chunk_by(view.metadata.max_seq_len),
    ),
    ScheduleFlaw(
        "chunks_by_padding",
        "padding",
        "the length of chunks follows the padded numbers of requests and tokens",
        lambda view: _chunk_by(view.metadata.num_requests + view.metadata.num_tokens),
    ),
    ScheduleFlaw(
        "reads_behind_the_last_key",
        "unread_memory",
        "values behind the last key are multiplied by a weight of 0",
        lambda view: Schedule(tail=1),
    ),
    ScheduleFlaw(
        "chunks_from_context",
        "chunked_prefill",
        "chunks begin at the context length rather than at 0",
        lambda view: Schedule(chunk=_LONG, origin=max(0, view.context_len)),
    ),
    ScheduleFlaw(
        "chunks_by_context",
        "extend",
        "a request with context takes other chunks than one without",
        lambda view: Schedule(chunk=_SHORT if view.context_len > 0 else _LONG),
    ),
    ScheduleFlaw(
        "chunks_of_decodes",
        "decode",
        "a single query takes other chunks than a row of many",
        lambda view: Schedule(chunk=_SHORT if view.query_len == 1 else _LONG),
    ),
    ScheduleFlaw(
        "scale_too_large",
        "reference",
        "scores are 2% too large: invariant, and wrong",
        lambda view: Schedule(scale=1.02),
        symptom=Symptom.VALUES,
    ),
)
