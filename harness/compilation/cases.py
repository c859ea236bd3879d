"""What the compile suite checks: a Triton kernel, as an implementation launches it, for a device that is not here."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

from samebits.backends.contract import Implementation, Tiling
from samebits.backends.problem import Mask, Problem
from samebits.backends.subject import Availability, Subject
from samebits.backends.target import Target, supposing
from samebits.harness.compilation.compiler import Compilation, compile_launched
from samebits.harness.compilation.launches import batch_of, launch
from samebits.harness.matrix import Named
from samebits.harness.relations import AnyProblem, Comparison, Relation

SUITE, OPERATION = "compile", "kernel"
# Kernels take a while to compile, so the default tier has the dtype that they are mostly launched in.
DEFAULT_DTYPE = "bf16"

COMPILES = Relation(
    name="compiles",
    claim=None,
    description="each kernel becomes code for devices that are not here, and the code fits them",
    compare=lambda problem, tiling: (Comparison((problem,), ()),),
)


@dataclass(frozen=True)
class KernelCase:
    """A kernel, as one kind of batch launches it, for a target.

    Attributes:
        operation: that the kernel is of.
        batch: that launches it.
        kernel: its name.
        target: what it is compiled for.
        tier: smallest tier that holds the case.
        dtypes: those it has in that tier.
    """

    operation: str
    batch: str
    kernel: str
    target: Target
    tier: str = "default"
    dtypes: tuple[str, ...] = (DEFAULT_DTYPE,)

    @property
    def mask(self) -> Mask | None:
        """Kernels of attention are compiled for causal batches."""
        return Mask.CAUSAL if self.operation == Implementation.operation else None

    @property
    def geometry(self) -> Named:
        """The sizes of the batch."""
        problem = self.problem(self.dtypes[0], Tiling(), 0)
        return problem.geometry if isinstance(problem, Problem) else problem.operation

    @property
    def case_id(self) -> str:
        """Names the case across runs."""
        return f"{self.kernel}-{self.batch}-{self.target.name}"

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> AnyProblem:
        """The batch, whatever the tiling and the seed: it has no data."""
        return batch_of(self.operation, self.batch, dtype)


class CompiledSubject(Subject):
    """Kernels that can be compiled: not what they compute, but what becomes of them."""

    operation = OPERATION

    @abc.abstractmethod
    def settings(self, case: KernelCase) -> Mapping[str, str]:
        """The configuration that kernels are launched with on a device of the case's target."""

    @abc.abstractmethod
    def compile(self, case: KernelCase, dtype: str) -> Compilation:
        """Compiles a kernel."""


class CompiledImplementation(CompiledSubject):
    """The kernels of an implementation.

    Attributes:
        subject: the implementation.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.backend, self.name, self.variant = subject.backend, subject.name, subject.variant
        self.claims, self.tiling = subject.claims, subject.tiling

    def absence(self) -> str:
        """Why the implementation's library cannot be on this machine."""
        return self.subject.absence()

    def probe(self) -> Availability:
        """Whether the implementation's library is here. A processor compiles, whatever the implementation runs on."""
        found = self.subject.probe()
        return Availability(found.reason, found.version, "cpu")

    def settings(self, case: KernelCase) -> Mapping[str, str]:
        """The configuration of the implementation as it is made on a device of the target."""
        with supposing(case.target):
            return type(self.subject)().configuration

    def compile(self, case: KernelCase, dtype: str) -> Compilation:
        """Compiles the kernel as the implementation launches it for the case's batch."""
        problem = case.problem(dtype, self.tiling, 0)
        return compile_launched(lambda: launch(type(self.subject)(), problem), case.kernel, case.target)
