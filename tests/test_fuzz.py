"""Whatever a file holds, it is read or told in one sentence; and what is read can be reported, compared and merged.

`SAMEBITS_FUZZ_INPUTS` says how many inputs of each kind; `make nightly` has 100,000. They are the same in every run.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from samebits.backends.libraries import MANIFEST, UnusableBundle, read_bundle
from samebits.harness.ci_matrix import CiMatrix, Job, read_matrix
from samebits.harness.merging import merge
from samebits.harness.record_files import RecordWriter, parse_record, read_run
from samebits.harness.records import RECORDS_FILE, Record, RunHeader, UnusableInput
from samebits.harness.repro.grammar import parsed, told
from samebits.harness.resuming import CutOffRun
from samebits.reports.baseline_files import read_baseline, write_baseline
from samebits.reports.report import write_report

from .record_strategies import HOSTILE_TEXTS, mutated, of_dataclass
from .samples import FAILS, GREEN, HEADER, NO_BASELINE, cell, run_of, save
from .test_bundles import bundle  # noqa: F401 -- a fixture

INPUTS = int(os.environ.get("SAMEBITS_FUZZ_INPUTS", "100"))
# A report takes a hundred times as long as the reading of a file.
REPORTS = max(5, INPUTS // 100)
LONGEST_MESSAGE = 1500
# Nothing is shrunk in a long run before it is told: its inputs are the same every time.
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": (Phase.generate, Phase.shrink),
    "suppress_health_check": list(HealthCheck),
}
FEW_SETTINGS = settings(max_examples=REPORTS, **SETTINGS)  # type: ignore[arg-type]
MANY_SETTINGS = settings(max_examples=INPUTS, **SETTINGS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such a place: a hundred thousand files are written."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def require_sentence(action: Callable[[], object]) -> None:
    """Asserts that an action succeeds, or refuses its input in one line that can be read."""
    try:
        action()
    except (UnusableInput, UnusableBundle) as error:
        message = str(error)
        assert "\n" not in message, f"more than one line: {message}"
        assert len(message) < LONGEST_MESSAGE, f"a message of {len(message)} characters: {message[:200]}"
        assert message.isprintable(), f"characters that a terminal may act on: {message!r}"


def valid_records() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return (save(Path(name), *GREEN, cell(relation="extend", **FAILS)) / RECORDS_FILE).read_bytes()


def valid_baseline() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "baseline.jsonl"
        write_baseline(run_of(*GREEN), path)
        return path.read_bytes()


JOBS = (Job("A-cpu-fp32", "A", "cpu", "fp32", ("ubuntu",)), Job("B-cuda-bf16", "B", "cuda", "bf16"))
VALID_MATRIX = CiMatrix("default", JOBS).to_json().encode() + b"\n"
LIBRARY = {"name": "lib", "version": "1", "torch": "", "files": {"a.py": hashlib.sha256(b"a = 1\n").hexdigest()}}
VALID_MANIFEST = json.dumps({"schema": 1, "libraries": [LIBRARY]}).encode()
SUM = {"first": 0, "last": 1, "keys": 2, "step": 1}
SIDE = {"batch": "[r1:q1c1]", "values": {}, "denominator": {}}


def of_sum(changes: dict[str, object]) -> dict[str, object]:
    """An explanation, with some fields of a sum changed."""
    return {"sides": [SIDE | {"values": {"sum": SUM | changes}}] * 2}


def nested_shards(depth: int) -> bytes:
    """The header of a run that was merged from one that was merged, and so on; the innermost has no environment."""
    header = json.loads(HEADER.to_line())
    del header["kind"]
    innermost = {name: value for name, value in header.items() if name != "environment"}
    whole = innermost
    for _ in range(depth):
        whole = header | {"shards": [whole]}
    return json.dumps(whole | {"kind": "run"}).encode() + b"\n"


TEXTS = (
    "attention name=phi-2 num_heads=2 num_kv_heads=2 head_dim=80 mask=causal dtype=bf16 [r1:q9c0] against [r1:q1c8]",
    "rms_norm dtype=fp16 hidden_size=64 [r1:q3c0 r2:q1c0] then same{page_seed=1} against [r1:q3c0]",
)


@given(data=mutated(valid_records()) | st.binary(max_size=200))
@MANY_SETTINGS
def test_any_records_are_read_or_told(folder: Path, data: bytes) -> None:
    (folder / RECORDS_FILE).write_bytes(data)
    require_sentence(lambda: read_run(folder))


@given(data=mutated(valid_baseline()) | mutated(valid_records()))
@MANY_SETTINGS
def test_any_baseline_is_read_or_told(folder: Path, data: bytes) -> None:
    path = folder / "baseline.jsonl"
    path.write_bytes(data)
    require_sentence(lambda: read_baseline(path))


@given(data=mutated(VALID_MATRIX))
@MANY_SETTINGS
def test_any_matrix_is_read_or_told(folder: Path, data: bytes) -> None:
    path = folder / "matrix.json"
    path.write_bytes(data)
    require_sentence(lambda: read_matrix(path))


@given(data=mutated(VALID_MANIFEST))
@MANY_SETTINGS
def test_any_manifest_of_a_bundle_is_read_or_told(folder: Path, data: bytes) -> None:
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib" / "a.py").write_bytes(b"a = 1\n")
    (folder / MANIFEST).write_bytes(data)
    require_sentence(lambda: read_bundle(folder))


@given(data=st.sampled_from(TEXTS).flatmap(lambda text: mutated(text.encode())))
@MANY_SETTINGS
def test_any_text_of_a_comparison_is_read_or_told(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")

    def read_twice() -> None:
        comparison = parsed(text)
        assert parsed(told(comparison)) == comparison, f"{text!r} is written as {told(comparison)!r}"

    require_sentence(read_twice)


@given(header=of_dataclass(RunHeader, HOSTILE_TEXTS), records=st.lists(of_dataclass(Record, HOSTILE_TEXTS), max_size=4))
@FEW_SETTINGS
def test_odd_records_that_can_be_read_can_be_reported_compared_merged_and_kept(
    header: RunHeader, records: list[Record]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        writer = RecordWriter(directory / "run", header)
        for number, record in enumerate(records):
            writer.write(replace(record, cell_id=f"{record.cell_id}{number}"))
        writer.close()
        run = read_run(directory / "run")
        before = replace(run, header=replace(header, run_id=f"before {header.run_id}"))
        write_report(run, NO_BASELINE, directory / "report", [before])
        require_sentence(lambda: write_report(run, read_baseline(directory / "run"), directory / "compared"))
        require_sentence(lambda: write_baseline(run, directory / "baseline.jsonl"))
        require_sentence(lambda: merge([directory / "run"], directory / "merged"))
        require_sentence(lambda: CutOffRun(directory / "run").release())


@pytest.mark.parametrize(
    ("line", "told_of_it"),
    [
        (
            b'{"kind": "' + b"x" * (1 << 24) + b'"}\n',
            "it has 16,777,228 bytes; it must be one JSON",
        ),
        (b"[" * 100_000 + b"\n", "is not JSON; it must be one JSON object"),
        (nested_shards(300), "it holds objects within objects without end; it must be as samebits writes it"),
        (nested_shards(3), "field 'environment' is absent"),
    ],
    ids=["too long", "too deep for JSON", "too deep for Python", "deep"],
)
def test_what_has_no_end_is_refused_at_once(folder: Path, line: bytes, told_of_it: str) -> None:
    (folder / RECORDS_FILE).write_bytes(line)
    with pytest.raises(UnusableInput) as refused:
        read_run(folder)
    assert told_of_it in str(refused.value)
    assert len(str(refused.value)) < LONGEST_MESSAGE


def test_a_job_whose_name_leads_out_of_the_shards_is_refused(folder: Path) -> None:
    path = folder / "matrix.json"
    path.write_text(CiMatrix("default", (replace(JOBS[0], name="../../shard"),)).to_json())
    with pytest.raises(
        UnusableInput, match=r"a job is named '\.\./\.\./shard'; it must be letters, digits, '_' and '-'"
    ):
        read_matrix(path)


@pytest.mark.parametrize(
    ("explanation", "told_of_it"),
    [
        ({"sides": [SIDE]}, "an explanation has 1 sides; it must have two, or none"),
        (
            {"ulps": {"1": 0, "2": -1}},
            "an explanation has -1 elements of one distance; there cannot be fewer than none",
        ),
        ({"ulps": {"1": 0}}, "an explanation has no element of any distance; there must be one"),
        (of_sum({"keys": 0}), "a sum has 0 keys"),
        (
            of_sum({"addends": [{"times": 10**18, "spacing": 0, "round": [SUM]}]}),
            "there are 1000000000000000000 rounds of 1 addends; there must be from 1 to 1,048,576 addends",
        ),
    ],
    ids=["one side", "fewer than none", "no element", "no key", "a sum without end"],
)
def test_an_explanation_that_cannot_be_drawn_is_refused(explanation: dict[str, object], told_of_it: str) -> None:
    told = {"request": "r1", "position": 0, "place": "", "difference": ""} | explanation
    with pytest.raises(UnusableInput) as refused:
        parse_record(json.dumps(json.loads(GREEN[0].to_line()) | {"explanation": told}))
    assert told_of_it in str(refused.value)
