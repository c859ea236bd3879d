"""Drawn batches: the same in every process, shrunk where they fail, kept where a night found them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from samebits.backends.problem import Mask, Problem
from samebits.backends.subject import KnownGap
from samebits.backends.support import Support
from samebits.harness.controls.drawn import DRAWN_FLAWS
from samebits.harness.controls.kernels import AttentionControl, Call
from samebits.harness.controls.schedules import ChunkedKernel, ScheduledKernel
from samebits.harness.executor import Executor
from samebits.harness.matrix import Cell, Selection
from samebits.harness.properties.cases import DrawnCase, Limits
from samebits.harness.properties.cells import properties_cells
from samebits.harness.properties.draws import Draws
from samebits.harness.properties.judgement import judge_drawn
from samebits.harness.properties.relations import DRAWN_RELATIONS
from samebits.harness.records import Record, Verdict
from samebits.harness.registry import load_registry
from samebits.harness.repro.grammar import parsed
from samebits.harness.session import MatrixSession, Options

FLAWS = {flaw.name: flaw for flaw in DRAWN_FLAWS}
CONTROL_CELLS = {cell.relation.name: cell for cell in properties_cells(Selection((), (), "default"))}
# Makes all cells; then draws, computes, and tells the bits of all that was computed.
DIGEST = """
import sys
from samebits.harness.session import MatrixSession, Options
session = MatrixSession(Options(backends=("CPU",)))
cell = next(cell for cell in session.cells("properties") if cell.relation.name == "padding").of_parent
print("hypothesis" in sys.modules)
print(session.run(cell).digest)
"""


def drawn_cell(kernel: AttentionControl, relation: str, limits: Limits | None = None) -> Cell:
    """A drawn cell of a kernel that is taken for an implementation."""
    cell = CONTROL_CELLS[relation]
    assert isinstance(cell.case, DrawnCase)
    case = cell.case if limits is None else replace(cell.case, limits=limits)
    return replace(cell, implementation=kernel, flaw=None, parent=None, case=case)


def record_of(cell: Cell, draws: Draws | None = None) -> Record:
    availability = cell.implementation.probe()
    executor = Executor(cell.implementation, torch.device("cpu"))
    return judge_drawn(cell, availability, executor, "command", (), draws or Draws())


def failing_batch(record: Record) -> tuple[Problem, ...]:
    """Both sides, of one step each at most."""
    comparison = parsed(shlex.split(record.repro)[-1])
    return tuple(problem for problem in (*comparison.left, *comparison.right) if isinstance(problem, Problem))


def test_each_implementation_has_a_cell_of_each_relation_and_every_process_the_same_ones() -> None:
    one, two = (Selection(load_registry().implementations, (), "default", platform="cuda") for _ in range(2))
    cells = [cell for cell in properties_cells(one) if not cell.flaw]
    assert [cell.cell_id for cell in cells] == [cell.cell_id for cell in properties_cells(two) if not cell.flaw]
    of_bundled = [cell.relation.name for cell in cells if cell.implementation.label == "CPU/bundled"]
    assert sorted(of_bundled) == sorted([*DRAWN_RELATIONS, "reference"]), "each relation once, and correctness twice"
    assert {cell.dtype for cell in cells} == {"fp32", "bf16"}


def test_another_process_draws_the_same_batches_whatever_its_hashes() -> None:
    here = record_of(replace(CONTROL_CELLS["padding"], implementation=ChunkedKernel(), flaw=None))
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    imported_early, digest = done.stdout.split()
    assert imported_early == "False", "a process that draws nothing imports Hypothesis, which takes long"
    assert digest == here.digest, "another process computed other bits, of other batches"
    assert here.configuration["batches"] == "16, the same"
    assert "hypothesis" in here.configuration, "rows of another version's batches would look like new bits"


def test_a_claim_that_breaks_is_told_by_the_smallest_batch() -> None:
    record = record_of(drawn_cell(ScheduledKernel(FLAWS["chunks_by_place"]), "position", limits=Limits(16, 80)))
    assert record.verdict is Verdict.FAIL, record.reasons
    left, right = failing_batch(record)
    assert len(left.requests) == 2, f"not shrunk: {record.smallest_batch}"
    assert left.requests == right.requests[::-1]
    assert left.layout == replace(left.layout, padding_requests=0, padding_tokens=0, extra_table_columns=0)
    assert left.geometry.head_dim == 64, f"not the simplest layer: {record.repro}"
    assert "elements differ" in record.reasons[-1]


def test_where_nothing_is_claimed_it_varies() -> None:
    kernel = ScheduledKernel(FLAWS["chunks_of_decodes"])
    kernel.claims = replace(kernel.claims, schedule_invariant=False)
    record = record_of(drawn_cell(kernel, "decode", Limits(8, 0)))
    assert record.verdict is Verdict.VARIES, record.reasons
    assert record.repro, "what varies is told as a line, too"


class Raising(ChunkedKernel):
    """Cannot compute a batch of more than two requests."""

    name = "raising"

    def compute(self, call: Call) -> None:
        """Raises where there are more."""
        if call.plan.metadata.num_requests > 2:
            raise IndexError("a third request")
        super().compute(call)


def test_an_error_is_told_by_the_smallest_batch_that_raises() -> None:
    record = record_of(drawn_cell(Raising(), "reference", limits=Limits(16, 100)))
    assert (record.verdict, record.reasons) == (Verdict.ERROR, ("IndexError: a third request",))
    (problem,) = failing_batch(record)
    assert len(problem.requests) + problem.layout.padding_requests == 3, f"not the smallest: {record.repro}"


class Fickle(ChunkedKernel):
    """Is wrong in its tenth call alone."""

    name = "fickle"
    calls = 0

    def compute(self, call: Call) -> None:
        """Spoils a result."""
        super().compute(call)
        self.calls += 1
        if self.calls == 10:
            call.output.fill_(7.0)


def test_what_fails_once_and_not_again_is_a_failure() -> None:
    record = record_of(drawn_cell(Fickle(), "reference"))
    assert record.verdict is Verdict.FAIL, f"a flake is a finding: {record.reasons}"


def test_a_night_keeps_what_failed_and_the_next_one_tries_it_first(tmp_path: Path) -> None:
    cell = drawn_cell(ScheduledKernel(FLAWS["chunks_by_requests"]), "batch_size", limits=Limits(30, 5))
    found = record_of(cell, Draws(seed=5, kept=tmp_path))
    assert found.verdict is Verdict.FAIL, found.reasons
    assert found.configuration["batches"] == "30, of seed 5"
    assert found.digest == "", "what was drawn for one night has no bits that another could be held to"
    # One example is the simplest batch, which passes, unless what was kept comes before it.
    again = replace(cell, case=drawn_cell(ChunkedKernel(), "batch_size", limits=Limits(1, 5)).case)
    assert record_of(again, Draws(seed=6)).verdict is Verdict.PASS
    assert record_of(again, Draws(seed=6, kept=tmp_path)).verdict is Verdict.FAIL, "what was kept was not tried"


def test_the_command_of_a_night_names_its_seed() -> None:
    session = MatrixSession(Options(implementations=("CPU/bundled",), draws=Draws(seed=12)))
    cell = next(cell for cell in session.cells("properties") if not cell.flaw)
    small = replace(cell, case=replace(cell.case, limits=Limits(1, 0)))  # type: ignore[type-var]
    assert "--draw-seed 12" in session.run(small).command


def test_what_is_known_to_fail_is_not_drawn() -> None:
    kernel = ScheduledKernel(FLAWS["scale_too_large"])
    kernel.known_gaps = (KnownGap("an issue", relation="crossed", dtype="fp32"),)
    record = record_of(drawn_cell(kernel, "reference", Limits(3, 0)))
    assert (record.verdict, record.reasons) == (
        Verdict.UNSUPPORTED,
        ("it supports none of the batches that were drawn for reference",),
    )


class Narrow(ChunkedKernel):
    """For head_dim 96 on pages of 48, where no query comes before the first key."""

    name = "narrow"
    support = Support(
        dtypes=("fp32",),
        masks=(Mask.CAUSAL,),
        head_dims=(96,),
        page_sizes=(48,),
        softcap=False,
        query_longer_than_kv=False,
        empty_kv=False,
    )


def test_what_is_supported_is_drawn() -> None:
    record = record_of(drawn_cell(Narrow(), "position", Limits(4, 0)))
    assert record.verdict is Verdict.PASS, f"nothing of the kind was drawn: {record.reasons}"
