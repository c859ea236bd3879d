"""The matrix: what a run covers, and one cell of it."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from samebits.backends.contract import Implementation, Tiling
from samebits.backends.operations import TokenImplementation
from samebits.backends.platform import accelerator
from samebits.backends.problem import DTYPE_NAMES, Mask
from samebits.backends.subject import Subject
from samebits.harness.cases import Case, cases
from samebits.harness.relations import AnyProblem, Comparison, Relation


class Symptom(StrEnum):
    """What gives a flaw away.

    * `BITS`: it is right, but bits differ where they must agree.
    * `VALUES`: it uses more than its error budget.
    * `FAULT`: it is right, but breaks another rule: it writes outside of its results, or changes its inputs.
    """

    BITS = "bits"
    VALUES = "values"
    FAULT = "fault"


@dataclass(frozen=True)
class Flaw:
    """What is broken on purpose in a control.

    Attributes:
        name: of the control.
        check: name of the check that must see it.
        description: what it does wrong, in a line.
        symptom: by what the check must see it.
    """

    name: str
    check: str
    description: str
    symptom: Symptom = field(default=Symptom.VALUES, kw_only=True)


class Named(Protocol):
    """A geometry, or the sizes of an operation."""

    @property
    def name(self) -> str:
        """Short name used in case ids."""


class AnyCase(Hashable, Protocol):
    """A base problem of any operation, apart from dtype and tiling.

    Attributes:
        mask: which keys a query sees; None where nothing is attended to.
        tier: smallest tier that holds the case.
        dtypes: those it has in that tier.
    """

    @property
    def mask(self) -> Mask | None:
        """Which keys a query sees; None where nothing is attended to."""

    @property
    def geometry(self) -> Named:
        """The sizes of what is computed."""

    @property
    def tier(self) -> str:
        """Smallest tier that holds the case."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes it has in that tier."""

    @property
    def case_id(self) -> str:
        """Names the case across runs."""

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> AnyProblem:
        """The base problem for an implementation's tiling."""


@dataclass(frozen=True)
class Selection:
    """What a run covers.

    Attributes:
        implementations: of every operation, in the order of tables.
        dtypes: names of dtypes; empty for those that the tier gives each case.
        tier: name of the tier.
        seed: of all data.
        platform: kind of platform that is run on, of `PLATFORMS`: GPUs have cases of full size besides.
    """

    implementations: tuple[Subject, ...]
    dtypes: tuple[str, ...]
    tier: str
    seed: int = 0
    platform: str = field(default_factory=lambda: accelerator().kind)

    @property
    def attention(self) -> list[Implementation[Any]]:
        """The implementations of attention."""
        return [subject for subject in self.implementations if isinstance(subject, Implementation)]

    def of_tokens(self, operation: str) -> list[TokenImplementation[Any, Any]]:
        """The implementations of an operation on tokens."""
        found = [subject for subject in self.implementations if isinstance(subject, TokenImplementation)]
        return [subject for subject in found if subject.operation == operation]

    def cases_of(self, implementation: Subject) -> Iterator[Case]:
        """The cases of attention that an implementation is run on."""
        return cases("smoke" if implementation.costly and self.tier == "default" else self.tier)

    def dtypes_of(self, case: AnyCase) -> tuple[str, ...]:
        """The dtypes that a case is run in."""
        return self.dtypes or (DTYPE_NAMES if self.tier == "nightly" else case.dtypes)

    def spared_dtypes_of(self, implementation: Subject, case: AnyCase) -> tuple[str, ...]:
        """As `dtypes_of`, but where a costly implementation is left to the tier and has `bf16`, that alone."""
        dtypes = self.dtypes_of(case)
        spared = implementation.costly and self.tier == "default" and not self.dtypes and "bf16" in dtypes
        return ("bf16",) if spared else dtypes


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
        parent: of a control, the same implementation without the flaw, which must pass what the control fails.
    """

    suite: str
    implementation: Subject
    relation: Relation
    case: AnyCase
    dtype: str
    tier: str
    seed: int
    flaw: Flaw | None = None
    parent: Subject | None = None

    @property
    def cell_id(self) -> str:
        """Names the cell across runs and machines."""
        seed = f":seed{self.seed}" if self.seed else ""
        return f"{self.implementation.label}:{self.relation.name}:{self.case.case_id}:{self.dtype}{seed}"

    @property
    def of_parent(self) -> Cell | None:
        """The same cell of a control's parent; None unless the cell is a control."""
        return None if self.parent is None else replace(self, implementation=self.parent, flaw=None, parent=None)

    @property
    def problem(self) -> AnyProblem:
        """The base problem, with poison that the implementation claims to withstand."""
        poison = "nan" if self.implementation.claims.ignores_unread_memory else "large"
        return _poisoned_problem(self.case, self.dtype, self.implementation.tiling, self.seed, poison)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """What must agree."""
        return tuple(self._compared())

    @property
    def compares_anything(self) -> bool:
        """Whether its relation says anything about its case, found out without making all of the comparisons."""
        return next(iter(self._compared()), None) is not None

    def _compared(self) -> Iterable[Comparison]:
        return self.relation.compare(self.problem, self.implementation.tiling)


# The cells of one case, which differ in their relations, follow one another.
@functools.lru_cache(maxsize=1)
def _poisoned_problem(case: AnyCase, dtype: str, tiling: Tiling, seed: int, poison: str) -> AnyProblem:
    return case.problem(dtype, tiling, seed).with_layout(poison=poison)
