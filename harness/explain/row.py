"""A difference that was found, explained: where first, by how much, and in which order either side adds up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.backends.problem import Problem, Request
from samebits.harness.comparison import ulp_counts
from samebits.harness.executor import Executor
from samebits.harness.explain.attention import QueryRow, RowCalls, TooMuchWork
from samebits.harness.explain.compact import addends_of, compact
from samebits.harness.explain.denominator import denominator_order
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
        all_orders: whether implementations are asked whose calls take seconds, and whether the denominators' orders are
            asked for where those of the values differ already.
        most_keys: keys that a row may see; None for any number.
        most_work: pairs of a query and a key that may be computed for each order; None for any number.
    """

    all_orders: bool
    most_keys: int | None
    most_work: int | None


# What a row of a run is worth, of which there may be hundreds, and what a question about one is.
OF_A_ROW = Effort(all_orders=False, most_keys=600, most_work=1 << 21)
OF_A_QUESTION = Effort(all_orders=True, most_keys=None, most_work=None)
_ASK = "samebits explain tells it, or the line of repro with --explain"
# What any order takes, besides a question for each key.
_FEWEST_CALLS = 4
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
        sides = asked.sides(steps, position, head)
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
        # Of the batches before, which are guesses for the next.
        self._trees: list[Node] = []

    def sides(self, steps: Sequence[tuple[AnyProblem, Request]], position: int, head: int) -> tuple[Side, ...]:
        """The orders of both sides.

        Args:
            steps: the batch of each, and the request of it that is asked for.
            position: of the row that is asked for, in the request's sequence.
            head: of the row.
        """
        places = [(problem, QueryRow(request.key, position - request.context_len, head)) for problem, request in steps]
        values = [self._order(*place, self._values) for place in places]
        if self._effort.all_orders or values[0].sum == values[1].sum:
            denominators = [self._order(*place, self._denominator) for place in places]
        else:
            denominators = [Order(note=f"in a run it is not asked for where the values' orders differ; {_ASK}")] * 2
        batches = [told_batch(problem) for problem, _ in steps]
        return tuple(itertools.starmap(Side, zip(batches, values, denominators, strict=True)))

    def _order(self, problem: AnyProblem, place: QueryRow, recover: Callable[[RowCalls], Order]) -> Order:
        assert isinstance(problem, Problem), "attention computes attention"
        effort = self._effort
        if self._implementation.costly and not effort.all_orders:
            return Order(note=f"its calls take too long for a row of a run; {_ASK}")
        try:
            calls = RowCalls(self._implementation, problem, place, self._device, effort.most_work)
            if effort.most_keys is not None and calls.num_keys > effort.most_keys:
                return Order(note=f"{calls.num_keys} keys are too many for a row of a run; {_ASK}")
            if not calls.may_take(_FEWEST_CALLS + calls.num_keys // calls.width):
                raise TooMuchWork
            return recover(calls)
        except TooMuchWork:
            return Order(note=f"it takes too many calls for a row of a run; {_ASK}")
        except UnusableInput as error:
            return Order(note=str(error))
        except Exception as error:
            # A kernel may fail at what no request would ask of it, which is no finding of this cell.
            raised = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_ERROR]
            return Order(note=f"asked for it, the kernel raised {raised}")

    def _values(self, calls: RowCalls) -> Order:
        tree = values_tree(calls, self._trees)
        self._trees.append(tree)
        return Order(compact(tree, calls.first_position))

    def _denominator(self, calls: RowCalls) -> Order:
        tiling = self._implementation.tiling
        sizes = [len(part.terms) for tree in self._trees for part in addends_of(tree)[0]]
        found = denominator_order(calls, [*dict.fromkeys(sizes), tiling.kv_tile, tiling.kv_split])
        return Order(compact(found.tree, calls.first_position), scheme=str(found.scheme))
