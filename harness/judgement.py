"""A cell made into a record: run, compared, judged against what the implementation claims."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from samebits.backends.contract import Availability, Implementation, KnownGap
from samebits.backends.subject import Subject
from samebits.harness.environment import environment
from samebits.harness.executor import Executor, reasons_against
from samebits.harness.explain.row import OF_A_ROW, explained
from samebits.harness.explanation import Explanation
from samebits.harness.far_memory import distance_reasons
from samebits.harness.findings import ComputationFailed, Findings, find, first_difference
from samebits.harness.full_sizes import size_reasons
from samebits.harness.graphs.reasons import device_reasons
from samebits.harness.matrix import Cell, Flaw, Symptom
from samebits.harness.records import Record, Verdict
from samebits.harness.relations import AnyProblem, Comparison
from samebits.harness.repro.line import repro_line
from samebits.harness.shrink import describe
from samebits.harness.smallest import failing_comparison, smallest_failure

# Takes the record of a cell that did not hold, before its batch is made smaller.
TakeFound = Callable[[Record], None]
# A row of these that shows a difference says why.
_EXPLAINED = (Verdict.FAIL, Verdict.VARIES)


def judge(
    cell: Cell,
    availability: Availability,
    executor: Executor,
    command: str,
    options: Sequence[str] = (),
    take_found: TakeFound | None = None,
) -> Record:
    """Runs a cell and says what it came to. Never raises for what an implementation does.

    Args:
        cell: what to check.
        availability: of its implementation.
        executor: runs its implementation.
        command: reproduces the cell alone.
        options: words by which `samebits repro` loads what this session loaded.
        take_found: is given the record of a cell that did not hold before its batch is made smaller, which may end the
            process; None for nobody.
    """

    def examine(_: Callable[[Findings], None]) -> Findings | tuple[str, ...]:
        reasons = computing_reasons(cell, availability)
        return reasons or find(cell.comparisons, cell.relation, executor)

    return judge_examined(cell, availability, executor, command, options, examine, take_found)


def judge_examined(
    cell: Cell,
    availability: Availability,
    executor: Executor,
    command: str,
    options: Sequence[str],
    examine: Callable[[Callable[[Findings], None]], Findings | tuple[str, ...]],
    take_found: TakeFound | None = None,
) -> Record:
    """Examines a cell and says what it came to. Never raises for what an implementation does.

    Args:
        cell: what to check.
        availability: of its implementation.
        executor: runs its implementation.
        command: reproduces the cell alone.
        options: words by which `samebits repro` loads what this session loaded.
        examine: makes the findings of the cell, or says why there are none, one sentence each. Hands on those of a
            batch that fails before it makes it smaller by itself.
        take_found: as of `judge`.
    """
    started = time.perf_counter()
    record = unjudged(cell, availability, command)

    def concluded(findings: Findings) -> Record:
        verdict, reasons = _conclude(cell, findings, bool(record.claimed), availability.device)
        return replace(
            record,
            verdict=verdict,
            reasons=reasons,
            compared=findings.compared,
            mismatches=findings.mismatches,
            max_ulp=findings.max_ulp,
            error_budget=findings.error_budget,
            digest=findings.digest,
            seconds=time.perf_counter() - started,
        )

    def shown_by(found: Record, batch: Comparison) -> Record:
        return replace(found, smallest_batch=describe(batch), repro=_told_again(cell, batch, options))

    def hand_on(findings: Findings) -> None:
        batch = failing_comparison(findings)
        # A control that is not held against its parent yet says nothing.
        if take_found is not None and batch is not None and cell.flaw is None:
            take_found(shown_by(concluded(findings), batch))

    if not availability.available:
        return _absent(record, availability)
    try:
        findings = examine(hand_on)
        if isinstance(findings, tuple):
            return replace(record, verdict=Verdict.UNSUPPORTED, reasons=findings)
        if cell.relation.claim is not None and not findings.compared:
            told = f"{cell.relation.name} compared nothing on {cell.case.case_id}"
            raise RuntimeError(f"{told}; it must compare something")
        found = concluded(findings)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Whatever ends the process, or a test of pytest's, costs its own cell alone.
        failed = error.problem if isinstance(error, ComputationFailed) else None
        raised = error.__cause__ or error if failed else error
        reason = told_error(raised)
        verdict, reasons = _excused(cell, availability.device, Verdict.ERROR, (reason,), type(raised).__name__)
        again = _told_again(cell, Comparison((failed,), ()), options) if failed else ""
        return replace(record, verdict=verdict, reasons=reasons, repro=again, seconds=time.perf_counter() - started)
    try:
        hand_on(findings)
        expected = cell.flaw is not None or found.verdict is Verdict.KNOWN
        smallest = smallest_failure(cell, findings, executor, expected=expected)
        found = found if smallest is None else shown_by(found, smallest)
        explanation = _explanation(cell, found.verdict, findings, smallest, executor)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        found, explanation = cut_short(found, told_error(error)), None
    return replace(found, explanation=explanation, seconds=time.perf_counter() - started)


def judge_given_up(
    cell: Cell,
    availability: Availability,
    command: str,
    reasons_against_it: Callable[[], tuple[str, ...]],
    given_up: str,
) -> Record:
    """What a cell comes to of whose implementation nothing is computed any more.

    Args:
        cell: what was to be checked.
        availability: of its implementation.
        command: reproduces the cell alone.
        reasons_against_it: says why the cell could not be computed anyway, one sentence each.
        given_up: why nothing is computed.
    """
    record = unjudged(cell, availability, command)
    if not availability.available:
        return _absent(record, availability)
    try:
        reasons = reasons_against_it()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return replace(record, verdict=Verdict.ERROR, reasons=(told_error(error),))
    if reasons:
        return replace(record, verdict=Verdict.UNSUPPORTED, reasons=reasons)
    return replace(record, verdict=Verdict.ERROR, reasons=(given_up,))


def _absent(record: Record, availability: Availability) -> Record:
    verdict = Verdict.ERROR if availability.probe_failed else Verdict.UNAVAILABLE
    return replace(record, verdict=verdict, reasons=(availability.reason,))


def cut_short(found: Record, reason: str) -> Record:
    """The record of a cell that did not hold, when what ended the search for a smaller batch is known.

    A failure is one, whatever a smaller batch does. What would not be red is an error: the implementation broke.

    Args:
        found: as it was before.
        reason: what ended the search, as a clause.
    """
    if found.verdict is Verdict.FAIL:
        return replace(found, reasons=(*found.reasons, f"no smaller batch was found: {reason}"))
    told = f"when a batch that shows {found.verdict} was made smaller: {reason}"
    return replace(found, verdict=Verdict.ERROR, reasons=(told, *found.reasons))


def told_error(error: BaseException) -> str:
    """What was raised, in one line; its own way to tell of itself may raise, too."""
    try:
        message = " ".join(str(error).split())[:2000]
    except BaseException:
        message = "its message cannot be told"
    return f"{type(error).__name__}: {message}"


def _told_again(cell: Cell, comparison: Comparison, options: Sequence[str]) -> str:
    return repro_line(cell.implementation.label, cell.relation.name, comparison, options)


def _explanation(
    cell: Cell, verdict: Verdict, findings: Findings, smallest: Comparison | None, executor: Executor
) -> Explanation | None:
    """Why bits differ, of a row that fails or varies and is no control."""
    if findings.first is None or smallest is None or cell.flaw is not None or verdict not in _EXPLAINED:
        return None
    # What is wrong by itself has one side.
    located = first_difference(smallest, executor) if smallest.right else findings.first
    return explained(located or findings.first, executor, OF_A_ROW)


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


def computing_reasons(cell: Cell, availability: Availability) -> tuple[str, ...]:
    """Why a cell's problems cannot be computed, one sentence each; empty when they can.

    Args:
        cell: what is to be checked.
        availability: of its implementation.
    """
    problems = dict.fromkeys(p for comparison in cell.comparisons for p in (*comparison.left, *comparison.right))
    reasons = [reason for problem in problems for reason in _told_reasons(cell.implementation, problem)]
    if isinstance(cell.implementation, Implementation) and cell.relation.judged == ("lse",):
        reasons += [] if cell.implementation.support.lse else ["no log-sum-exp is returned"]
    if availability.device != "cpu" and any(problem.circumstances.threads for problem in problems):
        reasons.append(f"it computes on {availability.device}, where there are no threads to choose")
    reasons += [reason for problem in problems for reason in device_reasons(problem, availability.device)]
    reasons += [reason for problem in problems for reason in distance_reasons(problem, availability.device)]
    reasons += size_reasons(cell.case, availability.device)
    return tuple(dict.fromkeys(reasons))


def _told_reasons(implementation: Subject, problem: AnyProblem) -> list[str]:
    reasons = reasons_against(implementation, problem)
    if not isinstance(reasons, list):
        raise TypeError(f"reasons() returned {reasons!r}; it must return a list of sentences")
    return reasons


def _conclude(cell: Cell, findings: Findings, claimed: bool, device: str) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons. Correctness comes first: garbage can be perfectly invariant."""
    reasons = list(findings.faults)
    if findings.wrong:
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
    wrong, faulty = findings.wrong, bool(findings.faults)
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
