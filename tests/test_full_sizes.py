"""Full sizes: on GPUs alone, what the smaller cases ask, within a bound on memory."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from samebits.backends.contract import Availability, Tiling
from samebits.backends.problem import DTYPE_NAMES, Geometry, Mask, Problem
from samebits.harness import full_sizes
from samebits.harness.controls.kernels import Control
from samebits.harness.controls.schedules import FLAWS, ChunkedKernel, ScheduledKernel, ScheduleFlaw
from samebits.harness.executor import Executor
from samebits.harness.full_sizes import FullRows, Sizes, full_rows, full_size_cells
from samebits.harness.geometries import FULL_GEOMETRIES
from samebits.harness.judgement import judge
from samebits.harness.key_blocks import BLOCK_ELEMENTS, key_ranges, row_ranges
from samebits.harness.matrix import Cell, Selection
from samebits.harness.records import Record, Verdict
from samebits.harness.registry import load_registry
from samebits.harness.suite_cells import SUITES

pytestmark = pytest.mark.usefixtures("no_smallest_batch")

CPU = torch.device("cpu")
# Large enough for every comparison of the full sizes, and small enough for an interpreted kernel.
SMALL = Sizes(longest=800, crowd=70, chunk=48, prompt=120)
SMALL_GEOMETRIES = {
    name: Geometry(name, num_heads=2, num_kv_heads=1, head_dim=16, page_size=16, window=shape.window and 70)
    for name, shape in FULL_GEOMETRIES.items()
}


def selection(
    *subjects: Control, platform: str = "cuda", tier: str = "default", dtypes: tuple[str, ...] = ()
) -> Selection:
    return Selection(subjects or load_registry().implementations, dtypes, tier, platform=platform)


def every_full_cell(selected: Selection) -> list[Cell]:
    return [cell for suite in SUITES for cell in full_size_cells(suite, selected)]


def small_cells(kernel: Control, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells of a kernel as they are at full size, but for the sizes; controls are causal and know fp32 alone."""
    rows = full_rows(SMALL_GEOMETRIES, SMALL)
    monkeypatch.setattr(full_sizes, "full_rows", lambda: rows)
    return [cell for cell in every_full_cell(selection(kernel, dtypes=("fp32",))) if cell.case.mask is Mask.CAUSAL]


def judged(cells: list[Cell]) -> list[Record]:
    """What the cells of one kernel come to."""
    executor = Executor(cells[0].implementation, CPU)
    return [judge(cell, Availability(), executor, "command") for cell in cells]


def full_problems() -> list[Problem]:
    return list(dict.fromkeys(rows.case.problem("bf16", Tiling(), 0) for rows in full_rows()))


def test_the_sizes_are_those_of_real_layers() -> None:
    problems = full_problems()
    assert max(problem.kv_len(request) for problem in problems for request in problem.requests) == 131072
    assert max(len(problem.requests) for problem in problems) == 256
    assert max(problem.geometry.head_dim for problem in problems) == 256
    assert max(request.query_len for problem in problems for request in problem.requests) == 2048


def test_a_processor_has_no_cells_of_full_size() -> None:
    assert not every_full_cell(selection(platform="cpu"))
    assert not every_full_cell(selection(tier="smoke")), "the smoke tier has cells of full size"


def test_a_gpu_has_them_in_the_suites_that_run_there() -> None:
    selected = selection()
    for suite in SUITES:
        full = list(full_size_cells(suite, selected))
        cells = [cell.cell_id for cell in SUITES[suite](selected)]
        missing = [cell.cell_id for cell in full if cell.cell_id not in cells]
        assert not missing, f"{suite} is without {missing[:3]}"
        assert len(cells) == len(set(cells)), f"{suite} has two cells of one name"


def test_only_what_is_made_for_the_platform_has_them() -> None:
    found = {cell.implementation.label for cell in every_full_cell(selection())}
    wanted = {subject.label for subject in selection().attention if "cuda" in subject.platforms}
    assert found == wanted


def test_they_are_few_for_each_implementation() -> None:
    counts = Counter(cell.implementation.label for cell in every_full_cell(selection()))
    assert max(counts.values()) <= 30, f"a GPU's time is bounded, and there are {counts}"


def test_the_nightly_tier_has_them_in_every_dtype() -> None:
    nightly = every_full_cell(selection(ChunkedKernel(), tier="nightly"))
    by_case = {(cell.suite, cell.case.case_id, cell.relation.name): set[str]() for cell in nightly}
    for cell in nightly:
        by_case[cell.suite, cell.case.case_id, cell.relation.name].add(cell.dtype)
    assert all(dtypes == set(DTYPE_NAMES) for dtypes in by_case.values())
    assert {cell.tier for cell in nightly} == {"default", "nightly"}


def test_the_cells_of_a_case_follow_one_another() -> None:
    """Its data are kept no longer than that."""
    for suite in SUITES:
        cases = [(cell.case.case_id, cell.dtype) for cell in full_size_cells(suite, selection())]
        changes = sum(one != other for one, other in itertools.pairwise(cases))
        assert changes + 1 == len(set(cases)) or not cases, f"{suite} comes back to a case"


def test_a_third_partys_kernel_for_processors_is_not_asked() -> None:
    kernel = ChunkedKernel()
    cells = every_full_cell(selection(kernel))
    for cell, record in zip(cells, judged(cells), strict=True):
        assert record.verdict is Verdict.UNSUPPORTED, f"{cell.cell_id} is {record.verdict}"
        assert record.reasons[-1].endswith("is for GPUs, and it computes on cpu"), record.reasons


def test_a_right_kernel_passes_all_of_them_at_small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = small_cells(ChunkedKernel(), monkeypatch)
    assert {cell.relation.name for cell in cells} == {check for rows in full_rows() for check in rows.checks}
    for cell, record in zip(cells, judged(cells), strict=True):
        assert record.verdict is Verdict.PASS, f"{cell.cell_id} is {record.verdict}: {record.reasons}"
        assert record.compared or cell.relation.claim is None, f"{cell.cell_id} compared nothing"


def flaws_of(rows: list[FullRows]) -> list[ScheduleFlaw]:
    checks = {check for row in rows if row.suite == "batch_invariant" for check in row.checks}
    return [flaw for flaw in FLAWS if flaw.check in checks]


@pytest.mark.parametrize("flaw", flaws_of(full_rows()), ids=lambda flaw: flaw.name)
def test_every_relation_sees_its_controls_at_small_sizes(flaw: ScheduleFlaw, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = ScheduledKernel(flaw)
    cells = [cell for cell in small_cells(kernel, monkeypatch) if cell.relation.name == flaw.check]
    verdicts = [record.verdict for record in judged(cells)]
    assert Verdict.FAIL in verdicts, f"{flaw.name} is {verdicts} in {[cell.case.case_id for cell in cells]}"


@pytest.mark.parametrize("problem", full_problems(), ids=lambda problem: f"{problem.geometry.name}-{problem.mask}")
def test_the_reference_stays_inside_its_blocks(problem: Problem) -> None:
    geometry = problem.geometry
    for request in problem.requests:
        rows_of_request = row_ranges(problem, request)
        assert [row for rows in rows_of_request for row in rows] == list(range(request.query_len))
        for rows in rows_of_request:
            keys_of_rows = key_ranges(problem, request, rows)
            last = request.context_len + rows.stop
            first = 0 if problem.window is None else max(0, request.context_len + rows.start + 1 - problem.window)
            assert (keys_of_rows[0].start, keys_of_rows[-1].stop) == (first, last), "other keys than the rows see"
            assert sum(map(len, keys_of_rows)) == last - first
            keys = max(map(len, keys_of_rows))
            largest = max(
                geometry.num_heads * len(rows) * max(keys, geometry.head_dim),
                geometry.num_kv_heads * keys * geometry.head_dim,
            )
            assert largest <= BLOCK_ELEMENTS, f"{len(rows)} rows on {keys} keys make tensors of {largest} elements"


def test_one_layer_has_a_window() -> None:
    assert any(problem.mask is Mask.SLIDING_WINDOW for problem in full_problems())
