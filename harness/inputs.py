"""The checks of the dtype suite: kinds of data on which every number is judged against the reference alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import DATA_NAMES, Problem
from samebits.harness.relations import Comparison, Relation

_DESCRIPTIONS = {
    "normal": "normal queries, keys and values",
    "large_scores": "scores that deviate by 8",
    "negative_scores": "scores that are all below 0",
    "large_values": "values of 1000",
    "huge_values": "values beyond the range of fp16",
    "offset_values": "values around 10",
    "ties": "equal scores",
    "denormal_values": "values below the smallest normal number",
}


def _on(data: str) -> Relation:
    def compare(problem: Problem, tiling: Tiling) -> Iterable[Comparison]:
        yield Comparison((replace(problem, data=data),), ())

    return Relation(data, None, f"right on {_DESCRIPTIONS[data]}", compare)


INPUTS: Mapping[str, Relation] = {data: _on(data) for data in DATA_NAMES}
