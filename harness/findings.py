"""What comparisons come to: which bits differ, how much of the error budget is used, what else went wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from samebits.backends.problem import Request
from samebits.backends.subject import Claims
from samebits.harness.accuracy import Judgement, described_place
from samebits.harness.comparison import Difference, compare_bits
from samebits.harness.execution import Execution, RequestResult
from samebits.harness.executor import Executor
from samebits.harness.relations import AnyProblem, Comparison, Relation


@dataclass(frozen=True)
class Located:
    """A difference and where it was found."""

    comparison: Comparison
    request_key: int
    first_position: int
    tensor: str
    difference: Difference

    def __str__(self) -> str:
        return f"{self.difference} in the {self.place} of request r{self.request_key}"

    @property
    def place(self) -> str:
        """The first element, in words: its tensor, and where it is in the request's sequence."""
        row, *inner = self.difference.first
        return described_place(self.tensor, (self.first_position + row, *inner)).replace("row", "position", 1)


@dataclass(frozen=True)
class Findings:
    """What some comparisons came to.

    Attributes:
        compared, mismatches, max_ulp: over all comparisons; where no claim is judged, `max_ulp` is the distance from
            the reference.
        first: the first difference; None where all bits agree.
        error_budget, worst: of all executions that the implementation claims to withstand.
        worst_problem: the one in which that is; None where nothing was judged.
        worst_request: key of the request in which that is; None where there is none.
        faults: what else went wrong.
        faulty_problem: the first in which something else went wrong; None where nothing did.
        digest: of all outputs.
    """

    compared: int
    mismatches: int
    max_ulp: int
    first: Located | None
    error_budget: float
    worst: str
    worst_problem: AnyProblem | None
    worst_request: int | None
    faults: tuple[str, ...]
    faulty_problem: AnyProblem | None
    digest: str

    @property
    def wrong(self) -> bool:
        """Whether more than the error budget is used."""
        return not self.error_budget <= 1.0


class ComputationFailed(Exception):
    """An implementation raised, which is the cause of this.

    Attributes:
        problem: what it was to compute.
    """

    def __init__(self, problem: AnyProblem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def find(comparisons: Iterable[Comparison], relation: Relation, executor: Executor) -> Findings:
    """Computes comparisons, and finds out what they come to.

    Args:
        comparisons: of the relation.
        relation: says which tensors are judged, and whether a claim is.
        executor: runs the implementation, which has no reasons against the problems.

    Raises:
        ComputationFailed: the implementation raised something.
    """
    compared = mismatches = max_ulp = 0
    first: Located | None = None
    judged: dict[AnyProblem, Judgement] = {}
    faults: dict[str, AnyProblem] = {}
    digest = hashlib.blake2b(digest_size=16)
    for comparison in comparisons:
        for problem in (*comparison.left, *comparison.right):
            execution = _executed(problem, executor)
            digest.update(execution.digest.encode())
            if _is_withstood(problem, executor.subject.claims):
                judged[problem] = execution.judged(relation.judged or execution.judgements)
            for fault in execution.faults:
                faults.setdefault(fault, problem)
        for located in differences(comparison, executor):
            compared += located.difference.compared
            mismatches += located.difference.mismatches
            max_ulp = max(max_ulp, located.difference.max_ulp)
            if located.difference.mismatches and first is None:
                first = located
    worst_problem = max(judged, key=lambda problem: judged[problem].error_budget, default=None)
    worst = Judgement() if worst_problem is None else judged[worst_problem]
    if relation.claim is None:
        max_ulp = max((judgement.max_ulp for judgement in judged.values()), default=0)
    return Findings(
        compared=compared,
        mismatches=mismatches,
        max_ulp=max_ulp,
        first=first,
        error_budget=worst.error_budget,
        worst=worst.worst,
        worst_problem=worst_problem,
        worst_request=worst.request_key,
        faults=tuple(faults),
        faulty_problem=next(iter(faults.values()), None),
        digest=digest.hexdigest(),
    )


def _executed(problem: AnyProblem, executor: Executor) -> Execution:
    try:
        return executor(problem)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Whatever ends the process, or a test of pytest's, is known by what was to be computed.
        raise ComputationFailed(problem) from error


def _is_withstood(problem: AnyProblem, claims: Claims) -> bool:
    """Whether an implementation claims to be right in spite of the NaN that a problem holds."""
    unread = problem.layout.poison == "nan" or problem.data == "unseen_nan"
    hidden = problem.data == "hidden_nan"
    return (claims.ignores_unread_memory or not unread) and (claims.ignores_hidden_keys or not hidden)


@dataclass(frozen=True)
class CommonRows:
    """The rows of one tensor that both sides of a comparison computed for a request in one step each.

    Attributes:
        request_key: of the request.
        first_position: position of the first row.
        tensor: name of the tensor.
        left, right: the rows of either side.
    """

    request_key: int
    first_position: int
    tensor: str
    left: torch.Tensor
    right: torch.Tensor


def first_difference(comparison: Comparison, executor: Executor) -> Located | None:
    """The first difference of a comparison; None where all bits agree."""
    return next((located for located in differences(comparison, executor) if located.difference.mismatches), None)


def differences(comparison: Comparison, executor: Executor) -> Iterator[Located]:
    """Compares the query rows that both sides computed, output and log-sum-exp, one pair of steps at a time."""
    for rows in common_rows(comparison, executor):
        difference = compare_bits(rows.left, rows.right)
        yield Located(comparison, rows.request_key, rows.first_position, rows.tensor, difference)


def common_rows(comparison: Comparison, executor: Executor) -> Iterator[CommonRows]:
    """What both sides of a comparison computed, one pair of steps and one tensor at a time.

    Args:
        comparison: two sides, which are computed now or were earlier.
        executor: runs the implementation.
    """
    rights: dict[int, list[_Step]] = {}
    for right in _steps(comparison.right, executor):
        rights.setdefault(right.request.key, []).append(right)
    for left in _steps(comparison.left, executor):
        for right in rights.get(left.request.key, []):
            first = max(left.request.context_len, right.request.context_len)
            last = min(left.request.seq_len, right.request.seq_len) - comparison.last_rows
            if first >= last:
                continue
            for tensor in left.result.tensors:
                ours, theirs = left.rows(tensor, first, last), right.rows(tensor, first, last)
                if comparison.but_nan:
                    ours = torch.where(theirs.isnan(), theirs, ours)
                yield CommonRows(left.request.key, first, tensor, ours, theirs)


@dataclass(frozen=True)
class _Step:
    """One request of one executed problem."""

    request: Request
    result: RequestResult

    def rows(self, tensor: str, first: int, last: int) -> torch.Tensor:
        """The rows of a tensor at positions `first` to `last`."""
        return self.result.tensors[tensor][first - self.request.context_len : last - self.request.context_len]


def _steps(side: tuple[AnyProblem, ...], executor: Executor) -> list[_Step]:
    steps = []
    for problem in side:
        results = executor(problem).results
        steps += [_Step(request, results[request.key]) for request in problem.requests if request.key in results]
    return steps
