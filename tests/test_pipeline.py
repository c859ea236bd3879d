"""The nightly pipeline on this machine: the matrix, its shards, their merge, the comparison, by the scripts of ci/."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from samebits.harness.cli import main
from samebits.harness.record_files import read_run
from samebits.harness.records import Verdict

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "nightly.yml"
# Two implementations that are fast to import and to run, and two checks of their rotary embedding.
JOBS = ("FLASH_ATTN-cpu-fp32", "CPU-cpu-fp32")
CHEAP = ("-m", "rope", "-k", "cache_dtype and llama3-8b-fp32 or FLASH_ATTN/torch:normal or CPU/torch:normal")


def script(name: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "ci" / name), *map(str, arguments)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}:\n{output}"
    return output


def make_matrix(tmp_path: Path) -> Path:
    matrix = tmp_path / "matrix.json"
    words = ["--tier", "smoke", "--dtype", "fp32", "--runner", "cpu=ubuntu-latest"]
    words += ["--backend", "FLASH_ATTN", "--backend", "CPU", "--device", "cpu", "--device", "rocm"]
    outputs = tmp_path / "outputs"
    finished(script("matrix.py", matrix, *words, GITHUB_OUTPUT=str(outputs)))
    told = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    assert [job["name"] for job in json.loads(told["jobs"])] == list(JOBS)
    assert [job["runner"] for job in json.loads(told["jobs"])] == [["ubuntu-latest"]] * 2
    assert told["unavailable"] == "1", "FLASH_ATTN on ROCm, which CPU is not made for"
    return matrix


def test_the_nightly_run_from_the_matrix_to_the_regression(tmp_path: Path) -> None:
    matrix, shards, merged = make_matrix(tmp_path), tmp_path / "shards", tmp_path / "merged"
    running = [script("shard.py", matrix, job, shards, *CHEAP) for job in JOBS]
    running.append(script("shard.py", matrix, "--unavailable", shards))
    for process in running:
        finished(process)
    summary = tmp_path / "summary.md"
    merging = script("merge.py", matrix, shards, merged, ROOT / "reports/baselines", GITHUB_STEP_SUMMARY=str(summary))
    finished(merging)
    assert summary.read_text().count("# samebits: run ") == 2, "one page for each kind of device"
    run = read_run(merged / "cpu")
    assert {header.shard for header in run.header.shards} == set(JOBS)
    assert {record.backend for record in run.records if not record.control} == {"FLASH_ATTN", "CPU"}
    absent = read_run(merged / "rocm").records
    assert {(record.verdict, record.reasons) for record in absent} == {
        (Verdict.UNAVAILABLE, ("no runner has a device of kind rocm",))
    }

    (shards / JOBS[0]).rename(tmp_path / "lost")
    output = finished(script("merge.py", matrix, shards, tmp_path / "again", merged / "cpu"), code=2)
    assert f"samebits: shard '{JOBS[0]}' is lost" in output
    (tmp_path / "lost").rename(shards / JOBS[0])

    file = shards / JOBS[0] / "records.jsonl"
    broken = [json.loads(line) for line in file.read_text().splitlines()]
    for line in broken:
        if line["kind"] == "cell" and not line["control"]:
            line |= {"verdict": "fail", "reasons": ["broken by the test"]}
    file.write_text("".join(json.dumps(line) + "\n" for line in broken))
    baselines = tmp_path / "baselines"
    baselines.mkdir()
    shutil.copy(merged / "cpu" / "records.jsonl", baselines / "cpu.jsonl")
    output = finished(script("merge.py", matrix, shards, tmp_path / "worse", baselines), code=1)
    assert f"a regression from {baselines} to {tmp_path / 'worse' / 'cpu'}" in output


def test_submitit_runs_the_matrix_and_merges_it(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from samebits.harness.ci_matrix import read_matrix
    from samebits.harness.ci_slurm import run_matrix

    matrix = tmp_path / "matrix.json"
    words = ["--tier", "smoke", "--dtype", "fp32", "--backend", "FLASH_ATTN", "--device", "cpu"]
    finished(script("matrix.py", matrix, *words))
    written = run_matrix(read_matrix(matrix), tmp_path / "out", "local", ["timeout_min=5"], CHEAP)
    assert written == [tmp_path / "out" / "merged" / "cpu"]
    assert [header.shard for header in read_run(written[0]).header.shards] == ["FLASH_ATTN-cpu-fp32"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--backend", "CUDNN"], "unknown backend 'CUDNN'; known are FLASH_ATTN"),
        (["--device", "tpu"], "unknown device 'tpu'; known are cpu, cuda, rocm"),
        (["--dtype", "int8"], "unknown dtype 'int8'; known are fp32, bf16, fp16"),
        (["--tier", "daily"], "unknown tier 'daily'; known are smoke, default, nightly"),
        (["--runner", "cuda"], "runner 'cuda' is unusable; it must be DEVICE=LABEL[,LABEL ...]"),
        (["--backend", "CPU", "--device", "cuda"], "no backend of CPU is made for cuda"),
    ],
)
def test_an_unusable_matrix_is_told_in_one_sentence(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["matrix", "--json", *arguments]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1, f"more than one sentence: {err}"


def test_the_workflow_repeats_nothing_of_the_matrix_and_calls_scripts_that_are_here() -> None:
    text = WORKFLOW.read_text()
    workflow = yaml.safe_load(text)
    jobs = workflow["jobs"]
    assert set(jobs) == {"matrix", "shard", "merge"}
    assert jobs["shard"]["strategy"]["fail-fast"] is False
    assert jobs["shard"]["strategy"]["matrix"] == {"include": "${{ fromJSON(needs.matrix.outputs.jobs) }}"}
    assert set(jobs["merge"]["needs"]) == {"matrix", "shard"}
    assert jobs["merge"]["if"].startswith("always()"), "a lost shard would not be told of"
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert jobs["shard"]["env"][name].startswith("${{ github.workspace }}/.cache/"), f"{name} is not kept"
    for name in ("FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION", "AITER", "bf16", "fp32", "fp16"):
        assert name not in text, f"{name} is the registry's to name"
    for called in re.findall(r"\bci/[a-z]+\.(?:py|sh)", text):
        assert os.access(ROOT / called, os.X_OK), f"{called} is absent or cannot be run"
    for job in jobs.values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), f"a step must use an action or run a command: {step}"
