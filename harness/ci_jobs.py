"""The nightly matrix made from the registry, and the shards of jobs that no runner can take."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from samebits.backends.contract import Availability, Implementation
from samebits.backends.problem import DTYPE_NAMES
from samebits.backends.subject import PLATFORMS
from samebits.harness.ci_matrix import CiMatrix, Job
from samebits.harness.judgement import unjudged
from samebits.harness.matrix import Selection
from samebits.harness.record_files import RecordWriter
from samebits.harness.records import TIERS, Environment, RunHeader, UnusableInput
from samebits.harness.registry import Registry
from samebits.harness.suite_cells import SUITES


def make_matrix(
    registry: Registry,
    runners: Mapping[str, tuple[str, ...]],
    tier: str = "default",
    backends: Sequence[str] = (),
    devices: Sequence[str] = (),
    dtypes: Sequence[str] = (),
) -> CiMatrix:
    """Makes the matrix.

    Args:
        registry: of all implementations.
        runners: labels of the runners that have a kind of device.
        tier: that all jobs run.
        backends: to confine it to; empty for all.
        devices: likewise.
        dtypes: likewise.

    Raises:
        UnusableInput: a name is unknown, or nothing is left.
    """
    for what, names, known in (
        ("tier", (tier,), TIERS),
        ("backend", backends, registry.backends),
        ("device", (*devices, *runners), PLATFORMS),
        ("dtype", dtypes, DTYPE_NAMES),
    ):
        for name in names:
            if name not in known:
                raise UnusableInput(f"unknown {what} {name!r}; known are {', '.join(known)}")
    jobs = tuple(
        Job(f"{backend}-{device}-{dtype}", backend, device, dtype, runners.get(device, ()))
        for backend in dict.fromkeys(backends or registry.backends)
        for device in _platforms(registry, backend)
        if not devices or device in devices
        for dtype in dict.fromkeys(dtypes or DTYPE_NAMES)
    )
    if not jobs:
        raise UnusableInput(f"no backend of {', '.join(backends)} is made for {', '.join(devices)}")
    return CiMatrix(tier, jobs)


def _platforms(registry: Registry, backend: str) -> tuple[str, ...]:
    """Kinds of platform that a backend is made for: those of its attention."""
    own = [subject for subject in registry.implementations if subject.backend == backend]
    attention = [subject for subject in own if isinstance(subject, Implementation)]
    return tuple(kind for kind in PLATFORMS if any(kind in subject.platforms for subject in attention or own))


def write_unavailable(registry: Registry, matrix: CiMatrix, job: Job, output: Path) -> Path:
    """Writes the shard of a job that no runner can take: a row for each of its cells, with that reason.

    Args:
        registry: of all implementations.
        matrix: that the job is of.
        job: whose shard it is.
        output: the directory of results is made here, and named as the job.

    Returns:
        The directory.

    Raises:
        UnusableInput: it cannot be written.
    """
    reason = f"no runner has a device of kind {job.device}"
    subjects = registry.select([job.backend])
    selection = Selection(subjects, (job.dtype,), matrix.tier, platform=job.device, within_tier=True)
    # The device's name is not known, so that no baseline is held against what did not run.
    where = Environment(job.device, {"samebits": importlib.metadata.version("samebits")}, threads=1)
    now = datetime.datetime.now(datetime.UTC)
    header = RunHeader(
        run_id=f"{now.strftime('%Y%m%dT%H%M%S.%fZ')}-{job.name}",
        started=now.isoformat(timespec="seconds"),
        suites=tuple(SUITES),
        implementations=tuple(dict.fromkeys(subject.label for subject in subjects)),
        dtypes=(job.dtype,),
        tier=matrix.tier,
        # Its controls did not run either, and nothing is missing of what could not.
        narrowed=True,
        environment=where,
        shard=job.name,
    )
    availability = Availability(reason=reason)
    with RecordWriter(output / job.name, header) as writer:
        for suite, cells in SUITES.items():
            for cell in cells(selection):
                if cell.flaw is None:
                    command = f"pytest -m {suite} --backend {job.backend} --dtype {job.dtype}"
                    record = replace(unjudged(cell, availability, command), reasons=(reason,), environment=where)
                    writer.write(record)
    return output / job.name
