"""The page itself: what is told on it, rendered into one file that asks nothing of a network."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from samebits.reports import text
from samebits.reports.findings import any_ran, guards
from samebits.reports.history import History
from samebits.reports.html.cell_data import cell_data, pairs
from samebits.reports.html.changes import changes
from samebits.reports.html.failures import failures
from samebits.reports.html.heat_map import counts, heat_map, own_cells, suites_of
from samebits.reports.html.history_section import history_view
from samebits.reports.html.implementations import implementation_views
from samebits.reports.html.links import cell_link, cells_link
from samebits.reports.html.marks import CAUGHT, MARKS, mark_of
from samebits.reports.html.palette import DAY, NIGHT
from samebits.reports.html.styled import TEMPLATES
from samebits.reports.regression import Comparison, State
from samebits.reports.sentences import baseline_sentences, conclusion, controls_sentence, has_baseline

# What is no character of a page, or moves other characters about; messages of foreign libraries may hold any.
_UNSHOWABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Choice:
    """A value that a filter offers, and how many cells have it."""

    value: str
    cells: int


def html_page(comparison: Comparison, history: History | None = None) -> str:
    """The whole page, which is the same for the same records, in whatever order they finished.

    Args:
        comparison: of the run with its baseline.
        history: of the run, with earlier ones; None where none is told.
    """
    style = _environment().get_template("report.css").render(day=DAY, night=NIGHT)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    drifts = {} if history is None else {cell_id: drift.told for cell_id, drift in history.drifts.items()}
    template = _environment().get_template("page.html.j2")
    page = template.render(
        **_told(comparison),
        history=None if history is None else history_view(history),
        data=Markup(cell_data(comparison, drifts)),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    )
    return _UNSHOWABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), page)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"budget": text.budget, "whole": text.whole, "moment": text.moment}
    environment.globals |= {"counted": text.counted, "counts": counts, "cell_link": cell_link, "cells_link": cells_link}
    return environment


def _policy(style: str, script: str) -> str:
    """What the page may load and run: its own style and its own script, and nothing else from anywhere."""
    hashes = {name: _hash(content) for name, content in (("style-src", style), ("script-src", script))}
    allowed = "; ".join(f"{name} {value}" for name, value in hashes.items())
    return f"default-src 'none'; img-src data:; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _told(comparison: Comparison) -> dict[str, Any]:
    """What the template shows, by the names that it uses."""
    header = comparison.run.header
    verdict = conclusion(comparison)
    state, _, why = verdict.partition(": ")
    return {
        "header": header,
        "state": state,
        "tone": {"RED": "bad", "GREEN": "good"}.get(state, "none"),
        "why": why,
        "failures": failures(comparison.records, header),
        "controls": controls_sentence(comparison),
        "missed": [cell_id for guard in guards(comparison.run) for cell_id in guard.missed],
        "truncated": comparison.run.truncated,
        "baseline": comparison.baseline,
        "has_baseline": has_baseline(comparison),
        "baseline_sentences": baseline_sentences(comparison),
        "changes": changes(comparison),
        "versions_changed": comparison.changed_versions,
        "environments": _environments(comparison),
        "own_cells": len(own_cells(comparison)),
        "heat_map": heat_map(comparison),
        "marks": MARKS,
        "implementations": implementation_views(comparison),
        "verdicts": _verdicts(comparison),
        "filters": _filters(comparison),
        "any_ran": any_ran(comparison.run),
    }


def _environments(comparison: Comparison) -> list[tuple[str, int, str, int]]:
    """Device, threads, versions and number of cells of each place that cells are of, the largest first."""
    found = Counter(
        (record.environment.device, record.environment.threads, pairs(record.environment.versions))
        for record in comparison.records
    )
    return [(*place, cells) for place, cells in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))]


def _verdicts(comparison: Comparison) -> list[tuple[Any, int, bool]]:
    """Marks that some cell has, how many, and whether they are shown at first."""
    counted = Counter(map(mark_of, comparison.cells))
    return [(mark, counted[mark], mark is not CAUGHT) for mark in MARKS if counted[mark]]


def _filters(comparison: Comparison) -> list[tuple[str, str, list[Choice]]]:
    """The lists to choose from: name, label and choices."""
    cells = comparison.cells
    by_suite = Counter(cell.known.suite for cell in cells)
    by_state = Counter(cell.state for cell in cells)
    columns = {
        "backend": Counter(cell.known.label.partition("/")[0] for cell in cells if not cell.known.control),
        "implementation": Counter(cell.known.label for cell in cells if not cell.known.control),
        "suite": {suite: by_suite[suite] for suite in suites_of(comparison)},
        "relation": dict(sorted(Counter(cell.record.relation for cell in cells if cell.record).items())),
        "dtype": dict(sorted(Counter(cell.known.dtype for cell in cells).items())),
        "since": {state.value: by_state[state] for state in State if by_state[state]},
    }
    labels = {"since": "since baseline"}
    return [
        (name, labels.get(name, name), [Choice(value, count) for value, count in choices.items()])
        for name, choices in columns.items()
    ]
