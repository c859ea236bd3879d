"""The matrix: what a run covers, and one cell of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from samebits.backends.contract import Implementation, Tiling
from samebits.backends.operations import TokenImplementation
from samebits.backends.platform import accelerator
from samebits.backends.problem import DTYPE_NAMES, Mask
from samebits.backends.subject import Subject
from samebits.harness.records import TIERS
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
        dtypes: those it has in the smallest tier that holds it.
    """

    @property
    def mask(self) -> Mask | None:
        """Which keys a query sees; None where nothing is attended to."""

    @property
    def geometry(self) -> Named:
        """The sizes of what is computed."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes it has in the smallest tier that holds it."""

    @property
    def case_id(self) -> str:
        """Names the case across runs."""

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> AnyProblem:
        """The base problem for an implementation's tiling."""


@dataclass(frozen=True)
class TieredCase:
    """A case as the tiers of a suite have it for an implementation.

    Attributes:
        case: the case.
        tier: smallest tier that holds it.
        dtypes: those it has in that tier; in the nightly tier it has all.
    """

    case: AnyCase
    tier: str
    dtypes: tuple[str, ...]

    def smallest_tier(self, dtype: str) -> str:
        """The smallest tier that holds the case in a dtype when no dtypes are asked for."""
        return self.tier if dtype in self.dtypes else "nightly"

    def in_bf16(self) -> TieredCase:
        """The case with bf16 as its only dtype below the nightly tier, where it has that one."""
        return replace(self, dtypes=("bf16",)) if "bf16" in self.dtypes else self

    def nightly(self) -> TieredCase:
        """The case where only the nightly tier has it."""
        return replace(self, tier="nightly")


@dataclass(frozen=True)
class Selection:
    """What a run covers.

    Attributes:
        implementations: of every operation, in the order of tables.
        dtypes: names of dtypes; empty for those that the tier gives each case.
        tier: name of the tier.
        seed: of all data.
        platform: kind of platform that is run on, of `PLATFORMS`: GPUs have cases of full size besides.
        within_tier: whether `dtypes` leave those of the tier's cells that are of one of them, as a shard has them.
            Otherwise each case of the tier has all of `dtypes`.
    """

    implementations: tuple[Subject, ...]
    dtypes: tuple[str, ...]
    tier: str
    seed: int = 0
    platform: str = field(default_factory=lambda: accelerator().kind)
    within_tier: bool = False

    @property
    def attention(self) -> list[Implementation[Any]]:
        """The implementations of attention."""
        return [subject for subject in self.implementations if isinstance(subject, Implementation)]

    def of_tokens(self, operation: str) -> list[TokenImplementation[Any, Any]]:
        """The implementations of an operation on tokens."""
        found = [subject for subject in self.implementations if isinstance(subject, TokenImplementation)]
        return [subject for subject in found if subject.operation == operation]

    def tiered(self, cases_of: Callable[[str], Iterable[AnyCase]]) -> list[TieredCase]:
        """The cases of the tier, those of the smaller tiers first.

        Args:
            cases_of: the cases of a tier. What a smaller one has and a larger one has not is added to the larger.
        """
        found: dict[str, TieredCase] = {}
        for tier in TIERS[: TIERS.index(self.tier) + 1]:
            for case in cases_of(tier):
                found.setdefault(case.case_id, TieredCase(case, tier, case.dtypes))
        return list(found.values())

    def dtypes_of(self, tiered: TieredCase) -> tuple[str, ...]:
        """The dtypes that a case is run in: those asked for, or the tier's; within the tier those that are both."""
        if not self._holds(tiered.tier):
            return ()
        if self.dtypes and not self.within_tier:
            return self.dtypes
        return tuple(dtype for dtype in self.dtypes or DTYPE_NAMES if self._holds(tiered.smallest_tier(dtype)))

    def cell(self, suite: str, implementation: Subject, relation: Relation, tiered: TieredCase, dtype: str) -> Cell:
        """The cell of a relation on a case in a dtype."""
        return Cell(suite, implementation, relation, tiered.case, dtype, tiered.smallest_tier(dtype), self.seed)

    def cells(
        self, suite: str, implementation: Subject, checked: Iterable[tuple[Relation, TieredCase]]
    ) -> Iterator[Cell]:
        """The cells of one case, one dtype after another.

        Args:
            suite: name of the suite.
            implementation: what is checked.
            checked: relations, each with the case as the tiers have it for that relation.
        """
        every = list(checked)
        for dtype in self.dtypes or DTYPE_NAMES:
            for relation, tiered in every:
                if dtype in self.dtypes_of(tiered):
                    yield self.cell(suite, implementation, relation, tiered, dtype)

    def _holds(self, tier: str) -> bool:
        return TIERS.index(tier) <= TIERS.index(self.tier)


@dataclass(frozen=True)
class Cell:
    """One relation of one implementation on one case in one dtype.

    Attributes:
        suite: name of the suite, which is also its pytest mark.
        implementation: what is checked.
        relation: what must hold.
        case: on which base problem.
        dtype: in which dtype.
        tier: smallest tier that holds the cell when no dtypes are asked for.
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
