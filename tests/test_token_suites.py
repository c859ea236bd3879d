"""The suites of operations on tokens pass plain correct kernels, and their tensors and references are right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from samebits.backends.contract import Claims
from samebits.backends.problem import Request, Strides
from samebits.backends.token_problem import CacheWrite, Linear, RotaryEmbedding, TokenProblem
from samebits.harness.controls.plain_operations import CORRECT, PlainOperation, TokenFlaw
from samebits.harness.matrix import Cell, Selection
from samebits.harness.records import Verdict
from samebits.harness.suite_cells import SUITES
from samebits.harness.tokens.cache_write import PreparedCacheWrite
from samebits.harness.tokens.linear import PreparedLinear
from samebits.harness.tokens.rotary import PreparedRotary, cos_sin_cache

from .judged_cells import record_of

pytestmark = pytest.mark.usefixtures("no_smallest_batch")

CPU = torch.device("cpu")


def control_cells() -> Iterator[Cell]:
    for suite in SUITES.values():
        for cell in suite(Selection((), (), "smoke")):
            if isinstance(cell.flaw, TokenFlaw):
                yield cell


def cells_of_correct_operations() -> Iterator[Cell]:
    for suite, dtype in (("batch_invariant", "fp32"), ("dtype", "bf16"), ("rope", "bf16")):
        for cell in SUITES[suite](Selection(tuple(map(PlainOperation, CORRECT)), (dtype,), "smoke")):
            if cell.flaw is None:
                yield cell


@pytest.mark.parametrize("cell", list(cells_of_correct_operations()), ids=lambda cell: cell.cell_id)
def test_a_plain_operation_passes(cell: Cell) -> None:
    record = record_of(cell)
    assert record.verdict is Verdict.PASS, f"{cell.cell_id}: {record.reasons}"


def test_a_backend_without_an_operation_leaves_a_row() -> None:
    from samebits.harness.controls.readings import PlainKernel

    cells = [cell for cell in SUITES["rope"](Selection((PlainKernel(),), (), "smoke")) if not cell.flaw]
    assert len(cells) == 1
    record = record_of(cells[0])
    assert (record.verdict, record.reasons) == (Verdict.UNSUPPORTED, ("CONTROL offers no rope",))


def test_the_rotary_cache_turns_each_pair_by_its_own_angle() -> None:
    cache = cos_sin_cache(3, 4, "fp32", CPU)
    expected = [[1, 1, 0, 0], *([torch.tensor([p, p / 100.0]) for p in (1.0, 2.0)])]
    torch.testing.assert_close(cache[0], torch.tensor(expected[0], dtype=torch.float32))
    for position in (1, 2):
        angles = torch.tensor([position, position / 100.0])
        torch.testing.assert_close(cache[position], torch.cat([angles.cos(), angles.sin()]))


def test_rotated_pairs_keep_their_length_and_the_rest_stays() -> None:
    operation = RotaryEmbedding("test", 2, 1, 8, 4)
    request = Request(1, 3, 5)
    problem = TokenProblem(operation, "fp32", (request,))
    prepared = PreparedRotary(problem, operation, CPU)
    before, after = prepared.tensors.query.double(), prepared.expected(request)["query"].values
    torch.testing.assert_close(before[..., 4:], after[..., 4:], rtol=0, atol=0, equal_nan=True)
    lengths = [tensor[..., :2] ** 2 + tensor[..., 2:4] ** 2 for tensor in (before, after)]
    torch.testing.assert_close(*lengths, rtol=1e-6, atol=1e-6)
    assert not torch.equal(before[..., :4], after[..., :4])


def test_a_slot_that_is_not_the_batchs_may_not_change() -> None:
    operation = CacheWrite("test", 1, 8)
    prepared = PreparedCacheWrite(TokenProblem(operation, "fp32", (Request(1, 5),)), operation, CPU)
    assert prepared.written["key_cache"].intact()
    free = ({*range(operation.page_size)} - {int(slot) % operation.page_size for slot in prepared._slots}).pop()
    prepared.tensors.key_cache[:, free] = 1.0
    assert not prepared.written["key_cache"].intact()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_leading_dimensions_are_views_of_the_same_rows(dimensions: int) -> None:
    operation = Linear("test", 32, 16)
    problem = TokenProblem(operation, "fp32", (Request(1, 5), Request(2, 6)))
    problem = problem.with_layout(leading_dimensions=dimensions, strides=Strides.INTERLEAVED)
    prepared = PreparedLinear(problem, operation, CPU)
    assert prepared.tensors.input.dim() == dimensions + 1
    assert prepared.tensors.input.data_ptr() == prepared.read["input"].data_ptr()


def test_a_flawed_operation_claims_what_it_breaks() -> None:
    for cell in control_cells():
        assert isinstance(cell.implementation, PlainOperation)
        claim = cell.relation.claim
        assert claim is None or isinstance(getattr(Claims(), claim), bool)
