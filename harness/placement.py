"""Where a batch lies: the pages of its requests, scattered over the cache, and the metadata that lead to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from samebits.backends.contract import AttentionMetadata
from samebits.backends.problem import Mask, Problem, Request

# Page 0 is the page that padding points at; no request owns it.
NULL_PAGE = 0
# Pages that belong to nobody, so that a wrong page number finds poison rather than a neighbour.
_UNUSED_PAGES = 3
# Entries behind every request's own, so that a read past its end finds a stale page rather than no table.
_STALE_COLUMNS = 1
# By how much rows of the block table lie further apart than they are long: an engine hands over part of a wider one.
_TABLE_GAP = 3


@dataclass(frozen=True)
class Placement:
    """Where the requests of a problem lie.

    Attributes:
        num_pages: pages of the cache, the null page and those of nobody among them.
        slots: for each request, the cache slots of its tokens in order, on the host: int64 `[num_slots]`.
        query_rows: for each request of the problem, the slice of query rows that it owns.
        metadata: of the batch.
    """

    num_pages: int
    slots: tuple[torch.Tensor, ...]
    query_rows: tuple[slice, ...]
    metadata: AttentionMetadata


def place_batch(problem: Problem, device: torch.device) -> Placement:
    """Gives each request of a problem its pages and its rows.

    Args:
        problem: whose layout says how.
        device: where the metadata go.
    """
    pages = _place_pages(problem)
    num_pages = 1 + sum(len(owned) for owned in pages) + _UNUSED_PAGES
    slot_mapping = torch.full((problem.num_tokens + problem.layout.padding_tokens,), -1, dtype=torch.int64)
    query_rows, slots = [], []
    first_row = 0
    for request, owned in zip(problem.requests, pages, strict=True):
        rows = slice(first_row, first_row + request.query_len)
        query_rows.append(rows)
        first_row = rows.stop
        slots.append(_slots_of(request, owned, problem.geometry.page_size))
        # Queries that come before the first key (negative context) have no slot of their own, and cross-attention
        # writes none: its keys and values were stored by the encoder.
        stored = 0 if problem.mask is Mask.CROSS else min(request.query_len, request.seq_len)
        if stored:
            slot_mapping[rows.stop - stored : rows.stop] = slots[-1][-stored:]
    return Placement(
        num_pages=num_pages,
        slots=tuple(slots),
        query_rows=tuple(query_rows),
        metadata=_make_metadata(problem, pages, num_pages, slot_mapping, device),
    )


def _slots_of(request: Request, owned_pages: np.ndarray, page_size: int) -> torch.Tensor:
    """Cache slots of a request's tokens in order: int64 `[num_slots]`."""
    token = np.arange(request.num_slots)
    return torch.from_numpy(owned_pages[token // page_size] * page_size + token % page_size)


def _place_pages(problem: Problem) -> list[np.ndarray]:
    """Physical pages of each request: scattered by the layout's permutation, or one after another."""
    page_size, layout = problem.geometry.page_size, problem.layout
    needed = [-(-request.num_slots // page_size) for request in problem.requests]
    num_pages = sum(needed) + _UNUSED_PAGES
    if layout.pages_in_order:
        placed = np.arange(num_pages)
    else:
        placed = np.random.Generator(np.random.Philox(key=layout.page_seed)).permutation(num_pages)
    ends = np.cumsum(needed)
    return [1 + placed[end - count : end].astype(np.int64) for end, count in zip(ends, needed, strict=True)]


def _make_metadata(
    problem: Problem, pages: list[np.ndarray], num_pages: int, slot_mapping: torch.Tensor, device: torch.device
) -> AttentionMetadata:
    layout = problem.layout
    padding = [0] * layout.padding_requests
    query_lens = [request.query_len for request in problem.requests] + padding
    seq_lens = [request.seq_len for request in problem.requests] + padding
    encoder_lens = [request.encoder_len for request in problem.requests] + padding
    causal = [request.causal for request in problem.requests] + [True] * layout.padding_requests
    # An engine's table is wider than its longest request; entries that are not in use hold former occupants' pages.
    columns = max(len(owned) for owned in pages) + _STALE_COLUMNS + layout.extra_table_columns
    stale = np.random.Generator(np.random.Philox(key=layout.page_seed + (1 << 64)))
    wider_table = stale.integers(0, num_pages, size=(len(seq_lens), columns + _TABLE_GAP))
    wider_table[len(pages) :, :columns] = NULL_PAGE
    for row, owned in zip(wider_table, pages, strict=False):
        row[: len(owned)] = owned

    def on_device(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32).to(device)

    return AttentionMetadata(
        query_start_loc=on_device(np.cumsum([0, *query_lens]).tolist()),
        seq_lens=on_device(seq_lens),
        block_table=torch.from_numpy(wider_table.astype(np.int32)).to(device)[:, :columns],
        slot_mapping=slot_mapping.to(device),
        max_query_len=max(query_lens),
        max_seq_len=max(problem.kv_len(request) for request in problem.requests) + layout.max_seq_len_slack,
        causal=problem.mask in (Mask.CAUSAL, Mask.SLIDING_WINDOW),
        encoder_seq_lens=on_device(encoder_lens) if any(encoder_lens) else None,
        causal_requests=torch.tensor(causal).to(device) if problem.mask is Mask.PER_REQUEST else None,
    )
