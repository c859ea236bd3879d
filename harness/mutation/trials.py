"""Mutants put to trial: each in a process of its own, by the ordinary cells, until one is red or all are done."""

from __future__ import annotations

import functools
import gc
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from samebits.harness.matrix import Cell
from samebits.harness.mutation.cells import (
    CellName,
    Outcome,
    cells_of,
    cheapest_first,
    name_of,
    outcomes,
    session_of,
    starts_threads,
)
from samebits.harness.mutation.findings import Fate, Finding
from samebits.harness.mutation.fork import Crashed, Hung, Say, Working, answers
from samebits.harness.mutation.mutants import Mutant
from samebits.harness.mutation.planting import DoesNotCompile, compiled, plant, same_code
from samebits.harness.mutation.sources import CPP_SOURCES, SOURCES, Group, Source
from samebits.harness.records import UnusableInput
from samebits.harness.session import MatrixSession
from samebits.reports.regression import RULES, State

# Seconds that may be computed: by a compiler, or for a registry's first import.
_STARTING_SECONDS = 60.0
# For a cell, beside those that the unchanged kernel takes so many times.
_CELL_SECONDS, _CELL_FACTOR = 5.0, 20.0
_MEMORY = 4 << 30
# Cells that the unchanged kernel and all mutants go through before any other: enough for nearly all to be killed.
_FIRST_CELLS = 100
# For all cells of one group, the slowest of which are interpreted.
_PARENT_SECONDS = 1800.0


def tried(tasks: Sequence[tuple[Source, Mutant]]) -> Iterator[Finding]:
    """Puts mutants to trial, and yields what became of each as soon as it is known.

    Args:
        tasks: mutants with their sources, in any order.

    Raises:
        UnusableInput: an unchanged kernel is red or cannot run here, so that nothing can be told of its mutants.
    """
    sofar: dict[str, Finding] = {}
    done: set[str] = set()
    for group in _groups_of(tasks):
        ours = [task for task in tasks if group in task[0].groups and task[1].name not in done]
        last = {mutant.name for source, mutant in ours if source.groups[-1] == group}
        try:
            for found in answers(functools.partial(_try_all, group, ours), _PARENT_SECONDS):
                name = found.mutant.name
                sofar[name] = _together(sofar.get(name, Finding(found.mutant, Fate.UNCHANGED)), found)
                if sofar[name].fate in (Fate.KILLED, Fate.INVALID) or name in last:
                    done.add(name)
                    yield sofar[name]
        except (Crashed, Hung) as error:
            raise UnusableInput(f"mutants of {group} cannot be tried: {error}") from error


def _groups_of(tasks: Iterable[tuple[Source, Mutant]]) -> list[Group]:
    """All groups, so that each source meets its own in their order."""
    known = dict.fromkeys(group for source in SOURCES for group in source.groups)
    asked = {group for source, _ in tasks for group in source.groups}
    operations = list(CPP_SOURCES)
    ordered = sorted(known, key=lambda group: (group.label, operations.index(group.operation)))
    return [group for group in ordered if group in asked]


def _together(before: Finding, found: Finding) -> Finding:
    """What became of a mutant in some cells and in those before them, where it was not killed."""
    first = before if before.fate is Fate.SURVIVED and found.fate is not Fate.KILLED else found
    return replace(
        first,
        ran=before.ran + found.ran,
        changed=before.changed + found.changed,
        regressed=before.regressed or found.regressed,
    )


def _try_all(group: Group, tasks: Sequence[tuple[Source, Mutant]], say: Say) -> None:
    """Runs the unchanged kernel, and from there each mutant in a process of its own; says what became of each.

    The cheapest cells come first, for all of them: the few that are left need the others.
    """
    session = session_of(group)
    cells = cheapest_first(cells_of(session, group))
    library = _unchanged_library(group, tasks)
    left = {mutant.name: (source, Finding(mutant, Fate.UNCHANGED)) for source, mutant in tasks}
    for part in (cells[:_FIRST_CELLS], cells[_FIRST_CELLS:]):
        if not (left and part):
            break
        say(Working(f"{len(part)} cells without any mutant", _PARENT_SECONDS))
        expected = _expected(session, part)
        gc.collect()
        gc.freeze()
        for name, (source, before) in list(left.items()):
            say(Working(name, _PARENT_SECONDS))
            finding = _together(before, _tried(group, source, before.mutant, expected, library))
            left[name] = (source, finding)
            if finding.fate in (Fate.KILLED, Fate.INVALID) or not finding.ran:
                del left[name]
                say(finding)
    for _, finding in left.values():
        say(finding)


def _unchanged_library(group: Group, tasks: Iterable[tuple[Source, Mutant]]) -> str:
    """A digest of what the C++ sources compile to, if there are any: see `compiled`."""
    source = next((source for source, _ in tasks if not source.is_module), None)
    if source is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="samebits-mutants-") as directory:
        (digest,) = answers(functools.partial(_compile, group, source, Path(directory)), _STARTING_SECONDS)
    return str(digest)


def _expected(session: MatrixSession, cells: Sequence[Cell]) -> dict[CellName, Outcome]:
    """What the unchanged kernel comes to in some cells, in their order.

    References and judgements are kept in this process, and so in all that are forked from it.

    Raises:
        UnusableInput: a cell is red.
    """
    threaded = [cell for cell in cells if starts_threads(cell)]
    found = outcomes(session, [cell for cell in cells if cell not in threaded])
    if threaded:
        (of_threaded,) = answers(lambda say: say(outcomes(session, threaded)), _PARENT_SECONDS)
        found |= of_threaded
    for name, outcome in found.items():
        if outcome.red:
            raise UnusableInput(f"{name[1]} is red without any mutant: {outcome.told}")
    return {name_of(cell): found[name_of(cell)] for cell in cells}


def _compile(group: Group, source: Source, directory: Path, say: Say) -> None:
    plant(source, source.content(), group.operation, directory)
    say(compiled(directory))


def _tried(group: Group, source: Source, mutant: Mutant, expected: Mapping[CellName, Outcome], library: str) -> Finding:
    untried = Finding(mutant, Fate.UNCHANGED)
    content = source.content()
    changed = mutant.edit.applied(content)
    if source.is_module:
        try:
            same = same_code(content, changed)
        except SyntaxError as error:
            return replace(untried, fate=Fate.INVALID, told=str(error))
        if same:
            return replace(untried, told="the same instructions")
    with tempfile.TemporaryDirectory(prefix="samebits-mutants-") as directory:
        work = functools.partial(_attempt, group, untried, source, changed, expected, library, Path(directory))
        try:
            (found,) = answers(work, _STARTING_SECONDS, _MEMORY)
        except Crashed as error:
            return replace(untried, fate=Fate.KILLED, told=f"crashed: {error}")
        except Hung as error:
            return replace(untried, fate=Fate.KILLED, told=f"hung: {error}")
    assert isinstance(found, Finding), "an attempt says nothing else"
    return found


def _attempt(
    group: Group,
    untried: Finding,
    source: Source,
    content: bytes,
    expected: Mapping[CellName, Outcome],
    library: str,
    directory: Path,
    say: Say,
) -> None:
    """Goes through the cells with a mutant in the place of its source, up to the first that is red."""
    plant(source, content, group.operation, directory)
    if not source.is_module:
        try:
            same = compiled(directory) == library
        except DoesNotCompile as error:
            say(replace(untried, fate=Fate.INVALID, told=str(error)))
            return
        if same:
            say(replace(untried, told="the same machine code"))
            return
    session = session_of(group)
    cells = {name_of(cell): cell for cell in cells_of(session, group)}
    finding = untried
    for name, before in expected.items():
        say(Working(name[1], _CELL_SECONDS + _CELL_FACTOR * before.seconds))
        finding = replace(finding, ran=finding.ran + 1)
        if name not in cells:
            # A tile of another size may leave a relation nothing to say. A report tells of a cell that is missing.
            finding = replace(finding, fate=Fate.SURVIVED, changed=finding.changed + 1, regressed=True)
            continue
        cell, after = cells[name], Outcome.of(session.run(cells[name]))
        state = RULES.state(before, after)
        if state is State.SAME:
            continue
        first = finding.changed == 0
        finding = replace(
            finding,
            fate=Fate.KILLED if after.red else Fate.SURVIVED,
            changed=finding.changed + 1,
            regressed=finding.regressed or state is State.REGRESSED,
        )
        if first or after.red:
            finding = replace(
                finding, suite=cell.suite, relation=cell.relation.name, cell=cell.cell_id, told=after.told
            )
        if after.red:
            break
    say(finding)
