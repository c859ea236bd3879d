"""A run's records and report: kept by the one process that owns the run, as cells finish and at its end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from _pytest.mark.expression import Expression

from samebits.harness.bench.mark import is_asked_for
from samebits.harness.node_ids import cell_id_of, names_cell
from samebits.harness.record_files import RecordWriter, check_results, parse_record, read_run
from samebits.harness.records import Record, RunHeader, UnusableInput
from samebits.harness.resuming import CutOffRun
from samebits.reports.baseline import Baseline, require_device
from samebits.reports.baseline_files import check_update, read_baseline, write_baseline
from samebits.reports.report import Report, write_report

if TYPE_CHECKING:
    from samebits.harness.session import MatrixSession

T = TypeVar("T")

SUITE_MARKS = {
    "batch_invariant": "a request keeps its bits whatever its batch, neighbours, pages and schedule",
    "dtype": "every number is as right as arithmetic in its dtype allows",
    "semantics": "each mask and each option of attention means what it should",
    "run_to_run": "the same call gives the same bits, again and again",
    "rope": "rotary embedding is right, invariant, and keeps the rules of its cache",
    "compile": "each Triton kernel compiles for devices that are not here, and fits them",
    "cuda_graph": "what was captured once computes every other batch of its padded sizes",
    "properties": "every relation holds on batches that are drawn",
}
# How a test hands its record over: as a property of its report, which xdist carries from a worker to the controller.
RECORD_PROPERTY = "samebits_record"
# How a worker of xdist, which parses the command line for itself, is told what became of its options here, and which
# cells of a run that is resumed are finished.
FINISHED_CELLS, OPTIONS = "samebits_finished_cells", "samebits_options"
# What a shell expects of input that cannot be used.
EXIT_UNUSABLE = 2


def or_exit(action: Callable[[], T]) -> T:
    """Does something, or ends the run with one sentence and exit code 2 when its input is unusable."""
    try:
        return action()
    except UnusableInput as error:
        pytest.exit(str(error), returncode=EXIT_UNUSABLE)


def leave_out(finished: Collection[str], config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests of some cells.

    Args:
        finished: ids of the cells.
        config: of the pytest run.
        items: the collected tests, which are changed.
    """
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        is_cell = "run_cell" in getattr(item, "fixturenames", ())
        (left_out if is_cell and cell_id_of(item.nodeid) in finished else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


class RunLog:
    """Writes records as cells finish, and the report when the run ends. It does nothing in a run without cells.

    Args:
        config: of the pytest run.
        session: the matrix of this process, made when first called.
    """

    def __init__(self, config: pytest.Config, session: Callable[[], MatrixSession]) -> None:
        self._config = config
        self._session = session
        self._checked = False
        self._collected: set[str] = set()
        self._writer: RecordWriter | None = None
        self._written: set[str] = set()
        self._resumed: CutOffRun | None = None
        self._report: Report | None = None
        self._complaint = ""

    @property
    def done_before(self) -> tuple[Record, ...]:
        """The cells that were finished when this process went on with their run; none in a run of its own."""
        return () if self._resumed is None else self._resumed.run.records

    def check(self) -> None:
        """Finds out before anything runs whether the options can be used.

        Raises:
            UnusableInput: an option cannot be used.
        """
        # In this order: which suites there are is known for good once it was asked, and a resumed run says which.
        if is_asked_for(self._config.option.markexpr) and not self._suites:
            return
        self._take_over()
        self._check_selection()
        require_device(self._baseline, self._session().devices)
        update, results = self._path("update_baseline"), self._path("results")
        if update is not None:
            check_update(update)
        if results is not None:
            check_results(results)
        self._checked = True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves out the cells that a run which is resumed has finished already."""
        if self._resumed is not None:
            leave_out(self._resumed.done, config, items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:  # noqa: ANN401 -- xdist's
        """Tells a worker its options, and which cells to leave out: all must have the same tests."""
        every = vars(self._config.option)
        own = {name: value for name, value in every.items() if name.startswith("samebits_") or name == "markexpr"}
        done = sorted(self._resumed.done) if self._resumed is not None else []
        node.workerinput |= {FINISHED_CELLS: done, OPTIONS: own}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Notes the tests that will run in this process."""
        or_exit(functools.partial(self._await, (item.nodeid for item in session.items)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        """Notes the tests that will run in the workers, each of which collects them all."""
        or_exit(functools.partial(self._await, ids))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Writes the record of a finished cell, or of one that took its process with it."""
        handed_over = [str(value) for name, value in report.user_properties if name == RECORD_PROPERTY]
        if handed_over and report.when == "call":
            or_exit(functools.partial(self._write, handed_over[0]))
        elif report.failed and not handed_over and names_cell(cell_id_of(report.nodeid)):
            # A worker that died, or a test that failed outside of its cell: the cell leaves a row all the same.
            or_exit(functools.partial(self._write_crashed, report))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compares and reports; a regression fails a run whose tests all passed."""
        try:
            if self._resumed is not None and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
                # It was killed after its last cell: what is left is to say so, and to report.
                session.exitstatus = pytest.ExitCode.OK
                self._open()
            if self._checked and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
                raise UnusableInput(f"{self._selection()} leaves no test; pytest --collect-only -q lists what there is")
            if self._writer is not None:
                self._finish(self._writer, session)
        except UnusableInput as error:
            self._complaint = f"samebits: {error}"
            session.exitstatus = EXIT_UNUSABLE

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the table, and where the files are."""
        if self._report is not None:
            terminalreporter.ensure_newline()
            terminalreporter.write_line(self._report.summary)
            terminalreporter.write_line("")
            for path in (*self._report.paths, self._writer.path if self._writer else None):
                terminalreporter.write_line(f"written: {_shortest(path)}" if path else "")
        if self._complaint:
            terminalreporter.write_line(self._complaint, red=True)

    def pytest_unconfigure(self) -> None:
        """Lets others resume what this process did not go on with."""
        if self._resumed is not None:
            self._resumed.release()

    def _take_over(self) -> None:
        """Takes over the run that is to be resumed, where there is one."""
        directory = self._path("resume")
        if directory is None:
            return
        if self._path("results") is not None:
            raise UnusableInput("--resume DIR goes on with the records in DIR; leave --results out")
        self._resumed = CutOffRun(directory)
        # Before the session looks for what only such files define. It imports torch, as the session will.
        from samebits.harness.code_state import loaded_code

        self._resumed.require_loaded(loaded_code(*(self._paths(option) for option in ("load", "libs"))))
        vars(self._config.option).update(self._resumed.left_out(self._config.option))
        self._collected |= self._resumed.done
        self._written |= self._resumed.done

    def _await(self, node_ids: Iterable[str]) -> None:
        """Notes tests that will run, of which a baseline must hold whole suites."""
        self._collected |= {cell_id_of(node_id) for node_id in node_ids}
        if self._resumed is not None:
            self._resumed.require_same(self._header())
        if self._collected and self._path("update_baseline") is not None and self._is_narrowed():
            raise UnusableInput("--update-baseline needs whole suites, and this run is narrowed to some of their cells")

    def _write(self, line: str) -> None:
        """Writes a cell's first record; a cell that a dead worker hands on to the next has one already."""
        record = parse_record(line)
        if record.cell_id not in self._written:
            if self._resumed is not None:
                self._resumed.require_alike(record)
            self._open().write(record)
            self._written.add(record.cell_id)

    def _write_crashed(self, report: pytest.TestReport) -> None:
        record = self._session().crashed(report.nodeid, str(report.longrepr))
        if record is not None:
            self._write(record.to_line())

    def _open(self) -> RecordWriter:
        if self._writer is None and self._resumed is not None:
            self._writer = self._resumed.writer()
        if self._writer is None:
            header = self._header()
            directory = self._path("results") or self._config.invocation_params.dir / "reports" / "out" / header.run_id
            self._writer = RecordWriter(directory, header)
        return self._writer

    def _header(self) -> RunHeader:
        """What a run of its own would be called that sets out to do what this one does."""
        return self._session().header(self._suites, self._is_narrowed(), set(filter(names_cell, self._collected)))

    def _finish(self, writer: RecordWriter, session: pytest.Session) -> None:
        # The exit status does not say whether all cells ran: it is still that of success where a second interrupt
        # arrives while the first is dealt with.
        writer.close(finished=self._cells & self._collected <= self._written)
        run, directory = read_run(writer.path), writer.path.parent
        try:
            self._report = write_report(run, self._baseline, directory)
        except UnusableInput as error:
            raise UnusableInput(f"{error}; the records are whole: samebits report {directory} tells them") from error
        if self._report.red and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        update = self._path("update_baseline")
        if update is not None:
            write_baseline(run, update)

    @functools.cached_property
    def _baseline(self) -> Baseline:
        """What the run is compared with: read before it where that is checked, and otherwise at its end."""
        return read_baseline(self._path("baseline"))

    @functools.cached_property
    def _suites(self) -> tuple[str, ...]:
        """The suites that the mark expression lets through.

        Raises:
            UnusableInput: it is no expression.
        """
        expression = self._config.option.markexpr
        if not expression:
            return tuple(SUITE_MARKS)
        try:
            compiled = Expression.compile(expression)
            return tuple(mark for mark in SUITE_MARKS if compiled.evaluate(_names(mark)))
        except Exception as error:  # of a kind that differs between versions of pytest
            raise UnusableInput(f"-m {expression!r} is no expression of marks, such as batch_invariant") from error

    @functools.cached_property
    def _cells(self) -> frozenset[str]:
        """Ids of all cells of these suites that the options select."""
        session = self._session()
        return frozenset(cell.cell_id for suite in self._suites for cell in session.cells(suite))

    def _is_narrowed(self) -> bool:
        """Whether single cells were selected, in whatever way, so that those that did not run mean nothing."""
        return bool(self._session().options.cells) or not self._cells <= self._collected

    def _check_selection(self) -> None:
        names = self._session().options.cells
        if not self._suites:
            raise UnusableInput(
                f"-m {self._config.option.markexpr!r} selects no suite; known are {', '.join(SUITE_MARKS)}"
            )
        for name in names:
            if name not in self._cells:
                raise UnusableInput(f"cell {name!r} is of no suite that -m {' or '.join(self._suites)!r} selects")

    def _selection(self) -> str:
        """What narrowed the tests, as the user gave it."""
        option = self._config.option
        given = [f"-m {option.markexpr!r}"] if option.markexpr else []
        given += [f"-k {option.keyword!r}"] if option.keyword else []
        return " ".join(given + [str(argument) for argument in self._config.args])

    def _path(self, option: str) -> Path | None:
        value = getattr(self._config.option, f"samebits_{option}")
        return None if value is None else self._config.invocation_params.dir / value

    def _paths(self, option: str) -> list[Path]:
        return [
            self._config.invocation_params.dir / value for value in getattr(self._config.option, f"samebits_{option}")
        ]


def _names(mark: str) -> Callable[..., bool]:
    """Answers a mark expression for a test that has this one mark."""
    return lambda name, /, **_: name == mark


def _shortest(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
