"""Tiers: a larger one holds the smaller ones, and a cell names the smallest that holds it, whatever is selected."""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from samebits.backends.operations import TokenImplementation
from samebits.backends.problem import DTYPE_NAMES
from samebits.backends.subject import Availability, Subject
from samebits.harness.ci_jobs import make_matrix
from samebits.harness.controls.schedules import ChunkedKernel
from samebits.harness.judgement import unjudged
from samebits.harness.matrix import Cell, Selection
from samebits.harness.not_offered import NotOffered
from samebits.harness.records import TIERS, RunHeader
from samebits.harness.registry import load_registry
from samebits.harness.session import MatrixSession, Options
from samebits.harness.suite_cells import SUITES
from samebits.reports.baseline import BaselineRow, Scope

DTYPES = [(), *((dtype,) for dtype in DTYPE_NAMES)]


class CostlyKernel(ChunkedKernel):
    """Stands for an interpreted kernel, wherever the tests run."""

    name = "costly"
    costly = True


class CompilingKernel(ChunkedKernel):
    """Stands for a kernel that is compiled for every shape."""

    name = "compiling"
    compiles_each_shape = True


SPARED: tuple[Subject, ...] = (CostlyKernel(), CompilingKernel())
EVERYONE = (*load_registry().implementations, *SPARED)
TOKEN_OPERATIONS = tuple(subject for subject in EVERYONE if isinstance(subject, TokenImplementation))
# Those whose nightly cells are made, tens of thousands of attention: what the smaller tiers spare, and one backend's.
FEW = (*(subject for subject in TOKEN_OPERATIONS if subject.label == "CPU/bundled"), *SPARED)


# Every cell is asked for its comparisons when it is made, which takes a second for all of them.
@functools.cache
def cells_of(subjects: tuple[Subject, ...], tier: str, dtypes: tuple[str, ...] = ()) -> tuple[Cell, ...]:
    """The cells of all suites, those of full size among them."""
    selection = Selection(subjects, dtypes, tier, platform="cuda")
    return tuple(cell for suite in SUITES.values() for cell in suite(selection))


def tiers_of(subjects: tuple[Subject, ...], tier: str, dtypes: tuple[str, ...] = ()) -> dict[tuple[str, str], str]:
    """The tier that each cell names, by its suite and id."""
    return {(cell.suite, cell.cell_id): cell.tier for cell in cells_of(subjects, tier, dtypes)}


def smallest_tiers(subjects: tuple[Subject, ...], tiers: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """The first of some tiers that holds each cell when no dtypes are asked for."""
    found: dict[tuple[str, str], str] = {}
    for tier in tiers:
        for name in tiers_of(subjects, tier):
            found.setdefault(name, tier)
    return found


def test_what_takes_long_has_fewer_cells_below_the_nightly_tier() -> None:
    plain, costly, compiling = (len(cells_of((subject,), "default")) for subject in (ChunkedKernel(), *SPARED))
    assert costly < compiling < plain


@pytest.mark.parametrize(("subjects", "tiers"), [(EVERYONE, TIERS[:2]), (FEW, TIERS)], ids=["everyone", "few"])
def test_a_larger_tier_holds_the_cells_of_the_smaller_ones(
    subjects: tuple[Subject, ...], tiers: tuple[str, ...]
) -> None:
    *smaller, largest = tiers
    held = tiers_of(subjects, largest)
    lost = [name for tier in smaller for name in tiers_of(subjects, tier) if name not in held]
    assert not lost, f"{largest} is without {len(lost)} cells of a smaller tier: {lost[:3]}"
    assert len(cells_of(subjects, largest)) == len(held), f"two cells of {largest} have one name"


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda dtypes: "".join(dtypes) or "every")
@pytest.mark.parametrize("tier", TIERS[:2])
def test_a_cell_names_the_smallest_tier_that_holds_it(tier: str, dtypes: tuple[str, ...]) -> None:
    """So what only a dtype asked for brings names the nightly one."""
    smallest = smallest_tiers(EVERYONE, TIERS[:2])
    named = tiers_of(EVERYONE, tier, dtypes)
    wrong = {name: told for name, told in named.items() if told != smallest.get(name, "nightly")}
    assert not wrong, f"{len(wrong)} cells name another tier: {list(wrong.items())[:3]}"


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda dtypes: "".join(dtypes) or "every")
def test_a_nightly_cell_names_the_tier_that_it_has_in_the_smaller_ones(dtypes: tuple[str, ...]) -> None:
    smallest = smallest_tiers(FEW, TIERS)
    for tier in TIERS if not dtypes else TIERS[:2]:
        for name, told in tiers_of(FEW, tier, dtypes).items():
            assert name in smallest, f"{name} is in no tier when no dtypes are asked for"
            assert told == smallest[name], f"{name} names {told} in the {tier} tier"


def test_an_implementation_has_the_cells_that_it_has_among_others() -> None:
    among_others = tiers_of(EVERYONE, "default")
    alone = tiers_of(FEW, "default")
    assert {name: among_others.get(name) for name in alone} == alone


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda dtypes: "".join(dtypes) or "every")
def test_a_second_process_is_started_once_for_each_implementation(dtypes: tuple[str, ...]) -> None:
    counts = Counter(
        (cell.implementation.operation, cell.implementation.label)
        for cell in cells_of(EVERYONE, "default", dtypes)
        if cell.relation.name == "second_process" and not cell.flaw
    )
    assert set(counts) == {(subject.operation, subject.label) for subject in EVERYONE}
    assert set(counts.values()) == {1}, f"more than one second process: {counts.most_common(3)}"


@functools.cache
def smoke_run(backend: str = "", dtype: str = "", shard: str = "") -> MatrixSession:
    """A run of the smoke tier, of everything or of what a job of the nightly matrix confines it to."""
    backends, dtypes = (tuple(filter(None, [asked])) for asked in (backend, dtype))
    return MatrixSession(Options(backends=backends, dtypes=dtypes, tier="smoke", shard=shard))


SMOKE_JOBS = make_matrix(load_registry(), {}, "smoke", devices=["cpu"]).jobs


def test_the_jobs_of_a_night_are_together_the_cells_of_one_plain_run() -> None:
    def names(session: MatrixSession) -> list[tuple[str, str]]:
        every = ((suite, cell) for suite, cells in SUITES.items() for cell in cells(session.selection))
        return [(suite, cell.cell_id) for suite, cell in every if cell.flaw is None]

    plain = set(names(smoke_run()))
    of_jobs = Counter(name for job in SMOKE_JOBS for name in names(smoke_run(job.backend, job.dtype, job.name)))
    strange = [name for name in of_jobs if name not in plain]
    assert not strange, f"{len(strange)} cells of jobs are in no plain run of the tier: {strange[:3]}"
    lost = plain - set(of_jobs)
    assert not lost, f"{len(lost)} cells of the plain run are in no job: {sorted(lost)[:3]}"
    assert set(of_jobs.values()) == {1}, f"a cell is in several jobs: {of_jobs.most_common(3)}"


@pytest.mark.parametrize("shard", [False, True], ids=["asked_for", "shard"])
def test_a_run_of_one_dtype_misses_nothing_of_a_plain_run(shard: bool) -> None:
    """Neither what a backend does not offer, nor what is not installed, is a row in another dtype than the run's."""
    header = smoke_run().header(tuple(SUITES), narrowed=False, cell_ids=())
    rows = [row for suite in SUITES for row in rows_of(smoke_run(), suite, header)]
    for job in SMOKE_JOBS:
        session = smoke_run(job.backend, job.dtype, job.name if shard else "")
        header = session.header(tuple(SUITES), narrowed=False, cell_ids=())
        own = [row for suite in SUITES for row in rows_of(session, suite, header)]
        assert {row.dtype for row in own} == set(header.dtypes) == {job.dtype}
        devices = frozenset(row.environment.device for row in own)
        scope = Scope(header, False, devices, frozenset({0}), frozenset(row.cell_id for row in own))
        missing = [row.cell_id for row in rows if scope.misses(row)]
        assert not missing, f"{job.name} misses {len(missing)} of the plain run's rows: {missing[:3]}"


def test_a_run_tells_the_dtype_that_was_asked_for_where_it_has_no_cell_of_it() -> None:
    session = smoke_run("CPU", "fp16", "CPU-cpu-fp16")
    assert not [cell for cell in session.cells("compile") if cell.flaw is None], "this test needs another suite"
    assert session.header(("compile",), narrowed=False, cell_ids=()).dtypes == ("fp16",)


def rows_of(session: MatrixSession, suite: str, header: RunHeader) -> list[BaselineRow]:
    """The rows that a baseline would have for the cells of a suite, wherever they computed."""
    cells = [cell for cell in session.cells(suite) if cell.flaw is None]
    return [BaselineRow.of(unjudged(cell, Availability(), ""), header) for cell in cells]


def test_an_operation_that_is_not_offered_is_a_row_in_the_dtype_that_is_asked_for() -> None:
    for dtype in DTYPE_NAMES:
        absent = [cell for cell in cells_of(SPARED, "smoke", (dtype,)) if isinstance(cell.implementation, NotOffered)]
        assert {cell.dtype for cell in absent} == {dtype}
    (row,) = [cell for cell in cells_of(SPARED, "smoke") if cell.suite == "rope" and cell.flaw is None]
    assert isinstance(row.implementation, NotOffered)
    assert row.dtype == "fp32", "where no dtype is asked for, the row is in another one"
