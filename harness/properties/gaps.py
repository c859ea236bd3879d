"""Drawn batches that lie in a gap that is known: what another suite tells of already is not looked for again.

A known gap names a check of some suite, and often one batch or geometry of it, which stand for all that are like them.
"""

from __future__ import annotations

from collections.abc import Iterator

from samebits.backends.problem import Mask, Problem
from samebits.backends.subject import Subject
from samebits.harness.relations import AnyProblem

# A table in which all options meet: of which of them the gap is, its name does not say.
_ANY_OPTION = "crossed"


def in_known_gap(subject: Subject, problem: AnyProblem, relation: str, device: str) -> bool:
    """Whether an implementation is known to fail on batches like a drawn one.

    Args:
        subject: whose gaps count.
        problem: the batch.
        relation: name of the relation that is checked.
        device: torch's device type.
    """
    checks = {relation, *_checks_like(problem)}
    mask = problem.mask if isinstance(problem, Problem) else None
    return any(
        (gap.relation is None or gap.relation in checks)
        and gap.mask in (None, mask)
        and gap.dtype in (None, problem.dtype)
        and gap.device in (None, device)
        for gap in subject.known_gaps
    )


def _checks_like(problem: AnyProblem) -> Iterator[str]:
    """Names of the checks of other suites that such a batch could be a case of."""
    yield from (_ANY_OPTION, problem.data, f"lse_{problem.data}")
    if isinstance(problem, Problem):
        geometry = problem.geometry
        options = {
            "window": problem.mask is Mask.SLIDING_WINDOW,
            "softcap": geometry.softcap is not None,
            "scale": geometry.scale is not None,
            "sinks": geometry.sinks,
            "behind_encoder": any(request.encoder_len for request in problem.requests),
        }
        yield from (name for name, has in options.items() if has)
