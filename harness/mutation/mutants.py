"""A mutant: one small change of one source, as data."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Operator(StrEnum):
    """Kinds of change.

    * `COMPARISON`: `<` for `<=`, `==` for `!=` and so on.
    * `OFF_BY_ONE`: a whole number one larger, or one smaller.
    * `ARITHMETIC`: `+` for `-`, `*` for `+`, `//` for `%` and so on.
    * `EXTREMUM`: a minimum for a maximum.
    * `STRIDE`: one stride, size or step for its neighbour.
    * `MASK`: a load or a store without its mask, or a mask without one of its conditions.
    * `TYPE`: a narrower type.
    * `GUARD`: a condition taken for false, or for true.
    * `BRANCH`: one side of a choice taken always.
    * `LOGIC`: `and` for `or`, `True` for `False`, a negation left out.
    * `CONSTANT`: a number with a fraction twice as large, and 1 for 0.
    * `SIGN`: a minus left out.
    * `STATEMENT`: a call, or an addition to a variable, left out.
    """

    COMPARISON = "comparison"
    OFF_BY_ONE = "off by one"
    ARITHMETIC = "arithmetic"
    EXTREMUM = "extremum"
    STRIDE = "stride"
    MASK = "mask"
    TYPE = "type"
    GUARD = "guard"
    BRANCH = "branch"
    LOGIC = "logic"
    CONSTANT = "constant"
    SIGN = "sign"
    STATEMENT = "statement"


@dataclass(frozen=True, order=True)
class Edit:
    """A piece of a source and what takes its place.

    Attributes:
        start, stop: of the piece, in bytes.
        operator: kind of change.
        replacement: what takes its place.
    """

    start: int
    stop: int
    operator: Operator
    replacement: str

    def applied(self, source: bytes) -> bytes:
        """The changed source."""
        return source[: self.start] + self.replacement.encode() + source[self.stop :]


@dataclass(frozen=True)
class Mutant:
    """An edit of a source, numbered.

    Attributes:
        path: of the source, below the folder that holds all packages, with slashes.
        number: among all mutants of the source, in the order of their places.
        edit: what is changed.
        line: that it begins in, counted from 1.
        before, after: the lines that it touches, as they were and as they are, each on one line.
    """

    path: str
    number: int
    edit: Edit
    line: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """Names the mutant as long as its source stays."""
        return f"{self.path}#{self.number}"

    @property
    def operator(self) -> Operator:
        """Kind of change."""
        return self.edit.operator


def numbered(path: str, source: bytes, edits: Iterable[Edit]) -> tuple[Mutant, ...]:
    """The mutants of a source, by place, then by operator; edits that come to the same source are one.

    Args:
        path: of the source.
        source: its content.
        edits: in any order.
    """
    different: dict[bytes, Edit] = {}
    for edit in sorted(edits):
        changed = edit.applied(source)
        if changed != source:
            different.setdefault(changed, edit)
    return tuple(_mutant(path, source, number, edit) for number, edit in enumerate(different.values(), start=1))


def _mutant(path: str, source: bytes, number: int, edit: Edit) -> Mutant:
    first = source.rfind(b"\n", 0, edit.start) + 1
    end = source.find(b"\n", edit.stop)
    last = len(source) if end < 0 else end
    after = source[first : edit.start] + edit.replacement.encode() + source[edit.stop : last]
    return Mutant(
        path=path,
        number=number,
        edit=edit,
        line=source.count(b"\n", 0, edit.start) + 1,
        before=_on_one_line(source[first:last]),
        after=_on_one_line(after),
    )


def _on_one_line(text: bytes) -> str:
    return " ".join(text.decode().split())


def sampled(mutants: Sequence[Mutant], count: int | None, seed: int) -> tuple[Mutant, ...]:
    """Some mutants of each source, drawn at random, in their order.

    Args:
        mutants: of any sources.
        count: of each source at most; None for all.
        seed: of the draw, in which no other source has a part.
    """
    by_path: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        by_path.setdefault(mutant.path, []).append(mutant)
    chosen: list[Mutant] = []
    for path, of_path in by_path.items():
        drawn = of_path
        if count is not None and count < len(of_path):
            drawn = random.Random(f"{seed} {path}").sample(of_path, count)
        chosen += sorted(drawn, key=lambda mutant: mutant.number)
    return tuple(chosen)
