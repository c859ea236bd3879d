"""Baselines: what runs came to, kept to compare later runs with, and which of it a run can be held to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from samebits.harness.records import TIERS, Environment, Record, Run, RunHeader, UnusableInput, Verdict

# Two rows of one key would be two answers to one question.
Key = tuple[str, str, int, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class BaselineRow:
    """What one cell came to.

    Attributes:
        cell_id, suite, dtype, tier, seed, control, verdict, error_budget, max_ulp, digest: see `Record`.
        label: of the implementation.
        version: of the implementation's library.
        configuration: kernel settings that decide bits.
        environment: where the cell ran, or where it would have, had its implementation been available.
    """

    cell_id: str
    suite: str
    label: str
    version: str
    configuration: Mapping[str, str]
    dtype: str
    tier: str
    seed: int
    control: bool
    verdict: Verdict
    error_budget: float | None
    max_ulp: int | None
    digest: str
    environment: Environment

    @classmethod
    def of(cls, record: Record, header: RunHeader) -> BaselineRow:
        """The row that keeps a record."""
        return cls(
            cell_id=record.cell_id,
            suite=record.suite,
            label=record.label,
            version=record.version,
            configuration=record.configuration,
            dtype=record.dtype,
            tier=record.tier,
            seed=record.seed,
            control=record.control,
            verdict=record.verdict,
            error_budget=record.error_budget,
            max_ulp=record.max_ulp,
            digest=record.digest,
            environment=environment_of(record, header),
        )

    @property
    def place(self) -> tuple[str, int]:
        """Device and threads."""
        return self.environment.device, self.environment.threads

    @property
    def key(self) -> Key:
        """What a later cell must share to be compared with this row; versions may differ, and are told."""
        return self.cell_id, *self.place, tuple(sorted(self.configuration.items()))


def environment_of(record: Record, header: RunHeader) -> Environment:
    """Where a cell ran. What is not available has no device: it belongs to the machine that looked for it."""
    # A merged run has many machines, and says of each record whose it is.
    looked_for = record.verdict is Verdict.UNAVAILABLE and not header.shards
    return header.environment if looked_for else record.environment


@dataclass(frozen=True)
class Baseline:
    """Rows to compare with.

    Attributes:
        name: of its file or directory.
        rows: in order of their cell ids.
        of_directory: whether it is all that a directory holds, of which nothing needs to fit; a file is meant.
        files: the rows of each file of a directory; empty where there is one file.
    """

    name: str
    rows: tuple[BaselineRow, ...]
    of_directory: bool = False
    files: tuple[tuple[BaselineRow, ...], ...] = ()
    _by_cell: Mapping[str, list[BaselineRow]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_cell: dict[str, list[BaselineRow]] = {}
        for row in self.rows:
            by_cell.setdefault(row.cell_id, []).append(row)
        object.__setattr__(self, "_by_cell", by_cell)

    def rows_of(self, cell_id: str) -> list[BaselineRow]:
        """All rows of a cell, of whatever device, threads and configuration."""
        return self._by_cell.get(cell_id, [])

    def rows_to_ask_for(self, header: RunHeader) -> Iterator[BaselineRow]:
        """Rows whose cells a run may miss.

        Two files of a directory may tell of processors of the same kind, in two machines and on two days, and an older
        one of cells that are no more. Of each device and number of threads the file counts whose versions differ least
        from the run's.
        """
        of_place: dict[tuple[str, int], list[tuple[int, list[BaselineRow]]]] = {}
        for rows in self.files or (self.rows,):
            own: dict[tuple[str, int], list[BaselineRow]] = {}
            for row in rows:
                own.setdefault(row.place, []).append(row)
            for place, found in own.items():
                # Rows of a file share their environments: each is looked at once.
                made_with = {id(row.environment): row.environment.versions for row in found}
                differing = min(len(changes(versions, header.environment.versions)) for versions in made_with.values())
                of_place.setdefault(place, []).append((differing, found))
        for files in of_place.values():
            least = min(differing for differing, _ in files)
            yield from (row for differing, found in files if differing == least for row in found)

    def row_for(self, record: Record, header: RunHeader) -> BaselineRow | None:
        """The row to compare a record with; None where no row has its key.

        Threads and configuration decide bits, so they must agree where both sides have bits. A side that computed
        nothing has no device of its own either: it is compared within the machine of the run.
        """
        wanted = BaselineRow.of(record, header)
        rows = self.rows_of(record.cell_id)
        same_key = [row for row in rows if row.key == wanted.key]
        if same_key:
            # Several files of a directory may hold the row: the one with the versions of this run shows most.
            return min(same_key, key=lambda row: len(changed_versions(row, wanted)))
        devices = {wanted.environment.device, header.environment.device}
        for row in rows:
            here = row.environment.device in devices and row.environment.threads == wanted.environment.threads
            if here and not (row.digest and wanted.digest):
                return row
        return None


def changed_versions(old: BaselineRow, new: BaselineRow) -> dict[str, tuple[str, str]]:
    """Versions that differ, by name: of the environment, and of the implementation's library by its label."""
    changed = changes(old.environment.versions, new.environment.versions)
    library = (old.version, new.version)
    # A library of the environment, torch for example, is told by its own name.
    if old.version != new.version and all(library) and library not in changed.values():
        changed[new.label] = library
    return changed


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Values that differ, old and new, by name."""
    return {
        name: (before.get(name, "absent"), after.get(name, "absent"))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def require_device(baseline: Baseline, devices: Collection[str]) -> None:
    """Refuses a baseline file that was made on other devices only.

    Args:
        baseline: to compare with.
        devices: as `Environment.device` names those that a run computes on, or may.

    Raises:
        UnusableInput: it is of a file that has rows, and none of them is for one of `devices`.
    """
    made_on = sorted({row.environment.device for row in baseline.rows})
    if made_on and not baseline.of_directory and not set(made_on) & set(devices):
        raise UnusableInput(
            f"baseline {baseline.name!r} is for device {', '.join(map(repr, made_on))}; "
            f"it must be for {' or '.join(map(repr, sorted(devices)))}"
        )


@dataclass(frozen=True)
class Scope:
    """What a run set out to cover, so that a row that it should have produced and did not is seen.

    Attributes:
        header: of the run.
        truncated: whether it was cut off, so that absent cells mean nothing.
        devices: of its cells, and its own.
        seeds: of its cells.
        cell_ids: of its cells.
    """

    header: RunHeader
    truncated: bool
    devices: frozenset[str]
    seeds: frozenset[int]
    cell_ids: frozenset[str]

    @classmethod
    def of(cls, run: Run) -> Scope:
        """The scope of a run."""
        return cls(
            header=run.header,
            truncated=run.truncated,
            devices=frozenset(record.environment.device for record in run.records)
            | {header.environment.device for header in run.header.runs},
            seeds=frozenset(record.seed for record in run.records),
            cell_ids=frozenset(record.cell_id for record in run.records),
        )

    def misses(self, row: BaselineRow) -> bool:
        """Whether a cell should have produced this row, and none did. Controls run with their suite, always."""
        if self.truncated or row.cell_id in self.cell_ids:
            return False
        return any(self._covers(header, row) for header in self.header.runs)

    def _covers(self, header: RunHeader, row: BaselineRow) -> bool:
        """Whether one of the runs set out to produce a row."""
        environment = row.environment
        if header.narrowed or row.suite not in header.suites:
            return False
        if environment.device not in self.devices or environment.threads != header.environment.threads:
            return False
        if self.seeds and row.seed not in self.seeds:
            return False
        return row.control or (
            (not header.asked or row.label in header.implementations)
            and row.dtype in header.dtypes
            and TIERS.index(row.tier) <= TIERS.index(header.tier)
        )
