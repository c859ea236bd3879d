"""The cells of the properties suite: one for each implementation and relation, in a dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from samebits.backends.contract import Implementation
from samebits.harness.controls.drawn import DRAWN_FLAWS
from samebits.harness.controls.kernels import control_cell
from samebits.harness.controls.schedules import ScheduledKernel
from samebits.harness.matrix import Cell, Selection, TieredCase
from samebits.harness.properties.cases import Bounds, DrawnCase, Limits
from samebits.harness.properties.relations import DRAWN_RELATIONS
from samebits.harness.relations import Relation

SUITE = "properties"
# How many batches by tier, and how large; fewer and smaller for what an interpreter runs, and smaller for controls.
_EXAMPLES = {"smoke": 2, "default": 6, "nightly": 300}
_COSTLY_EXAMPLES = {"smoke": 2, "default": 4, "nightly": 40}
_BOUNDS, _SMALL_BOUNDS = Bounds(requests=12, tokens=110, keys=1100), Bounds(requests=6, tokens=70, keys=400)
_SHRINKS, _COSTLY_SHRINKS = 300, 40
_CONTROL = DrawnCase(Limits(examples=16, shrinks=0), Bounds(requests=4, tokens=32, keys=128), finite=True)
_DTYPES = ("fp32", "bf16")


def properties_cells(selection: Selection) -> Iterator[Cell]:
    """Every relation of attention, and correctness, on batches that are drawn."""
    for flaw in DRAWN_FLAWS:
        check = DRAWN_RELATIONS[flaw.check]
        yield control_cell(SUITE, ScheduledKernel(flaw), check, _CONTROL, "fp32", selection.seed)
    for implementation in selection.attention:
        yield from selection.cells(SUITE, implementation, _checked(implementation, selection.tier))


def _checked(implementation: Implementation[Any], tier: str) -> Iterator[tuple[Relation, TieredCase]]:
    """The relations, each with what is drawn for it in a tier."""
    case = DrawnCase(Limits(_EXAMPLES[tier], _SHRINKS), _BOUNDS)
    slow = implementation.costly or implementation.interpreted
    if slow:
        case = DrawnCase(Limits(_COSTLY_EXAMPLES[tier], _COSTLY_SHRINKS), _SMALL_BOUNDS)
    for place, relation in enumerate(DRAWN_RELATIONS.values()):
        claimed = relation.claim is None or bool(getattr(implementation.claims, relation.claim))
        # What takes seconds is asked, below the nightly tier, for what it claims only.
        smallest = "smoke" if claimed or not slow else "nightly"
        yield relation, TieredCase(case, smallest, _dtypes(implementation, place, relation))


def _dtypes(implementation: Implementation[Any], place: int, relation: Relation) -> tuple[str, ...]:
    """The dtypes that a relation has below the nightly tier: two relations that follow one another have one each.

    What seldom depends on the dtype need not take twice as long; whether a batch is right does, and has both. What is
    costly, or compiled for each dtype, has one for all.
    """
    known = tuple(dtype for dtype in _DTYPES if dtype in implementation.support.dtypes) or _DTYPES
    if implementation.costly or implementation.compiles_each_shape:
        return known[:1]
    return known if relation.claim is None else (known[place % len(known)],)
