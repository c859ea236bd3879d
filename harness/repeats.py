"""The run-to-run suite: the same call again, and what surrounds it changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import Circumstances
from samebits.harness.relations import AnyProblem, Comparison, Relation

# How often a call is made, by tier.
ATTEMPTS = {"smoke": 30, "default": 30, "nightly": 200}
# Every vector width divides 64 bytes, and allocators align to no more than 256.
_ALIGNMENT, _SHIFTS = 16, 16


def repeated(attempts: int) -> Relation:
    """The same call many times: on other addresses, with other scratch, beside other work and without.

    Args:
        attempts: calls, the first one among them.
    """

    def compare(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
        for attempt in range(1, attempts):
            circumstances = Circumstances(
                attempt=attempt,
                scratch=("nan", "large")[attempt % 2],
                shift=_ALIGNMENT * (attempt % _SHIFTS),
                beside_work=attempt % 4 >= 2,
                # An engine plans a step once and computes every layer with it.
                calls=2 if attempt % 8 == 1 else 1,
            )
            yield Comparison((problem,), (replace(problem, circumstances=circumstances),))

    description = (
        f"{attempts} times, on other addresses, with other scratch, beside other work, with a plan used before"
    )
    return Relation("repeated", "deterministic", description, compare)


def _threads(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
    one, two = (replace(problem, circumstances=Circumstances(threads=threads)) for threads in (1, 2))
    yield Comparison((one,), (two,))


THREADS = Relation("threads", "thread_invariant", "on one thread and on two", _threads)
