"""The bugs that this harness began with, planted again: the suite that users run names each, and passes its parent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from samebits.harness.records import Record, Verdict

from .suite_runs import PLANTED, SuiteRun, python_path, run_suite


@dataclass(frozen=True)
class Bug:
    """One mutant and who must see it.

    Attributes:
        file: that registers it, a key of `SUITES`.
        name: of the mutant, with its backend.
        parent: the implementation that it is a copy of.
        seen_by: relations that are there for such a bug.
        verdict: what the user sees.
    """

    file: str
    name: str
    parent: str
    seen_by: frozenset[str]
    verdict: Verdict = Verdict.FAIL

    def __str__(self) -> str:
        return self.name


# The mark of the suite that sees a file's mutants, and what narrows it: to cases in a dtype, never to relations.
SUITES: Mapping[str, tuple[str, ...]] = {
    "rotary": ("rope", "--dtype", "bf16", "-k", "rope-llama3-8b:bf16 and not CONTROL"),
    "metadata": (
        "semantics",
        *("--dtype", "fp32", "-k"),
        "(vision-causal or vision-cross or vision-per_request or llama3-8b-non_causal-draft) and not CONTROL",
    ),
    "empty_split": ("semantics", "--dtype", "fp32", "-k", "llama3-8b-causal and not CONTROL"),
    "linear": ("batch_invariant", "--dtype", "fp32", "-k", "linear-llama3-8b and not CONTROL"),
}


def on_both(file: str, name: str, *seen_by: str) -> tuple[Bug, ...]:
    """A bug of the C++ kernel, and of the Triton one."""
    backends = ("CPU", "TRITON_ATTN")
    return tuple(Bug(file, f"{backend}/{name}", f"{backend}/bundled", frozenset(seen_by)) for backend in backends)


BUGS = (
    Bug("rotary", "CPU/trusts-find-spec", "CPU/bundled", frozenset({"normal", "decode"}), Verdict.ERROR),
    Bug("rotary", "CPU/cache-forced-to-float32", "CPU/bundled", frozenset({"cache_in_place"})),
    Bug("rotary", "CPU/cache-kept-in-float32", "CPU/bundled", frozenset({"cache_in_place"})),
    Bug("rotary", "CPU/cache-of-any-dtype", "CPU/torch", frozenset({"cache_dtype"})),
    Bug("rotary", "CPU/cache-made-to-fit", "CPU/bundled", frozenset({"cache_dtype"})),
    *on_both("metadata", "no-encoder-offset", "behind_encoder"),
    *on_both("metadata", "offset-in-cross", "cross"),
    *on_both("metadata", "first-encoder-for-all", "cross", "behind_encoder"),
    *on_both("metadata", "always-causal", "block", "per_request"),
    *on_both("empty_split", "empty-split-merged", "splits"),
    *on_both("linear", "uninitialised-bias", "batch_size", "decode"),
    *on_both("linear", "rows-of-first-dimension", "leading_dimensions"),
    *on_both("linear", "evenly-spaced-rows", "leading_dimensions"),
)


@pytest.fixture(scope="module")
def broken_flash_attn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a distribution of flash_attn that is listed as installed and does not import."""
    folder = tmp_path_factory.mktemp("broken")
    package, metadata = folder / "flash_attn", folder / "flash_attn-2.8.3.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text('raise ImportError("libcudart.so.12: cannot open shared object file")\n')
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flash_attn\nVersion: 2.8.3\n")
    return folder


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory, broken_flash_attn: Path) -> Callable[[str], SuiteRun]:
    """Runs the suite on a file's mutants and their parents once, where flash_attn is found and does not import."""
    done: dict[str, SuiteRun] = {}

    def run(file: str) -> SuiteRun:
        if file not in done:
            suite, *narrowed = SUITES[file]
            words = ["--tier", "smoke", "--load", PLANTED / f"{file}.py", *narrowed]
            for name in dict.fromkeys(name for bug in BUGS if bug.file == file for name in (bug.name, bug.parent)):
                words += ["--implementation", name]
            path = {"PYTHONPATH": python_path(broken_flash_attn)}
            # What a bug reads on some batch may be nobody's memory.
            done[file] = run_suite(suite, tmp_path_factory.mktemp(file), *words, environment=path, isolated=True)
        return done[file]

    return run


def cell_of(record: Record) -> tuple[str, str, str, str]:
    """Names a cell but for its implementation."""
    return record.operation, record.relation, record.case, record.dtype


# By module, so that pytest takes the tests of one file together, and no two workers run the same one.
each_bug = pytest.mark.parametrize("bug", BUGS, ids=str, scope="module")


@each_bug
def test_the_suite_names_the_bug(bug: Bug, run_file: Callable[[str], SuiteRun]) -> None:
    run = run_file(bug.file)
    assert run.exit_code == 1, "the run with planted bugs ended green"
    seen = {record.relation for record in run.of(bug.name) if record.verdict is bug.verdict}
    assert bug.seen_by <= seen, f"not seen by {set(bug.seen_by - seen)}, only by {seen}"


@each_bug
def test_the_parent_passes_the_same_cells(bug: Bug, run_file: Callable[[str], SuiteRun]) -> None:
    run = run_file(bug.file)
    parent = {cell_of(record): record for record in run.of(bug.parent)}
    for record in run.of(bug.name):
        if record.verdict is Verdict.UNSUPPORTED:
            continue  # by both, as a claim that the kernel does not make
        correct = parent[cell_of(record)]
        assert correct.verdict is Verdict.PASS, f"{correct.cell_id} came to {correct.verdict}: {correct.reasons}"


def test_a_user_reads_which_library_did_not_import(run_file: Callable[[str], SuiteRun]) -> None:
    records = run_file("rotary").of("CPU/trusts-find-spec")
    told = {record.reasons for record in records if record.verdict is Verdict.ERROR}
    assert told == {("ImportError: libcudart.so.12: cannot open shared object file",)}, f"the reasons were {told}"
