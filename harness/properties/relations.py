"""What the properties suite checks of a drawn batch: every relation of attention, and that it is right at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from samebits.backends.contract import Tiling
from samebits.backends.problem import Problem
from samebits.harness.relations import RELATIONS, Comparison, Relation


def _itself(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
    yield Comparison((problem,), ())


REFERENCE = Relation("reference", None, "right, whatever is drawn", _itself)
DRAWN_RELATIONS: Mapping[str, Relation] = {**RELATIONS, REFERENCE.name: REFERENCE}
