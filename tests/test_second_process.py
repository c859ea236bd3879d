"""What a process decides once and for its life is seen by the run-to-run suite, in a second process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samebits.backends.cpu import BundledAttention
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.harness import second_process
from samebits.harness.records import Record, Verdict
from samebits.harness.second_process import SecondProcess
from samebits.harness.session import MatrixSession, Options

# The C++ kernel, called by way of what a test adds.
PLANTED = """
import math, os, random, sys, time
from samebits.backends.cpu import BundledAttention

SECOND = sys.argv[0].endswith("template_main.py")
TUNED = None

class Planted(BundledAttention):
    backend, name = "PLANTED", "kernel"

    def __init__(self):
        super().__init__()
        self._shorter = BundledAttention(64)

    def plan(self, config, metadata):
        global TUNED
{}
        return super().plan(config, metadata)

def implementations():
    return [Planted()]
"""

TUNED_BY_THE_FIRST_CALL = """
        if TUNED is None:
            TUNED = metadata.num_tokens > 2
        if TUNED:
            return self._shorter.plan(config, metadata)
"""
# As a measurement may come out: the other way in the second process.
TUNED_BY_MEASUREMENT = """
        if TUNED is None:
            TUNED = SECOND
        if TUNED:
            return self._shorter.plan(config, metadata)
"""
DIES = """
        if SECOND:
            print("what it wrote last", file=sys.stderr, flush=True)
            os._exit(3)
"""
RAISES = """
        if SECOND:
            raise ValueError("no room for two")
"""
HANGS = """
        if SECOND:
            time.sleep(1000)
"""
# In place of the second process: one that writes and dies, and one that stops in the middle of its answer.
WRITES_AND_DIES = """
import sys
def make_server(options):
    sys.exit("what it wrote last")
"""
STOPS_HALFWAY = """
import os, time
def make_server(options):
    def answer(question, send):
        for pipe in range(3, 20):
            try:
                os.write(pipe, b"samebits" + bytes(7) + b"\\x99" + b"too little")
            except OSError:
                continue
        time.sleep(30)
    return answer
"""
PRINTS = """
        print("a line that nobody asked for", flush=True)
"""


def session_of(body: str, folder: Path) -> MatrixSession:
    path = folder / "planted.py"
    path.write_text(PLANTED.format(body))
    return MatrixSession(Options(backends=("PLANTED",), load=(path,)))


def judged(session: MatrixSession, check: str) -> list[Record]:
    return [session.run(cell) for cell in session.cells("run_to_run") if not cell.flaw and cell.relation.name == check]


@pytest.mark.usefixtures("no_smallest_batch")
@pytest.mark.parametrize("body", [TUNED_BY_THE_FIRST_CALL, TUNED_BY_MEASUREMENT], ids=["first call", "measurement"])
def test_a_split_that_is_kept_for_the_life_of_a_process_is_seen(body: str, tmp_path: Path) -> None:
    session = session_of(body, tmp_path)
    (repeated, *others) = judged(session, "repeated")
    assert {record.verdict for record in (repeated, *others)} == {Verdict.PASS}, "it differs within one process"
    (record,) = judged(session, "second_process")
    assert record.verdict is Verdict.FAIL, f"two processes agree: {record.reasons}"
    assert record.error_budget is not None
    assert record.error_budget <= 1.0, "it is wrong, and not only in other bits"


def test_a_kernel_that_prints_passes(tmp_path: Path) -> None:
    (record,) = judged(session_of(PRINTS, tmp_path), "second_process")
    assert record.verdict is Verdict.PASS, f"{record.reasons}"
    assert record.compared > 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (DIES, "in a second process: it ended with exit code 3: what it wrote last"),
        (RAISES, "in a second process it raised ValueError: no room for two"),
    ],
    ids=["dies", "raises"],
)
def test_what_goes_wrong_there_is_an_error_that_says_so(body: str, told: str, tmp_path: Path) -> None:
    (record,) = judged(session_of(body, tmp_path), "second_process")
    assert record.verdict is Verdict.ERROR
    assert told in record.reasons[0], f"{record.reasons}"


def test_who_hangs_there_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_process, "_SECONDS", 1)
    (record,) = judged(session_of(HANGS, tmp_path), "second_process")
    assert record.verdict is Verdict.ERROR
    assert "it did not answer in full for 1 s" in record.reasons[0], f"{record.reasons}"


def message_of(process: SecondProcess) -> str:
    """What is told of a process that does not serve."""
    geometry = Geometry("test", num_heads=1, num_kv_heads=1, head_dim=32)
    problem = Problem(geometry, Mask.CAUSAL, "fp32", (Request(1, 1),))
    with pytest.raises(RuntimeError) as raised:
        process.execute(BundledAttention(), problem, problem, torch.device("cpu"))
    return str(raised.value)


def replaced_by(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> SecondProcess:
    """A second process that is another program."""
    (folder / "another_program.py").write_text(program)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(second_process, "_MODULE", "another_program")
    return SecondProcess(Options())


def test_each_death_is_told_by_what_was_written_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = replaced_by(WRITES_AND_DIES, tmp_path, monkeypatch)
    told = "in a second process: it ended with exit code 1: what it wrote last"
    assert [message_of(process) for _ in range(3)] == [told] * 3


def test_who_stops_in_the_middle_of_an_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_process, "_SECONDS", 2)
    told = message_of(replaced_by(STOPS_HALFWAY, tmp_path, monkeypatch))
    assert "it did not answer in full for 2 s" in told, told


def test_another_is_started_after_one_that_died(tmp_path: Path) -> None:
    dies_once = f"""
        if SECOND and not os.path.exists({str(tmp_path / "died")!r}):
            open({str(tmp_path / "died")!r}, "w").close()
            os._exit(1)
    """
    session = session_of(dies_once, tmp_path)
    (cell,) = [c for c in session.cells("run_to_run") if not c.flaw and c.relation.name == "second_process"]
    assert [session.run(cell).verdict for _ in range(2)] == [Verdict.ERROR, Verdict.PASS]


def test_each_implementation_has_one_cell(tmp_path: Path) -> None:
    session = MatrixSession(Options(backends=("CPU",)))
    cells = [c for c in session.cells("run_to_run") if not c.flaw and c.relation.name == "second_process"]
    names = [(cell.implementation.operation, cell.implementation.label) for cell in cells]
    assert len(set(names)) == len(names), f"{names}"
    assert {subject.label for subject in session.selection.implementations} >= {name for _, name in names}
