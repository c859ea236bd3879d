"""Cells of the compile suite: each Triton kernel that an implementation launches, for each device that is not here."""

from __future__ import annotations

from collections.abc import Iterator

from samebits.backends.problem import DTYPE_NAMES
from samebits.backends.target import TARGETS
from samebits.harness.compilation.cases import COMPILES, DEFAULT_DTYPE, SUITE, CompiledImplementation, KernelCase
from samebits.harness.compilation.controls import KERNEL_FLAWS, ControlKernel
from samebits.harness.controls.kernels import control_cell
from samebits.harness.matrix import Cell, Selection


def compile_cells(selection: Selection) -> Iterator[Cell]:
    """Every kernel compiles for every target, and fits it."""
    for flaw in KERNEL_FLAWS:
        yield control_cell(SUITE, ControlKernel(flaw), COMPILES, flaw.case, DEFAULT_DTYPE, selection.seed)
    for subject in selection.implementations:
        compiled = CompiledImplementation(subject)
        for batch, kernels in subject.triton_kernels.items():
            for kernel in kernels:
                for target in TARGETS.values():
                    case = KernelCase(subject.operation, batch, kernel, target)
                    for dtype in _dtypes(selection):
                        tier = case.tier if dtype in case.dtypes else "nightly"
                        yield Cell(SUITE, compiled, COMPILES, case, dtype, tier, selection.seed)


def _dtypes(selection: Selection) -> tuple[str, ...]:
    """Those that are asked for; otherwise that of the default tier, none in the smoke tier, all in the nightly one."""
    if selection.dtypes:
        return selection.dtypes
    return {"smoke": (), "default": (DEFAULT_DTYPE,)}.get(selection.tier, DTYPE_NAMES)
