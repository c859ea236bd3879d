"""The sentences that a terminal and a page tell of a run."""

from __future__ import annotations

from collections import Counter

from samebits.reports import text
from samebits.reports.findings import any_ran, guards, red_reasons
from samebits.reports.regression import Comparison, State


def has_baseline(comparison: Comparison) -> bool:
    """Whether any cell could be compared, or found new or missing."""
    return any(number for state, number in comparison.counts.items() if state is not State.NO_BASELINE)


def baseline_sentences(comparison: Comparison) -> list[str]:
    """What became of the cells, and across which changes of versions they were compared."""
    counts = comparison.counts
    run, name = comparison.run.header, comparison.baseline
    if not has_baseline(comparison):
        environment = run.environment
        return [
            f"No baseline in {name!r} for {environment.device} with {text.counted(environment.threads, 'thread')}; "
            "write one with --update-baseline FILE.",
            *_apart(comparison),
        ]
    told = ", ".join(f"{number:,} {state}" for state, number in counts.items() if number)
    sentences = [f"Against the baseline {name!r}: {told}."]
    if comparison.changed_versions:
        changes = ", ".join(
            f"{what} {old} -> {new} ({text.counted(cells, 'cell')})"
            for (what, old, new), cells in sorted(comparison.changed_versions.items())
        )
        sentences.append(f"Versions changed since: {changes}.")
    return sentences + _apart(comparison)


def _apart(comparison: Comparison) -> list[str]:
    """Why cells that the baseline knows are not compared with it."""
    notes = Counter(cell.note for cell in comparison.cells if cell.state is State.NO_BASELINE and cell.note)
    return [f"Not compared: {note} ({text.counted(cells, 'cell')})." for note, cells in sorted(notes.items())]


def conclusion(comparison: Comparison) -> str:
    """One sentence: whether the run is red, and why; or that there was nothing to tell it by."""
    counts = comparison.counts
    reasons = red_reasons(comparison.run)
    reasons += [f"{counts[state]:,} {state}" for state in (State.REGRESSED, State.MISSING) if counts[state]]
    if reasons:
        return f"RED: {', '.join(reasons)}."
    caught = ["every control was caught"] if any(guard.caught for guard in guards(comparison.run)) else []
    if not any_ran(comparison.run):
        return f"NOTHING RAN: {', '.join(['no implementation was checked', *caught])}."
    told = ["nothing failed", *caught]
    told += ["nothing regressed" if has_baseline(comparison) else "there is no baseline to compare with"]
    return f"GREEN: {', '.join(told)}."


def controls_sentence(comparison: Comparison) -> str:
    """How many controls were caught, relation by relation where they are not all."""
    every = guards(comparison.run)
    caught, missed = (sum(len(getattr(guard, what)) for guard in every) for what in ("caught", "missed"))
    if not caught + missed:
        return "Controls: none ran."
    sentence = f"Controls: {caught} of {caught + missed} caught, over {text.counted(len(every), 'relation')}"
    open_ones = [
        f"{guard.name} {len(guard.caught)} of {len(guard.caught) + len(guard.missed)}"
        for guard in every
        if not guard.holds
    ]
    return f"{sentence}; not guarded: {', '.join(open_ones)}." if open_ones else f"{sentence}."


def run_sentences(comparison: Comparison) -> list[str]:
    """What ran, where, with which versions."""
    header = comparison.run.header
    records = comparison.run.records
    controls = sum(record.control for record in records)
    environment = header.environment
    versions = ", ".join(f"{name} {version}" for name, version in sorted(environment.versions.items()))
    sentences = [
        f"Run {header.run_id}: {', '.join(header.suites)}, {header.tier} tier, {', '.join(header.dtypes)}; "
        f"{text.counted(len(records) - controls, 'cell')} and {text.counted(controls, 'control')}.",
        f"On {environment.device}, {text.counted(environment.threads, 'thread')}, {versions}.",
    ]
    if header.narrowed:
        sentences.append("Narrowed to single cells, so absent ones mean nothing.")
    if comparison.run.truncated:
        sentences.append("Cut off: it was killed or has not finished yet, and only the cells that did are told here.")
    if header.resumed:
        times = "once" if len(header.resumed) == 1 else f"{len(header.resumed)} times"
        done = ", ".join(f"{resumption.cells:,}" for resumption in header.resumed)
        sentences.append(f"Resumed {times}, when {done} of its cells had finished.")
    finished = {record.label for record in records}
    idle = [label for label in header.expected if label not in finished]
    if idle and not header.narrowed:
        sentences.append(f"No cell of {', '.join(idle)} finished.")
    return [text.plain(sentence) for sentence in sentences]
