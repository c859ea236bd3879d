"""The order in which an attention kernel adds up the values of one query row, whatever kernel it is.

Where a query is 0 all its scores are equal, and so are its weights: the output is the plain sum of the values, divided
by their number. Each element of a head sums values of its own, so one call answers as many questions as a head has
elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.problem import Problem
from samebits.harness.batch import Batch, make_batch
from samebits.harness.explain.order import Node, accumulation_order
from samebits.harness.records import UnusableInput
from samebits.harness.reference import visible_keys


@dataclass(frozen=True)
class QueryRow:
    """One row of the output of one head.

    Attributes:
        key: of the request.
        row: among the request's queries.
        head: query head.
    """

    key: int
    row: int
    head: int


@torch.no_grad()
def attention_order(
    implementation: Implementation[Any], problem: Problem, place: QueryRow, device: torch.device
) -> tuple[Node, tuple[int, ...]]:
    """Recovers how the keys that a query row sees are added up, in a batch as it is.

    Args:
        implementation: available here, and without reasons against the problem.
        problem: the batch.
        place: the row, of a request of the problem.
        device: where the implementation computes.

    Returns:
        The tree over the keys that the row sees, numbered from 0, and the position of each of them.

    Raises:
        UnusableInput: the row sees no key, or float16 holds no value that absorbs others.
    """
    if problem.dtype == "fp16":
        raise UnusableInput(
            "the order of additions does not show in fp16, whose range is too small; ask for bf16 or fp32"
        )
    (index,) = (index for index, request in enumerate(problem.requests) if request.key == place.key)
    request = problem.requests[index]
    (positions,) = visible_keys(problem, request, torch.device("cpu"))[place.row].nonzero(as_tuple=True)
    if not len(positions):
        raise UnusableInput(f"row {place.row} of request {request} sees no key; ask for one that does")
    # A NaN that it reads and gives no weight would be all that shows.
    batch = make_batch(problem.with_layout(poison="large"), device)
    probe = _Probe(implementation, batch, index, place, positions)
    tree = accumulation_order(probe.sums, len(positions), problem.geometry.head_dim)
    return tree, tuple(positions.tolist())


class _Probe:
    """Sums through the values of one key/value head."""

    def __init__(
        self, implementation: Implementation[Any], batch: Batch, index: int, place: QueryRow, positions: torch.Tensor
    ) -> None:
        self._implementation, self._batch, self._place = implementation, batch, place
        problem, rows = batch.problem, batch.query_rows[index]
        batch.query[rows] = 0
        self._row = rows.start + place.row
        self._kv_head = place.head // problem.geometry.group_size
        first = int(batch.metadata.kv_starts(problem.mask)[index])
        slots = (positions + first).to(batch.value_cache.device)
        page_size = problem.geometry.page_size
        self._pages = batch.metadata.block_table[index].to(torch.int64)[slots // page_size]
        self._offsets = slots % page_size
        self._plan = implementation.plan(batch.config, batch.metadata)
        # What all weights come to together: 1, unless there are sinks or the exponential of 0 is a little off.
        ones = torch.ones(len(positions), 1, dtype=torch.float64)
        self._one = 1.0 / len(positions)
        self._one = float(self.sums(ones)) / len(positions) / len(positions)

    def sums(self, terms: torch.Tensor) -> torch.Tensor:
        """Sums of terms, in units of one."""
        batch = self._batch
        cache, num_sums = batch.value_cache, terms.shape[1]
        head = torch.zeros(len(self._pages), cache.shape[3], dtype=cache.dtype, device=cache.device)
        head[:, :num_sums] = terms.to(cache.device, cache.dtype)
        cache[self._pages, self._offsets, self._kv_head] = head
        output = torch.full_like(batch.query, math.nan)
        lse = None
        if self._implementation.support.lse:
            lse = torch.full(batch.query.shape[1::-1], math.nan, dtype=torch.float32, device=cache.device)
        self._implementation.run(self._plan, batch.query, batch.key_cache, cache, output, lse)
        return output[self._row, self._place.head, :num_sums].to("cpu", torch.float64) / self._one
