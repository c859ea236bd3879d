"""A run's records and report: written by the process that owns the run, as cells finish and at its end."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from samebits.harness.record_files import RecordWriter, parse_record, read_run
from samebits.harness.records import Record, UnusableInput, Verdict
from samebits.reports.report import Report, check_baseline, write_baseline, write_report

if TYPE_CHECKING:
    from samebits.harness.session import MatrixSession

SUITE_MARKS = {"batch_invariant": "a request keeps its bits whatever its batch, neighbours, pages and schedule"}
# How a test hands its record over: as a property of its report, which xdist carries from a worker to the controller.
RECORD_PROPERTY = "samebits_record"
