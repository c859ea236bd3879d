"""Processes that can be thrown away: how each end of one is told, and that none outlives who started it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samebits.harness.isolation import isolated_session, limits, served
from samebits.harness.isolation.frames import FrameReader, Garbled, write_frame
from samebits.harness.isolation.isolated_session import IsolatedSession
from samebits.harness.isolation.last_words import Tail, ending, last_words, memory
from samebits.harness.isolation.limits import Limits, machine_memory, share_of_memory
from samebits.harness.isolation.served import Lost, Template
from samebits.harness.records import Record, Verdict
from samebits.harness.session import MatrixSession, Options

from .suite_runs import PLANTED, SuiteRun, python_path, run_suite

GIB = 1 << 30
PATIENT = Limits(seconds=60)
# Questions are Python, so that each test says what its server does; it begins in milliseconds, as it imports nothing.
SERVER = """
import ctypes, os, signal, subprocess, sys, threading, time

KEPT = []

def make_server(options):
    def answer(question, send):
        found = dict(globals(), options=options)
        exec(question.decode(), found)
        for result in found.get("results", [found.get("result")]):
            send(repr(result).encode())
    return answer
"""
# Answers as the server of cells does where nothing is to be computed, and hangs anywhere else.
HALF_HANGING_SERVER = """
import json, time
from samebits.harness.isolation import cell_server

def make_server(options):
    answer_well = cell_server.make_server(options)

    def answer(question, send):
        suite, cell_id, given_up = json.loads(question)
        if given_up or "gemma2" in cell_id:
            return answer_well(question, send)
        messages = []
        answer_well(json.dumps([suite, cell_id, "hangs"]).encode(), messages.append)
        send(messages[0])
        time.sleep(1000)

    return answer
"""
# Each is right in one cell, and does to its process what its name says in the next: behind that comes another's.
FAULTS_RUN = ("--load", PLANTED / "faults.py", "--backend", "FAULTS", "--tier", "smoke", "--dtype", "fp32")
FAULTS_CELLS = ("-k", "not CONTROL and llama3-8b-causal-mixed and (position or max_seq_len)")
# What the reason of each must hold; None where it does no harm.
TOLD: dict[str, str | None] = {
    "aborts": "its process was ended by SIGABRT (Aborted): Fatal Python error: Aborted / File ",
    "closes-every-pipe": "its process ended with exit code 1: the pipe of its answers cannot be written",
    "closes-its-streams": None,
    "ends-its-group": "its process was ended by SIGKILL (Killed): it wrote nothing",
    "exit-code-0": "its process ended with exit code 0: it wrote nothing",
    "exit-code-3": "its process ended with exit code 3: it wrote nothing",
    "exits": "SystemExit: enough",
    "forks": None,
    "healthy": None,
    "hoards": " MiB of memory, and may hold 1,024 MiB: ",
    "interrupts": "its process was ended by SIGINT (Interrupt): ",
    "leaves-others-behind": "its process ended with exit code 1: left ",
    "loses-its-device": "left its device unusable: CUDA error: an illegal memory access was encountered",
    "prints-without-end": None,
    "segfaults": "its process was ended by SIGSEGV (Segmentation fault): the last line before / Fatal Python error",
    "sleeps-with-the-lock": "in sleeps_with_the_lock",
    "spoils-the-heap": "its process was ended by SIGABRT (Aborted): ",
    "writes-into-every-pipe": "its process wrote into the pipe of its answers, where b'what nob' is no message",
}


# What is wrong in a larger batch already, and dies of a smaller one that is tried then: what each comes to.
DYING_OF_LESS = {"dies-failing": Verdict.FAIL, "dies-varying": Verdict.ERROR}
CELLS = 2 * len({*TOLD, *DYING_OF_LESS})


@pytest.fixture(scope="module")
def faults_run(tmp_path_factory: pytest.TempPathFactory) -> SuiteRun:
    """A run of all planted faults that tells where it is after each cell."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "hasty.py").write_text("from samebits.harness import progress\nprogress._LOG_SECONDS = 0.0\n")
    few = ("--cell-timeout", "5", "--cell-memory", "1", "-p", "hasty")
    path = python_path(folder)
    words = (*FAULTS_RUN, *FAULTS_CELLS, *few)
    return run_suite("batch_invariant", folder / "results", *words, isolated=True, environment={"PYTHONPATH": path})


@pytest.fixture
def faults(faults_run: SuiteRun) -> dict[str, dict[str, Record]]:
    """The records of all planted faults, by implementation and relation."""
    found: dict[str, dict[str, Record]] = {}
    for record in faults_run.records:
        found.setdefault(record.implementation, {})[record.relation] = record
    return found


def test_a_run_tells_where_it_is_in_lines_of_their_own(faults_run: SuiteRun) -> None:
    line = rf"^samebits: batch_invariant FAULTS/(\S+): (\d+) of {CELLS} cells, (\d+) failed, about \d+:\d\d left$"
    told = re.findall(line, faults_run.output, re.MULTILINE)
    # The last cell ends the run, of which the report tells.
    assert [int(done) for _, done, _ in told] == list(range(1, CELLS)), f"{told}\n{faults_run.output[:2000]}"
    red = sum(record.red for record in faults_run.records[:-1])
    assert int(told[-1][2]) == red, "not every failure is counted"
    assert told[0][0] == faults_run.records[0].implementation


def test_every_fault_costs_its_own_cell_and_says_how(faults: dict[str, dict[str, Record]]) -> None:
    assert faults.keys() == TOLD.keys() | DYING_OF_LESS.keys(), "an implementation left no row"
    for name, told in TOLD.items():
        record = faults[name]["max_seq_len"]
        reason = "; ".join(record.reasons)
        assert record.verdict is (Verdict.ERROR if told else Verdict.PASS), f"{name}: {record.verdict}: {reason}"
        assert told is None or told in reason, f"{name} is told as {reason}"


def test_a_failure_that_was_found_outlives_the_process_that_looked_for_a_smaller_batch(
    faults: dict[str, dict[str, Record]],
) -> None:
    ended = r"its process was ended by SIGSEGV \(Segmentation fault\): the last line before / .*in segfaults"
    for name, verdict in DYING_OF_LESS.items():
        record = faults[name]["max_seq_len"]
        told = "; ".join(record.reasons)
        assert record.verdict is verdict, f"{name}: {record.verdict}: {told}"
        assert "elements differ" in told, f"what {name} was found to do is lost: {told}"
        assert re.search(ended, told), f"how the process of {name} ended is lost: {told}"
        assert record.mismatches > 0, name
        assert record.smallest_batch.count("r") > 2, f"{name} leaves no batch: {record.smallest_batch}"
        assert "max_seq_len_slack" in record.repro, f"{name} leaves no command for its batch: {record.repro}"
    assert "no smaller batch was found: " in faults["dies-failing"]["max_seq_len"].reasons[-1]
    assert faults["dies-varying"]["max_seq_len"].reasons[0].startswith("when a batch that shows varies was made")


def test_cells_beside_a_fault_are_what_they_are_without_it(faults: dict[str, dict[str, Record]]) -> None:
    healthy = faults["healthy"]["position"]
    assert healthy.verdict is Verdict.PASS
    found = {name: records["position"] for name, records in faults.items()}
    others = {name for name, record in found.items() if (record.verdict, record.digest) != ("pass", healthy.digest)}
    assert not others, f"another cell came to something else beside the faults of {others}"


def test_what_a_cell_warns_of_is_in_the_summary_of_the_run(faults_run: SuiteRun) -> None:
    _, _, summary = faults_run.output.partition("warnings summary")
    place, _, told = summary.partition("UserWarning: what a kernel warns of")
    assert told, "a warning of a cell that passed is lost"
    assert "FAULTS/prints-without-end:max_seq_len" in place, "whose warning it is, is not told"


def test_what_a_victim_left_behind_is_ended(faults: dict[str, dict[str, Record]]) -> None:
    (reason,) = faults["leaves-others-behind"]["max_seq_len"].reasons
    left = int(reason.partition("left ")[2].split()[0])
    assert is_gone(left), f"process {left}, which the victim had started, is still there"


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Template]:
    """Servers that do what they are asked."""
    (tmp_path / "obedient_server.py").write_text(SERVER)
    monkeypatch.syspath_prepend(tmp_path)
    template = Template("obedient_server", "these options")
    yield template
    template.close()


def test_a_server_answers_and_shares_nothing_with_the_next(template: Template) -> None:
    first, second = template.fork(), template.fork()
    for server, told in ((first, b"1"), (first, b"2"), (second, b"1"), (first, b"3")):
        server.send(b"KEPT.append(options); result = len(KEPT)")
        assert server.receive(PATIENT) == told, "what one server keeps is in another"
    second.send(b"result = KEPT")
    assert second.receive(PATIENT) == b"['these options']"
    for server in (first, second):
        server.close()
        assert server.exit_code == 0, "a server that nobody asks any more did not end by itself"


def test_messages_that_came_together_are_not_waited_for(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    server = template.fork()
    server.send(b"results = [1, 2, 3]; threading.Timer(0.05, os._exit, [0]).start()")
    wait_until(lambda: server.exit_code is not None)
    waited: list[float] = []
    monkeypatch.setattr(server, "_read", lambda seconds: waited.append(seconds))
    assert [server.receive(PATIENT) for _ in range(3)] == [b"1", b"2", b"3"]
    assert not any(waited), "a message was waited for that had come"


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("os._exit(4)", "ended with exit code 4: it wrote nothing"),
        ("print('last', file=sys.stderr); os.kill(os.getpid(), 9)", "was ended by SIGKILL (Killed): last"),
        ("raise ValueError('not today')", "ended with exit code 1: "),
        ("os.closerange(3, 99); time.sleep(1000)", "closed the pipe of its answers: it wrote nothing"),
        ("subprocess.Popen(['sleep', '999'], close_fds=False); os._exit(5)", "ended with exit code 5: it wrote"),
        ("os.fork() or time.sleep(999); os._exit(6)", "ended with exit code 6: it wrote nothing"),
    ],
)
def test_each_end_of_a_server_is_told_at_once(template: Template, question: str, told: str) -> None:
    server = template.fork()
    server.send(question.encode())
    with pytest.raises(Lost) as lost:
        server.receive(PATIENT)
    assert told in str(lost.value)
    assert not lost.value.broke_limit
    again = template.fork()
    again.send(b"result = 1")
    assert again.receive(PATIENT) == b"1", "no other server could be forked"


@pytest.mark.parametrize("waiting", ["time.sleep(1000)", "ctypes.PyDLL(None).sleep(1000)", "while True: pass"])
def test_who_does_not_answer_is_asked_where_it_is_and_ended(template: Template, waiting: str) -> None:
    server = template.fork()
    server.send(f"def waits():\n    {waiting}\nwaits()".encode())
    with pytest.raises(Lost, match=r'did not answer in full for 0\.2 s: File "<string>", line 2 in waits') as lost:
        server.receive(Limits(seconds=0.2))
    assert lost.value.broke_limit
    assert is_gone(server.pid)


@pytest.mark.parametrize(
    "question",
    [
        "held = bytearray(b'1') * (160 << 20) if os.fork() else bytearray(b'2') * (160 << 20); time.sleep(1000)",
        "import mmap; held = mmap.mmap(-1, 320 << 20); held.write(b'1' * (32 << 20) * 10); time.sleep(1000)",
    ],
)
def test_memory_of_children_and_shared_memory_count(
    template: Template, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.setattr(served, "_SESSION_TICK_SECONDS", 0.1)
    server = template.fork()
    server.send(question.encode())
    with pytest.raises(Lost, match=r"held \d+ MiB of memory, and may hold 256 MiB") as lost:
        server.receive(Limits(seconds=30, nbytes=256 << 20))
    assert lost.value.broke_limit


def test_pages_that_copies_of_a_process_share_count_once(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_SESSION_TICK_SECONDS", 0.1)
    server = template.fork()
    copies = "held = bytearray(b'1') * (96 << 20); all(os.fork() for _ in range(3)) or time.sleep(1000)"
    server.send(f"{copies}; time.sleep(0.5); result = len(held)".encode())
    assert server.receive(Limits(seconds=30, nbytes=256 << 20)) == str(96 << 20).encode()
    counted = limits.held_by_session(server.pid, allowed=float("inf"))
    assert counted > 256 << 20, f"the copies were gone, and {counted} bytes were never too much"
    server.kill()


def test_what_is_left_behind_in_a_session_of_its_own_is_ended(template: Template) -> None:
    server = template.fork()
    server.send(
        b"left = subprocess.Popen(['sh', '-c', 'setsid sleep 999 & echo $!; exec sleep 999'], "
        b"stdout=subprocess.PIPE, start_new_session=True); result = [left.pid, int(left.stdout.readline())]"
    )
    left = [int(pid) for pid in re.findall(rb"\d+", server.receive(PATIENT))]
    assert not any(map(is_gone, left)), "nothing was left behind"
    server.kill()
    assert all(map(is_gone, left)), f"of {left}, started in sessions of their own, one is still there"


def test_who_prints_without_end_beyond_its_group_does_not_hold_up_who_asks(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_STACK_SECONDS", 0.1)
    monkeypatch.setattr(served, "_PATIENCE_SECONDS", 0.1)
    server = template.fork()
    server.send(b"pass")
    server.receive(PATIENT)
    # As if something were always there to be read.
    monkeypatch.setattr(server, "_read", lambda seconds: True)
    server.kill()
    wait_until(lambda: is_gone(server.pid))


def test_a_server_that_was_asked_nothing_more_but_died_is_known_to_have(template: Template) -> None:
    server = template.fork()
    server.send(b"threading.Timer(0.05, os._exit, [7]).start()")
    assert server.receive(PATIENT) == b"None"
    wait_until(lambda: server.exit_code is not None)
    assert server.exit_code == 7
    with pytest.raises(Lost, match="ended with exit code 7"):
        server.send(b"result = 1")


def test_a_template_that_does_not_import_says_so(tmp_path: Path) -> None:
    with pytest.raises(Lost, match=r"could not be started.* No module named 'nowhere_at_all'"):
        Template("nowhere_at_all", None).fork()


def test_servers_end_with_who_started_them(template: Template, tmp_path: Path) -> None:
    program = f"""
        import sys, time
        sys.path.insert(0, {str(tmp_path)!r})
        from samebits.harness.isolation.served import Template
        template = Template("obedient_server", None)
        server = template.fork()
        server.send(b"time.sleep(1000)")
        print(template.pid, server.pid, flush=True)
        time.sleep(1000)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    wait_until(lambda: all(map(is_gone, pids)))


def test_who_hangs_again_and_again_is_not_waited_for_in_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name of each cell that was begun, and no end of it.
    hangs = "import time\ndef make_server(options):\n    def answer(question, send):\n        send(b'begun {}')\n"
    (tmp_path / "hanging_server.py").write_text(hangs + "        time.sleep(1000)\n    return answer\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(isolated_session, "_MODULE", "hanging_server")
    monkeypatch.setattr(served, "_QUIET_SECONDS", 0.01)
    session = MatrixSession(Options(implementations=("CPU/bundled", "CPU/torch"), tier="smoke", dtypes=("fp32",)))
    cells = [cell for cell in session.cells("dtype") if cell.implementation.label == "CPU/bundled"][:5]
    other = next(cell for cell in session.cells("dtype") if cell.implementation.label == "CPU/torch")
    monkeypatch.setattr(isolated_session, "parse_record", lambda _: session.not_probed(other))
    isolated = IsolatedSession(session, Limits(seconds=0.1))
    records = [isolated.run(cell) for cell in (*cells, other)]
    isolated.close()
    assert {record.verdict for record in records} == {Verdict.ERROR}
    told = [record.reasons[0].partition(":")[0] for record in records]
    waited = "its process did not answer in full for 0.1 s"
    assert told == [waited] * 3 + ["not run"] * 2 + [waited], told


def test_who_is_given_up_still_does_not_support_what_it_never_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_hanging_server.py").write_text(HALF_HANGING_SERVER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(isolated_session, "_MODULE", "half_hanging_server")
    monkeypatch.setattr(served, "_QUIET_SECONDS", 0.01)
    session = MatrixSession(Options(implementations=("CPU/torch",), tier="smoke", dtypes=("fp32",)))
    cells = [cell for cell in session.cells("dtype") if cell.flaw is None]
    softcaps = iter([cell for cell in cells if "gemma2" in cell.cell_id])
    others = iter([cell for cell in cells if "gemma2" not in cell.cell_id])
    # What is unsupported in between was not computed, and says nothing for the implementation.
    order = [next(softcaps if is_softcap else others) for is_softcap in (False, True, False, False, True, False)]
    isolated = IsolatedSession(session, Limits(seconds=0.3))
    records = [isolated.run(cell) for cell in order]
    isolated.close()
    told = [f"{record.verdict}: {record.reasons[0]}" for record in records]
    waited, unsupported = "error: its process did not answer in full", "unsupported: softcap 50 is not supported"
    wanted = [waited, unsupported, waited, waited, unsupported]
    assert all(map(str.startswith, told, wanted)), told
    assert told[-1] == "error: not run: 3 cells of CPU/torch before it broke their limits"


def test_what_a_process_may_hold_is_its_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert share_of_memory(100 * GIB, 4) == 20 * GIB
    assert share_of_memory(100 * GIB, 64) == 4 * GIB, "many workers leave too little for a case of full size"
    assert share_of_memory(3 * GIB, 1) < 3 * GIB, "a small machine has more than it has"
    whole = machine_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{1 << 20}\n")
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    assert machine_memory() == 1 << 20 < whole


def test_last_words_are_the_last_lines_and_the_innermost_frames() -> None:
    assert last_words("") == "it wrote nothing"
    lines = "".join(f"line {number}\n" for number in range(9))
    assert last_words(lines) == "line 4 / line 5 / line 6 / line 7 / line 8"
    frames = "".join(f'  File "a.py", line {number} in f\n' for number in range(9))
    told = last_words(lines + "Fatal Python error: Aborted\n\nStack (most recent call first):\n" + frames)
    assert told.startswith("line 5 / line 6 / line 7 / line 8 / Fatal Python error: Aborted / File")
    assert told.endswith("line 3 in f"), told
    far = last_words('Traceback:\n  File "/a/b c/planted/faults.py", line 9 in f\n  File "/kernel.py", line 1\n')
    assert far == 'Traceback: / File ".../planted/faults.py", line 9 in f / File "/kernel.py", line 1', far
    assert memory(1.5 * GIB + (4 << 20)) == "1,540 MiB", "what was held is not told from what is allowed"
    assert memory(64.25 * GIB) == "64.25 GiB"
    assert ending(-signal.SIGSEGV) == "was ended by SIGSEGV (Segmentation fault)"
    assert ending(-99) == "was ended by signal 99"
    tail = Tail()
    for _ in range(100):
        tail.feed(b"x" * 10_000)
    tail.feed(b"end\xff")
    assert len(tail.take()) < 100_000
    assert tail.take() == ""


def test_messages_come_whole_however_they_are_cut() -> None:
    read, write = os.pipe()
    for payload in (b"", b"one", b"two" * 1000):
        write_frame(write, payload)
    os.close(write)
    reader = FrameReader()
    found: list[bytes] = []
    while data := os.read(read, 7):
        reader.feed(data)
        while (whole := reader.next()) is not None:
            found.append(whole)
    os.close(read)
    assert found == [b"", b"one", b"two" * 1000]
    reader.feed(b"sameb??")
    with pytest.raises(Garbled):
        reader.next()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has taken note of it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for what must come soon."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited for 20 s"
        time.sleep(0.01)
