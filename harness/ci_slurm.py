"""The nightly matrix through submitit: on a Slurm cluster, or on this machine to try it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samebits.harness.ci_matrix import CiMatrix
from samebits.harness.ci_shard import run_job
from samebits.harness.merging import merge
from samebits.harness.records import RECORDS_FILE, UnusableInput


def run_matrix(
    matrix: CiMatrix, output: Path, cluster: str, parameters: Sequence[str], arguments: Sequence[str] = ()
) -> list[Path]:
    """Submits every job of the matrix, waits for all of them, and merges what they leave.

    Args:
        matrix: to run.
        output: where shards, logs and merged runs go, in `shards`, `logs` and `merged`.
        cluster: `slurm`, or `local` for processes of this machine.
        parameters: `NAME=VALUE` of submitit's executor, for example `slurm_partition=gpu`.
        arguments: further ones for pytest.

    Returns:
        The directories of the merged runs.

    Raises:
        UnusableInput: submitit is absent or refuses the parameters, or a shard is lost.
    """
    try:
        import submitit
    except ImportError as error:
        raise UnusableInput(f"importing submitit raised {error}; pip install 'samebits[slurm]'") from error
    settings: dict[str, int | str] = {"timeout_min": 360}
    for word in parameters:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise UnusableInput(f"parameter {word!r} is unusable; it must be NAME=VALUE")
        settings[name] = int(value) if value.isdigit() else value
    try:
        executor = submitit.AutoExecutor(folder=output / "logs", cluster=cluster)
        executor.update_parameters(**settings)
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        raise UnusableInput(f"submitit refuses cluster {cluster!r} with {settings}: {error}") from error
    shards = output / "shards"
    submitted = [executor.submit(run_job, matrix, job, shards, tuple(arguments)) for job in matrix.jobs]
    for job in submitted:
        # A job that was killed or could not start has left no shard, or one that was cut off: merging tells of both.
        job.wait()
    present = [shards / job.name for job in matrix.jobs if (shards / job.name / RECORDS_FILE).exists()]
    if not present:
        raise UnusableInput(f"no job left results; the logs are in {str(output / 'logs')!r}")
    return merge(present, output / "merged", matrix)
