"""What a process decides once and for its life is seen by the run-to-run suite, in a second process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samebits.backends.cpu import BundledAttention
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.harness import second_process
from samebits.harness.matrix import Cell
from samebits.harness.records import Record, Verdict
from samebits.harness.second_process import SecondProcess
from samebits.harness.session import MatrixSession, Options

# The C++ kernel, called by way of what a test asks for by name. It is loaded once, for each process takes seconds.
PLANTED = """
import os, pathlib, sys, time
from samebits.backends.cpu import BundledAttention

SECOND = sys.argv[0].endswith("template_main.py")
DIED = pathlib.Path(__file__).parent / "died"

class Planted(BundledAttention):
    backend = "PLANTED"

    def plan(self, config, metadata):
        self.before(metadata)
        return super().plan(config, metadata)

class Tuned(BundledAttention):
    backend, tuned = "PLANTED", None

    def __init__(self):
        super().__init__()
        self._shorter = BundledAttention(64)

    def plan(self, config, metadata):
        if self.tuned is None:
            type(self).tuned = self.measured(metadata)
        return self._shorter.plan(config, metadata) if self.tuned else super().plan(config, metadata)

class TunedByTheFirstCall(Tuned):
    name = "tuned-by-the-first-call"
    def measured(self, metadata): return metadata.num_tokens > 2

class TunedByMeasurement(Tuned):
    # As a measurement may come out: the other way in the second process.
    name = "tuned-by-measurement"
    def measured(self, metadata): return SECOND

class Prints(Planted):
    name = "prints"
    def before(self, metadata): print("a line that nobody asked for", flush=True)

class Dies(Planted):
    name = "dies"
    def before(self, metadata):
        if SECOND:
            print("what it wrote last", file=sys.stderr, flush=True)
            os._exit(3)

class DiesOnce(Planted):
    name = "dies-once"
    def before(self, metadata):
        if SECOND and not DIED.exists():
            DIED.touch()
            os._exit(1)

class Raises(Planted):
    name = "raises"
    def before(self, metadata):
        if SECOND: raise ValueError("no room for two")

class Hangs(Planted):
    name = "hangs"
    def before(self, metadata):
        if SECOND: time.sleep(1000)

def implementations():
    kinds = (TunedByTheFirstCall, TunedByMeasurement, Prints, Dies, DiesOnce, Raises, Hangs)
    return [kind() for kind in kinds]
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


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> MatrixSession:
    """Of all that is planted, with one second process for all of it unless it dies."""
    path = tmp_path_factory.mktemp("planted") / "planted.py"
    path.write_text(PLANTED)
    return MatrixSession(Options(backends=("PLANTED",), load=(path,)))


def cells_of(session: MatrixSession, name: str, check: str) -> list[Cell]:
    cells = session.cells("run_to_run")
    return [cell for cell in cells if cell.implementation.name == name and cell.relation.name == check]


def judged_there(session: MatrixSession, name: str) -> Record:
    """What the check of a second process comes to."""
    (cell,) = cells_of(session, name, "second_process")
    return session.run(cell)


@pytest.mark.usefixtures("no_smallest_batch")
@pytest.mark.parametrize("name", ["tuned-by-the-first-call", "tuned-by-measurement"])
def test_a_split_that_is_kept_for_the_life_of_a_process_is_seen(name: str, session: MatrixSession) -> None:
    repeated = [session.run(cell) for cell in cells_of(session, name, "repeated")]
    assert {record.verdict for record in repeated} == {Verdict.PASS}, "it differs within one process"
    record = judged_there(session, name)
    assert record.verdict is Verdict.FAIL, f"two processes agree: {record.reasons}"
    assert record.error_budget is not None
    assert record.error_budget <= 1.0, "it is wrong, and not only in other bits"


def test_a_kernel_that_prints_passes(session: MatrixSession) -> None:
    record = judged_there(session, "prints")
    assert record.verdict is Verdict.PASS, f"{record.reasons}"
    assert record.compared > 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dies", "in a second process: it ended with exit code 3: what it wrote last"),
        ("raises", "in a second process it raised ValueError: no room for two"),
    ],
)
def test_what_goes_wrong_there_is_an_error_that_says_so(name: str, told: str, session: MatrixSession) -> None:
    record = judged_there(session, name)
    assert record.verdict is Verdict.ERROR
    assert told in record.reasons[0], f"{record.reasons}"


def test_who_hangs_there_is_ended(session: MatrixSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_process, "_SECONDS", 0.5)
    record = judged_there(session, "hangs")
    assert record.verdict is Verdict.ERROR
    assert "it did not answer in full for 0.5 s" in record.reasons[0], f"{record.reasons}"


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
    return SecondProcess(None)


def test_each_death_is_told_by_what_was_written_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = replaced_by(WRITES_AND_DIES, tmp_path, monkeypatch)
    told = "in a second process: it ended with exit code 1: what it wrote last"
    assert [message_of(process) for _ in range(3)] == [told] * 3


def test_who_stops_in_the_middle_of_an_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_process, "_SECONDS", 1)
    told = message_of(replaced_by(STOPS_HALFWAY, tmp_path, monkeypatch))
    assert "it did not answer in full for 1 s" in told, told


def test_another_is_started_after_one_that_died(session: MatrixSession) -> None:
    verdicts = [judged_there(session, "dies-once").verdict for _ in range(2)]
    assert verdicts == [Verdict.ERROR, Verdict.PASS]


def test_each_implementation_has_one_cell() -> None:
    session = MatrixSession(Options(backends=("CPU",)))
    cells = [c for c in session.cells("run_to_run") if not c.flaw and c.relation.name == "second_process"]
    names = [(cell.implementation.operation, cell.implementation.label) for cell in cells]
    assert len(set(names)) == len(names), f"{names}"
    assert {subject.label for subject in session.selection.implementations} >= {name for _, name in names}
