"""The matrix: every cell that a selection holds, named and in order, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from samebits.backends.problem import DTYPE_NAMES, Mask, Problem
from samebits.harness.arithmetic_controls import DEGRADATIONS, TiledKernel
from samebits.harness.cases import Case, cases
from samebits.harness.controls import controls
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.inputs import INPUTS
from samebits.harness.registry import AnyImplementation
from samebits.harness.relations import RELATIONS, Comparison, Relation

_CONTROL_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "mixed", "smoke", ("fp32",))
_LONG_CONTROL_CASE = Case(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "long", "smoke", ("fp32", "bf16"))


class Fault(Protocol):
    """What is wrong with a control.

    Attributes:
        name: of the control.
        description: in a line.
        wrong_values: True where only the error budget can see it, False where bits must differ.
    """

    @property
    def name(self) -> str:
        """Name of the control."""

    @property
    def description(self) -> str:
        """What it does wrong, in a line."""

    @property
    def wrong_values(self) -> bool:
        """Whether only the error budget can see it."""


@dataclass(frozen=True)
class Selection:
    """What a run covers.

    Attributes:
        implementations: in the order of tables.
        dtypes: names of dtypes; empty for those that the tier gives each case.
        tier: name of the tier.
        seed: of all data.
    """

    implementations: tuple[AnyImplementation, ...]
    dtypes: tuple[str, ...]
    tier: str
    seed: int = 0

    def cases_of(self, implementation: AnyImplementation) -> Iterator[Case]:
        """The cases that an implementation is run on."""
        return cases("smoke" if implementation.costly and self.tier == "default" else self.tier)

    def dtypes_of(self, case: Case) -> tuple[str, ...]:
        """The dtypes that a case is run in."""
        return self.dtypes or (DTYPE_NAMES if self.tier == "nightly" else case.dtypes)


@dataclass(frozen=True)
class Cell:
    """One relation of one implementation on one case in one dtype.

    Attributes:
        suite: name of the suite, which is also its pytest mark.
        implementation: what is checked.
        relation: what must hold.
        case: on which base problem.
        dtype: in which dtype.
        tier: smallest tier that holds the cell.
        seed: of all data.
        flaw: what is broken on purpose; None unless the cell is a control.
    """

    suite: str
    implementation: AnyImplementation
    relation: Relation
    case: Case
    dtype: str
    tier: str
    seed: int
    flaw: Fault | None = None

    @property
    def cell_id(self) -> str:
        """Names the cell across runs and machines."""
        seed = f":seed{self.seed}" if self.seed else ""
        return f"{self.implementation.label}:{self.relation.name}:{self.case.case_id}:{self.dtype}{seed}"

    @property
    def problem(self) -> Problem:
        """The base problem, with poison that the implementation claims to withstand."""
        problem = self.case.problem(self.dtype, self.implementation.tiling, self.seed)
        poison = "nan" if self.implementation.claims.ignores_unread_memory else "large"
        return problem.with_layout(poison=poison)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """What must agree."""
        return tuple(self.relation.compare(self.problem, self.implementation.tiling))


def dtype_cells(selection: Selection) -> Iterator[Cell]:
    """The cells of the dtype suite: every kind of data on each mask's case, in every dtype that is supported."""
    suite = "dtype"
    for degradation in DEGRADATIONS:
        control, check = TiledKernel(degradation), INPUTS[degradation.data]
        yield Cell(suite, control, check, _LONG_CONTROL_CASE, degradation.dtype, "smoke", selection.seed, degradation)
    for implementation in selection.implementations:
        for case in cases("nightly" if selection.tier == "nightly" else "smoke"):
            # fp32 and bf16 leave rows even where they are not supported; fp16 is a dtype of those that have it.
            for dtype in selection.dtypes or dict.fromkeys(("fp32", "bf16", *implementation.support.dtypes)):
                for check in INPUTS.values():
                    yield Cell(suite, implementation, check, case, dtype, _dtype_tier(case), selection.seed)


def _dtype_tier(case: Case) -> str:
    """The dtype suite has the smoke tier's cases in every tier, and the others in the nightly one."""
    return "smoke" if case.tier == "smoke" else "nightly"


def batch_invariance_cells(selection: Selection) -> Iterator[Cell]:
    """The cells of the batch-invariance suite: controls first, then every implementation.

    A cell without comparisons is no cell: its relation says nothing about such a case.
    """
    suite = "batch_invariant"
    for relation in RELATIONS.values():
        for control in controls(relation.name):
            yield Cell(suite, control, relation, _CONTROL_CASE, "fp32", "smoke", selection.seed, control.flaw)
    for implementation in selection.implementations:
        for case in selection.cases_of(implementation):
            for dtype in selection.dtypes_of(case):
                left_out = case.tier == "default" and implementation.costly
                tier = "nightly" if left_out or dtype not in case.dtypes else case.tier
                for relation in RELATIONS.values():
                    cell = Cell(suite, implementation, relation, case, dtype, tier, selection.seed)
                    if cell.comparisons:
                        yield cell
