"""A cell made into a record: run, compared, judged against what the implementation claims."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from samebits.backends.contract import Availability, Claims, Implementation, KnownGap
from samebits.backends.problem import Request
from samebits.backends.subject import Subject
from samebits.harness.accuracy import Judgement, described_place
from samebits.harness.comparison import Difference, compare_bits
from samebits.harness.environment import environment
from samebits.harness.execution import RequestResult
from samebits.harness.executor import Executor, reasons_against
from samebits.harness.full_sizes import FullCase, size_reasons
from samebits.harness.graphs.reasons import device_reasons
from samebits.harness.matrix import Cell, Flaw, Symptom
from samebits.harness.records import Record, Verdict
from samebits.harness.relations import AnyProblem, Comparison
from samebits.harness.shrink import describe, shrink

# Smaller batches to try for each difference: enough for the pairs of a case's requests, few enough for an interpreter.
_SHRINK_ATTEMPTS = 12
_COSTLY_SHRINK_ATTEMPTS = 4


@dataclass(frozen=True)
class Located:
    """A difference and where it was found."""

    comparison: Comparison
    request_key: int
    first_position: int
    tensor: str
    difference: Difference

    def __str__(self) -> str:
        row, *inner = self.difference.first
        place = described_place(self.tensor, (self.first_position + row, *inner)).replace("row", "position", 1)
        return f"{self.difference} in the {place} of request r{self.request_key}"


@dataclass(frozen=True)
class Findings:
    """What running a cell came to.

    Attributes:
        compared, mismatches, max_ulp: over all comparisons; where no claim is judged, `max_ulp` is the distance from
            the reference.
        first: the first difference; None where all bits agree.
        error_budget, worst: of all executions that the implementation claims to withstand.
        faults: what else went wrong.
        digest: of all outputs.
    """

    compared: int
    mismatches: int
    max_ulp: int
    first: Located | None
    error_budget: float
    worst: str
    faults: tuple[str, ...]
    digest: str


def judge(cell: Cell, availability: Availability, executor: Executor, command: str) -> Record:
    """Runs a cell and says what it came to. Never raises for what an implementation does.

    Args:
        cell: what to check.
        availability: of its implementation.
        executor: runs its implementation.
        command: reproduces the cell alone.
    """
    started = time.perf_counter()
    record = unjudged(cell, availability, command)
    if not availability.available:
        return replace(record, reasons=(availability.reason,))
    try:
        reasons = _reasons(cell, availability)
        if reasons:
            return replace(record, verdict=Verdict.UNSUPPORTED, reasons=reasons)
        findings = _find(cell, executor)
        verdict, reasons = _conclude(cell, findings, bool(record.claimed), availability.device)
        smallest = _smallest(cell, findings, executor)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Whatever ends the process, or a test of pytest's, costs its own cell alone.
        message = " ".join(str(error).split())[:2000]
        raised = type(error).__name__
        verdict, reasons = _excused(cell, availability.device, Verdict.ERROR, (f"{raised}: {message}",), raised)
        return replace(record, verdict=verdict, reasons=reasons, seconds=time.perf_counter() - started)
    return replace(
        record,
        verdict=verdict,
        reasons=reasons,
        compared=findings.compared,
        mismatches=findings.mismatches,
        max_ulp=findings.max_ulp,
        error_budget=findings.error_budget,
        digest=findings.digest,
        smallest_batch=smallest,
        seconds=time.perf_counter() - started,
    )


def told_apart(control: Record, parent: Record) -> Record:
    """A control's record, held against that of its parent: a check that fails both tells nothing apart.

    Args:
        control: as it was judged.
        parent: of the same cell of the implementation that the control was broken from.
    """
    if control.red:
        return control
    if parent.verdict is Verdict.PASS:
        return replace(control, reasons=(*control.reasons, f"{parent.label} passes"))
    told = f"control not told from {parent.label}, which is right and comes to {parent.verdict}"
    return replace(control, verdict=Verdict.PASS, reasons=(f"{told}: {'; '.join(parent.reasons)}", *control.reasons))


def unjudged(cell: Cell, availability: Availability, command: str) -> Record:
    """The record of a cell that has not been run: `unavailable` until something is known.

    Args:
        cell: what is to be checked.
        availability: of its implementation.
        command: reproduces the cell alone.
    """
    implementation, claim = cell.implementation, cell.relation.claim
    return Record(
        cell_id=cell.cell_id,
        suite=cell.suite,
        relation=cell.relation.name,
        case=cell.case.case_id,
        backend=implementation.backend,
        implementation=implementation.name,
        variant=implementation.variant,
        version=availability.version,
        operation=implementation.operation,
        dtype=cell.dtype,
        mask="" if cell.case.mask is None else cell.case.mask.value,
        geometry=cell.case.geometry.name,
        tier=cell.tier,
        verdict=Verdict.UNAVAILABLE,
        environment=environment(availability.device),
        seed=cell.seed,
        command=command,
        control=cell.flaw is not None,
        claimed=None if claim is None else bool(getattr(implementation.claims, claim)),
        configuration=dict(implementation.configuration),
    )


def _reasons(cell: Cell, availability: Availability) -> tuple[str, ...]:
    problems = dict.fromkeys(p for comparison in cell.comparisons for p in (*comparison.left, *comparison.right))
    reasons = [reason for problem in problems for reason in _told_reasons(cell.implementation, problem)]
    if isinstance(cell.implementation, Implementation) and cell.relation.judged == ("lse",):
        reasons += [] if cell.implementation.support.lse else ["no log-sum-exp is returned"]
    if availability.device != "cpu" and any(problem.circumstances.threads for problem in problems):
        reasons.append(f"it computes on {availability.device}, where there are no threads to choose")
    reasons += [reason for problem in problems for reason in device_reasons(problem, availability.device)]
    reasons += size_reasons(cell.case, availability.device)
    return tuple(dict.fromkeys(reasons))


def _told_reasons(implementation: Subject, problem: AnyProblem) -> list[str]:
    reasons = reasons_against(implementation, problem)
    if not isinstance(reasons, list):
        raise TypeError(f"reasons() returned {reasons!r}; it must return a list of sentences")
    return reasons


def _find(cell: Cell, executor: Executor) -> Findings:
    compared = mismatches = max_ulp = 0
    first: Located | None = None
    judged: dict[AnyProblem, Judgement] = {}
    faults: dict[str, None] = {}
    digest = hashlib.blake2b(digest_size=16)
    for comparison in cell.comparisons:
        for problem in (*comparison.left, *comparison.right):
            execution = executor(problem)
            digest.update(execution.digest.encode())
            if _is_withstood(problem, cell.implementation.claims):
                judged[problem] = execution.judged(cell.relation.judged or execution.judgements)
            faults |= dict.fromkeys(execution.faults)
        for located in _differences(comparison, executor):
            compared += located.difference.compared
            mismatches += located.difference.mismatches
            max_ulp = max(max_ulp, located.difference.max_ulp)
            if located.difference.mismatches and first is None:
                first = located
    if cell.relation.claim is not None and not compared:
        raise RuntimeError(f"{cell.relation.name} compared nothing on {cell.case.case_id}; it must compare something")
    worst = max(judged.values(), key=lambda judgement: judgement.error_budget)
    if cell.relation.claim is None:
        max_ulp = max(judgement.max_ulp for judgement in judged.values())
    return Findings(
        compared=compared,
        mismatches=mismatches,
        max_ulp=max_ulp,
        first=first,
        error_budget=worst.error_budget,
        worst=worst.worst,
        faults=tuple(faults),
        digest=digest.hexdigest(),
    )


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


def smallest_difference(cell: Cell, executor: Executor) -> Located | None:
    """The first difference of the smallest batch found that shows one; None where all bits agree.

    Args:
        cell: what to check; its implementation is available, and without reasons against its problems.
        executor: runs its implementation.
    """
    first = _find(cell, executor).first
    return None if first is None else next(_different(_shrunk(cell, first, executor), executor))


def _different(comparison: Comparison, executor: Executor) -> Iterator[Located]:
    return (located for located in _differences(comparison, executor) if located.difference.mismatches)


def _differences(comparison: Comparison, executor: Executor) -> Iterator[Located]:
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


def _conclude(cell: Cell, findings: Findings, claimed: bool, device: str) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons. Correctness comes first: garbage can be perfectly invariant."""
    reasons = list(findings.faults)
    if not findings.error_budget <= 1.0:
        reasons.append(f"{findings.error_budget:.3g} of the error budget used at {findings.worst}")
    wrong = bool(reasons)
    if findings.first is not None:
        promise = f"claims {cell.relation.claim}, but" if claimed else f"claims no {cell.relation.claim}:"
        reasons.append(
            f"{promise} {findings.mismatches} of {findings.compared} elements differ; first {findings.first}"
        )
    if cell.flaw is not None:
        return _control_verdict(cell.flaw, findings, tuple(reasons))
    if findings.faults:
        return Verdict.FAIL, tuple(reasons)
    if wrong or (findings.first is not None and claimed):
        return _excused(cell, device, Verdict.FAIL, tuple(reasons))
    gap = _known_gap(cell, device)
    if gap and gap.always:
        return Verdict.FAIL, (f"passes, though {gap.issue} says that it is known to fail: remove the known gap",)
    return (Verdict.VARIES if findings.first is not None else Verdict.PASS), tuple(reasons)


def _control_verdict(flaw: Flaw, findings: Findings, reasons: tuple[str, ...]) -> tuple[Verdict, tuple[str, ...]]:
    """A control is caught only by what it was made to break, and by nothing that it was not."""
    wrong, faulty = findings.error_budget > 1.0, bool(findings.faults)
    caught = {
        Symptom.BITS: findings.mismatches > 0 and not (wrong or faulty),
        Symptom.VALUES: wrong,
        Symptom.FAULT: faulty and not wrong,
    }
    if caught[flaw.symptom]:
        return Verdict.FAIL, (f"control: {flaw.description}", *reasons)
    return Verdict.PASS, (f"control not caught: {flaw.description}", *reasons)


def _excused(
    cell: Cell, device: str, verdict: Verdict, reasons: tuple[str, ...], raised: str | None = None
) -> tuple[Verdict, tuple[str, ...]]:
    gap = _known_gap(cell, device)
    if gap is None or gap.raises != raised:
        return verdict, reasons
    return Verdict.KNOWN, (f"known: {gap.issue}", *reasons)


def _known_gap(cell: Cell, device: str) -> KnownGap | None:
    for gap in cell.implementation.known_gaps:
        if gap.matches(cell.relation.name, cell.case.mask, cell.dtype, cell.case.case_id, device):
            return gap
    return None


def _smallest(cell: Cell, findings: Findings, executor: Executor) -> str:
    return "" if findings.first is None else describe(_shrunk(cell, findings.first, executor))


def _shrunk(cell: Cell, first: Located, executor: Executor) -> Comparison:
    """The smallest comparison found in which a request still differs."""

    def differs(comparison: Comparison) -> bool:
        problems = (*comparison.left, *comparison.right)
        if any(reasons_against(executor.subject, problem) for problem in problems):
            return False
        try:
            return any(_different(comparison, executor))
        except Exception:
            # A smaller batch that raises is another matter, and must not hide the difference that was found.
            return False

    # At full size each other length is drawn anew, and has a reference of its own.
    costly = executor.subject.costly or isinstance(cell.case, FullCase)
    attempts = _COSTLY_SHRINK_ATTEMPTS if costly else _SHRINK_ATTEMPTS
    return shrink(first.comparison, differs, attempts, first.request_key)
