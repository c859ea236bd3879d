"""One job of the nightly matrix as a process: the same on a runner, on a cluster and on a laptop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from samebits.harness.ci_matrix import CiMatrix, Job

# As the Makefile has them: torch's threads are samebits' to set; those of the libraries below numpy are not.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_job(matrix: CiMatrix, job: Job, output: Path, arguments: Sequence[str] = ()) -> int:
    """Runs pytest on what a job is for.

    Args:
        matrix: that the job is of.
        job: to run.
        output: the directory of results is made here, and named as the job.
        arguments: further ones for pytest, for example `-n 4`.

    Returns:
        pytest's exit code: 1 where something failed, which the records say.
    """
    words = [sys.executable, "-m", "pytest", "--pyargs", "samebits.suites", "-q", "--shard", job.name]
    words += ["--backend", job.backend, "--dtype", job.dtype, "--tier", matrix.tier]
    words += ["--results", str((output / job.name).absolute()), *arguments]
    return subprocess.run(words, env=os.environ | _ENVIRONMENT, check=False).returncode
