"""The pytest plugin: options, cells as test parameters, the verdict as the test's outcome.

It is loaded into every pytest run of an environment that has samebits, so it imports nothing heavy and does nothing
until a test asks for a cell or an option of samebits is given. Records and the report are the `RunLog`'s.
"""

from __future__ import annotations

import gc
import math
import os
import secrets
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from samebits.harness.bench import mark
from samebits.harness.bench.marked import MarkedBench
from samebits.harness.bench.options import Options as BenchOptions
from samebits.harness.decoding import WHOLE_NUMBERS, shown
from samebits.harness.isolation.limits import Limits, machine_memory, share_of_memory
from samebits.harness.isolation.parent_death import end_with_parent
from samebits.harness.progress import Progress
from samebits.harness.records import Record, UnusableInput, Verdict
from samebits.harness.run_log import FINISHED_CELLS, OPTIONS, RECORD_PROPERTY, SUITE_MARKS, RunLog, leave_out, or_exit
from samebits.harness.worker_gpu import pin_worker
from samebits.reports.accumulation_words import short_lines

if TYPE_CHECKING:
    from samebits.harness.isolation.isolated_session import IsolatedSession
    from samebits.harness.matrix import Cell
    from samebits.harness.session import MatrixSession

_SESSION = pytest.StashKey["MatrixSession"]()
_ISOLATED = pytest.StashKey["IsolatedSession"]()
# Whether the cells are kept from the garbage collector.
_FROZEN = pytest.StashKey[bool]()
# Names of the options of samebits whose values are paths.
_PATH_OPTIONS = pytest.StashKey[frozenset[str]]()
# Above any machine's; torch crashes where it cannot start as many as it was told.
_THREADS = range(1, 1025)


@dataclass(frozen=True)
class _Option:
    """An option of the matrix.

    Attributes:
        name: without its dashes.
        metavar: what its value is called.
        help: in a line.
        default: its value where it is not given; None for none.
        repeatable: whether it may be given several times.
        path: whether its value is a path.
        flag: whether it has no value.
    """

    name: str
    metavar: str
    help: str
    default: str | None = None
    repeatable: bool = False
    path: bool = False
    flag: bool = False

    @property
    def destination(self) -> str:
        """Its name among all options of pytest."""
        return "samebits_" + self.name.replace("-", "_")

    def is_given(self, config: pytest.Config) -> bool:
        """Whether the user gave it."""
        return getattr(config.option, self.destination, None) not in ([], False, None)

    def value(self, config: pytest.Config) -> Any:  # noqa: ANN401 -- a string, or a list of them
        """What the user gave, or the default."""
        given = getattr(config.option, self.destination)
        return self.default if given is None else given

    @property
    def settings(self) -> dict[str, Any]:
        """What a parser is told of it besides its names."""
        told = {"dest": self.destination, "help": self.help + ("; repeatable" if self.repeatable else "")}
        if self.flag:
            return told | {"action": "store_true"}
        if self.repeatable:
            return told | {"metavar": self.metavar, "action": "append", "default": []}
        return told | {"metavar": self.metavar}


_OPTIONS = (
    _Option("backend", "NAME", "only this backend, for example TRITON_ATTN", repeatable=True),
    _Option("implementation", "BACKEND/NAME", "only this implementation, with all of its variants", repeatable=True),
    _Option("dtype", "DTYPE", "only fp32, bf16 or fp16", repeatable=True),
    _Option("tier", "TIER", "smoke, default or nightly", default="default"),
    _Option("results", "DIR", "where records and tables go (default: reports/out/<run id>)", path=True),
    _Option(
        "resume", "DIR", "do the rest of the run whose records are there, as it began, and go on with them", path=True
    ),
    _Option("baseline", "FILE|DIR", "what to compare with (default: the baselines that come with samebits)", path=True),
    _Option("update-baseline", "FILE", "write this run's results as a baseline", path=True),
    _Option("load", "FILE", "a Python file that defines a backend: its code is run", repeatable=True, path=True),
    _Option(
        "libs",
        "DIR",
        "a bundle of vendors' libraries for what is not installed: its code is run",
        repeatable=True,
        path=True,
    ),
    _Option("cell", "ID", "only the cell of this id", repeatable=True),
    _Option("threads", "N", "threads within one operation (default: 1)", default="1"),
    _Option("seed", "N", "seed of all data (default: 0)", default="0"),
    _Option(
        "cell-timeout", "SECONDS", "how long a cell may take before its process is ended (default: 600)", default="600"
    ),
    _Option("cell-memory", "GIB", "what the processes of a cell may hold (default: its share of the machine's memory)"),
    _Option("no-isolation", "", "run cells in this process, where a debugger reaches them", flag=True),
    _Option(
        "draw-seed", "N", "seed of the batches that are drawn (default: the same ones; in the nightly tier, fresh)"
    ),
    _Option("examples", "DIR", "where drawn batches that fail are kept, and tried first (default: none)", path=True),
    _Option("shard", "NAME", "name of the nightly job that this run is: --dtype then narrows the tier", default=""),
)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser
) -> Generator[None, object, object]:
    """Adds the options: as `--samebits-backend`, and as `--backend` where nobody else has an option of that name.

    This plugin is part of every run in its environment, so a clash would stop the tests of other projects. The initial
    conftests are the last that can add options: once they are loaded, it is known which names are free.
    """
    result = yield
    group = parser.getgroup("samebits", "samebits: conformance of attention backends")
    path_options: set[str] = set()
    for option in _OPTIONS:
        names = [f"--samebits-{option.name}"]
        if _is_free(parser, f"--{option.name}"):
            names.insert(0, f"--{option.name}")
        group.addoption(*names, **option.settings)
        path_options.update(names if option.path else ())
    early_config.stash[_PATH_OPTIONS] = frozenset(path_options)
    return result


def _is_free(parser: pytest.Parser, name: str) -> bool:
    """Whether no option of a name is known yet, found out by parsing: a list of them is not public."""
    try:
        _, unknown = parser.parse_known_and_unknown_args([name])
    except pytest.UsageError:
        return False
    return name in unknown


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | pytest.ExitCode | None:
    """Lets pytest find its root directory, and gives the workers of pytest-xdist neighbouring cells.

    When pytest looks for its root directory it knows no plugin's options yet, and takes `FILE` of `--load FILE` for a
    path of tests: a root above a foreign file is without the configuration of the checkout. It does not so with
    `--load=FILE`, so a command line of the first form starts over in the second. Workers are given that one, too.
    """
    if hasattr(config, "workerinput"):
        return None
    given = config.invocation_params
    names: frozenset[str] = config.stash.get(_PATH_OPTIONS, frozenset())
    joined = _joined(given.args, names)
    if joined != list(given.args):
        return pytest.main(joined, plugins=given.plugins)
    # A run of neighbouring cells for each worker, which share kernels and executions, unless the user chose else.
    # Groups would be tidier, but xdist hands a group whose worker died to the next worker from its deadly test on.
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"
    return None


def _joined(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """A command line with some options and their values as one word each."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in names:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marks; tells unusable options before anything is collected."""
    for name, description in SUITE_MARKS.items():
        config.addinivalue_line("markers", f"{name}: {description}")
    config.addinivalue_line("markers", f"{mark.MARK}: {mark.DESCRIPTION}")
    if hasattr(config, "workerinput"):
        vars(config.option).update(config.workerinput.get(OPTIONS, {}))
    results = config.option.samebits_results
    bench = MarkedBench(
        lambda: _bench_options(config), None if results is None else config.invocation_params.dir / results
    )
    config.pluginmanager.register(bench, "samebits_bench")
    if hasattr(config, "workerinput"):
        return
    option = config.option
    if option.samebits_tier == "nightly" and option.samebits_draw_seed is option.samebits_resume is None:
        # Here and not in each worker, which are given the options of this process.
        option.samebits_draw_seed = str(secrets.randbits(32))
    log = RunLog(config, session=lambda: _session(config))
    config.pluginmanager.register(log, "samebits_run_log")
    config.pluginmanager.register(Progress(config, done_before=lambda: log.done_before), "samebits_progress")
    if any(each.is_given(config) for each in _OPTIONS):
        or_exit(lambda: _limits(config))
        or_exit(log.check)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each suite its cells."""
    suites = [mark.name for mark in metafunc.definition.iter_markers() if mark.name in SUITE_MARKS]
    # A test of another project may have such a mark, or a cell of its own.
    if not suites or not {"cell", "run_cell"} <= set(metafunc.fixturenames):
        return
    session = or_exit(lambda: _session(metafunc.config))
    if _is_isolated(metafunc.config):
        or_exit(lambda: _isolated(metafunc.config)).start()
    metafunc.parametrize(
        "cell",
        [pytest.param(cell, id=cell.cell_id) for cell in session.cells(suites[0])],
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tells the garbage collector of the cells, which are thousands: it need not look at them again and again.

    A test of another project may look at what the collector knows, so where there are such it goes on looking.
    """
    if session.items and all("run_cell" in getattr(item, "fixturenames", ()) for item in session.items):
        gc.collect()
        gc.freeze()
        session.config.stash[_FROZEN] = True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out, in a worker, the cells that a run which is resumed has finished already."""
    leave_out(frozenset(getattr(config, "workerinput", {}).get(FINISHED_CELLS, ())), config, items)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the processes of cells, and lets the garbage collector look at everything again."""
    if _ISOLATED in config.stash:
        config.stash[_ISOLATED].close()
    if config.stash.get(_FROZEN, False):
        gc.unfreeze()


@pytest.fixture
def run_cell(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[Cell], None]:
    """Runs a cell, hands its record over, and lets the verdict decide the outcome of the test."""
    config = request.config
    session = _isolated(config) if _is_isolated(config) else _session(config)

    def run(cell: Cell) -> None:
        record = session.run(cell)
        # In JUnit's XML a test's name is escaped; its properties are as they are.
        record_property("cell_id", record.cell_id)
        record_property(RECORD_PROPERTY, record.to_line())
        _decide(record)

    return run


def _session(config: pytest.Config) -> MatrixSession:
    """The matrix of this process, made when it is first asked for: it imports torch and every backend."""
    if _SESSION not in config.stash:
        # Before torch is imported. Not earlier: workers of other projects keep the GPUs that they have.
        pin_worker(os.environ)
        from samebits.harness.properties.draws import Draws
        from samebits.harness.session import MatrixSession, Options

        given = {option.name: option.value(config) for option in _OPTIONS}
        config.stash[_SESSION] = MatrixSession(
            Options(
                backends=tuple(given["backend"]),
                implementations=tuple(given["implementation"]),
                dtypes=tuple(given["dtype"]),
                tier=given["tier"],
                load=tuple(config.invocation_params.dir / path for path in given["load"]),
                libs=tuple(config.invocation_params.dir / path for path in given["libs"]),
                cells=tuple(given["cell"]),
                threads=_whole_number("--threads", given["threads"], _THREADS),
                seed=_whole_number("--seed", given["seed"], WHOLE_NUMBERS),
                shard=given["shard"],
                draws=Draws(
                    seed=_whole_number("--draw-seed", given["draw-seed"], WHOLE_NUMBERS)
                    if given["draw-seed"]
                    else None,
                    kept=None if given["examples"] is None else config.invocation_params.dir / given["examples"],
                ),
                places=("--pyargs", "samebits.suites") if config.option.pyargs else (),
            )
        )
    return config.stash[_SESSION]


def _bench_options(config: pytest.Config) -> BenchOptions:
    """What the options of the matrix mean to the benchmark, which has a thread on each processor unless told else."""
    given = {option.name: option.value(config) for option in _OPTIONS}
    threads = _whole_number("--threads", given["threads"], _THREADS)
    return BenchOptions(
        dtypes=tuple(given["dtype"]),
        backends=tuple(given["backend"]),
        implementations=tuple(given["implementation"]),
        quick=given["tier"] == "smoke",
        threads=None if config.option.samebits_threads is None else threads,
        load=tuple(config.invocation_params.dir / path for path in given["load"]),
        libs=tuple(config.invocation_params.dir / path for path in given["libs"]),
    )


def _is_isolated(config: pytest.Config) -> bool:
    """Whether this process is one that has cells run, and in another one."""
    option = config.option
    divided = getattr(option, "dist", "no") != "no" and not hasattr(config, "workerinput")
    debugged = getattr(option, "usepdb", False) or getattr(option, "trace", False)  # None with -p no:debugging.
    return not (divided or debugged or option.collectonly or option.samebits_no_isolation)


def _isolated(config: pytest.Config) -> IsolatedSession:
    """The matrix of this process with its cells in another one, made when it is first asked for."""
    if _ISOLATED not in config.stash:
        from samebits.harness.isolation.isolated_session import IsolatedSession

        if hasattr(config, "workerinput"):
            end_with_parent(os.getppid())  # It waits for its cell, and would not notice that nobody waits for it.
        config.stash[_ISOLATED] = IsolatedSession(_session(config), _limits(config))
    return config.stash[_ISOLATED]


def _limits(config: pytest.Config) -> Limits:
    """What a cell may cost."""
    given = {option.name: option.value(config) for option in _OPTIONS}
    share = share_of_memory(machine_memory(), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    return Limits(
        seconds=_positive("--cell-timeout", given["cell-timeout"], "seconds"),
        nbytes=_positive("--cell-memory", given["cell-memory"], "GiB") * 2**30 if given["cell-memory"] else share,
    )


def _positive(option: str, text: str, unit: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UnusableInput(f"{option} is {text!r}; it must be a number of {unit} above 0")
    return number


def _whole_number(option: str, text: str, limits: range) -> int:
    accepted = f"a whole number from {limits[0]} to {limits[-1]}"
    try:
        number = int(text)
    except ValueError:
        raise UnusableInput(f"{option} is {shown(text)}; it must be {accepted}") from None
    if number not in limits:
        raise UnusableInput(f"{option} is {shown(number)}; it must be {accepted}")
    return number


def _decide(record: Record) -> None:
    told = "; ".join(record.reasons)
    if record.red:
        example = f"\nsmallest batch: {record.smallest_batch}" if record.smallest_batch else ""
        again = f"\njust that batch: {record.repro}" if record.repro else ""
        why = "".join(f"\n{line}" for line in short_lines(record.explanation)) if record.explanation else ""
        pytest.fail(f"{record.verdict}: {told}{example}{why}\nreproduce: {record.command}{again}", pytrace=False)
    if record.verdict in (Verdict.UNSUPPORTED, Verdict.UNAVAILABLE):
        pytest.skip(f"{record.verdict}: {told}")
    if record.verdict is Verdict.KNOWN:
        pytest.xfail(told)
