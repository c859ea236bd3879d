"""The run-to-run suite: the same call again, and what surrounds it changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import Circumstances, OtherLayer, Problem
from samebits.harness.other_layer import other_layer
from samebits.harness.relations import AnyProblem, Comparison, Relation

# How often a call is made, by tier.
ATTEMPTS = {"smoke": 30, "default": 30, "nightly": 200}
# Every vector width divides 64 bytes, and allocators align to no more than 256.
_ALIGNMENT, _SHIFTS = 16, 16
# Attempts, among them one of two calls and one behind another layer.
_WITHOUT_LSE = (1, 3, 6, 8, 11)


def repeated(attempts: int) -> Relation:
    """The same call many times: on other addresses, with other scratch, beside other work, behind another layer.

    Args:
        attempts: calls, the first one among them.
    """

    def compare(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
        yield Comparison((problem,), ())
        # Before anything else of the other layer, so that what was kept is the problem's, by sizes as by address.
        in_place = Circumstances(other_layer=OtherLayer.IN_PLACE)
        yield Comparison((replace(other_layer(problem), circumstances=in_place),), ())
        for attempt in range(1, attempts):
            circumstances = Circumstances(
                attempt=attempt,
                scratch=("nan", "large")[attempt % 2],
                shift=_ALIGNMENT * (attempt % _SHIFTS),
                beside_work=attempt % 4 >= 2,
                # An engine plans a step once and computes every layer with it.
                calls=2 if attempt % 16 == 1 else 1,
                other_layer=OtherLayer.INTERLEAVED if attempt % 16 == 3 else None,
                # Attention has another path where no log-sum-exp is asked for, which is the one that engines take.
                output_only=attempt % 32 in _WITHOUT_LSE and isinstance(problem, Problem),
            )
            first = replace(problem, circumstances=Circumstances(output_only=circumstances.output_only))
            yield Comparison((first,), (replace(problem, circumstances=circumstances),))

    description = (
        f"{attempts} times, on other addresses, with other scratch, beside other work, with a plan used before, behind "
        "another layer"
    )
    return Relation("repeated", "deterministic", description, compare)


def _threads(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
    one, two = (replace(problem, circumstances=Circumstances(threads=threads)) for threads in (1, 2))
    yield Comparison((one,), (two,))


def _second_process(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
    yield Comparison((problem,), (replace(problem, circumstances=Circumstances(second_process=True)),))


THREADS = Relation("threads", "thread_invariant", "on one thread and on two", _threads)
SECOND_PROCESS = Relation(
    "second_process", "deterministic", "in a process of its own too, behind another first call", _second_process
)
