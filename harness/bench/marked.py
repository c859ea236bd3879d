"""`pytest -m bench`: the benchmark as one test, which no other selection runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from samebits.harness.bench.mark import is_asked_for
from samebits.harness.bench.options import Options
from samebits.harness.bench.records import read_bench
from samebits.harness.run_log import or_exit

# Of `-qq`.
_SILENT = -2
# How the test tells where its records are, from a worker of xdist too.
_DIRECTORY_PROPERTY = "samebits_bench"


class MarkedBench:
    """Runs the benchmark where it is asked for, and prints what came of it.

    Args:
        options: what the user asked for.
        results: where records go; None for a directory of their own.
    """

    def __init__(self, options: Callable[[], Options], results: Path | None) -> None:
        self._options, self._results = options, results
        self._directory: Path | None = None

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves the benchmark out unless it is asked for: it takes minutes, and the machine for itself."""
        if is_asked_for(config.option.markexpr):
            return
        left_out = [item for item in items if "run_bench" in getattr(item, "fixturenames", ())]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]

    @pytest.fixture
    def run_bench(
        self, pytestconfig: pytest.Config, record_property: Callable[[str, object], None]
    ) -> Callable[[], None]:
        """Times everything, and fails where a row did."""

        def run() -> None:
            from samebits.harness.bench.command import run_bench

            directory = or_exit(lambda: run_bench(self._options(), self._results, _teller(pytestconfig)))
            record_property(_DIRECTORY_PROPERTY, str(directory))
            failures = read_bench(directory).failures
            if failures:
                pytest.fail("\n".join(("not all could be timed:", *failures)), pytrace=False)

        return run

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes where the records are."""
        for name, value in report.user_properties:
            if name == _DIRECTORY_PROPERTY:
                self._directory = Path(str(value))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the summary, and where the page is."""
        if self._directory is None:
            return
        # Not with the plugin, which is part of every run of pytest in its environment.
        from samebits.reports.bench.page import as_summary, write_bench

        bench = read_bench(self._directory)
        terminalreporter.ensure_newline()
        terminalreporter.write_line(as_summary(bench))
        terminalreporter.write_line("")
        for path in write_bench(bench, self._directory):
            terminalreporter.write_line(f"written: {path}")


def _teller(config: pytest.Config) -> Callable[[str], None]:
    """Tells where the benchmark is between pytest's own lines; in a worker of xdist, which prints nothing, nobody."""
    terminal, capture = map(config.pluginmanager.get_plugin, ("terminalreporter", "capturemanager"))

    def tell(line: str) -> None:
        if terminal is None or config.option.verbose <= _SILENT:
            return
        with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
            terminal.ensure_newline()
            terminal.write_line(f"samebits: bench: {line}")
            terminal.flush()

    return tell
