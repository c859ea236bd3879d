"""What became of a mutant, as data: one JSON line each, written as soon as it is known."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from samebits.harness.mutation.mutants import Edit, Mutant, Operator
from samebits.harness.records import UnusableInput


class Fate(StrEnum):
    """What became of a mutant.

    * `INVALID`: its source does not compile, so that there is nothing to try.
    * `UNCHANGED`: in all cells every verdict and every bit is that of the unchanged kernel.
    * `KILLED`: a cell is red, or the process crashed or hung.
    * `SURVIVED`: bits changed, and no cell is red.
    """

    INVALID = "does not compile"
    UNCHANGED = "no output changed"
    KILLED = "killed"
    SURVIVED = "survived"


@dataclass(frozen=True)
class Finding:
    """What became of a mutant, and how.

    Attributes:
        mutant: the change.
        fate: what became of it.
        suite, relation, cell: the cell that is red; of a survivor the first whose bits changed; empty where none is.
        told: why, as one sentence.
        ran: cells that were run.
        changed: those whose verdict or bits are not the unchanged kernel's.
        regressed: whether a report against a baseline calls one of those a regression, and not new bits.
    """

    mutant: Mutant
    fate: Fate
    suite: str = ""
    relation: str = ""
    cell: str = ""
    told: str = ""
    ran: int = 0
    changed: int = 0
    regressed: bool = False

    def to_line(self) -> str:
        """The finding as one line of JSON, without its line break."""
        return json.dumps(dataclasses.asdict(self))


def read_findings(path: Path) -> list[Finding]:
    """The findings of an earlier run that wrote to the same file; none where there is no such file.

    Raises:
        UnusableInput: it holds something else.
    """
    if not path.exists():
        return []
    try:
        return [_finding(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnusableInput(f"{path} holds no findings of mutants: {error}; give another file") from error


def _finding(values: dict[str, object]) -> Finding:
    mutant: dict[str, object] = dict(values["mutant"])  # type: ignore[call-overload]
    edit: dict[str, object] = dict(mutant["edit"])  # type: ignore[call-overload]
    edit["operator"] = Operator(str(edit["operator"]))
    mutant["edit"] = Edit(**edit)  # type: ignore[arg-type]
    return Finding(**(values | {"mutant": Mutant(**mutant), "fate": Fate(str(values["fate"]))}))  # type: ignore[arg-type]
