"""A cell of the compile suite made into a record."""

from __future__ import annotations

import time
from dataclasses import replace

from samebits.backends.contract import Availability
from samebits.harness.compilation.cases import CompiledImplementation, CompiledSubject, KernelCase
from samebits.harness.compilation.compiler import Compilation
from samebits.harness.compilation.controls import ControlKernel
from samebits.harness.executor import reasons_against
from samebits.harness.judgement import unjudged
from samebits.harness.matrix import Cell
from samebits.harness.records import Record, Verdict


def judge_compilation(cell: Cell, availability: Availability, command: str) -> Record:
    """Compiles a cell's kernel. Never raises for what a compiler does.

    Args:
        cell: of the compile suite.
        availability: of its implementation.
        command: reproduces the cell alone.
    """
    started = time.perf_counter()
    record = unjudged(cell, availability, command)
    if not availability.available:
        return replace(record, reasons=(availability.reason,))
    subject, case = cell.implementation, cell.case
    assert isinstance(subject, CompiledSubject), f"{subject.label} has no kernels to compile"
    assert isinstance(case, KernelCase), f"{case.case_id} names no kernel"
    try:
        record = replace(record, configuration=dict(subject.settings(case)))
        reasons = compiling_reasons(cell)
        if reasons:
            return replace(record, verdict=Verdict.UNSUPPORTED, reasons=reasons)
        compilation = subject.compile(case, cell.dtype)
        verdict, told = _conclude(subject, case, compilation)
    except Exception as error:
        told = (f"{type(error).__name__}: {' '.join(str(error).split())[:2000]}",)
        return replace(record, verdict=Verdict.ERROR, reasons=told, seconds=time.perf_counter() - started)
    return replace(
        record,
        verdict=verdict,
        reasons=told,
        digest=compilation.code.digest if compilation.code else "",
        resources=dict(compilation.code.resources) if compilation.code else {},
        seconds=time.perf_counter() - started,
    )


def compiling_reasons(cell: Cell) -> tuple[str, ...]:
    """Why a cell's kernel is not compiled, one sentence each; empty when it is.

    Args:
        cell: of the compile suite.
    """
    subject, case = cell.implementation, cell.case
    if not isinstance(subject, CompiledImplementation):
        return ()
    assert isinstance(case, KernelCase), f"{case.case_id} names no kernel"
    return tuple(reasons_against(subject.subject, case.problem(cell.dtype, subject.tiling, 0)))


def _complaint(compilation: Compilation, case: KernelCase) -> str:
    """What is wrong with a compiled kernel, as one sentence; empty when nothing is. Spills are slow, and not wrong."""
    target = case.target
    if compilation.code is None:
        return f"{case.kernel} does not compile for {target.name}: {compilation.error}"
    shared = compilation.code.resources["shared_bytes"]
    if shared > target.shared_bytes:
        return f"{case.kernel} needs {shared} bytes of shared memory, of which {target.name} has {target.shared_bytes}"
    return ""


def _conclude(subject: CompiledSubject, case: KernelCase, compilation: Compilation) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons. A control is caught by what it was made to show."""
    must_not_spill = isinstance(subject, ControlKernel) and subject.spills
    found = (_spills if must_not_spill else _complaint)(compilation, case)
    if not isinstance(subject, ControlKernel) or subject.flaw is None:
        return (Verdict.FAIL, (found,)) if found else (Verdict.PASS, ())
    if found:
        return Verdict.FAIL, (f"control: {subject.flaw.description}", found)
    return Verdict.PASS, (f"control not caught: {subject.flaw.description}",)


def _spills(compilation: Compilation, case: KernelCase) -> str:
    """That a kernel spills, as one sentence; empty where it does not."""
    spills = compilation.code.resources["spills"] if compilation.code else 0
    return f"{case.kernel} spills {spills} registers on {case.target.name}" if spills else ""
