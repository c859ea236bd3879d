"""The nightly pipeline on this machine: the matrix, its shards, their merge, the comparison, by the scripts of ci/."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from samebits.harness.ci_matrix import CiMatrix, Job
from samebits.harness.cli import main
from samebits.harness.record_files import read_run
from samebits.harness.records import UnusableInput, Verdict

from .samples import UNKNOWN_NAMES
from .suite_runs import IN_PROCESS, NO_BASELINES, ROOT, WITHOUT_PLUGINS

WORKFLOW = ROOT / ".github" / "workflows" / "nightly.yml"
# Two implementations that are fast to import and to run, and two checks of their rotary embedding.
JOBS = ("FLASH_ATTN-cpu-fp32", "CPU-cpu-fp32")
CELLS = "cache_dtype and llama3-8b-fp32 or FLASH_ATTN/torch:normal or CPU/torch:normal"
CHEAP = ("-m", "rope", "-k", CELLS, "--baseline", str(NO_BASELINES), *IN_PROCESS, *WITHOUT_PLUGINS)
# A third party's file.
OF_MINE = """
from samebits.backends.cpu import BundledAttention

class Mine(BundledAttention):
    backend, name = "MINE", "kernel"

def implementations():
    return [Mine()]
"""


def script(name: str, *arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "ci" / name), *map(str, arguments)],
        cwd=cwd,
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
    pages = summary.read_text()
    assert pages.count("# samebits: run ") == 2, "one page for each kind of device"
    assert pages.count("**NOTHING RAN: no implementation was checked.**") == 1, "rows without a runner read as checked"
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


def one_job(dtype: str = "fp32") -> CiMatrix:
    return CiMatrix("smoke", (Job(f"FLASH_ATTN-cpu-{dtype}", "FLASH_ATTN", "cpu", dtype),))


def test_a_whole_shard_of_bf16_holds_against_the_committed_baseline(tmp_path: Path) -> None:
    """Of a backend that lacks operations of the suite: the baseline's rows of fp32 are another shard's."""
    matrix, job = tmp_path / "matrix.json", "FLASH_ATTN-cpu-bf16"
    matrix.write_text(one_job("bf16").to_json())
    baseline = ("--baseline", ROOT / "reports" / "baselines")
    finished(script("shard.py", matrix, job, tmp_path, "-m", "dtype", *baseline, *IN_PROCESS, *WITHOUT_PLUGINS))
    run = read_run(tmp_path / job)
    assert (run.header.dtypes, run.header.narrowed) == (("bf16",), False)
    assert {record.dtype for record in run.records if not record.control} == {"bf16"}
    with (tmp_path / job / "regression.csv").open(newline="") as stream:
        states = {row["cell_id"]: row["state"] for row in csv.DictReader(stream)}
    assert len(states) >= len(run.records)
    assert "missing" not in states.values(), f"{[cell for cell, state in states.items() if state == 'missing'][:3]}"


def test_submitit_runs_the_matrix_and_merges_it(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from samebits.harness.ci_slurm import run_matrix

    written = run_matrix(one_job(), tmp_path / "out", "local", ["timeout_min=5"], CHEAP)
    assert written == [tmp_path / "out" / "merged" / "cpu"]
    assert [header.shard for header in read_run(written[0]).header.shards] == ["FLASH_ATTN-cpu-fp32"]

    # A later run must not take the shards of an earlier one for its own, whatever became of what was merged.
    shutil.rmtree(tmp_path / "out" / "merged")
    with pytest.raises(UnusableInput, match=r"'.*/out/shards' holds the results of another run; give a new directory"):
        run_matrix(one_job(), tmp_path / "out", "local", [], CHEAP)
    assert not (tmp_path / "out" / "merged").exists(), "an earlier run was passed off as new"


def test_a_submitted_job_that_cannot_use_its_input_is_a_lost_shard(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from samebits.harness.ci_slurm import run_matrix

    told = "shard 'FLASH_ATTN-cpu-fp32' is lost: its job ended with exit code 2; the logs are in '.*/logs'"
    with pytest.raises(UnusableInput, match=told):
        run_matrix(one_job(), tmp_path, "local", ["timeout_min=5"], ["--threads", "none"])


def test_a_file_of_the_matrix_that_cannot_be_written_is_told_in_one_sentence(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "matrix.json"
    told = finished(script("matrix.py", absent, "--backend", "CPU"), code=2)
    assert told == f"ci/matrix.py: {str(absent)!r} cannot be written: No such file or directory\n"


def test_a_name_that_is_given_twice_is_one_job(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backend", "CPU", "--device", "cpu", "--dtype", "bf16"]
    assert main(["matrix", "--json", *words, *words]) == 0
    assert [job["name"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["CPU-cpu-bf16"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        *UNKNOWN_NAMES,
        (["--device", "tpu"], "unknown device 'tpu'; known are cpu, cuda, rocm"),
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


@pytest.mark.parametrize("name", ["matrix.py", "shard.py", "merge.py"])
def test_a_script_without_its_arguments_is_no_regression(name: str) -> None:
    assert finished(script(name), code=2).startswith(f"usage: ci/{name} ")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("matrix.py", ["--help"]),
        ("matrix.py", ["matrix.json", "--help"]),
        ("matrix.py", ["matrix.json", "-h"]),
        ("shard.py", ["--help"]),
        ("merge.py", ["--help"]),
        ("bundle.py", ["--help"]),
        ("bundle.py", ["unpack", "--help"]),
        ("museum.py", ["--help"]),
    ],
)
def test_a_script_that_is_asked_for_help_writes_no_file(name: str, arguments: list[str], tmp_path: Path) -> None:
    told = finished(script(name, *arguments, cwd=tmp_path))
    assert told.startswith("usage: "), told
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("matrix.py", ["--tier", "smoke"]),
        ("shard.py", ["matrix.json", "CPU-cpu-fp32", "-n", "2"]),
        ("merge.py", ["matrix.json", "shards", "-o", "merged"]),
    ],
)
def test_an_option_is_not_taken_for_a_file(name: str, arguments: list[str], tmp_path: Path) -> None:
    told = finished(script(name, *arguments, cwd=tmp_path), code=2)
    assert told.startswith(f"usage: ci/{name} "), told
    assert told.count("\n") == 1, f"more than one sentence: {told}"
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize("arguments", [(), ("cuda",), ("cuda", "there", "2.11.0", "more"), ("rocm", "there", "2.11.0")])
def test_an_environment_that_cannot_be_made_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command = [str(ROOT / "ci" / "install.sh"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(("usage: ci/install.sh", "ci/install.sh: on rocm torch is the machine's own"))
    assert not list(tmp_path.iterdir()), "something was made"


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_an_environment_of_another_torch_has_all_else_to_the_version(tmp_path: Path) -> None:
    executable(tmp_path / "python", 'mkdir -p "$3/bin" && cp "$0.pip" "$3/bin/pip"')
    executable(tmp_path / "python.pip", 'echo "$@" >>"${0%/bin/pip}/called"')
    for torch in ((), ("2.11.0",)):
        there = tmp_path / f"torch{len(torch)}"
        command = [str(ROOT / "ci" / "install.sh"), "cuda", str(there), *torch]
        subprocess.run(command, env=os.environ | {"PYTHON": str(tmp_path / "python")}, check=True)
        calls = [line.split() for line in (there / "called").read_text().splitlines()]
        (constraints,) = {Path(call[call.index("--constraint") + 1]) for call in calls}
        assert len(calls) == 2, f"pip was called otherwise: {calls}"
        pinned = set(constraints.read_text().splitlines())
        committed = set((ROOT / "ci" / "constraints.txt").read_text().splitlines())
        own = {line for line in committed if line.startswith(("torch==", "triton=="))} if torch else set()
        assert len(own) == 2 * len(torch)
        assert pinned == committed - own | {f"torch=={version}" for version in torch}


@pytest.mark.parametrize(
    ("device", "torch", "libs"),
    [
        ("cuda", ["2.11.0"], ["--libs", "/opt/a", "--libs", "/opt/b"]),
        ("rocm", [], ["--libs", "/opt/c"]),
        ("cpu", [], []),
    ],
)
def test_a_shard_has_the_torch_and_the_libraries_of_its_kind_of_device(
    tmp_path: Path, device: str, torch: list[str], libs: list[str]
) -> None:
    executable(tmp_path / "ci" / "install.sh", 'echo "$@" >installed')
    executable(tmp_path / ".venv" / "bin" / "python", 'echo "$@" >run')
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["shard"]["steps"]
    environment = {"DEVICE": device, "SAMEBITS_TORCH": "cuda=2.11.0"}
    environment["SAMEBITS_LIBS"] = "cuda=/opt/a rocm=/opt/c cuda=/opt/b"
    for step in steps:
        if "run" in step:
            command = re.sub(r"\$\{\{.*?\}\}", "expression", step["run"])
            subprocess.run(["bash", "-e", "-c", command], cwd=tmp_path, env=os.environ | environment, check=True)
    assert (tmp_path / "installed").read_text().split() == [device, ".venv", *torch]
    words = (tmp_path / "run").read_text().split()
    assert words[:4] == ["ci/shard.py", "matrix.json", "expression", "shards"]
    assert words[4:] == ["-n", "expression", "--examples", ".cache/examples", *libs]


def test_submitted_jobs_are_given_backends_and_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[object, ...]] = []

    def submit(*arguments: object) -> list[Path]:
        given.append(arguments)
        return []

    monkeypatch.setattr("samebits.harness.ci_slurm.run_matrix", submit)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OF_MINE)
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "bundle.json").write_text('{"schema": 1, "libraries": []}')
    words = ["matrix", "--slurm", "-o", "out", "--load", "mine.py", "--libs", "libs", "--set", "gpus_per_node=1"]
    assert main(words) == 0
    ((_, *others),) = given
    assert others == [
        Path("out"),
        "slurm",
        ["gpus_per_node=1"],
        ["--load", str(tmp_path / "mine.py"), "--libs", str(tmp_path / "libs")],
    ]


def test_the_workflow_repeats_nothing_of_the_matrix_and_calls_scripts_that_are_here() -> None:
    text = WORKFLOW.read_text()
    workflow = yaml.safe_load(text)
    jobs = workflow["jobs"]
    assert set(jobs) == {"matrix", "own", "museum", "mutants", "shard", "merge"}
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


def test_every_night_tries_other_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(
        "samebits.harness.mutation.command.try_mutants", lambda only, **options: (asked.update(options), ("", True))[1]
    )
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["mutants"]["steps"]
    (command,) = (step["run"] for step in steps if "samebits mutants" in step.get("run", ""))
    assert main(command.replace("${{ github.run_number }}", "17").split()[1:]) == 0
    assert asked["seed"] == 17, "each night has a number of its own"
    assert asked["sample"], "all of them would take hours"


def test_a_run_that_is_started_by_hand_has_the_tier_of_the_repository_unless_another_is_given() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["env"]["TIER"] == "${{ inputs.tier || vars.SAMEBITS_TIER || 'default' }}"
    # YAML 1.1 reads the key `on` as true.
    assert not workflow[True]["workflow_dispatch"]["inputs"]["tier"]["default"], "SAMEBITS_TIER would never apply"
