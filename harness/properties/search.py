"""Drawn comparisons computed one after another until one fails, which Hypothesis then makes smaller."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky, Unsatisfiable

from samebits.harness.executor import Executor
from samebits.harness.findings import ComputationFailed, Findings, find
from samebits.harness.properties.cases import Limits
from samebits.harness.properties.draws import CellDraws
from samebits.harness.relations import Comparison, Relation


@dataclass(frozen=True)
class Failure:
    """The smallest comparison found that fails.

    Attributes:
        comparison: what fails.
        findings: what it came to; None where something was raised.
        raised: what was; None where nothing was.
    """

    comparison: Comparison
    findings: Findings | None
    raised: ComputationFailed | None = None


@dataclass(frozen=True)
class Searched:
    """What a search came to.

    Attributes:
        findings: of each drawn comparison that does not fail.
        failure: None where none failed.
    """

    findings: tuple[Findings, ...]
    failure: Failure | None


class _Fails(Exception):
    """A comparison fails, by a rule of its own for each subclass, so that one failure does not shrink into another."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class _Raises(_Fails):
    """The implementation raises."""


class _IsFaulty(_Fails):
    """It breaks a rule."""


class _IsWrong(_Fails):
    """It uses more than its error budget."""


class _Differs(_Fails):
    """Bits differ that it claims to be the same."""


class _Enough(BaseException):
    """Ends a search whose failure has been made smaller for long enough. Hypothesis takes no exception for such."""


class _Property:
    """Holds or fails for a comparison; each is computed once."""

    def __init__(
        self,
        relation: Relation,
        executor: Executor,
        shrinks: int,
        fails_by_bits: bool,
        take_first_failure: Callable[[Findings], None],
    ) -> None:
        self.found: dict[Comparison, Findings] = {}
        self.last: _Fails | None = None
        self._relation, self._executor, self._fails_by_bits = relation, executor, fails_by_bits
        self._left = shrinks
        self._take_first_failure = take_first_failure
        self._failures: dict[Comparison, _Fails] = {}

    def check(self, comparison: Comparison) -> None:
        """Raises `_Fails` where a comparison fails."""
        if self.last is not None and comparison not in self._failures:
            if self._left == 0:
                raise _Enough
            self._left -= 1
        failure = self._failures.get(comparison) or self._computed(comparison)
        if failure is not None:
            if self.last is None and failure.failure.findings is not None:
                self._take_first_failure(failure.failure.findings)
            self.last = self._failures[comparison] = failure
            raise failure.with_traceback(None)

    def _computed(self, comparison: Comparison) -> _Fails | None:
        try:
            found = find([comparison], self._relation, self._executor)
        except ComputationFailed as error:
            if self._executor.device.type != "cpu":
                # The device may be lost: all that is smaller would raise, too.
                self._left = 0
            return _Raises(Failure(comparison, None, error))
        failure = Failure(comparison, found)
        if found.faults:
            return _IsFaulty(failure)
        if found.wrong:
            return _IsWrong(failure)
        if found.first is not None and self._fails_by_bits:
            return _Differs(failure)
        if self.last is None:
            self.found[comparison] = found
        return None


def search(
    comparisons: st.SearchStrategy[Comparison],
    relation: Relation,
    executor: Executor,
    limits: Limits,
    draws: CellDraws,
    *,
    fails_by_bits: bool,
    take_first_failure: Callable[[Findings], None],
) -> Searched:
    """Draws comparisons and computes them.

    Args:
        comparisons: what is drawn, of problems that the implementation has no reasons against.
        relation: that they are of.
        executor: runs the implementation.
        limits: how many.
        draws: from which seed, and where failing ones are kept.
        fails_by_bits: whether bits that differ are a failure, as they are where the relation is claimed.
        take_first_failure: is given what the first comparison that fails came to, before it is made smaller.
    """
    of_relation = _Property(relation, executor, limits.shrinks, fails_by_bits, take_first_failure)
    database = None if draws.kept is None else DirectoryBasedExampleDatabase(draws.kept)

    @settings(
        max_examples=limits.examples,
        database=database,
        deadline=None,
        # A kernel is slow, and a cell draws what its relation says something about.
        suppress_health_check=list(HealthCheck),
        phases=(Phase.reuse, Phase.generate, *([Phase.shrink] if limits.shrinks else [])),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    @seed(draws.seed)
    @given(comparisons)
    def holds(comparison: Comparison) -> None:
        of_relation.check(comparison)

    failure = None
    try:
        holds()
    except _Fails as fails:
        failure = fails.failure
    except (Flaky, _Enough):
        # It is small enough; or it failed once and not again, which is a finding all the same.
        assert of_relation.last is not None
        failure = of_relation.last.failure
    except Unsatisfiable:
        pass  # Nothing that was drawn is the relation's, or supported: no comparison was found.
    return Searched(tuple(of_relation.found.values()), failure)


def merged(findings: Sequence[Findings]) -> Findings:
    """What several comparisons came to together."""
    worst = max(findings, key=lambda found: found.error_budget)
    digest = hashlib.blake2b(digest_size=16)
    for found in findings:
        digest.update(found.digest.encode())
    return replace(
        worst,
        compared=sum(found.compared for found in findings),
        mismatches=sum(found.mismatches for found in findings),
        max_ulp=max(found.max_ulp for found in findings),
        first=next((found.first for found in findings if found.first is not None), None),
        digest=digest.hexdigest(),
    )
