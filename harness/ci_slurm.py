"""The nightly matrix through submitit: on a Slurm cluster, or on this machine to try it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samebits.harness.ci_matrix import CiMatrix
from samebits.harness.ci_shard import run_job
from samebits.harness.merging import merge
from samebits.harness.records import RECORDS_FILE, UnusableInput
from samebits.harness.run_log import EXIT_UNUSABLE


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
        UnusableInput: there are results in `output`, submitit is absent or refuses the parameters, or a shard is lost.
    """
    shards, merged = output / "shards", output / "merged"
    for folder in (shards, merged):
        # Jobs would refuse to write there, and what they leave could not be told from what an earlier run left.
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UnusableInput(
                f"{str(folder)!r} holds the results of another run; give a new directory, or remove that folder"
            )
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
    submitted = {job.name: executor.submit(run_job, matrix, job, shards, tuple(arguments)) for job in matrix.jobs}
    # A job that was killed or could not start has left no shard, or one that was cut off: merging tells of both.
    refused = [name for name, job in submitted.items() if job.exception() is None and job.result() == EXIT_UNUSABLE]
    if refused:
        raise UnusableInput(
            f"shard {', '.join(map(repr, refused))} is lost: its job ended with exit code {EXIT_UNUSABLE}; "
            f"the logs are in {str(output / 'logs')!r}"
        )
    present = [shards / job.name for job in matrix.jobs if (shards / job.name / RECORDS_FILE).exists()]
    if not present:
        raise UnusableInput(f"no job left results; the logs are in {str(output / 'logs')!r}")
    return merge(present, merged, matrix)
