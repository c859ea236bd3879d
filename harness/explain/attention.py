"""One row of an attention kernel, called again and again with other values behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from samebits.backends.contract import DTYPES, Implementation
from samebits.backends.problem import Circumstances, Problem
from samebits.harness.batch import make_batch
from samebits.harness.circumstances import on_threads
from samebits.harness.records import UnusableInput
from samebits.harness.reference import visible_keys

# What a call costs, whatever it computes, in pairs of a query and a key.
_LEAST_WORK = 1 << 15
# What queries hold, and of how many elements a score is made: each takes the bits that those before it left.
_QUERY, _PARTS = 8.0, 3


class TooMuchWork(Exception):
    """More is asked than may be."""


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


class RowCalls:
    """Calls of an implementation with a batch as it is, but for what one row of it sees.

    Attributes:
        num_keys: keys that the row sees.
        first_position: of the first of them, in the sequence that the request attends to.
        width: elements of a head.
        dtype: of queries, caches and output.
        group_size: query heads that share the keys.
        softcap: cap on the scores; None for none.
    """

    def __init__(
        self,
        implementation: Implementation[Any],
        problem: Problem,
        place: QueryRow,
        device: torch.device,
        most_work: int | None = None,
    ) -> None:
        """Makes the batch, in which the queries of the request are 0.

        Args:
            implementation: available here, and without reasons against the problem.
            problem: the batch.
            place: the row, of a request of the problem.
            device: where the implementation computes.
            most_work: pairs of a query and a key that may be computed over all calls; None for any number.

        Raises:
            UnusableInput: the row sees no key, or the batch is computed at the padded sizes of a graph.
        """
        (index,) = (index for index, request in enumerate(problem.requests) if request.key == place.key)
        request = problem.requests[index]
        (positions,) = visible_keys(problem, request, torch.device("cpu"))[place.row].nonzero(as_tuple=True)
        if not len(positions):
            raise UnusableInput(f"row {place.row} of request {request} sees no key; ask for one that does")
        self.num_keys, self.first_position = len(positions), int(positions[0])
        self.group_size, self.softcap = problem.geometry.group_size, problem.geometry.softcap
        self.width, self.dtype = problem.geometry.head_dim, DTYPES[problem.dtype]
        surroundings = problem.circumstances
        if surroundings.graph is not None:
            raise UnusableInput("what a batch is padded to for a graph is not asked for an order")
        # A NaN that it reads and gives no weight would be all that shows.
        plain = replace(
            problem.with_layout(poison="large"),
            data="normal",
            circumstances=Circumstances(threads=surroundings.threads, output_only=surroundings.output_only),
        )
        self._implementation, self._batch, self._head = implementation, make_batch(plain, device), place.head
        batch, rows = self._batch, self._batch.query_rows[index]
        batch.query[rows] = 0
        self._row = rows.start + place.row
        self._kv_head = place.head // problem.geometry.group_size
        first = int(batch.metadata.kv_starts(problem.mask)[index])
        slots = (positions + first).to(device)
        page_size = problem.geometry.page_size
        self._pages = batch.metadata.block_table[index].to(torch.int64)[slots // page_size]
        self._offsets = slots % page_size
        self._work_left = math.inf if most_work is None else most_work
        self._work = max(_LEAST_WORK, problem.work)
        self._plan = implementation.plan(batch.config, batch.metadata)

    def may_take(self, calls: int) -> bool:
        """Whether there may be so many calls."""
        return calls * self._work <= self._work_left

    def output(self, values: torch.Tensor) -> torch.Tensor:
        """The row's output, `[width]`, under values of the keys that it sees, `[num_keys, width]`: float64 both.

        Its query is 0, and so are all scores.

        Raises:
            TooMuchWork: this would be more work than it may be.
        """
        self._batch.query[self._row] = 0
        return self._run(values)[self._head]

    def outputs(self, values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The row's outputs of heads that share the keys, `[num_heads, width]`, its own head's first.

        Args:
            values: of the keys that it sees, float64 `[num_keys, width]`.
            scores: natural logarithms of their weights, float64 `[num_keys, num_heads]`, the largest 0.

        Raises:
            TooMuchWork: this would be more work than it may be.
        """
        batch, num_heads = self._batch, scores.shape[1]
        first = self._head - self._head % self.group_size
        heads = [first + (self._head + number) % self.group_size for number in range(num_heads)]
        dots = (scores if self.softcap is None else _uncapped(scores, self.softcap)) / batch.config.scale / _QUERY
        keys = torch.zeros(self.num_keys, self.width, dtype=torch.float64)
        batch.query[self._row] = 0
        for number, head in enumerate(heads):
            rest = dots[:, number].clone()
            for part in range(_PARTS):
                element = number * _PARTS + part
                keys[:, element] = rest.to(self.dtype)
                rest -= keys[:, element]
                batch.query[self._row, head, element] = _QUERY
        batch.key_cache[self._pages, self._offsets, self._kv_head] = keys.to(batch.key_cache.device, self.dtype)
        return self._run(values)[heads]

    @torch.no_grad()
    def _run(self, values: torch.Tensor) -> torch.Tensor:
        """The row's outputs of all heads."""
        self._work_left -= self._work
        if self._work_left < 0:
            raise TooMuchWork("it takes too many calls")
        batch, support = self._batch, self._implementation.support
        batch.value_cache[self._pages, self._offsets, self._kv_head] = values.to(
            batch.value_cache.device, batch.value_cache.dtype
        )
        output = torch.full_like(batch.query, math.nan)
        lse = None
        if support.lse and not batch.problem.circumstances.output_only:
            lse = torch.full(batch.query.shape[1::-1], math.nan, dtype=torch.float32, device=output.device)
        # Of what surrounds a call, threads alone may decide an order.
        with on_threads(batch.problem.circumstances.threads):
            self._implementation.run(self._plan, batch.query, batch.key_cache, batch.value_cache, output, lse)
        return output[self._row].to("cpu", torch.float64)


def _uncapped(scores: torch.Tensor, softcap: float) -> torch.Tensor:
    """What a softcap makes such scores of, or nothing of weight."""
    return softcap * (scores / softcap).clamp(min=-1.0 + 2.0**-20).atanh()
