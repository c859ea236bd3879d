"""The pages under docs/reports are those of the committed baselines: the same cells, verdicts and bits."""

from __future__ import annotations

import json
import re

import pytest

from samebits.reports.html.cell_data import parts_of
from samebits.reports.html.marks import CAUGHT

from .html_pages import unpacked
from .suite_runs import ROOT


@pytest.mark.parametrize("name", ["cpu", "h100"])
def test_a_committed_page_tells_the_committed_records(name: str) -> None:
    """Whoever writes a baseline by a run renders the page of that run, as docs/report.md says."""
    page = (ROOT / "docs" / "reports" / f"{name}.html").read_text(encoding="utf-8")
    assert len(page) < 1_500_000, "too large to be opened at a glance"
    (data,) = re.findall('<script type="application/json" id="data">(.*)</script>', page)
    told = unpacked(data)
    tables, columns = told["tables"], told["columns"]
    shown = {}
    for kernel, check, dtype, outcome, digest in zip(
        *(columns[column] for column in ("kernel", "check", "dtype", "outcome", "digest")), strict=True
    ):
        label, (_, relation, case, *_) = tables["kernels"][kernel][0], tables["checks"][check]
        mark = told["marks"][tables["outcomes"][outcome][0]][0]
        shown[label, relation, case, tables["dtypes"][dtype]] = ("fail" if mark == CAUGHT.name else mark, digest)
    kept = {}
    for line in (ROOT / "reports" / "baselines" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "cell":
            label = row["kernel"].partition(" #")[0]
            key = (label, *parts_of(row["cell_id"], label), row["dtype"])
            kept[key] = (row["verdict"], row.get("digest", ""))
    differ = [key for key in shown.keys() | kept.keys() if shown.get(key) != kept.get(key)]
    assert not differ, (
        f"{len(differ)} cells are told otherwise, {':'.join(min(differ))} for example; render the page of the "
        f"baseline's run again: samebits report RUN --baseline reports/baselines/{name}.jsonl, and its index.html is "
        f"docs/reports/{name}.html"
    )
