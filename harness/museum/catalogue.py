"""What the museum of attention bugs holds, as data, and where a checkout keeps it.

The exhibits themselves are in `tests/museum/`: files for `--load`, each of which registers mutants of bundled
implementations, and a catalogue of them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samebits.harness.records import Record, UnusableInput, Verdict

MUSEUM = Path(__file__).resolve().parents[2] / "tests" / "museum"


@dataclass(frozen=True)
class Search:
    """Where users would meet a bug: a suite, narrowed to cases so that it takes seconds. It has all of its checks.

    Attributes:
        suite: its mark.
        cases: pattern of case ids, as of the shell.
        dtypes: names of dtypes; empty for those of the tier.
    """

    suite: str
    cases: str = "*"
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exhibit:
    """A bug that is planted.

    Attributes:
        number: of the bug, for example `B03`.
        title: what went wrong, in a few words.
        trigger: kind of input that shows it.
        file: that registers the mutant, without its ending.
        label: of the mutant.
        parent: label of the implementation that it is a mutant of.
        searches: the suites that would see it.
        raises: name of the exception that a user reads in a cell that sees it; empty where such a cell fails.
        smoke: whether it belongs to the part that is looked at in less than a minute.
    """

    number: str
    title: str
    trigger: str
    file: str
    label: str
    parent: str
    searches: tuple[Search, ...]
    raises: str = ""
    smoke: bool = False

    @property
    def path(self) -> Path:
        """The file for `--load`."""
        return MUSEUM / f"{self.file}.py"

    def is_seen_in(self, record: Record) -> bool:
        """Whether a cell of the mutant tells a user of the bug, and not of some other trouble."""
        if not self.raises:
            return record.verdict is Verdict.FAIL
        return record.verdict is Verdict.ERROR and f"{self.raises}:" in record.reasons[0]


@dataclass(frozen=True)
class NotPlanted:
    """A bug that is not planted.

    Attributes:
        number: of the bug.
        title: what went wrong, in a few words.
        reason: why it is not, as one sentence.
    """

    number: str
    title: str
    reason: str


Entry = Exhibit | NotPlanted


def read_catalogue() -> tuple[Entry, ...]:
    """All bugs, in the order of their numbers.

    Raises:
        UnusableInput: samebits was not installed from a checkout.
    """
    path = MUSEUM / "catalogue.py"
    specification = importlib.util.spec_from_file_location("samebits_museum_catalogue", path)
    if not path.is_file() or specification is None or specification.loader is None:
        raise UnusableInput(f"the museum is part of a checkout, and there is no {path}; run `pip install -e .` in one")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    entries: tuple[Entry, ...] = module.CATALOGUE
    return tuple(sorted(entries, key=lambda entry: int(entry.number.removeprefix("B"))))


def chosen(entries: Sequence[Entry], numbers: Sequence[str], smoke: bool) -> tuple[Exhibit, ...]:
    """The exhibits that are asked for: some by number, those of the smoke part, or all.

    Raises:
        UnusableInput: a number is unknown, or its bug is not planted.
    """
    exhibits = {entry.number: entry for entry in entries if isinstance(entry, Exhibit)}
    reasons = {entry.number: entry.reason for entry in entries if isinstance(entry, NotPlanted)}
    for number in numbers:
        if number in reasons:
            raise UnusableInput(f"bug {number} is not planted: {reasons[number]}")
        if number not in exhibits:
            raise UnusableInput(f"unknown bug {number!r}; known are {', '.join(entry.number for entry in entries)}")
    wanted = numbers or [number for number, exhibit in exhibits.items() if exhibit.smoke or not smoke]
    return tuple(exhibits[number] for number in dict.fromkeys(wanted))
