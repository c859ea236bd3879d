"""The suite as a user runs it: options, outcomes, records, and unusable input told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from samebits.harness.record_files import read_run
from samebits.harness.records import SCHEMA_VERSION, Verdict

from .samples import UNKNOWN_NAMES
from .suite_runs import ROOT, WITHOUT_PLUGINS, SuiteRun, run_pytest, run_suite

ONE_CASE = ("-k", "llama3-8b-causal-mixed and not CONTROL", "--dtype", "fp32", "--tier", "smoke")
# Fewer cells to make before a file is looked at.
ONE = ("--implementation", "CPU/torch")
WORKERS = {"one process": (), "two workers": ("-n", "2")}

BROKEN_BACKEND = """
import os
from samebits.backends.contract import Availability, Claims, Implementation
from samebits.backends.support import Support

class Broken(Implementation):
    backend, support = "BROKEN_ATTN", Support()
    def __init__(self, name, action): self.name, self.action = name, action
    def probe(self): return Availability()
    def plan(self, config, metadata): return None
    def run(self, plan, query, key_cache, value_cache, output, lse): self.action(output)

def raises(output): raise RuntimeError("no luck\\nat all")
def forgets(output): pass
def overruns(output): output.as_strided((output.numel() + 8,), (1,)).zero_()
def dies(output): os._exit(7)

def implementations():
    actions = {"raises": raises, "forgets": forgets, "overruns": overruns}
    if os.environ.get("DIE"):
        actions = {"dies": dies}
    return [Broken(name, action) for name, action in actions.items()]
"""


def truncated_baseline(directory: Path) -> Path:
    path = directory / "truncated.jsonl"
    packaged = next((ROOT / "reports" / "baselines").glob("*.jsonl"))
    path.write_text(packaged.read_text()[:-40])
    return path


def other_schema(directory: Path) -> Path:
    path = directory / "schema.jsonl"
    lines = next((ROOT / "reports" / "baselines").glob("*.jsonl")).read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"schema_version": SCHEMA_VERSION + 1}), *lines[1:]]))
    return path


def not_json(directory: Path) -> Path:
    path = directory / "text.jsonl"
    path.write_text("this is no baseline\n")
    return path


def other_device(directory: Path) -> Path:
    path = directory / "device.jsonl"
    packaged = next((ROOT / "reports" / "baselines").glob("*.jsonl")).read_text()
    lines = [json.loads(line) for line in packaged.splitlines()]
    path.write_text("\n".join(json.dumps(line | ({"device": "cuda Z9"} if "device" in line else {})) for line in lines))
    return path


def unwritable_results(directory: Path) -> Path:
    path = directory / "file"
    path.write_text("in the way")
    return path / "results"


def results_of_another_run(directory: Path) -> Path:
    (directory / "records.jsonl").write_text("precious")
    return directory


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        *UNKNOWN_NAMES,
        (["--implementation", "CPU/fa"], "unknown implementation 'CPU/fa'; known are FLASH_ATTN/fa4"),
        (["--cell", "CPU/torch:x"], "unknown cell 'CPU/torch:x'"),
        (["--threads", "0"], "--threads is 0; it must be a whole number from 1 to 1024"),
        (["--cell-timeout", "soon"], "--cell-timeout is 'soon'; it must be a number of seconds above 0"),
        (["--cell-memory", "0"], "--cell-memory is '0'; it must be a number of GiB above 0"),
        (["--threads", "many"], "--threads is 'many'; it must be a whole number from 1 to 1024"),
        (["--seed", "1.5"], "--seed is '1.5'; it must be a whole number"),
        (["-m", "nonsense", "--tier", "smoke"], "-m 'nonsense' selects no suite; known are batch_invariant, dtype"),
        (["-m", "dtype and", "--tier", "smoke"], "-m 'dtype and' is no expression of marks"),
        (
            ["-m", "dtype", "--cell", "CPU/torch:decode:llama3-8b-causal-mixed:fp32"],
            "cell 'CPU/torch:decode:llama3-8b-causal-mixed:fp32' is of no suite that -m 'dtype' selects",
        ),
        (["--load", "nowhere.py"], "nowhere.py"),
        (["--baseline", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--baseline", truncated_baseline], "truncated.jsonl"),
        (["--baseline", other_schema], "schema_version"),
        (["--baseline", not_json], "text.jsonl"),
        (["--baseline", other_device], "cuda Z9"),
        (["--results", unwritable_results, *ONE], "cannot write"),
        (["--results", results_of_another_run, *ONE], "records of another run"),
        (["--update-baseline", str, *ONE], "is a directory; a baseline is written into a file"),
        (["--update-baseline", unwritable_results, *ONE], "cannot write"),
        (["--update-baseline", not_json, *ONE], "text.jsonl"),
    ],
    ids=lambda value: (
        " ".join(getattr(word, "__name__", str(word)) for word in value) if isinstance(value, list) else ""
    ),
)
@pytest.mark.usefixtures("one_thread")
def test_unusable_input_ends_the_run_with_one_sentence(
    arguments: list[object],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process, for nothing runs: to import torch in one for each would take longer than all that is tested."""
    monkeypatch.chdir(ROOT)
    # Which GPU this process has is not for the session inside of it to choose.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    words = [word(tmp_path) if callable(word) else word for word in arguments]
    before = files_of(tmp_path)
    code = pytest.main([*WITHOUT_PLUGINS, "-m", "batch_invariant", *map(str, words)])
    out, err = capfd.readouterr()
    output = out + err
    assert code == 2, f"exit code {code}:\n{output}"
    assert told in output, f"not told {told!r}:\n{output}"
    assert "Traceback" not in output, f"a traceback was printed:\n{output}"
    sentences = [line for line in output.splitlines() if line.strip()]
    assert len(sentences) == 1, f"more than one line was printed:\n{output}"
    assert files_of(tmp_path) == before, "files were changed, such as the records of an earlier run"


def files_of(folder: Path) -> dict[Path, bytes]:
    """What is in the files of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SuiteRun]:
    """Runs one case through a broken backend and others: in pytest's process, and in those of two workers."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "broken.py").write_text(BROKEN_BACKEND)
    backends = ("--backend", "BROKEN_ATTN", "--backend", "CPU")
    done: dict[str, SuiteRun] = {}

    def run(workers: str) -> SuiteRun:
        if workers not in done:
            words = (*ONE_CASE, *WORKERS[workers], "--load", folder / "broken.py", *backends)
            words += ("--junitxml", folder / f"{workers}.xml")
            done[workers] = run_suite("batch_invariant", folder / workers, *words, isolated=workers != "one process")
        return done[workers]

    return run


@pytest.mark.parametrize("workers", WORKERS)
def test_every_cell_leaves_one_row_and_failures_say_why(run_with: Callable[[str], SuiteRun], workers: str) -> None:
    run = run_with(workers)
    assert run.exit_code == 1, f"exit code {run.exit_code}:\n{run.output}"
    records = [record for record in run.records if record.backend == "BROKEN_ATTN"]
    assert len(records) == 36, f"{len(records)} rows of 3 implementations and 12 relations"
    verdicts = {
        name: {r.verdict for r in records if r.implementation == name} for name in ("raises", "forgets", "overruns")
    }
    assert verdicts == {"raises": {Verdict.ERROR}, "forgets": {Verdict.FAIL}, "overruns": {Verdict.FAIL}}
    reasons = {record.implementation: " ".join(record.reasons) for record in records}
    assert "RuntimeError: no luck at all" in reasons["raises"]
    assert "of the error budget used" in reasons["forgets"], "an output that was never written passed as correct"
    assert "run wrote outside the output tensor" in reasons["overruns"]
    assert "reproduce: pytest -m batch_invariant" in run.output
    # pytest would take the results directory, which exists by then, for a place that decides a worker's root.
    assert "FAILED suites/test_batch_invariance.py::" in run.output, f"other names of tests:\n{run.output}"


@pytest.mark.parametrize("workers", WORKERS)
def test_the_xml_of_junit_carries_the_ids_of_the_records_and_what_failed(
    run_with: Callable[[str], SuiteRun], workers: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_with(workers)
    (file,) = tmp_path_factory.getbasetemp().glob(f"runs[0-9]*/{workers}.xml")
    records = {record.cell_id: record for record in read_run(file.with_suffix("")).records}
    told = {}
    for case in ElementTree.parse(file).iter("testcase"):
        (cell_id,) = (entry.attrib["value"] for entry in case.iter("property") if entry.attrib["name"] == "cell_id")
        assert f"[{cell_id}]" in case.attrib["name"], "a test is not named by its cell"
        told[cell_id] = case.find("failure") is not None
    red = {cell_id: record.red for cell_id, record in records.items()}
    assert told == red, "the XML and the records do not tell the same"


def test_two_runs_give_the_same_records_but_for_time(run_with: Callable[[str], SuiteRun]) -> None:
    def timeless(run: SuiteRun) -> list[dict[str, object]]:
        lines = [json.loads(record.to_line()) for record in run.records]
        return sorted(({**line, "seconds": 0} for line in lines), key=lambda line: str(line["cell_id"]))

    one, two = (timeless(run_with(workers)) for workers in WORKERS)
    assert {line["verdict"] for line in one} >= {"pass", "fail", "error"}, "these runs hold too little to compare"
    assert one == two, "records depend on how the cells were divided"


def test_the_command_of_a_record_reproduces_its_cell_and_its_bits(
    tmp_path: Path, run_with: Callable[[str], SuiteRun], run_here: Callable[..., int]
) -> None:
    record = next(record for record in run_with("one process").of("CPU/torch") if record.relation == "pages")
    words = record.command.split()
    assert words[:3] == ["pytest", "-m", "batch_invariant"]
    assert run_here(*words[1:], "--results", tmp_path) == 0
    (repeated,) = read_run(tmp_path).records
    assert (repeated.cell_id, repeated.digest) == (record.cell_id, record.digest)


def test_a_cell_that_kills_its_worker_leaves_a_row(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_BACKEND)
    cell = "BROKEN_ATTN/dies:position:llama3-8b-causal-mixed:fp32"
    few = ("--load", tmp_path / "broken.py", "--backend", "BROKEN_ATTN", "--tier", "smoke", "--cell", cell)
    run = run_suite("batch_invariant", tmp_path / "results", *few, "-n", "1", environment={"DIE": "1"})
    assert run.exit_code == 1, f"exit code {run.exit_code}:\n{run.output}"
    (record,) = run.records
    assert record.cell_id == cell
    assert record.verdict is Verdict.ERROR
    assert "crashed" in " ".join(record.reasons)


@pytest.mark.parametrize("option", [(), ("--backend", "CPU")], ids=["without", "with"])
def test_the_garbage_collector_of_other_tests_is_left_alone(tmp_path: Path, option: tuple[str, ...]) -> None:
    (tmp_path / "test_other.py").write_text(
        "import gc, weakref\n"
        "class Ring:\n    pass\n"
        "ring = Ring()\nring.itself = ring\nseen = weakref.ref(ring)\ndel ring\n"
        "def test_ring() -> None:\n    gc.collect()\n    assert seen() is None\n"
        "def test_nothing_is_frozen() -> None:\n    assert gc.get_freeze_count() == 0\n"
    )
    done = run_pytest("-q", *option, "test_other.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_pytest_run_without_cells_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_nothing() -> None: pass\n")
    done = run_pytest("-q", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / "reports").exists(), "a run without cells left a results directory"
