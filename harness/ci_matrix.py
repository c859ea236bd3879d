"""The nightly matrix as data: a job for each backend, kind of device and dtype.

Neither torch nor a backend is needed here; `samebits.harness.ci_jobs` makes the matrix, from the registry.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samebits.harness.decoding import shown
from samebits.harness.record_files import JsonLines
from samebits.harness.records import SCHEMA_VERSION, UnusableInput, to_json

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Job:
    """One job of the matrix, whose results are a shard of the nightly run.

    Attributes:
        name: of the job, and of its shard.
        backend, device, dtype: what it runs; `device` is a kind of platform.
        runner: labels of the runners that can take it; empty where there is none, and its shard says so.
    """

    name: str
    backend: str
    device: str
    dtype: str
    runner: tuple[str, ...] = ()


@dataclass(frozen=True)
class CiMatrix:
    """All jobs of a nightly run.

    Attributes:
        tier: that all of them run.
        jobs: backends in the order of tables, then devices, then dtypes.
    """

    tier: str
    jobs: tuple[Job, ...]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The matrix as one line of JSON, which `read_matrix` reads."""
        return to_json({"kind": "matrix", **vars(self)}, sort_keys=False)

    def job(self, name: str) -> Job:
        """The job of a name.

        Raises:
            UnusableInput: there is none.
        """
        found = next((job for job in self.jobs if job.name == name), None)
        if found is None:
            known = ", ".join(job.name for job in self.jobs)
            raise UnusableInput(f"unknown job {name!r}; the matrix has {known or 'none'}")
        return found


def read_matrix(path: Path) -> CiMatrix:
    """Reads what `CiMatrix.to_json` wrote.

    Raises:
        UnusableInput: the file is absent, or holds anything else.
    """
    lines = JsonLines.read(path, "a matrix, as samebits matrix --json prints it")
    matrix = lines.header("matrix", CiMatrix)
    for job in matrix.jobs:
        if not _PLAIN_NAME.fullmatch(job.name):
            raise lines.lines[0].unusable(
                f"a job is named {shown(job.name)}; it must be letters, digits, '_' and '-', as it names a directory"
            )
    return matrix


def parse_runners(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Labels of runners by kind of device.

    Args:
        words: `DEVICE=LABEL[,LABEL ...]` each, for example `cuda=self-hosted,gpu`.

    Raises:
        UnusableInput: a word is none of these.
    """
    runners = {}
    for word in words:
        device, equals, labels = word.partition("=")
        found = tuple(label.strip() for label in labels.split(",") if label.strip())
        if not (device and equals and found):
            raise UnusableInput(f"runner {word!r} is unusable; it must be DEVICE=LABEL[,LABEL ...]")
        runners[device] = found
    return runners
