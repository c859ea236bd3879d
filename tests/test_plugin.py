"""The suite as a user runs it: options, outcomes, records, and unusable input told in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from samebits.harness.record_files import read_run
from samebits.harness.records import SCHEMA_VERSION, Verdict

ROOT = Path(__file__).parent.parent
ONE_CASE = ("-k", "llama3-8b-causal-mixed and not CONTROL", "--dtype", "fp32", "--tier", "smoke")

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


def run_pytest(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "batch_invariant", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--backend", "TRITON"],
            "unknown backend 'TRITON'; known are FLASH_ATTN, TRITON_ATTN, FLEX_ATTENTION, AITER, CPU",
        ),
        (["--implementation", "CPU/fa"], "unknown implementation 'CPU/fa'; known are FLASH_ATTN/fa4"),
        (["--dtype", "int8"], "unknown dtype 'int8'; known are fp32, bf16, fp16"),
        (["--tier", "daily"], "unknown tier 'daily'; known are smoke, default, nightly"),
        (["--cell", "CPU/torch:x"], "unknown cell 'CPU/torch:x'"),
        (["--threads", "0"], "--threads is 0; it must be a whole number from 1 to 1024"),
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
        (["--results", unwritable_results], "cannot write"),
        (["--update-baseline", str], "is a directory; a baseline is written into a file"),
        (["--update-baseline", unwritable_results], "cannot write"),
        (["--update-baseline", not_json], "text.jsonl"),
    ],
    ids=lambda value: (
        " ".join(getattr(word, "__name__", str(word)) for word in value) if isinstance(value, list) else ""
    ),
)
def test_unusable_input_ends_the_run_with_one_sentence(arguments: list[object], told: str, tmp_path: Path) -> None:
    words = [word(tmp_path) if callable(word) else word for word in arguments]
    done = run_pytest(*words)
    output = done.stdout + done.stderr
    assert done.returncode == 2, f"exit code {done.returncode}:\n{output}"
    assert told in output, f"not told {told!r}:\n{output}"
    assert "Traceback" not in output, f"a traceback was printed:\n{output}"
    sentences = [line for line in output.splitlines() if line.strip()]
    assert len(sentences) == 1, f"more than one line was printed:\n{output}"


def test_records_of_an_earlier_run_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("precious")
    done = run_pytest("--results", tmp_path)
    assert done.returncode == 2
    assert "records of another run" in done.stdout + done.stderr
    assert (tmp_path / "records.jsonl").read_text() == "precious", "the records of an earlier run were overwritten"


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_every_cell_leaves_one_row_and_failures_say_why(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_BACKEND)
    results = tmp_path / "results"
    done = run_pytest(
        *ONE_CASE, *workers, "--load", tmp_path / "broken.py", "--backend", "BROKEN_ATTN", "--results", results
    )
    assert done.returncode == 1, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
    records = [record for record in read_run(results).records if not record.control]
    assert len(records) == 36, f"{len(records)} rows of 3 implementations and 12 relations"
    verdicts = {
        name: {r.verdict for r in records if r.implementation == name} for name in ("raises", "forgets", "overruns")
    }
    assert verdicts == {"raises": {Verdict.ERROR}, "forgets": {Verdict.FAIL}, "overruns": {Verdict.FAIL}}
    reasons = {record.implementation: " ".join(record.reasons) for record in records}
    assert "RuntimeError: no luck at all" in reasons["raises"]
    assert "of the error budget used" in reasons["forgets"], "an output that was never written passed as correct"
    assert "run wrote outside the output tensor" in reasons["overruns"]
    assert "reproduce: pytest -m batch_invariant" in done.stdout
    # pytest would take the results directory, which exists by then, for a place that decides a worker's root.
    assert "FAILED suites/test_batch_invariance.py::" in done.stdout, f"other names of tests:\n{done.stdout}"


def test_a_cell_that_kills_its_worker_leaves_a_row(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_BACKEND)
    cell = "BROKEN_ATTN/dies:position:llama3-8b-causal-mixed:fp32"
    done = run_pytest(
        "-n", "1", "--load", tmp_path / "broken.py", "--cell", cell, "--results", tmp_path / "results", DIE="1"
    )
    assert done.returncode == 1, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
    (record,) = read_run(tmp_path / "results").records
    assert record.cell_id == cell
    assert record.verdict is Verdict.ERROR
    assert "crashed" in " ".join(record.reasons)


def test_the_command_of_a_record_reproduces_its_cell_and_its_bits(tmp_path: Path) -> None:
    first = run_pytest(*ONE_CASE, "--backend", "CPU", "--results", tmp_path / "first")
    assert first.returncode == 0, first.stdout
    record = next(r for r in read_run(tmp_path / "first").records if r.label == "CPU/torch" and r.relation == "pages")
    words = record.command.split()
    assert words[:3] == ["pytest", "-m", "batch_invariant"]
    again = run_pytest(*words[3:], "--results", tmp_path / "again")
    assert again.returncode == 0, again.stdout
    (repeated,) = read_run(tmp_path / "again").records
    assert (repeated.cell_id, repeated.digest) == (record.cell_id, record.digest)


def test_two_runs_give_the_same_records_but_for_time(tmp_path: Path) -> None:
    def timeless(directory: Path) -> list[dict[str, object]]:
        lines = [json.loads(record.to_line()) for record in read_run(directory).records]
        return sorted(({**line, "seconds": 0} for line in lines), key=lambda line: str(line["cell_id"]))

    for name, workers in (("one", ()), ("two", ("-n", "2"))):
        done = run_pytest(
            *ONE_CASE, *workers, "--backend", "FLASH_ATTN", "--backend", "CPU", "--results", tmp_path / name
        )
        assert done.returncode == 0, done.stdout
    assert timeless(tmp_path / "one") == timeless(tmp_path / "two"), "records depend on how the cells were divided"


def test_a_pytest_run_without_cells_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_nothing() -> None: pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / "reports").exists(), "a run without cells left a results directory"
