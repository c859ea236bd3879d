"""What was found of a cell is told before its batch is made smaller, and outlives what happens then."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samebits.harness.controls.drawn import DRAWN_FLAWS
from samebits.harness.controls.kernels import Call
from samebits.harness.controls.schedules import ChunkedKernel, ScheduledKernel
from samebits.harness.executor import Executor
from samebits.harness.judgement import judge
from samebits.harness.matrix import Cell
from samebits.harness.properties.cases import Limits
from samebits.harness.properties.draws import Draws
from samebits.harness.properties.judgement import judge_drawn
from samebits.harness.records import Record, Verdict

from .judged_cells import cells_of
from .test_properties import drawn_cell


class ExitingOnLess(ChunkedKernel):
    """Differs where `max_seq_len` is an upper bound, and ends the process in a batch of fewer than five requests."""

    name = "exiting"

    def __init__(self, claims: bool) -> None:
        """Claims what does not hold, or not."""
        self.claims = replace(ChunkedKernel.claims, batch_invariant=claims)

    def compute(self, call: Call) -> None:
        """Spoils a bit."""
        metadata = call.plan.metadata
        if metadata.num_requests < 5:
            raise SystemExit("too few to bother")
        super().compute(call)
        if metadata.max_seq_len > int(metadata.seq_lens.max()):
            call.output[0, 0, 0] = torch.nextafter(call.output[0, 0, 0], torch.tensor(torch.inf))


def cell_of(kernel: ChunkedKernel, relation: str = "max_seq_len") -> Cell:
    cells = cells_of("batch_invariant", kernel, tier="smoke", dtypes=("fp32",))
    return next(
        cell for cell in cells if (cell.relation.name, cell.case.case_id) == (relation, "llama3-8b-causal-mixed")
    )


@pytest.mark.parametrize(("claims", "verdict"), [(True, Verdict.FAIL), (False, Verdict.ERROR)])
def test_what_was_found_outlives_a_smaller_batch_that_exits(claims: bool, verdict: Verdict) -> None:
    cell, told = cell_of(ExitingOnLess(claims)), list[Record]()
    executor = Executor(cell.implementation, torch.device("cpu"))
    record = judge(cell, cell.implementation.probe(), executor, "command", take_found=told.append)
    reasons = "; ".join(record.reasons)
    assert record.verdict is verdict, reasons
    assert "elements differ" in reasons, "what was found is lost"
    assert "SystemExit: too few to bother" in reasons, "why there is no smaller batch is not told"
    (found,) = told
    assert found.verdict is (Verdict.FAIL if claims else Verdict.VARIES)
    assert (found.digest, found.mismatches, found.max_ulp) == (record.digest, record.mismatches, 1)
    assert len(found.smallest_batch.split(" against ")[0].split()) == 5, f"not the whole batch: {found.smallest_batch}"
    assert "max_seq_len_slack" in found.repro, "nothing runs it again"


def test_a_drawn_failure_is_told_before_hypothesis_makes_it_smaller() -> None:
    (flaw,) = (flaw for flaw in DRAWN_FLAWS if flaw.name == "chunks_by_requests")
    cell, told = drawn_cell(ScheduledKernel(flaw), "batch_size", Limits(30, 5)), list[Record]()
    executor = Executor(cell.implementation, torch.device("cpu"))
    record = judge_drawn(
        cell, cell.implementation.probe(), executor, "command", (), Draws(seed=5), take_found=told.append
    )
    assert [found.verdict for found in (*told, record)] == [Verdict.FAIL] * 3
    first, shrunk = told
    assert first.repro != shrunk.repro, "the first is told when it was made smaller already"
    assert first.configuration == record.configuration
    assert first.digest == "", "what was drawn for one night has no bits that another could be held to"


def test_a_cell_that_holds_and_a_control_tell_nothing_early() -> None:
    told = list[Record]()
    cell = cell_of(ChunkedKernel())
    (flaw,) = (flaw for flaw in DRAWN_FLAWS if flaw.name == "chunks_by_requests")
    control = replace(cell_of(ScheduledKernel(flaw), "padding"), flaw=flaw)
    for each, verdict in ((cell, Verdict.PASS), (control, Verdict.FAIL)):
        executor = Executor(each.implementation, torch.device("cpu"))
        record = judge(each, each.implementation.probe(), executor, "command", take_found=told.append)
        assert record.verdict is verdict, record.reasons
    assert told == [], "a control that is not held against its parent yet says nothing"
