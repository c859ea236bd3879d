"""Shards become one run for each kind of device, or one sentence says which of them is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samebits.harness.ci_matrix import CiMatrix, Job
from samebits.harness.cli import main
from samebits.harness.record_files import read_run
from samebits.harness.records import SCHEMA_VERSION, Record, Verdict
from samebits.reports.baseline_files import write_baseline

from .samples import CPU, GPU, UNAVAILABLE, cell, control, save

FP32, BF16 = cell(dtype="fp32"), cell(dtype="bf16")
MATRIX = CiMatrix("default", (Job("CPU-cpu-fp32", "CPU", "cpu", "fp32"), Job("CPU-cpu-bf16", "CPU", "cpu", "bf16")))


def shard(directory: Path, dtype: str, *records: Record, **header: Any) -> Path:  # noqa: ANN401 -- fields of RunHeader
    described = {"shard": f"CPU-cpu-{dtype}", "run_id": f"run-{dtype}", "dtypes": (dtype,), "asked": ("CPU",)}
    return save(directory, control(), *records, **({"implementations": ("CPU/bundled",)} | described | header))


def merged(tmp_path: Path, capsys: pytest.CaptureFixture[str], *directories: Path) -> tuple[int, str]:
    (tmp_path / "matrix.json").write_text(MATRIX.to_json() + "\n")
    words = ["merge", "-o", tmp_path / "merged", "--matrix", tmp_path / "matrix.json", *directories]
    code = main([str(word) for word in words])
    return code, capsys.readouterr().err


def test_merging_keeps_cells_headers_and_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(CPU, device="cpu AuthenticAMD")
    absent = cell("AITER/triton", dtype="bf16", **UNAVAILABLE)
    shards = (
        shard(tmp_path / "a", "fp32", FP32),
        shard(tmp_path / "b", "bf16", replace(BF16, environment=other), absent, environment=other),
    )
    assert merged(tmp_path, capsys, *shards) == (0, "")
    run = read_run(tmp_path / "merged" / "cpu")
    assert {record.cell_id for record in run.records} == {control().cell_id, FP32.cell_id, BF16.cell_id, absent.cell_id}
    assert [header.shard for header in run.header.shards] == ["CPU-cpu-bf16", "CPU-cpu-fp32"]
    assert [header.environment.device for header in run.header.shards] == [other.device, CPU.device]
    environments = {record.cell_id: record.environment.device for record in run.records}
    assert environments[absent.cell_id] == other.device, "what is absent belongs to the machine that looked for it"
    assert not run.truncated


def test_devices_become_runs_of_their_own(tmp_path: Path) -> None:
    here = save(tmp_path / "a", FP32, run_id="run-a")
    there = save(tmp_path / "b", replace(FP32, environment=GPU), environment=GPU, run_id="run-b")
    assert main(["merge", "-o", str(tmp_path / "merged"), str(here), str(there)]) == 0
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["cpu", "cuda"]


def test_a_control_that_one_shard_missed_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = shard(tmp_path / "a", "fp32", FP32)
    second = save(
        tmp_path / "b", control(verdict=Verdict.PASS), BF16, shard="CPU-cpu-bf16", run_id="run-bf16", asked=("CPU",)
    )
    assert merged(tmp_path, capsys, first, second) == (0, "")
    (found,) = [record for record in read_run(tmp_path / "merged" / "cpu").records if record.control]
    assert found.red


def test_a_shard_that_was_cut_off_leaves_a_run_that_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = shard(tmp_path / "a", "fp32", FP32), shard(tmp_path / "b", "bf16", BF16)
    lines = (first / "records.jsonl").read_text().splitlines()
    (first / "records.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert merged(tmp_path, capsys, first, second) == (0, "")
    assert read_run(tmp_path / "merged" / "cpu").truncated


def _lost(a: Path, b: Path) -> list[Path]:
    return [a]


def _twice(a: Path, b: Path) -> list[Path]:
    return [a, b, shard(b.parent / "again", "bf16", BF16, run_id="another")]


def _copied(a: Path, b: Path) -> list[Path]:
    return [a, b, shard(b.parent / "copy", "fp16", BF16, run_id="run-bf16")]


def _schema(a: Path, b: Path) -> list[Path]:
    file = b / "records.jsonl"
    first, *others = file.read_text().splitlines()
    changed = json.dumps(json.loads(first) | {"schema_version": SCHEMA_VERSION + 1})
    file.write_text("\n".join([changed, *others]) + "\n")
    return [a, b]


def _tier(a: Path, b: Path) -> list[Path]:
    return [a, shard(b.parent / "tier", "bf16", BF16, tier="smoke")]


def _seed(a: Path, b: Path) -> list[Path]:
    return [a, save(b.parent / "seed", replace(BF16, seed=7), shard="CPU-cpu-bf16", run_id="run-seed")]


def _doubled(a: Path, b: Path) -> list[Path]:
    return [a, shard(b.parent / "doubled", "bf16", FP32)]


def _stranger(a: Path, b: Path) -> list[Path]:
    return [a, b, shard(b.parent / "stranger", "fp16", BF16)]


def _nameless(a: Path, b: Path) -> list[Path]:
    return [a, b, save(b.parent / "nameless", BF16, run_id="nameless")]


def _elsewhere(a: Path, b: Path) -> list[Path]:
    return [a, shard(b.parent / "elsewhere", "bf16", BF16, environment=GPU)]


def _threads(a: Path, b: Path) -> list[Path]:
    return [a, shard(b.parent / "threads", "bf16", BF16, environment=replace(CPU, threads=2))]


def _outside(a: Path, b: Path) -> list[Path]:
    return [a, shard(b.parent / "outside", "bf16", BF16, environment=replace(CPU, device="../../cpu x86_64"))]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (_lost, "shard 'CPU-cpu-bf16' is lost: the matrix announces it, and no directory holds it"),
        (_twice, "are both of shard 'CPU-cpu-bf16'; each may be given once"),
        (_copied, "are both of run 'run-bf16'; each may be given once"),
        (_schema, f"field 'schema_version' is {SCHEMA_VERSION + 1}; it must be {SCHEMA_VERSION}"),
        (_tier, "is of tier smoke, and the matrix of tier default; all must be of one tier"),
        (_seed, "all must be of one seed"),
        (_doubled, f"cell '{FP32.cell_id}' is in both"),
        (_stranger, "is of shard 'CPU-cpu-fp16', which the matrix does not announce; it must be of CPU-cpu-fp32"),
        (_nameless, "is of no shard; it must be of CPU-cpu-fp32"),
        (_elsewhere, "of shard 'CPU-cpu-bf16' ran on cuda; the matrix announces it for cpu"),
        (_threads, "all must have as many"),
        (_outside, "ran on device '../../cpu x86_64'; it must begin with its kind, small letters such as cpu"),
    ],
)
def test_what_is_wrong_with_a_shard_is_told_in_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: Any,  # noqa: ANN401 -- a function of two directories
    told: str,
) -> None:
    shards = given(shard(tmp_path / "a", "fp32", FP32), shard(tmp_path / "b", "bf16", BF16))
    code, err = merged(tmp_path, capsys, *shards)
    assert code == 2
    assert told in err
    assert err.startswith("samebits: ")
    assert err.count("\n") == 1, f"more than one sentence: {err}"
    assert not (tmp_path / "merged").exists(), "something was written"


def test_a_merged_run_is_compared_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = shard(tmp_path / "a", "fp32", FP32), shard(tmp_path / "b", "bf16", BF16)
    assert merged(tmp_path, capsys, *shards) == (0, "")
    run = read_run(tmp_path / "merged" / "cpu")
    baselines = tmp_path / "baselines"
    write_baseline(run, baselines / "cpu.jsonl")
    assert main(["compare", str(baselines), str(tmp_path / "merged" / "cpu")]) == 0
    lost = replace(cell("CPU/bundled", "decode", "bf16"), error_budget=0.2)
    write_baseline(replace(run, records=(*run.records, lost, control("decode"))), baselines / "cpu.jsonl")
    assert main(["compare", str(baselines), str(tmp_path / "merged" / "cpu")]) == 1, "no cell is missing"
