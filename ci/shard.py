#!/usr/bin/env python3
"""Runs one job of the matrix: `ci/shard.py MATRIX JOB DIRECTORY [arguments of pytest]`.

Results go to a directory in DIRECTORY that is named as the job. With `--unavailable` in place of JOB, it writes the
shards of all jobs that have no runner instead: rows that say so.
"""

from __future__ import annotations

import sys
from pathlib import Path

from samebits.harness.ci_matrix import read_matrix
from samebits.harness.ci_shard import run_job
from samebits.harness.records import UnusableInput

_USAGE = "usage: ci/shard.py MATRIX JOB|--unavailable DIRECTORY [arguments of pytest]"


def main(matrix_file: str, name: str, directory: str, *arguments: str) -> int:
    """Runs a job, or tells of all that cannot be run."""
    matrix, output = read_matrix(Path(matrix_file)), Path(directory)
    if name != "--unavailable":
        return run_job(matrix, matrix.job(name), output, arguments)
    # Only this needs torch and the backends in this process.
    from samebits.harness.ci_jobs import write_unavailable
    from samebits.harness.registry import load_registry

    registry = load_registry()
    for job in matrix.jobs:
        if not job.runner:
            print(f"written: {write_unavailable(registry, matrix, job, output)}")
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    asked = not {"-h", "--help"}.isdisjoint(words[:3])
    if asked or len(words) < 3 or words[0].startswith("-") or words[2].startswith("-"):
        print(_USAGE, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    try:
        sys.exit(main(*words))
    except UnusableInput as error:
        print(f"ci/shard.py: {error}", file=sys.stderr)
        sys.exit(2)
