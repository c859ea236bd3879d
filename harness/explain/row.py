"""A difference that was found, explained: where first, by how much, and in which order either side adds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.problem import Problem, Request
from samebits.harness.comparison import ulp_counts
from samebits.harness.executor import Executor
from samebits.harness.explain.attention import QueryRow, RowCalls, TooMuchWork
from samebits.harness.explain.compact import compact
from samebits.harness.explain.order import Node
from samebits.harness.explain.values import values_tree
from samebits.harness.explanation import Explanation, Order, Side
from samebits.harness.findings import Located, common_rows
from samebits.harness.records import UnusableInput
from samebits.harness.relations import AnyProblem
from samebits.harness.shrink import told_batch


@dataclass(frozen=True)
class Effort:
    """How much may be asked of a kernel to explain a difference.

    Attributes:
        costly: whether implementations may be asked whose calls take seconds.
        most_keys: keys that a row may see; None for any number.
        most_work: pairs of a query and a key that may be computed for each order; None for any number.
    """

    costly: bool
    most_keys: int | None
    most_work: int | None


# What a row of a run is worth, of which there may be hundreds, and what a question about one is.
OF_A_ROW = Effort(costly=False, most_keys=600, most_work=1 << 21)
OF_A_QUESTION = Effort(costly=True, most_keys=None, most_work=None)
_ASK = "samebits explain tells it"
# Of what a kernel says when it fails.
_LONGEST_ERROR = 300


def explained(located: Located, executor: Executor, effort: Effort) -> Explanation:
    """Explains a difference. Never raises for what an implementation does.

    Args:
        located: the difference.
        executor: of the implementation that it was found in.
        effort: how much may be asked of it.
    """
    comparison = located.comparison
    rows = next(
        rows
        for rows in common_rows(comparison, executor)
        if (rows.request_key, rows.first_position, rows.tensor)
        == (located.request_key, located.first_position, located.tensor)
    )
    position = located.first_position + located.difference.first[0]
    sides: tuple[Side, ...] = ()
    if isinstance(executor.subject, Implementation):
        asked = _Asked(executor.subject, executor.device, effort)
        head = located.difference.first[1]
        steps = [_step_of(side, located.request_key, position) for side in (comparison.left, comparison.right)]
        sides = tuple(asked.side(problem, request, position, head) for problem, request in steps)
    return Explanation(
        request=str(_step_of(comparison.left, located.request_key, position)[1]),
        position=position,
        place=located.place,
        difference=str(located.difference).removesuffix(","),
        ulps=ulp_counts(rows.left, rows.right),
        sides=sides,
    )


def _step_of(steps: tuple[AnyProblem, ...], key: int, position: int) -> tuple[AnyProblem, Request]:
    """The step of one side that computes a request's position, and the request as it is there."""
    for problem in steps:
        for request in problem.requests:
            if request.key == key and request.context_len <= position < request.seq_len:
                return problem, request
    raise LookupError(f"no step computes position {position} of request r{key}")


class _Asked:
    """An implementation that is asked for its orders, one batch after another."""

    def __init__(self, implementation: Implementation[Any], device: torch.device, effort: Effort) -> None:
        self._implementation, self._device, self._effort = implementation, device, effort
        # Of a batch before, which is a guess for the next.
        self._values: list[Node] = []

    def side(self, problem: AnyProblem, request: Request, position: int, head: int) -> Side:
        """The orders of one side.

        Args:
            problem: its batch.
            request: of the batch.
            position: of the row that is asked for, in the request's sequence.
            head: of the row.
        """
        assert isinstance(problem, Problem), "attention computes attention"
        batch = told_batch(problem)
        if self._implementation.costly and not self._effort.costly:
            costly = Order(note=f"its calls take too long for a row of a run; {_ASK}")
            return Side(batch, costly, costly)
        place = QueryRow(request.key, position - request.context_len, head)
        values = self._order(problem, place, values_tree, self._values)
        return Side(batch, values, Order())

    def _order(
        self,
        problem: Problem,
        place: QueryRow,
        recover: Callable[[RowCalls, Sequence[Node]], Node],
        guesses: list[Node],
    ) -> Order:
        try:
            calls = RowCalls(self._implementation, problem, place, self._device, self._effort.most_work)
            if self._effort.most_keys is not None and calls.num_keys > self._effort.most_keys:
                return Order(note=f"{calls.num_keys} keys are too many for a row of a run; {_ASK}")
            tree = recover(calls, guesses)
        except TooMuchWork as error:
            return Order(note=f"{error} for a row of a run; {_ASK}")
        except UnusableInput as error:
            return Order(note=str(error))
        except Exception as error:
            # A kernel may fail at what no request would ask of it, which is no finding of this cell.
            raised = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_ERROR]
            return Order(note=f"asked for it, the kernel raised {raised}")
        guesses.append(tree)
        return Order(compact(tree, calls.first_position))
