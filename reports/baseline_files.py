"""Baseline files: read with every value checked, written whole or not at all.

The file is laid out for review: a header, then each environment and each kernel once, then one line per cell in order
of their ids, which refers to them by name. An upgrade that changes no bits changes the lines of the environments and no
cell's.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from samebits.harness.decoding import shown
from samebits.harness.record_files import JsonLines, Line, read_run
from samebits.harness.records import SCHEMA_VERSION, Environment, Run, UnusableInput, Verdict, to_json
from samebits.reports.baseline import Baseline, BaselineRow, Key, Scope
from samebits.reports.files import check_replaceable, replace_file
from samebits.reports.findings import red_reasons

_PACKAGED = Path(__file__).parent / "baselines"

_CONTENT = "a baseline, or the records of a run"
_SIGNIFICANT_DIGITS = 6

# What a named line defines, as a value that can be compared and put in order.
DefinitionT = TypeVar("DefinitionT", tuple[str, int, "_Versions"], tuple[str, "_Versions"])


@dataclass(frozen=True)
class _Header:
    """First line of a baseline file; `cells` is how many lines of cells follow, so that a cut is seen."""

    note: str
    cells: int
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class _NamedEnvironment:
    """An environment, by the name that cells give it."""

    name: str
    device: str
    threads: int
    versions: Mapping[str, str]

    @property
    def environment(self) -> Environment:
        return Environment(self.device, self.versions, self.threads)


@dataclass(frozen=True)
class _NamedKernel:
    """An implementation at one version and in one configuration, by the name that cells give it."""

    name: str
    label: str
    version: str
    configuration: Mapping[str, str]


@dataclass(frozen=True)
class _Cell:
    """A row as it is written: environment and kernel by name, and nothing that is its default."""

    cell_id: str
    kernel: str
    environment: str
    suite: str
    dtype: str
    tier: str
    verdict: Verdict
    error_budget: float | None = None
    max_ulp: int | None = None
    digest: str = ""
    seed: int = 0
    control: bool = False


def read_baseline(path: Path | None) -> Baseline:
    """Reads a baseline.

    Args:
        path: a baseline file, the records of a run, or a directory of such files; None for the baselines that come with
            samebits.

    Raises:
        UnusableInput: there is no such file, or it is cut off, of another schema version, or not what it should be.
    """
    path = _PACKAGED if path is None else path
    if os.path.isdir(path):
        files = [_read_file(file) for file in sorted(path.glob("*.jsonl"))]
        rows = tuple(row for file in files for row in file.rows)
        return Baseline(path.name, rows, of_directory=True, files=tuple(file.rows for file in files))
    return _read_file(path)


def write_baseline(run: Run, path: Path) -> None:
    """Writes what a run came to as a baseline, into the file that may hold rows of other runs.

    Rows of the run replace those of the same cells on the same device with as many threads. Rows that the run should
    have produced and did not are dropped. All others stay.

    Args:
        run: to keep.
        path: of the baseline file, new or not.

    Raises:
        UnusableInput: the run failed, covers single cells or was killed; or the file exists and is no baseline; or it
            cannot be written. Nothing is written then.
    """
    _require_sound(run)
    rows = [*_kept(_read_updated(path), run), *(BaselineRow.of(record, run.header) for record in run.records)]
    header = run.header
    note = f"last written by run {header.run_id}: {', '.join(header.suites)}, {header.tier} tier"
    replace_file(path, "".join(line + "\n" for line in _lines(rows, note)))


def check_update(path: Path) -> None:
    """Finds out before a run whether what it comes to can be written as a baseline after it.

    Args:
        path: of the baseline file, new or not.

    Raises:
        UnusableInput: the file exists and is no baseline, or it cannot be written.
    """
    _read_updated(path)
    check_replaceable(path)


def _read_updated(path: Path) -> Baseline:
    """The baseline that a run is to be written into; one without rows where the file is new."""
    if not os.path.exists(path):
        return Baseline(path.name, ())
    if os.path.isdir(path):
        raise UnusableInput(f"{str(path)!r} is a directory; a baseline is written into a file, such as one in it")
    lines = JsonLines.read(path, "a baseline")
    if lines.kind != "baseline":
        raise UnusableInput(f"{str(path)!r} is no baseline and is not overwritten; name a baseline, or a new file")
    return _of_lines(lines)


def _require_sound(run: Run) -> None:
    """Refuses what would hold later runs to a failure, or to less than a suite."""
    name = f"run {run.header.run_id!r}"
    red = [record for record in run.records if record.red]
    if red:
        raise UnusableInput(
            f"{name} is red, first at {red[0].cell_id!r} ({red[0].verdict}); a baseline must be of a run that is not"
        )
    if run.header.narrowed:
        raise UnusableInput(f"{name} was narrowed to single cells; a baseline must be of whole suites")
    if not run.records:
        raise UnusableInput(f"{name} has no cells; a baseline must be of a run that has some")
    if run.truncated:
        raise UnusableInput(f"{name} was cut off; a baseline must be of a run that finished")
    reasons = red_reasons(run)
    if reasons:
        raise UnusableInput(f"{name} is red: {'; '.join(reasons)}; a baseline must be of a run that is not")


def _kept(old: Baseline, run: Run) -> list[BaselineRow]:
    """Rows of an existing baseline that a run says nothing about."""
    scope = Scope.of(run)
    superseded: set[Key] = set()
    for record in run.records:
        row = BaselineRow.of(record, run.header)
        compared = old.row_for(record, run.header)
        superseded |= {other.key for other in old.rows_of(record.cell_id) if other.place == row.place}
        superseded |= {compared.key} if compared else set()
    return [row for row in old.rows if row.key not in superseded and not scope.misses(row)]


def _read_file(file: Path) -> Baseline:
    lines = JsonLines.read(file, _CONTENT)
    if lines.kind == "run":
        run = read_run(file)
        if run.truncated:
            raise UnusableInput(f"{str(file)!r} is of a run that was cut off; it must be of one that finished")
        return Baseline(run.header.run_id, tuple(BaselineRow.of(record, run.header) for record in run.records))
    return _of_lines(lines)


def _of_lines(lines: JsonLines) -> Baseline:
    if lines.truncated:
        raise UnusableInput(f"{str(lines.file)!r} is cut off inside its last line; it must hold {_CONTENT}, whole")
    return Baseline(lines.file.name, tuple(_read_rows(lines)))


def _read_rows(lines: JsonLines) -> Iterator[BaselineRow]:
    header = lines.header("baseline", _Header)
    environments: dict[str, _NamedEnvironment] = {}
    kernels: dict[str, _NamedKernel] = {}
    seen: set[Key] = set()
    for line in lines.body():
        if line.values.get("kind") == "environment":
            _add_named(environments, line, line.decode("environment", _NamedEnvironment))
        elif line.values.get("kind") == "kernel":
            _add_named(kernels, line, line.decode("kernel", _NamedKernel))
        else:
            row = _row(line, environments, kernels)
            if row.key in seen:
                raise line.unusable(
                    f"cell_id {shown(row.cell_id)} occurs twice for one device, threads and configuration; each may "
                    "occur once"
                )
            seen.add(row.key)
            yield row
    if len(seen) != header.cells:
        raise UnusableInput(
            f"{str(lines.file)!r} holds {len(seen)} cells, but its header says {header.cells}; it must be whole, "
            "so write it again with --update-baseline"
        )


def _add_named(named: dict[str, Any], line: Line, entry: _NamedEnvironment | _NamedKernel) -> None:
    if entry.name in named:
        raise line.unusable(f"name {shown(entry.name)} occurs twice; each may occur once")
    named[entry.name] = entry


def _row(line: Line, environments: Mapping[str, _NamedEnvironment], kernels: Mapping[str, _NamedKernel]) -> BaselineRow:
    cell = line.decode("cell", _Cell)
    if cell.environment not in environments:
        raise line.unusable(f"environment {shown(cell.environment)} is unknown; it must be named by a line before")
    if cell.kernel not in kernels:
        raise line.unusable(f"kernel {shown(cell.kernel)} is unknown; it must be named by a line before")
    kernel = kernels[cell.kernel]
    return BaselineRow(
        cell_id=cell.cell_id,
        suite=cell.suite,
        label=kernel.label,
        version=kernel.version,
        configuration=kernel.configuration,
        dtype=cell.dtype,
        tier=cell.tier,
        seed=cell.seed,
        control=cell.control,
        verdict=cell.verdict,
        error_budget=cell.error_budget,
        max_ulp=cell.max_ulp,
        digest=cell.digest,
        environment=environments[cell.environment].environment,
    )


def _lines(rows: Sequence[BaselineRow], note: str) -> Iterator[str]:
    """The file's lines, in one order whatever the order of the rows."""
    rows = sorted(rows, key=lambda row: row.key)
    environments = _named((_place_name(row), _environment_of(row)) for row in rows)
    kernels = _named((row.label, _kernel_of(row)) for row in rows)
    yield _line("baseline", _Header(note, len(rows)))
    for (_, (device, threads, versions)), name in environments.items():
        yield _line("environment", _NamedEnvironment(name, device, threads, dict(versions)))
    for (label, (version, configuration)), name in kernels.items():
        yield _line("kernel", _NamedKernel(name, label, version, dict(configuration)))
    for row in rows:
        cell = _Cell(
            cell_id=row.cell_id,
            kernel=kernels[row.label, _kernel_of(row)],
            environment=environments[_place_name(row), _environment_of(row)],
            suite=row.suite,
            dtype=row.dtype,
            tier=row.tier,
            verdict=row.verdict,
            error_budget=None if row.error_budget is None else float(f"{row.error_budget:.{_SIGNIFICANT_DIGITS}g}"),
            max_ulp=row.max_ulp,
            digest=row.digest,
            seed=row.seed,
            control=row.control,
        )
        yield _line("cell", cell)


def _line(kind: str, entry: _Header | _NamedEnvironment | _NamedKernel | _Cell) -> str:
    values = {
        field.name: getattr(entry, field.name)
        for field in dataclasses.fields(entry)
        if field.name == "schema_version" or getattr(entry, field.name) != field.default
    }
    return to_json({"kind": kind, **values}, sort_keys=False)


_Versions = tuple[tuple[str, str], ...]


def _place_name(row: BaselineRow) -> str:
    threads = row.environment.threads
    return f"{row.environment.device}, {threads} thread{'s' if threads > 1 else ''}"


def _environment_of(row: BaselineRow) -> tuple[str, int, _Versions]:
    environment = row.environment
    return environment.device, environment.threads, tuple(sorted(environment.versions.items()))


def _kernel_of(row: BaselineRow) -> tuple[str, _Versions]:
    return row.version, tuple(sorted(row.configuration.items()))


def _named(definitions: Iterable[tuple[str, DefinitionT]]) -> dict[tuple[str, DefinitionT], str]:
    """Names definitions by what they are of, and by a number where there are several of one name."""
    names: dict[tuple[str, DefinitionT], str] = {}
    count: Counter[str] = Counter()
    for base, definition in sorted(set(definitions)):
        count[base] += 1
        names[base, definition] = base if count[base] == 1 else f"{base} #{count[base]}"
    return names
