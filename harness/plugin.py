"""The pytest plugin: options, cells as test parameters, the verdict as the test's outcome.

It is loaded into every pytest run of an environment that has samebits, so it imports nothing heavy and does nothing
until a test asks for a cell or an option of samebits is given. Records and the report are the `RunLog`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from samebits.harness.records import Record, Verdict
from samebits.harness.run_log import RECORD_PROPERTY, SUITE_MARKS, RunLog, or_exit

if TYPE_CHECKING:
    from samebits.harness.matrix import Cell
    from samebits.harness.session import MatrixSession

_SESSION = pytest.StashKey["MatrixSession"]()
_DEFAULTS = {"tier": "default", "threads": 1, "seed": 0}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of the matrix."""
    group = parser.getgroup("samebits", "samebits: conformance of attention backends")

    def add(name: str, metavar: str, help_text: str, repeatable: bool = False, **more: Any) -> None:  # noqa: ANN401 -- handed on to pytest
        if repeatable:
            more |= {"action": "append", "default": []}
            help_text += "; repeatable"
        group.addoption(name, metavar=metavar, help=help_text, dest=_destination(name), **more)

    add("--backend", "NAME", "only this backend, for example TRITON_ATTN", repeatable=True)
    add("--implementation", "BACKEND/NAME", "only this implementation, with all of its variants", repeatable=True)
    add("--dtype", "DTYPE", "only fp32, bf16 or fp16", repeatable=True)
    add("--tier", "TIER", "smoke, default or nightly", default=_DEFAULTS["tier"])
    add("--results", "DIR", "where records and tables go (default: reports/out/<run id>)")
    add("--baseline", "FILE|DIR", "what to compare with (default: the baselines that come with samebits)")
    add("--update-baseline", "FILE", "write this run's results as a baseline")
    add("--load", "FILE", "run a Python file that defines a backend", repeatable=True)
    add("--cell", "ID", "only the cell of this id", repeatable=True)
    add("--threads", "N", "threads within one operation (default: 1)", type=int, default=_DEFAULTS["threads"])
    add("--seed", "N", "seed of all data (default: 0)", type=int, default=_DEFAULTS["seed"])


def _destination(option: str) -> str:
    return "samebits_" + option.removeprefix("--").replace("-", "_")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Gives each worker a run of neighbouring cells, which share kernels and executions, unless the user chose else.

    Groups would be tidier, but xdist hands a group whose worker died to the next worker from its deadly test on.
    """
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marks; tells unusable options before anything is collected."""
    for name, description in SUITE_MARKS.items():
        config.addinivalue_line("markers", f"{name}: {description}")
    if hasattr(config, "workerinput"):
        return
    log = RunLog(config, session=lambda: _session(config))
    config.pluginmanager.register(log, "samebits_run_log")
    given = {
        name.removeprefix("samebits_"): value
        for name, value in vars(config.option).items()
        if name.startswith("samebits_")
    }
    if any(value not in (None, []) and value != _DEFAULTS.get(name) for name, value in given.items()):
        or_exit(log.check)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each suite its cells."""
    suites = [mark.name for mark in metafunc.definition.iter_markers() if mark.name in SUITE_MARKS]
    if "cell" not in metafunc.fixturenames or not suites:
        return
    session = or_exit(lambda: _session(metafunc.config))
    metafunc.parametrize(
        "cell",
        [pytest.param(cell, id=cell.cell_id) for cell in session.cells(suites[0])],
    )


@pytest.fixture
def run_cell(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[Cell], None]:
    """Runs a cell, hands its record over, and lets the verdict decide the outcome of the test."""
    session = _session(request.config)

    def run(cell: Cell) -> None:
        record = session.run(cell)
        record_property(RECORD_PROPERTY, record.to_line())
        _decide(record)

    return run


def _session(config: pytest.Config) -> MatrixSession:
    """The matrix of this process, made when it is first asked for: it imports torch and every backend."""
    if _SESSION not in config.stash:
        from samebits.harness.session import MatrixSession, Options

        def option(name: str) -> list[str]:
            return config.getoption(_destination(name))  # type: ignore[no-any-return]

        config.stash[_SESSION] = MatrixSession(
            Options(
                backends=tuple(option("--backend")),
                implementations=tuple(option("--implementation")),
                dtypes=tuple(option("--dtype")),
                tier=config.getoption(_destination("--tier")),
                load=tuple(config.invocation_params.dir / Path(path) for path in option("--load")),
                cells=tuple(option("--cell")),
                threads=config.getoption(_destination("--threads")),
                seed=config.getoption(_destination("--seed")),
            )
        )
    return config.stash[_SESSION]


def _decide(record: Record) -> None:
    told = "; ".join(record.reasons)
    if record.red:
        example = f"\nsmallest batch: {record.smallest_batch}" if record.smallest_batch else ""
        pytest.fail(f"{record.verdict}: {told}{example}\nreproduce: {record.command}", pytrace=False)
    if record.verdict in (Verdict.UNSUPPORTED, Verdict.UNAVAILABLE):
        pytest.skip(f"{record.verdict}: {told}")
    if record.verdict is Verdict.KNOWN:
        pytest.xfail(told)
