"""A run as several test modules need it: where it ran, what it set out to do, and what its cells came to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from samebits.harness.record_files import RecordWriter
from samebits.harness.records import Environment, Record, Run, RunHeader, Verdict
from samebits.reports.baseline import Baseline

CPU = Environment("cpu x86_64+avx512", {"torch": "2.13.0", "triton": "3.7.1"}, 1)
GPU = Environment("cuda NVIDIA H100", {"torch": "2.13.0", "triton": "3.7.1", "driver": "580"}, 1)
# What a folder comes to that holds no baseline for a run.
NO_BASELINE = Baseline("baselines", ())
HEADER = RunHeader(
    run_id="20261121T093400Z",
    started="2026-11-21T09:34:00+00:00",
    suites=("batch_invariant",),
    implementations=("FLASH_ATTN/torch", "CPU/bundled", "AITER/triton[kvcache]"),
    expected=("FLASH_ATTN/torch", "CPU/bundled", "AITER/triton[kvcache]"),
    relations=("position", "extend", "decode"),
    dtypes=("fp32", "bf16"),
    tier="default",
    narrowed=False,
    environment=CPU,
)


def cell(label: str = "CPU/bundled", relation: str = "position", dtype: str = "bf16", **changes: Any) -> Record:  # noqa: ANN401 -- fields of Record
    """A cell that passed and had claimed to, but for some of its fields."""
    backend, implementation, variant = re.fullmatch(r"(\w+)/([\w-]+)(?:\[(.*)\])?", label).groups("")  # type: ignore[union-attr]
    cell_id = f"{label}:{relation}:llama3-8b-causal-mixed:{dtype}"
    record = Record(
        cell_id=cell_id,
        suite="batch_invariant",
        relation=relation,
        case="llama3-8b-causal-mixed",
        backend=backend,
        implementation=implementation,
        variant=variant,
        version="0.1.0",
        operation="attention",
        dtype=dtype,
        mask="causal",
        geometry="llama3-8b",
        tier="smoke",
        verdict=Verdict.PASS,
        environment=CPU,
        seed=0,
        command=f"pytest -m batch_invariant --cell '{cell_id}'",
        claimed=True,
        compared=100,
        max_ulp=0,
        error_budget=0.3,
        digest="aa",
        configuration={"kv_split": "128"},
    )
    return replace(record, **changes)


def control(relation: str = "position", **changes: Any) -> Record:  # noqa: ANN401 -- fields of Record
    """A control that was caught, but for some of its fields."""
    caught = {"control": True, "verdict": Verdict.FAIL, "mismatches": 5, "error_budget": 9.0, "configuration": {}}
    return cell(f"CONTROL/breaks_{relation}", relation, "fp32", **(caught | changes))


VARIES: dict[str, Any] = {
    "verdict": Verdict.VARIES,
    "claimed": False,
    "mismatches": 7,
    "max_ulp": 1234,
    "reasons": ("claims no batch_invariant: 7 of 100 elements differ",),
    "smallest_batch": "[r1:q1c1] against [r1:q1c1 r2:q1c0]",
}
FAILS: dict[str, Any] = VARIES | {
    "verdict": Verdict.FAIL,
    "claimed": True,
    "reasons": ("claims batch_invariant, but 7 of 100 elements differ",),
}
# What a cell leaves that did not run: nothing was computed.
DID_NOT_RUN: dict[str, Any] = {"compared": 0, "max_ulp": None, "error_budget": None, "digest": ""}
UNSUPPORTED: dict[str, Any] = DID_NOT_RUN | {"verdict": Verdict.UNSUPPORTED}
UNAVAILABLE: dict[str, Any] = DID_NOT_RUN | {"verdict": Verdict.UNAVAILABLE, "version": ""}

GREEN = (
    control(),
    control("decode"),
    cell(),
    cell(relation="decode", error_budget=0.5),
    cell("FLASH_ATTN/torch", claimed=False),
    cell("FLASH_ATTN/torch", "decode", **VARIES),
    cell("FLASH_ATTN/torch", "decode", "fp32", claimed=False),
    cell("AITER/triton[kvcache]", reasons=("dtype fp64 is not supported",), **UNSUPPORTED),
    cell("AITER/triton[kvcache]", "decode", reasons=("no module",), **UNAVAILABLE),
)
REGRESSED = (*GREEN[:2], cell(**FAILS), *GREEN[3:])


def run_of(*records: Record, **header: Any) -> Run:  # noqa: ANN401 -- fields of RunHeader
    """A run of some cells, whose header differs in some fields."""
    return Run(replace(HEADER, **header), records)


def save(directory: Path, *records: Record, finished: bool = True, **header: Any) -> Path:  # noqa: ANN401 -- fields of RunHeader
    """Writes such a run's records into a directory."""
    writer = RecordWriter(directory, replace(HEADER, **header))
    for record in records:
        writer.write(record)
    writer.close(finished=finished)
    return directory


# Names that nothing has, which every command that selects by names tells in the same words.
UNKNOWN_NAMES = (
    (
        ["--backend", "TRITON"],
        "unknown backend 'TRITON'; known are FLASH_ATTN, TRITON_ATTN, FLEX_ATTENTION, AITER, CPU",
    ),
    (["--dtype", "int8"], "unknown dtype 'int8'; known are fp32, bf16, fp16"),
    (["--tier", "daily"], "unknown tier 'daily'; known are smoke, default, nightly"),
)
