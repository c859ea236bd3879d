"""The dtype suite sees every loss of precision that it has a control for, and passes correct arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samebits.backends.contract import Availability
from samebits.backends.problem import DATA_NAMES, Geometry, Mask, Problem, Request
from samebits.harness.batch import request_keys_values, request_queries
from samebits.harness.controls.arithmetic import DEGRADATIONS, TiledKernel
from samebits.harness.controls.readings import LEAKS
from samebits.harness.execution import execute
from samebits.harness.executor import Executor
from samebits.harness.inputs import INPUTS
from samebits.harness.judgement import judge
from samebits.harness.matrix import Cell, Selection
from samebits.harness.records import Verdict
from samebits.harness.reference import request_reference
from samebits.harness.suite_cells import dtype_cells

CPU = torch.device("cpu")
LONG = (Request(1, 4, 1496), Request(2, 1, 1026))
GEOMETRY = Geometry("test", num_heads=4, num_kv_heads=1, head_dim=64)


def control_cells(seed: int) -> list[Cell]:
    return [cell for cell in dtype_cells(Selection((), (), "smoke", seed)) if cell.flaw]


def test_every_check_has_a_control_and_every_kind_of_data_a_check() -> None:
    guarded = {degradation.check for degradation in DEGRADATIONS} | {leak.check for leak in LEAKS}
    assert guarded == set(INPUTS)
    assert set(DATA_NAMES) <= set(INPUTS)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("fault", [*DEGRADATIONS, *LEAKS], ids=lambda fault: fault.name)
def test_the_fault_is_caught(fault: object, seed: int) -> None:
    (cell,) = [cell for cell in control_cells(seed) if cell.flaw is fault]
    record = judge(cell, Availability(), Executor(cell.implementation, CPU), "command")
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
    for dtype, smallest in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        value = tensors("denormal_values", dtype)[2]
        assert 0 < float(value.abs().max()) < torch.finfo(smallest).tiny * 1.01, f"{dtype} holds normal numbers"


def test_rows_of_huge_values_exceed_fp16() -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", LONG, data="huge_values")
    reference = request_reference(problem, LONG[0], CPU)
    assert float(reference.output.abs().max()) > torch.finfo(torch.float16).max


def test_an_unknown_kind_of_data_is_refused() -> None:
    problem = Problem(GEOMETRY, Mask.CAUSAL, "bf16", LONG)
    with pytest.raises(ValueError, match="data='weird'; it must be one of normal, large_scores"):
        replace(problem, data="weird")
