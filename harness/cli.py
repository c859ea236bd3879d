"""The `samebits` command: lists implementations, reports a run, compares two.

Reporting and comparing need neither torch nor a backend, so only listing imports them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from samebits.harness.bench.options import Options as BenchOptions
from samebits.harness.bench.records import read_bench
from samebits.harness.bench.termination import Terminated
from samebits.harness.explanation import Explanation
from samebits.harness.library_output import told_on_stderr
from samebits.harness.record_files import read_run, records_file
from samebits.harness.records import RECORDS_FILE, Run, UnusableInput
from samebits.reports.accumulation import drawn_orders, has_orders
from samebits.reports.accumulation_words import told_explanation
from samebits.reports.baseline_files import read_baseline
from samebits.reports.bench.page import as_summary, write_bench
from samebits.reports.files import check_replaceable, replace_file
from samebits.reports.report import Report, require_common_suite, write_report

_EXIT_GREEN, _EXIT_RED, _EXIT_UNUSABLE = 0, 1, 2
# As a shell tells of a process that SIGPIPE, SIGINT or SIGTERM ended.
_EXIT_UNREAD, _EXIT_INTERRUPTED, _EXIT_TERMINATED = 141, 130, 143


# Above any machine's; torch crashes where it cannot start as many as it was told.
_MOST_THREADS = 1024


class _Parser(argparse.ArgumentParser):
    """Tells an unusable command line as every other unusable input: in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UnusableInput(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: words of the command line; None for the process's own.

    Returns:
        Exit code: 0, 1 for a red run or a regression, 2 for input that cannot be used, 130 where it was interrupted,
        143 where SIGTERM ended it.
    """
    try:
        # What a foreign library said may hold characters that the terminal's encoding has not.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        options = _parser().parse_args(arguments)
        code = int(options.run(options))
        sys.stdout.flush()
    except UnusableInput as error:
        print(f"samebits: {' '.join(str(error).split())}", file=sys.stderr)
        return _EXIT_UNUSABLE
    except BrokenPipeError:
        # The reader, `head` for example, has seen enough. Python would flush at exit, and complain of the same again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_UNREAD
    except KeyboardInterrupt as interrupt:
        # A command adds as a note what its user may do now.
        told = (str(interrupt) or "interrupted", *getattr(interrupt, "__notes__", ()))
        print(f"samebits: {'; '.join(told)}", file=sys.stderr)
        return _EXIT_TERMINATED if isinstance(interrupt, Terminated) else _EXIT_INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="samebits", description="Conformance of attention backends: same request, same bits.")
    parser.add_argument("--version", action="version", version=f"samebits {importlib.metadata.version('samebits')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="every implementation, its version, whether it can run, and its claims")
    listing.add_argument("--json", action="store_true", help="for machines")
    listing.add_argument("--load", metavar="FILE", type=Path, action="append", default=[], help=_LOAD_HELP)
    listing.add_argument("--libs", metavar="DIR", type=Path, action="append", default=[], help=_LIBS_HELP)
    listing.set_defaults(run=_list)

    report = commands.add_parser("report", help="tables of a run, and what changed since its baseline")
    report.add_argument("directory", metavar="DIR", type=Path, help=f"a run's results: a directory with {RECORDS_FILE}")
    report.add_argument("--baseline", metavar="FILE|DIR", type=Path, help=_BASELINE_HELP)
    report.add_argument(
        "--history", metavar="DIR", type=Path, nargs="+", action="extend", default=[], help=_HISTORY_HELP
    )
    report.set_defaults(run=_report)

    compare = commands.add_parser("compare", help="what changed from one run to another; exits 1 on a regression")
    compare.add_argument(
        "old", metavar="OLD", type=Path, help="results of the earlier run, a baseline file, or a directory of them"
    )
    compare.add_argument("new", metavar="NEW", type=Path, help="results of the later run; its own tables stay")
    compare.add_argument("-o", "--output", metavar="DIR", type=Path, help=_OUTPUT_HELP)
    compare.set_defaults(run=_compare)

    merging = commands.add_parser("merge", help="several runs into one for each kind of device; names lost shards")
    merging.add_argument("directories", metavar="DIR", type=Path, nargs="+", help="a run's results")
    merging.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help=_MERGED_HELP)
    merging.add_argument("--matrix", metavar="FILE", type=Path, help="what was to be run: of samebits matrix --json")
    merging.set_defaults(run=_merge)

    matrix = commands.add_parser("matrix", help="the nightly matrix: a job for each backend, device and dtype")
    form = matrix.add_mutually_exclusive_group(required=True)
    form.add_argument("--json", action="store_true", help="print it, for a CI system and for samebits merge")
    form.add_argument("--slurm", action="store_true", help="run it through submitit, and merge what comes of it")
    for what in ("backend", "device", "dtype"):
        matrix.add_argument(
            f"--{what}", metavar="NAME", action="append", default=[], help=f"only this {what}; repeatable"
        )
    matrix.add_argument("--tier", metavar="TIER", default="default", help="smoke, default or nightly")
    matrix.add_argument("--runner", metavar="DEVICE=LABEL[,LABEL]", action="append", default=[], help=_RUNNER_HELP)
    matrix.add_argument("--load", metavar="FILE", type=Path, action="append", default=[], help=_LOAD_HELP)
    matrix.add_argument("--libs", metavar="DIR", type=Path, action="append", default=[], help=_LIBS_HELP)
    matrix.add_argument("-o", "--output", metavar="DIR", type=Path, help="of --slurm: where results and logs go")
    matrix.add_argument("--cluster", metavar="NAME", help="of --slurm: slurm, the default, or local for this machine")
    matrix.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="of --slurm: a parameter of its executor",
    )
    matrix.set_defaults(run=_matrix)

    repro = commands.add_parser("repro", help="one comparison again, without pytest, as a record's repro names it")
    repro.add_argument("implementation", metavar="IMPLEMENTATION", help="its label, such as CPU/torch")
    repro.add_argument("relation", metavar="RELATION", help="name of the relation, such as batch_size")
    repro.add_argument("comparison", metavar="TEXT", help="what is compared, in one word of the shell")
    repro.add_argument("--load", metavar="FILE", type=Path, action="append", default=[], help=_LOAD_HELP)
    repro.add_argument("--libs", metavar="DIR", type=Path, action="append", default=[], help=_LIBS_HELP)
    repro.add_argument(
        "--threads", metavar="N", type=_whole_number(1, _MOST_THREADS), default=1, help="threads within one operation"
    )
    repro.add_argument("--explain", action="store_true", help="say why both sides differ, as samebits explain does")
    repro.add_argument("--svg", metavar="FILE", type=Path, help="explain, and draw both orders into this file")
    repro.set_defaults(run=_repro)

    explaining = commands.add_parser(
        "explain", help="why the two sides of a cell differ: where, and in which order each adds up"
    )
    explaining.add_argument("cell", metavar="CELL_ID", help="of a record, as its command names it")
    explaining.add_argument("--tier", metavar="TIER", default="default", help="that of its run")
    explaining.add_argument("--seed", metavar="N", type=int, default=0, help="that of its run")
    explaining.add_argument("--load", metavar="FILE", type=Path, action="append", default=[], help=_LOAD_HELP)
    explaining.add_argument("--libs", metavar="DIR", type=Path, action="append", default=[], help=_LIBS_HELP)
    explaining.add_argument("--svg", metavar="FILE", type=Path, help="draw both orders into this file")
    explaining.set_defaults(run=_explain)

    museum = commands.add_parser("museum", help="planted bugs, and what the suites see of them; in a checkout")
    museum.add_argument("--only", metavar="BUG", action="append", default=[], help="only this bug; repeatable")
    museum.add_argument("--smoke", action="store_true", help="only some of them, in less than a minute")
    museum.add_argument("--seeds", metavar="N", type=_whole_number(0, 10_000), default=0, help=_MUSEUM_SEEDS_HELP)
    museum.add_argument("--write", metavar="FILE", type=Path, help="where a page of all of them goes")
    museum.set_defaults(run=_museum)

    bench = commands.add_parser("bench", help="how fast each implementation is, and what invariance costs")
    bench.add_argument("--list", action="store_true", help="print the problems, and time nothing")
    bench.add_argument("--report", metavar="DIR", type=Path, help="make the page again, from the records there alone")
    bench.add_argument("--problem", metavar="NAME", nargs="+", action="extend", default=[], help="only these problems")
    for what in ("backend", "implementation", "dtype"):
        bench.add_argument(
            f"--{what}", metavar="NAME", action="append", default=[], help=f"only this {what}; repeatable"
        )
    bench.add_argument("--quick", action="store_true", help="a few problems and runs, in less than a minute")
    bench.add_argument("--rounds", metavar="N", type=_whole_number(1, 10_000), help=_ROUNDS_HELP)
    bench.add_argument("--threads", metavar="N", type=_whole_number(1, _MOST_THREADS), help=_BENCH_THREADS_HELP)
    bench.add_argument("--results", metavar="DIR", type=Path, help="where all goes (default: reports/out/<run id>)")
    bench.add_argument("--write", metavar="FILE", type=Path, help="where the page goes besides, with its drawing")
    bench.add_argument("--load", metavar="FILE", type=Path, action="append", default=[], help=_LOAD_HELP)
    bench.add_argument("--libs", metavar="DIR", type=Path, action="append", default=[], help=_LIBS_HELP)
    bench.set_defaults(run=_bench)

    mutants = commands.add_parser("mutants", help="small changes of the bundled kernels, and which the suites see")
    mutants.add_argument("--only", metavar="FILE", action="append", default=[], help="only this source; repeatable")
    mutants.add_argument("--sample", metavar="N", type=int, help="as many of each source, drawn at random")
    mutants.add_argument("--seed", metavar="S", type=int, default=0, help="of the sample (default: 0)")
    mutants.add_argument("--results", metavar="FILE", type=Path, help=_FINDINGS_HELP)
    mutants.add_argument("--write", metavar="FILE", type=Path, help="where a page of those that were tried goes")
    mutants.set_defaults(run=_mutants)
    return parser


_MERGED_HELP = "where the merged runs go: a directory for each kind of device"
_RUNNER_HELP = "labels of the runners with a kind of device; a job without a runner becomes rows that say so"
_ROUNDS_HELP = "runs of each call (default: as many as there is time for)"
_BENCH_THREADS_HELP = "threads within one operation of a processor (default: one on each)"
_MUSEUM_SEEDS_HELP = "run the implementations without a bug under this many seeds besides"
_FINDINGS_HELP = "add findings to this file as they are made, and go on behind those that it holds"
_LOAD_HELP = "a Python file that defines a backend: its code is run; repeatable"
_LIBS_HELP = "a bundle of vendors' libraries for what is not installed: its code is run; repeatable"
_OUTPUT_HELP = "where the tables of the comparison go (default: a directory named against-OLD in that of NEW)"
_HISTORY_HELP = "earlier runs: when bits last changed, and trends; of other devices' there is nothing to tell"
_BASELINE_HELP = "what to compare with (default: the baselines that come with samebits)"


def _list(options: argparse.Namespace) -> int:
    # A library may print while it is imported, which must not get into what machines read.
    with told_on_stderr():
        from samebits.harness import listing
        from samebits.harness.registry import load_registry

        registry = load_registry(options.load, options.libs)
        told = listing.as_json(registry) if options.json else listing.as_text(registry)
    print(told)
    return _EXIT_GREEN


def _report(options: argparse.Namespace) -> int:
    run, baseline = read_run(options.directory), read_baseline(options.baseline)
    earlier, unreadable = _read_earlier(options.history)
    report = write_report(run, baseline, records_file(options.directory).parent, earlier, len(unreadable))
    _print(report)
    for error in unreadable:
        print(f"samebits: left out of the history: {error}", file=sys.stderr)
    return _EXIT_RED if report.red else _EXIT_GREEN


def _read_earlier(directories: Sequence[Path]) -> tuple[list[Run], list[UnusableInput]]:
    """Earlier runs, and why others cannot be read: among many there is one that was killed before it wrote anything.

    Raises:
        UnusableInput: none of them can be.
    """
    runs: list[Run] = []
    unreadable: list[UnusableInput] = []
    for directory in directories:
        try:
            runs.append(read_run(directory))
        except UnusableInput as error:
            unreadable.append(error)
    if unreadable and not runs:
        raise unreadable[0]
    return runs, unreadable


def _compare(options: argparse.Namespace) -> int:
    # As a file, so that one of another device is refused rather than passed over. A directory of baselines may hold one
    # that fits, or none, which is no regression.
    is_run = os.path.isfile(records_file(options.old)) or not any(options.old.glob("*.jsonl"))
    run, old = read_run(options.new), read_baseline(records_file(options.old) if is_run else options.old)
    require_common_suite(run, old)
    directory = options.output or records_file(options.new).parent / f"against-{_short_name(options.old)}"
    report = write_report(run, old, directory)
    _print(report)
    print(_told_comparison(report, options.old, options.new))
    return _EXIT_RED if report.regressed else _EXIT_GREEN


def _told_comparison(report: Report, old: Path, new: Path) -> str:
    """Whether a run regressed, in a line."""
    if report.undecided:
        return f"{new} was cut off, so a regression from {old} cannot be excluded"
    if report.regressed:
        return f"a regression from {old} to {new}"
    known = f"; {new} is red for what fails in {old}, too, or is not in it" if report.red else ""
    return f"no regression from {old} to {new}{known}"


def _merge(options: argparse.Namespace) -> int:
    from samebits.harness.ci_matrix import read_matrix
    from samebits.harness.merging import merge

    matrix = None if options.matrix is None else read_matrix(options.matrix)
    for directory in merge(options.directories, options.output, matrix):
        print(f"written: {directory / RECORDS_FILE}")
    return _EXIT_GREEN


def _matrix(options: argparse.Namespace) -> int:
    of_slurm = {"--output": options.output, "--cluster": options.cluster, "--set": options.set}
    ignored = [name for name, value in of_slurm.items() if value]
    if options.json and ignored:
        raise UnusableInput(
            f"--json prints the matrix and runs nothing; leave out {', '.join(ignored)}, or give --slurm"
        )
    # A library may print while it is imported, which must not get into what machines read.
    with told_on_stderr():
        from samebits.harness.ci_jobs import make_matrix
        from samebits.harness.ci_matrix import parse_runners
        from samebits.harness.registry import load_registry

        registry = load_registry(options.load, options.libs)
        runners = parse_runners(options.runner)
        matrix = make_matrix(registry, runners, options.tier, options.backend, options.device, options.dtype)
    if options.json:
        print(matrix.to_json())
        return _EXIT_GREEN
    if options.output is None:
        raise UnusableInput("--slurm needs a directory for its results; give one with --output DIR")
    from samebits.harness.ci_slurm import run_matrix

    # Jobs have another working directory.
    given = [("--load", path) for path in options.load] + [("--libs", path) for path in options.libs]
    words = [word for option, path in given for word in (option, str(path.absolute()))]
    for directory in run_matrix(matrix, options.output, options.cluster or "slurm", options.set, words):
        print(f"written: {directory / RECORDS_FILE}")
    return _EXIT_GREEN


def _repro(options: argparse.Namespace) -> int:
    # A library may print while it is imported or run.
    with told_on_stderr():
        from samebits.harness.repro.command import replay

        replayed = replay(
            options.implementation,
            options.relation,
            options.comparison,
            options.load,
            options.libs,
            options.threads,
            explain=options.explain or options.svg is not None,
        )
    print(replayed.to_text())
    if replayed.explanation is not None:
        _print_explanation(replayed.explanation, options.svg)
    return _EXIT_RED if replayed.fails else _EXIT_GREEN


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number between two others."""

    def read(text: str) -> int:
        short = text.isascii() and text.isdigit() and len(text) <= len(str(most))
        if not short or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return read


def _explain(options: argparse.Namespace) -> int:
    # A library may print while it is imported or run, which is no part of the explanation.
    with told_on_stderr():
        from samebits.harness.explain.cell import explain_cell

        found = explain_cell(options.cell, options.tier, options.seed, options.load, options.libs)
    if found is None:
        print(f"{options.cell}: both sides have the same bits")
        return _EXIT_GREEN
    smallest_batch, explanation = found
    print(f"{options.cell}\nSmallest batch that differs: {smallest_batch}")
    _print_explanation(explanation, options.svg)
    return _EXIT_GREEN


def _print_explanation(explanation: Explanation, drawing: Path | None) -> None:
    """Prints why two sides differ, and draws both orders where that is asked for."""
    print(told_explanation(explanation, shutil.get_terminal_size().columns))
    if drawing is not None:
        if not has_orders(explanation):
            raise UnusableInput("no order of additions is known of either side, so there is nothing to draw")
        replace_file(drawing, drawn_orders(explanation))
        print(f"written: {drawing}")


def _museum(options: argparse.Namespace) -> int:
    # A library may print while it is imported.
    with told_on_stderr():
        from samebits.harness.museum.command import look_at

        told, all_caught = look_at(options.only, smoke=options.smoke, seeds=options.seeds, page=options.write)
    print(told)
    return _EXIT_GREEN if all_caught else _EXIT_RED


def _bench(options: argparse.Namespace) -> int:
    if options.write is not None:
        check_replaceable(options.write)
    directory = options.report
    if directory is None:
        # A library may print while it is imported or run.
        with told_on_stderr():
            from samebits.harness.bench.command import run_bench, tell_on_stderr, told_list

            asked = BenchOptions(
                problems=tuple(options.problem),
                dtypes=tuple(options.dtype),
                backends=tuple(options.backend),
                implementations=tuple(options.implementation),
                quick=options.quick,
                rounds=options.rounds,
                threads=options.threads,
                load=tuple(options.load),
                libs=tuple(options.libs),
            )
            listed = told_list(asked) if options.list else ""
            directory = None if options.list else run_bench(asked, options.results, tell_on_stderr)
    if directory is None:
        print(listed)
        return _EXIT_GREEN
    bench = read_bench(directory)
    print(as_summary(bench), end="\n\n")
    for path in write_bench(bench, directory, options.write):
        print(f"written: {path}")
    return _EXIT_RED if bench.failures else _EXIT_GREEN


def _mutants(options: argparse.Namespace) -> int:
    if options.sample is not None and options.sample < 1:
        raise UnusableInput(f"--sample is {options.sample}; it must be at least 1")
    # A library may print while it is imported.
    with told_on_stderr():
        from samebits.harness.mutation.command import try_mutants

        told, all_told = try_mutants(
            options.only, sample=options.sample, seed=options.seed, results=options.results, page=options.write
        )
    print(told)
    return _EXIT_GREEN if all_told else _EXIT_RED


def _short_name(path: Path) -> str:
    """What a run or a baseline is called: the directory of its records, or the file, without its ending."""
    whole = Path(os.path.abspath(path))
    return whole.parent.name if whole.name == RECORDS_FILE else whole.name.removesuffix(".jsonl")


def _print(report: Report) -> None:
    """Prints the summary, and where the files are."""
    print(report.summary, end="\n\n")
    for path in report.paths:
        print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
