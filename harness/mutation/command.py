"""`samebits mutants`: the bundled kernels' sources changed mechanically, and which changes the suites see."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from samebits.harness.mutation.accepted import stale
from samebits.harness.mutation.findings import Finding, read_findings
from samebits.harness.mutation.mutants import sampled
from samebits.harness.mutation.sources import chosen_sources
from samebits.harness.records import UnusableInput
from samebits.reports.files import check_replaceable, replace_file

# Set before torch is imported: its profiler tells of every start and stop below this level, and a process that is
# forked must have one thread.
_ENVIRONMENT = {
    "KINETO_LOG_LEVEL": "6",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def try_mutants(
    only: Sequence[str], *, sample: int | None, seed: int, results: Path | None, page: Path | None
) -> tuple[str, bool]:
    """Tries mutants, and says what became of them.

    Args:
        only: paths of sources, or the ends of paths; empty for all.
        sample: mutants of each source at most; None for all.
        seed: of the sample.
        results: file that findings are added to as they are made; those it holds already are not made again. None for
            none.
        page: file that a page goes to; None for none.

    Returns:
        What is to be printed; and whether each survivor has a reason.

    Raises:
        UnusableInput: a source is unknown, what parses it is missing, an accepted survivor fits no mutant any more, a
            file cannot be written, or an unchanged kernel is red.
    """
    sources = chosen_sources(tuple(only))
    by_source = {source: source.mutants() for source in sources}
    every = [mutant for mutants in by_source.values() for mutant in mutants]
    for known in stale(every):
        raise UnusableInput(
            f"{known.path} has no mutant any more that makes {known.after!r} of {known.before!r}; remove its reason "
            "from harness/mutation/accepted.py"
        )
    for path in (results, page):
        if path is not None:
            check_replaceable(path)
    chosen = set(sampled(every, sample, seed))
    found = {} if results is None else {finding.mutant: finding for finding in read_findings(results)}
    left = [(source, mutant) for source in sources for mutant in by_source[source] if mutant in chosen - set(found)]

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from samebits.harness.mutation.page import as_list, as_page, told_of, unexplained
    from samebits.harness.mutation.trials import tried

    for number, finding in enumerate(tried(left), start=1):
        found[finding.mutant] = finding
        print(f"{number} of {len(left)}: {finding.mutant.name} {finding.fate}", file=sys.stderr)
        if results is not None:
            _add(results, finding)
    findings = [found[mutant] for mutant in every if mutant in chosen]
    if page is not None:
        replace_file(page, as_page(findings, every, _command(only, sample, seed)))
    open_questions = unexplained(findings)
    return "\n".join([told_of(findings, every), as_list(open_questions)]).rstrip(), not open_questions


def _add(results: Path, finding: Finding) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write(finding.to_line() + "\n")


def _command(only: Sequence[str], sample: int | None, seed: int) -> str:
    words = ["samebits", "mutants"]
    for path in only:
        words += ["--only", path]
    if sample is not None:
        words += ["--sample", str(sample), "--seed", str(seed)]
    return shlex.join([*words, "--write", "docs/mutants.md"])
