"""`samebits museum`: bugs that real projects shipped, planted again, and what the suites see of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from samebits.harness.records import UnusableInput
from samebits.reports.files import check_replaceable, replace_file

# Torch's profiler, by which operations on tokens are watched, tells of every start and stop below this level.
_PROFILER_LOG_LEVEL = ("KINETO_LOG_LEVEL", "6")


def look_at(numbers: Sequence[str], *, smoke: bool, seeds: int, page: Path | None) -> tuple[str, bool]:
    """Runs planted bugs through the suites.

    Args:
        numbers: of the bugs; empty for all, or for those of the smoke part.
        smoke: whether only those are looked at that take less than a minute together.
        seeds: under how many the implementations without a bug are run besides; 0 for none.
        page: file that the page of the museum is written to; None for none.

    Returns:
        A table and sentences; and whether each bug was caught, and no implementation without one failed.

    Raises:
        UnusableInput: this is no checkout, a number is unknown, a bug can no longer be planted, or a page is asked for
            that would lack some.
    """
    if page is not None:
        if numbers or smoke:
            raise UnusableInput("--write makes the page of all bugs; leave out --only and --smoke")
        check_replaceable(page)
    os.environ.setdefault(*_PROFILER_LOG_LEVEL)
    # Behind the level, as these import torch.
    from samebits.harness.museum.catalogue import chosen, read_catalogue
    from samebits.harness.museum.page import as_page, as_sentence, as_soundness, as_table
    from samebits.harness.museum.soundness import soundness_of_parents
    from samebits.harness.museum.visit import visit

    entries = read_catalogue()
    exhibits = chosen(entries, numbers, smoke)
    findings = tuple(visit(exhibits))
    soundness = soundness_of_parents(exhibits, seeds) if seeds else None
    if page is not None:
        replace_file(page, as_page(findings, entries, soundness))
    sentences = [as_sentence(findings), *([as_soundness(soundness)] if soundness else [])]
    told = "\n".join([as_table(findings), *sentences])
    return told, all(finding.caught for finding in findings) and not (soundness and soundness.faults)
