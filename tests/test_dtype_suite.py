"""The dtype suite sees every loss of precision that it has a control for, and passes correct arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.problem import DATA_NAMES, Geometry, Mask, Problem, Request
from samebits.harness.batch import request_keys_values, request_queries
from samebits.harness.controls.arithmetic import DEGRADATIONS, TiledKernel
from samebits.harness.controls.readings import LEAKS
from samebits.harness.execution import execute
from samebits.harness.inputs import INPUTS
from samebits.harness.matrix import Cell, Selection
from samebits.harness.records import Verdict
from samebits.harness.reference import budget_used, request_reference
from samebits.harness.suite_cells import dtype_cells

from .judged_cells import record_of

pytestmark = pytest.mark.usefixtures("no_smallest_batch")

CPU = torch.device("cpu")
LONG = (Request(1, 4, 1496), Request(2, 1, 1026))
GEOMETRY = Geometry("test", num_heads=4, num_kv_heads=1, head_dim=64)


def control_cells(seed: int) -> list[Cell]:
    return [cell for cell in dtype_cells(Selection((), (), "smoke", seed)) if cell.flaw]


def test_every_kind_of_data_has_a_check() -> None:
    # The semantics suite has that one, where a window hides tiles and where all options are crossed.
    assert set(DATA_NAMES) - {"far_scores"} <= set(INPUTS)


@pytest.mark.parametrize("flaw", [*DEGRADATIONS, *LEAKS], ids=lambda flaw: flaw.name)
def test_the_flaw_is_caught_on_other_data(flaw: object) -> None:
    (cell,) = [cell for cell in control_cells(seed=1) if cell.flaw is flaw]
    record = record_of(cell)
    assert record.verdict is Verdict.FAIL, f"{cell.cell_id} used {record.error_budget} of its budget and was not caught"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("data", [data for data in DATA_NAMES if data not in ("unseen_nan", "hidden_nan")])
def test_correct_arithmetic_stays_well_inside_its_budget(data: str, dtype: str) -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, dtype, LONG, data=data)
    used = execute(TiledKernel(), problem, CPU).error_budget
    assert used < 0.6, f"correct {dtype} arithmetic used {used:.3g} of its budget on {data}"


def test_a_result_that_rounds_the_reference_uses_nothing() -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", (Request(1, 1, 0),))
    used = execute(TiledKernel(), problem, CPU).error_budget
    assert used < 1e-6, f"one key needs no rounding of its value, and used {used}"


def test_each_kind_of_data_is_what_its_name_says() -> None:
    request = Request(1, 8, 392)

    def tensors(data: str, dtype: str = "fp32") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        problem = Problem(GEOMETRY, Mask.NON_CAUSAL, dtype, (request,), data=data)
        query = request_queries(problem, request).double()
        key, value = (tensor.double() for tensor in request_keys_values(problem, request))
        scores = torch.einsum("qhd,kd->hqk", query, key[:, 0]) * GEOMETRY.softmax_scale
        return query, key, value, scores

    assert 7 < float(tensors("large_scores")[3].std()) < 9
    assert float(tensors("negative_scores")[3].max()) < 0
    assert 900 < float(tensors("large_values")[2].std()) < 1100
    assert float(tensors("huge_values")[2].min()) > torch.finfo(torch.float16).max / 2
    assert 9 < float(tensors("offset_values")[2].mean()) < 11
    assert float(tensors("ties")[3].std(dim=2).max()) == 0.0


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_denormal_values_lie_on_both_sides_of_the_smallest_normal_number(dtype: str) -> None:
    request = Request(1, 1, 399)
    problem = Problem(GEOMETRY, Mask.CAUSAL, dtype, (request,), data="denormal_values")
    values = request_keys_values(problem, request)[1].double().abs()
    tiny = torch.finfo(DTYPES[dtype]).tiny
    assert 0.1 < float((values < tiny).double().mean()) < 0.4, f"{dtype} has too few or too many denormal values"
    assert float(values[values > 0].min()) < tiny / 32
    assert float(values.max()) > tiny * 2.0**20
    reference = request_reference(problem, request, CPU)
    assert float((reference.output.abs() > tiny).double().mean()) > 0.5, f"most outputs in {dtype} are denormal"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("request_", [*LONG, Request(3, 5)], ids=str)
@pytest.mark.parametrize("binades", [16, 128])
def test_results_flushed_long_before_they_are_denormal_are_wrong(binades: int, request_: Request, dtype: str) -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, dtype, (request_,), data="denormal_values")
    reference = request_reference(problem, request_, CPU)
    largest_flushed = torch.finfo(DTYPES[dtype]).tiny * 2.0**binades
    flushed = reference.output.masked_fill(reference.output.abs() < largest_flushed, 0.0).to(DTYPES[dtype])
    used = float(budget_used(flushed, reference.output, reference.output_bound).max())
    assert used > 10.0, f"0 for results below 2^{binades} times the smallest normal number used {used:.3g}"


class FlushingKernel(TiledKernel):
    """Correct arithmetic with every number below the smallest normal one taken for 0, read and written."""

    def run(self, *arguments: Any) -> None:  # noqa: ANN401 -- as they come
        """Computes in that mode."""
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor has no such mode")
        try:
            super().run(*arguments)
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("seed", range(5))
def test_a_kernel_that_flushes_what_is_denormal_stays_inside_its_budget(seed: int, dtype: str) -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, dtype, (*LONG, Request(3, 5)), data="denormal_values", seed=seed)
    flushing, exact = (execute(kernel, problem, CPU) for kernel in (FlushingKernel(), TiledKernel()))
    assert flushing.digest != exact.digest, "nothing was flushed"
    used = flushing.error_budget
    assert used < 0.6, f"{dtype} arithmetic that flushes used {used:.3g} of its budget"


def test_rows_of_huge_values_exceed_fp16() -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", LONG, data="huge_values")
    reference = request_reference(problem, LONG[0], CPU)
    assert float(reference.output.abs().max()) > torch.finfo(torch.float16).max


def test_an_unknown_kind_of_data_is_refused() -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", LONG)
    with pytest.raises(ValueError, match="data='weird'; it must be one of normal, large_scores"):
        replace(problem, data="weird")
