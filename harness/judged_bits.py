"""Judgements of results by their bits: relations make the same bits again and again, and each is judged once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from samebits.harness.accuracy import Judgement
from samebits.harness.bounded_cache import BoundedCache
from samebits.harness.relations import AnyProblem

# A judgement is a few numbers and a sentence for each tensor.
_KEPT_JUDGEMENTS = 8192
_KEPT: BoundedCache[tuple[AnyProblem, tuple[str, ...], str], Mapping[str, Judgement]] = BoundedCache(
    _KEPT_JUDGEMENTS, _KEPT_JUDGEMENTS, lambda judgements: 1
)


def judged_once(
    problem: AnyProblem, names: tuple[str, ...], digest: str, judge: Callable[[], Mapping[str, Judgement]]
) -> Mapping[str, Judgement]:
    """The judgements of some bits, made now or taken from when they came last.

    Where a batch lies in memory, and what surrounds its computation, decides neither its data nor its reference.

    Args:
        problem: what was computed.
        names: of the tensors that were.
        digest: of all bits of the results.
        judge: holds the results against the reference.
    """
    return _KEPT.get((problem.without_surroundings(), names, digest), judge)
