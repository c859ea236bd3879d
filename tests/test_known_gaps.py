"""A known gap excuses a failure inside of it, and nothing else."""

from __future__ import annotations

import pytest

from samebits.backends.contract import KnownGap
from samebits.backends.problem import Mask
from samebits.harness.cases import Case
from samebits.harness.controls.readings import MISREADINGS, PlainKernel
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.matrix import Cell
from samebits.harness.records import Record, Verdict
from samebits.harness.semantics import MEANINGS

from .judged_cells import record_of

CASE = Case(GEOMETRIES["llama3-8b"], Mask.NON_CAUSAL, "draft", "smoke", ("fp32",))
ALWAYS_CAUSAL = next(misreading for misreading in MISREADINGS if misreading.name == "always_causal")


class Excused(PlainKernel):
    """A plain kernel, or one that takes every mask for causal, with a known gap."""

    backend = "EXCUSED"

    def __init__(self, gap: KnownGap, wrong: bool) -> None:
        super().__init__(ALWAYS_CAUSAL if wrong else None)
        self.known_gaps = (gap,)


def judged(gap: KnownGap, wrong: bool) -> Record:
    implementation = Excused(gap, wrong)
    cell = Cell("semantics", implementation, MEANINGS["block"].check, CASE, "fp32", "smoke", seed=0)
    return record_of(cell)


@pytest.mark.parametrize(
    "gap",
    [
        KnownGap("issue"),
        KnownGap("issue", relation="block", mask=Mask.NON_CAUSAL, dtype="fp32", batch="draft", device="cpu"),
        KnownGap("issue", always=False),
    ],
    ids=str,
)
def test_a_failure_inside_is_known(gap: KnownGap) -> None:
    record = judged(gap, wrong=True)
    assert record.verdict is Verdict.KNOWN, record.reasons
    assert record.reasons[0] == "known: issue"


@pytest.mark.parametrize(
    "gap",
    [
        KnownGap("issue", relation="edges"),
        KnownGap("issue", mask=Mask.CAUSAL),
        KnownGap("issue", dtype="bf16"),
        KnownGap("issue", batch="raft"),
        KnownGap("issue", device="cuda"),
    ],
    ids=str,
)
def test_a_failure_outside_is_red(gap: KnownGap) -> None:
    assert judged(gap, wrong=True).verdict is Verdict.FAIL


def test_a_gap_that_is_no_more_is_red() -> None:
    record = judged(KnownGap("issue"), wrong=False)
    assert record.verdict is Verdict.FAIL
    assert record.reasons == ("passes, though issue says that it is known to fail: remove the known gap",)


def test_a_gap_that_comes_and_goes_may_pass() -> None:
    assert judged(KnownGap("issue", always=False), wrong=False).verdict is Verdict.PASS
