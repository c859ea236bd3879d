"""Results as data: one JSON line per cell, between a first and a last one for the run they belong to.

This module needs neither torch nor a backend, so that reports can be made on any machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from samebits.harness.explanation import Explanation

SCHEMA_VERSION = 2
RECORDS_FILE = "records.jsonl"
# From the smallest to the largest; each holds the cells of those before it.
TIERS = ("smoke", "default", "nightly")


class Verdict(StrEnum):
    """What a cell came to.

    * `PASS`: correct, and the relation held.
    * `VARIES`: correct; the relation did not hold, and the implementation does not claim that it does.
    * `FAIL`: incorrect, or a claim broken.
    * `UNSUPPORTED`: the implementation says that it cannot compute this problem.
    * `UNAVAILABLE`: the implementation cannot run on this machine.
    * `KNOWN`: fails as an issue says it does.
    * `ERROR`: it raised.
    """

    PASS = "pass"
    VARIES = "varies"
    FAIL = "fail"
    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"
    KNOWN = "known"
    ERROR = "error"


@dataclass(frozen=True)
class Environment:
    """Where a cell ran: all that may decide its bits besides the kernel.

    Attributes:
        device: device type and model, for example `cpu x86_64+avx512`.
        versions: of torch, triton, python, numpy, samebits and, where there is one, the driver.
        threads: intra-operation threads of torch and of the bundled kernels.
    """

    device: str
    versions: Mapping[str, str]
    threads: int


@dataclass(frozen=True)
class Record:
    """One cell of the matrix.

    Attributes:
        cell_id: names the cell across runs and machines.
        suite, relation, case: what was checked, on which problem.
        backend, implementation, variant, version: what was checked; `version` is the library's.
        operation: what is computed, for example `attention`.
        dtype, mask, geometry, tier: of the problem; `tier` is the smallest that holds the cell.
        verdict: what it came to.
        reasons: why, one sentence each.
        control: True for a deliberately broken implementation, which must come to `fail`.
        claimed: whether the implementation claims that the relation holds; None where no claim is judged.
        compared: elements compared bit by bit.
        mismatches: elements whose bits differ.
        max_ulp: largest distance of two compared elements in units in the last place; in the dtype suite, distance from
            the reference; None where nothing ran.
        error_budget: share of the error bound used against the fp64 reference, at the worst element; above 1 is wrong.
        digest: of all output bits of the cell.
        smallest_batch: smallest batch found that still fails; empty where nothing failed, or no batch is to blame.
        repro: command that runs just that batch again, without pytest; of an error, the batch that raised. Empty where
            `smallest_batch` is and no batch raised.
        explanation: why bits differ, of a row that fails or varies for it; None for all others.
        seconds: time the cell took.
        environment: where it ran.
        configuration: kernel settings that decide bits.
        resources: what a compiled kernel asks of its device, by name; empty where nothing was compiled ahead of time.
        seed: of all data.
        command: reproduces this cell alone.
        schema_version: of this record.
    """

    cell_id: str
    suite: str
    relation: str
    case: str
    backend: str
    implementation: str
    variant: str
    version: str
    operation: str
    dtype: str
    mask: str
    geometry: str
    tier: str
    verdict: Verdict
    environment: Environment
    seed: int
    command: str
    reasons: tuple[str, ...] = ()
    control: bool = False
    claimed: bool | None = None
    compared: int = 0
    mismatches: int = 0
    max_ulp: int | None = None
    error_budget: float | None = None
    digest: str = ""
    smallest_batch: str = ""
    repro: str = ""
    explanation: Explanation | None = None
    seconds: float = 0.0
    configuration: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def label(self) -> str:
        """`BACKEND/implementation`, with `[variant]` where there is one."""
        return self.unvaried_label + (f"[{self.variant}]" if self.variant else "")

    @property
    def unvaried_label(self) -> str:
        """`BACKEND/implementation`, which stands for all of its variants."""
        return f"{self.backend}/{self.implementation}"

    @property
    def red(self) -> bool:
        """Whether the cell makes a run fail: an error or a failure, or a control that was not caught."""
        if self.control:
            return self.verdict is not Verdict.FAIL
        return self.verdict in (Verdict.FAIL, Verdict.ERROR)

    def to_line(self) -> str:
        """The record as one line of JSON, without its line break."""
        return to_json({"kind": "cell", **vars(self)})


@dataclass(frozen=True)
class LoadedCode:
    """Code that the user had a run execute besides samebits' own, which another process must be given again.

    Attributes:
        option: by which it was given: `--load` or `--libs`.
        path: of the file, or of the bundle's folder.
        digest: of the file, or of the bundle's manifest; empty where it could not be read.
    """

    option: str
    path: str
    digest: str


@dataclass(frozen=True)
class Resumable:
    """What a process must agree with to do the rest of a run, besides what the run's header says to every reader.

    Attributes:
        dtypes, cell_ids: names that the user gave; empty when none, and all were selected.
        seed: of all data.
        cells: how many cells the run set out to run, controls among them.
        cells_digest: of their ids.
        code_digest: of the code that runs them: samebits' own, and what the user had it run besides.
        draw_seed: of the batches that are drawn; None for the same ones in every run.
        loaded: what the user had it run besides, in the order given; None in records of an older samebits.
    """

    dtypes: tuple[str, ...]
    cell_ids: tuple[str, ...]
    seed: int
    cells: int
    cells_digest: str
    code_digest: str
    draw_seed: int | None = None
    loaded: tuple[LoadedCode, ...] | None = None


@dataclass(frozen=True)
class Resumption:
    """A process that went on with a run which another had left, in the same environment.

    Attributes:
        started: time at which it did, ISO 8601 in UTC.
        cells: how many cells were there by then.
    """

    started: str
    cells: int


@dataclass(frozen=True)
class RunHeader:
    """What a run set out to do: the first line of its records.

    Attributes:
        run_id: name of the run.
        started: time of its start, ISO 8601 in UTC.
        suites, implementations, dtypes, tier: what was selected; `implementations` are labels.
        narrowed: True when single cells were selected, so that absent cells mean nothing.
        environment: of the accelerator's cells, or the processor's where there is no accelerator.
        expected: labels of those implementations that have cells in the suites.
        relations: names of those that the suites check, in the order in which they are told.
        asked: names of backends and implementations that the user gave; empty when none, and all were selected.
        shard: name of the job of the nightly matrix that this run is; empty for a run of its own.
        shards: headers of the runs that this one was merged from; empty unless it was merged.
        resumable: what a process must agree with to do the rest; None where none can, as of a merged run.
        resumed: the processes that went on with it, in their order, whatever a clock said; empty for most runs.
        schema_version: of the file.
    """

    run_id: str
    started: str
    suites: tuple[str, ...]
    implementations: tuple[str, ...]
    dtypes: tuple[str, ...]
    tier: str
    narrowed: bool
    environment: Environment
    expected: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    shard: str = ""
    shards: tuple[RunHeader, ...] = ()
    resumable: Resumable | None = None
    resumed: tuple[Resumption, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def runs(self) -> tuple[RunHeader, ...]:
        """The headers of all runs that this one is made of: its own unless it was merged."""
        return self.shards or (self,)

    def to_line(self) -> str:
        """The header as one line of JSON, without its line break."""
        return to_json({"kind": "run", **vars(self)})


@dataclass(frozen=True)
class RunEnd:
    """The last line of a run's records, by which a run that finished is told from one that was killed.

    Attributes:
        cells: how many lines of cells come before it.
        schema_version: of the file.
    """

    cells: int
    schema_version: int = SCHEMA_VERSION

    def to_line(self) -> str:
        """The end as one line of JSON, without its line break."""
        return to_json({"kind": "end", **vars(self)})


@dataclass(frozen=True)
class Run:
    """A run's header and the cells it finished, in the order they finished.

    Attributes:
        header: what the run set out to do.
        records: of its cells.
        truncated: True when the run was cut off: it was killed, or has not finished yet.
    """

    header: RunHeader
    records: tuple[Record, ...]
    truncated: bool = False


class UnusableInput(ValueError):
    """Input a command cannot use, told in one sentence.

    A sentence may quote what a file holds, so characters that a terminal acts on, or cannot write, are escaped.
    """

    def __init__(self, sentence: str) -> None:
        """Takes the sentence, which becomes one line."""
        super().__init__(sentence if sentence.isprintable() else _printable(" ".join(sentence.split())))


def _printable(line: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in line
    )


def to_json(values: Mapping[str, Any], *, sort_keys: bool = True) -> str:
    """One line of strict JSON in ASCII, without its line break.

    JSON has no infinite numbers: `inf`, `-inf` and `nan` become strings. Messages of foreign libraries may hold any
    character, which ASCII carries through every locale and every pipe.

    Args:
        values: made of dataclasses, mappings, tuples, enumerations of strings and JSON's own types.
        sort_keys: whether keys are put in order; otherwise they keep theirs.
    """
    return json.dumps(_plain(values), allow_nan=False, sort_keys=sort_keys)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
