"""A run that was cut off, taken over by another process, which does the rest of it and nothing twice.

What the other process would do otherwise than the first had done it would make up a run that never was, so it must
agree in everything that decides a cell: selection, seed, environment and code.
"""

from __future__ import annotations

import datetime
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from samebits.harness.record_files import RecordWriter, hold_records, read_run, records_file
from samebits.harness.records import Environment, LoadedCode, Record, Resumable, Resumption, RunHeader, UnusableInput


class CutOffRun:
    """A run that was cut off. No other process can write its records while this one holds them.

    Attributes:
        path: of the file of its records.
        run: what it came to so far.
        done: ids of the cells that are finished.
    """

    def __init__(self, directory: Path) -> None:
        """Takes the records of a run for this process, and reads them.

        Raises:
            UnusableInput: there are none, they cannot be written, another process writes them still, or the run has
                finished or cannot be resumed.
        """
        self.path = records_file(directory)
        self._held = hold_records(self.path)
        try:
            self.run = read_run(self.path)
            self._wanted = self._resumable()
        except UnusableInput:
            self.release()
            raise
        self.done = frozenset(record.cell_id for record in self.run.records)
        # What the first cell of each implementation, and of each device, was computed with.
        self._versions = {(r.operation, r.label): (r.version, r.cell_id) for r in reversed(self.run.records)}
        self._environments = {r.environment.device: (r.environment, r.cell_id) for r in reversed(self.run.records)}

    def release(self) -> None:
        """Lets other processes write the records again, where this one has not begun to."""
        self._held.close()

    def left_out(self, option: Namespace) -> dict[str, str | list[str]]:
        """The options that the user need not give again, by their names among pytest's, as they were in the run.

        Those that run code, `--load` and `--libs`, are not among them: records are data.

        Args:
            option: pytest's options as the user gave them.
        """
        header = self.run.header
        values: dict[str, str | list[str]] = {
            "samebits_tier": header.tier,
            "samebits_shard": header.shard,
            "samebits_seed": str(self._wanted.seed),
            "samebits_threads": str(header.environment.threads),
            "samebits_backend": [name for name in header.asked if "/" not in name],
            "samebits_implementation": [name for name in header.asked if "/" in name],
            "samebits_dtype": list(self._wanted.dtypes),
            "samebits_cell": list(self._wanted.cell_ids),
            "samebits_draw_seed": "" if self._wanted.draw_seed is None else str(self._wanted.draw_seed),
            "markexpr": " or ".join(header.suites),
        }
        return {name: value for name, value in values.items() if value and not getattr(option, name)}

    def require_loaded(self, loaded: Sequence[LoadedCode]) -> None:
        """Refuses to go on with the run in a process that was not given the code that the run was given.

        Args:
            loaded: what this process was given.

        Raises:
            UnusableInput: something is missing, another or too much, or they are given in another order.
        """
        difference = next(_other_loaded(self._wanted.loaded, loaded), None)
        if difference is not None:
            raise UnusableInput(f"the run in {str(self.path)!r} {difference}")

    def require_same(self, header: RunHeader) -> None:
        """Refuses to go on with the run in a process that would have begun another one.

        Args:
            header: that this process would have given a run of its own, with the same cells finished.

        Raises:
            UnusableInput: it differs in what decides a cell, or in which cells there are.
        """
        difference = next(self._differences(header), None)
        if difference is not None:
            raise UnusableInput(f"the run in {str(self.path)!r} {difference}; it can only be resumed as it began")

    def require_alike(self, record: Record) -> None:
        """Refuses a cell that was computed with another version of its library, or elsewhere, than the others were.

        Raises:
            UnusableInput: it was.
        """
        versions = self._versions.setdefault((record.operation, record.label), (record.version, record.cell_id))
        environments = self._environments.setdefault(record.environment.device, (record.environment, record.cell_id))
        for first, found in ((versions, record.version), (environments, record.environment)):
            if first[0] != found:
                raise UnusableInput(
                    f"cell {record.cell_id!r} is of {found!r}, and cell {first[1]!r} of the run in {str(self.path)!r} "
                    f"of {first[0]!r}; a run can only be resumed as it began"
                )

    def writer(self) -> RecordWriter:
        """Goes on with the run's records, whose header tells of it from now on.

        Raises:
            UnusableInput: they cannot be written; they are left as they were.
        """
        header = self.run.header
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        resumed = (*header.resumed, Resumption(now, len(self.done)))
        writer = RecordWriter.in_place_of(self.path, replace(header, resumed=resumed), self.run.records)
        self.release()
        return writer

    def _resumable(self) -> Resumable:
        name, header = f"the run in {str(self.path)!r}", self.run.header
        if not self.run.truncated:
            raise UnusableInput(
                f"{name} has finished, all {len(self.run.records):,} of its cells, so nothing is left to resume; "
                "samebits report makes its tables again"
            )
        if header.shards:
            raise UnusableInput(f"{name} was merged from others; resume the one that was cut off, and merge again")
        if header.resumable is None:
            raise UnusableInput(f"{name} does not say what is left of it, as an older samebits wrote it; run it again")
        return header.resumable

    def _differences(self, new: RunHeader) -> Iterator[str]:
        old, wanted, here = self.run.header, self._wanted, new.resumable
        assert here is not None, "a session's own header is that of a run that can be resumed"
        yield from _other_environment(old.environment, new.environment)
        for what, before, now in (
            ("tier", old.tier, new.tier),
            ("seed", wanted.seed, here.seed),
            ("draw-seed", wanted.draw_seed, here.draw_seed),
            ("shard", old.shard, new.shard),
            ("suite", old.suites, new.suites),
            ("dtype", wanted.dtypes, here.dtypes),
            ("backend or implementation", old.asked, new.asked),
            ("cell", wanted.cell_ids, here.cell_ids),
        ):
            if before != now:
                yield f"was of {what} {_told(before)}, and this one is of {what} {_told(now)}"
        if wanted.code_digest != here.code_digest:
            yield ("was of other code: samebits itself, or what --load and --libs name, is not what it was")
        if wanted.cells_digest != here.cells_digest:
            yield (
                f"set out to run {wanted.cells:,} cells, and this one runs others, {here.cells:,} with those that are "
                "done: the paths, -k and the other options that select tests must be given again"
            )


def _other_loaded(before: Sequence[LoadedCode] | None, now: Sequence[LoadedCode]) -> Iterator[str]:
    if before is None:
        return  # A digest of all code is all that is known.
    old, new = ([(each.option, each.digest) for each in loaded] for loaded in (before, now))
    given_again = {(each.option, each.path) for each in now}
    missing = [each for each in before if (each.option, each.digest) not in new]
    changed = [each for each in missing if (each.option, each.path) in given_again]
    absent = [each for each in missing if each not in changed]
    if absent:
        yield f"was with {_told_loaded(absent)}, which must be given again: they run code, so records do not"
    if changed:
        yield f"was with another content of {_told_loaded(changed)}; it can only be resumed as it began"
    added = [each for each in now if (each.option, each.digest) not in old]
    if added:
        yield f"was without {_told_loaded(added)}; leave that out"
    if old != new:
        yield f"was with {_told_loaded(before)} in this order; give them so"


def _told_loaded(loaded: Sequence[LoadedCode]) -> str:
    return " ".join(f"{each.option} {each.path!r}" for each in loaded)


def _other_environment(before: Environment, now: Environment) -> Iterator[str]:
    if before.device != now.device:
        yield f"was on {before.device!r}, and this one is on {now.device!r}"
    if before.threads != now.threads:
        yield f"was with --threads {before.threads}, and this one is with {now.threads}"
    for name in sorted(before.versions.keys() | now.versions.keys()):
        versions = [versions.get(name, "absent") for versions in (before.versions, now.versions)]
        if versions[0] != versions[1]:
            yield f"was with {name} {versions[0]}, and this one is with {versions[1]}"


def _told(value: object) -> str:
    """A value or a list of names in words."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none by name"
    return repr(value) if isinstance(value, str) else str(value)
