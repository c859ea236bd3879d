"""Kernels compiled for devices that are not here: as they are launched there, with figures, and controls that show."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from samebits.backends.platform import accelerator, multiprocessors
from samebits.backends.subject import Availability
from samebits.backends.target import TARGETS, Target, supposing
from samebits.backends.triton_attn import COMPILED, TritonAttention
from samebits.backends.triton_operations import TritonRmsNorm
from samebits.harness.compilation.cases import COMPILES, CompiledImplementation, KernelCase
from samebits.harness.compilation.cells import compile_cells
from samebits.harness.compilation.compiler import compile_launched
from samebits.harness.compilation.controls import KERNEL_FLAWS, ControlKernel, KernelFlaw
from samebits.harness.compilation.judgement import judge_compilation
from samebits.harness.compilation.launches import batch_of
from samebits.harness.controls.kernels import control_cell
from samebits.harness.matrix import Cell, Selection
from samebits.harness.records import Record, Verdict
from samebits.harness.registry import load_registry

NORM = KernelCase("rms_norm", "tokens", "rms_norm_kernel", TARGETS["gfx942"])


def judged(cell: Cell) -> Record:
    return judge_compilation(cell, Availability(), "pytest -m compile")


def norm_cell(case: KernelCase = NORM) -> Cell:
    return Cell("compile", CompiledImplementation(TritonRmsNorm()), COMPILES, case, "bf16", "default", 0)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_kernel_leaves_figures_and_the_same_code_again(target: Target) -> None:
    cell = norm_cell(dataclasses.replace(NORM, target=target))
    first, second = judged(cell), judged(cell)
    assert (first.verdict, first.reasons) == (Verdict.PASS, ())
    assert first.resources["registers"] > 0
    assert first.resources["spills"] == 0
    assert first.resources["threads"] == 8 * target.warp_size
    assert first.digest == second.digest != ""
    assert first.configuration == {"all": "lanes=1024"}, "the configuration is the interpreter's"


@pytest.mark.parametrize("flaw", KERNEL_FLAWS, ids=lambda flaw: flaw.name)
def test_a_control_shows_its_flaw_and_its_parent_shows_none(flaw: KernelFlaw) -> None:
    cell = control_cell("compile", ControlKernel(flaw), COMPILES, flaw.case, "bf16", 0)
    record = judged(cell)
    assert record.verdict is Verdict.FAIL, f"{record.reasons}"
    assert cell.of_parent is not None
    parent = judged(cell.of_parent)
    assert parent.verdict is Verdict.PASS, f"{parent.reasons}"
    if ControlKernel(flaw).spills:
        assert record.resources["spills"] > 0 == parent.resources["spills"]


def test_a_kernel_that_is_not_launched_is_an_error_that_names_those_that_are() -> None:
    record = judged(norm_cell(dataclasses.replace(NORM, kernel="renamed_kernel")))
    assert record.verdict is Verdict.ERROR
    assert "renamed_kernel was not launched, only rms_norm_kernel" in record.reasons[0]


def test_what_is_absent_is_unavailable_with_the_reason() -> None:
    record = judge_compilation(norm_cell(), Availability(reason="no such library"), "")
    assert (record.verdict, record.reasons) == (Verdict.UNAVAILABLE, ("no such library",))


def test_a_supposed_device_is_supposed_inside_alone() -> None:
    before = accelerator()
    with supposing(TARGETS["gfx950"]):
        assert (accelerator().kind, accelerator().name) == ("rocm", "gfx950")
        assert multiprocessors(torch.device("cpu")) == 256
        there = TritonAttention()
    assert accelerator() == before
    assert there.configuration == {name: str(settings) for name, settings in COMPILED.items()}


def test_launching_ahead_of_time_leaves_triton_as_it_was() -> None:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    def interrupted() -> None:
        raise KeyboardInterrupt

    before = JITFunction.run, driver._active
    with pytest.raises(KeyboardInterrupt):
        compile_launched(interrupted, "any", TARGETS["sm_90"])
    assert (JITFunction.run, driver._active) == before


def test_every_declared_kernel_has_a_batch_that_launches_it() -> None:
    selection = Selection(load_registry().implementations, (), "default")
    cells = [cell for cell in compile_cells(selection) if cell.flaw is None]
    assert {cell.implementation.backend for cell in cells} >= {"TRITON_ATTN", "AITER"}
    assert len({cell.cell_id for cell in cells}) == len(cells)
    for cell in cells:
        assert isinstance(cell.case, KernelCase)
        assert batch_of(cell.case.operation, cell.case.batch, cell.dtype)


@pytest.mark.parametrize("dtypes", [(), ("fp32",)])
def test_the_smoke_tier_compiles_one_kernel_of_each_implementation(dtypes: tuple[str, ...]) -> None:
    everyone = load_registry().implementations
    smoke, default = (
        [cell for cell in compile_cells(Selection(everyone, dtypes, tier)) if cell.flaw is None]
        for tier in ("smoke", "default")
    )
    compiled = [subject for subject in everyone if subject.triton_kernels]
    assert len(smoke) == len(compiled) > 0
    assert {cell.implementation.label for cell in smoke} == {subject.label for subject in compiled}
    assert {cell.dtype for cell in smoke} == set(dtypes or ("bf16",))
    assert {cell.cell_id for cell in smoke} < {cell.cell_id for cell in default}
    assert {cell.tier for cell in smoke} == {"nightly" if dtypes else "smoke"}


def test_a_batch_that_an_operation_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="rope has no batch 'decode' to compile kernels for; known are tokens"):
        batch_of("rope", "decode", "bf16")
