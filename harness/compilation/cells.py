"""Cells of the compile suite: each Triton kernel that an implementation launches, for each device that is not here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from samebits.backends.target import TARGETS
from samebits.harness.compilation.cases import COMPILES, DEFAULT_DTYPE, SUITE, CompiledImplementation, KernelCase
from samebits.harness.compilation.controls import KERNEL_FLAWS, ControlKernel
from samebits.harness.controls.kernels import control_cell
from samebits.harness.matrix import Cell, Selection, TieredCase

# The smoke tier compiles the first kernel of each implementation, for the commonest device.
_SMOKE_TARGET = "sm_90"


def compile_cells(selection: Selection) -> Iterator[Cell]:
    """Every kernel compiles for every target, and fits it."""
    for flaw in KERNEL_FLAWS:
        yield control_cell(SUITE, ControlKernel(flaw), COMPILES, flaw.case, DEFAULT_DTYPE, selection.seed)
    for subject in selection.implementations:
        compiled = CompiledImplementation(subject)
        launched = [(batch, kernel) for batch, kernels in subject.triton_kernels.items() for kernel in kernels]
        for (batch, kernel), target in itertools.product(launched, TARGETS.values()):
            tier = "smoke" if (batch, kernel) == launched[0] and target.name == _SMOKE_TARGET else "default"
            case = KernelCase(subject.operation, batch, kernel, target, tier)
            yield from selection.cells(SUITE, compiled, [(COMPILES, TieredCase(case, tier, case.dtypes))])
