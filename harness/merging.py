"""Runs merged into one for each kind of device, after it is made sure that they belong together and none is lost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samebits.harness.ci_matrix import CiMatrix
from samebits.harness.decoding import shown
from samebits.harness.record_files import RecordWriter, read_run
from samebits.harness.records import Record, Run, RunHeader, UnusableInput, Verdict
from samebits.harness.relation_order import merged_order
from samebits.reports.baseline import environment_of

# A kind of device names a directory of what is merged, and comes from a file.
_KIND_OF_DEVICE = re.compile(r"[a-z][a-z0-9_]*")
_DID_NOT_RUN = (Verdict.UNSUPPORTED, Verdict.UNAVAILABLE)


@dataclass(frozen=True)
class Shard:
    """A run that is to be merged.

    Attributes:
        directory: of its results.
        run: what it came to.
    """

    directory: Path
    run: Run

    @property
    def header(self) -> RunHeader:
        """The run's header."""
        return self.run.header

    @property
    def device(self) -> str:
        """Kind of device that it ran on."""
        return self.header.environment.device.partition(" ")[0]

    @property
    def seeds(self) -> frozenset[int]:
        """Seeds of its cells."""
        return frozenset(record.seed for record in self.run.records)

    def __str__(self) -> str:
        return repr(str(self.directory))


def merge(directories: Sequence[Path], output: Path, matrix: CiMatrix | None = None) -> list[Path]:
    """Merges runs into one for each kind of device, since a cell's id occurs once in a run.

    Args:
        directories: of the results of each.
        output: where a directory for each kind of device is made, named so.
        matrix: what was to be run; None to take what is there.

    Returns:
        The directories of the merged runs.

    Raises:
        UnusableInput: a shard is lost, given twice or of no job; of another schema, tier, seed or number of threads; or
            two shards hold the same cell. Nothing is written then.
    """
    shards = [Shard(directory, read_run(directory)) for directory in directories]
    shards.sort(key=lambda shard: (shard.header.shard, shard.header.started, str(shard.directory)))
    # The first alone: those that follow may come of it.
    complaint = next(_complaints(shards, matrix), None)
    if complaint is not None:
        raise UnusableInput(complaint)
    merged = {device: [shard for shard in shards if shard.device == device] for device in _devices(shards)}
    records = {device: _merged_records(of_device) for device, of_device in merged.items()}
    written = []
    for device, of_device in merged.items():
        writer = RecordWriter(output / device, _merged_header(of_device))
        for record in records[device]:
            writer.write(record)
        writer.close(finished=not any(shard.run.truncated for shard in of_device))
        written.append(output / device)
    return written


def _devices(shards: Iterable[Shard]) -> list[str]:
    return list(dict.fromkeys(shard.device for shard in shards))


def _complaints(shards: Sequence[Shard], matrix: CiMatrix | None) -> Iterator[str]:
    """What is wrong with the shards, one sentence each; what may come of another follows it."""
    for shard in shards:
        if not _KIND_OF_DEVICE.fullmatch(shard.device):
            device = shown(shard.header.environment.device)
            yield f"{shard} ran on device {device}; it must begin with its kind, small letters such as cpu"
    yield from _duplicates(shards)
    if matrix is not None:
        yield from _strangers(shards, matrix)
        present = {shard.header.shard for shard in shards}
        lost = [job.name for job in matrix.jobs if job.name not in present]
        if lost:
            yield f"shard {', '.join(map(repr, lost))} is lost: the matrix announces it, and no directory holds it"
    yield from _others(shards, matrix)


def _duplicates(shards: Sequence[Shard]) -> Iterator[str]:
    seen: dict[str, Shard] = {}
    for shard in shards:
        for name, what in ((shard.header.shard, "shard"), (shard.header.run_id, "run")):
            first = seen.setdefault(f"{what} {name!r}", shard) if name else shard
            if first is not shard:
                yield f"{first} and {shard} are both of {what} {name!r}; each may be given once"


def _strangers(shards: Sequence[Shard], matrix: CiMatrix) -> Iterator[str]:
    jobs = {job.name: job for job in matrix.jobs}
    for shard in shards:
        name = shard.header.shard
        if name not in jobs:
            of = f"of shard {name!r}, which the matrix does not announce" if name else "of no shard"
            yield f"{shard} is {of}; it must be of {', '.join(jobs)}"
        elif shard.device != jobs[name].device:
            yield f"{shard} of shard {name!r} ran on {shard.device}; the matrix announces it for {jobs[name].device}"


def _others(shards: Sequence[Shard], matrix: CiMatrix | None) -> Iterator[str]:
    """Shards that differ from the first in what must be the same for all."""
    first = shards[0]
    wanted_tier = matrix.tier if matrix else first.header.tier
    by = "the matrix" if matrix else f"that of {first}"
    seeded = next((shard for shard in shards if shard.seeds), first)
    for shard in shards:
        if shard.header.tier != wanted_tier:
            yield f"{shard} is of tier {shard.header.tier}, and {by} of tier {wanted_tier}; all must be of one tier"
        if shard.seeds and shard.seeds != seeded.seeds:
            theirs, ours = (", ".join(map(str, sorted(of.seeds))) for of in (shard, seeded))
            yield f"{shard} is of seed {theirs}, and that of {seeded} of seed {ours}; all must be of one seed"
        threads = shard.header.environment.threads
        if threads != first.header.environment.threads:
            yield (
                f"{shard} ran with {threads} threads, and {first} with {first.header.environment.threads}; all must "
                "have as many"
            )


def _merged_records(shards: Sequence[Shard]) -> list[Record]:
    """The records of some shards in their order, each cell once.

    Raises:
        UnusableInput: two shards hold the same cell, and it is neither a control, of which each shard has all, nor one
            that did not run in either.
    """
    merged: dict[str, tuple[Record, Shard]] = {}
    for shard in shards:
        for told in shard.run.records:
            record = replace(told, environment=environment_of(told, shard.header))
            first, of = merged.get(record.cell_id, (record, shard))
            if of is not shard and not _may_be_repeated(first, record):
                raise UnusableInput(f"cell {record.cell_id!r} is in both {of} and {shard}; each may be in one shard")
            # A control that one shard missed is missed, whatever others caught.
            if of is shard or (record.red and not first.red):
                merged[record.cell_id] = (record, shard)
    return [record for record, _ in merged.values()]


def _may_be_repeated(first: Record, second: Record) -> bool:
    if first.control and second.control:
        return True
    return first.verdict is second.verdict and first.verdict in _DID_NOT_RUN


def _merged_header(shards: Sequence[Shard]) -> RunHeader:
    headers = [shard.header for shard in shards]
    first = headers[0]
    return RunHeader(
        run_id=f"{first.run_id}+{len(headers) - 1}",
        started=min(header.started for header in headers),
        suites=_union(header.suites for header in headers),
        implementations=_union(header.implementations for header in headers),
        dtypes=_union(header.dtypes for header in headers),
        tier=first.tier,
        narrowed=any(header.narrowed for header in headers),
        environment=first.environment,
        expected=_union(header.expected for header in headers),
        relations=merged_order(header.relations for header in headers),
        asked=_union(header.asked for header in headers) if all(header.asked for header in headers) else (),
        shards=tuple(headers),
    )


def _union(words: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for of_one in words for word in of_one))
