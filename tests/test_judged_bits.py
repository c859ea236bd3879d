"""Judgements by bits: the same bits of the same problem are held against the reference once, and others always."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from samebits.backends.problem import Mask, Problem, Request
from samebits.harness.accuracy import Judgement
from samebits.harness.bounded_cache import forget_everything
from samebits.harness.execution import Execution, RequestResult, with_judgements
from samebits.harness.geometries import GEOMETRIES

PROBLEM = Problem(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "bf16", (Request(1, 2, 3),))


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    forget_everything()


class Judge:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> Mapping[str, Judgement]:
        self.asked += 1
        return {"output": Judgement(error_budget=float(self.asked))}

    def execution(self, problem: Problem, *values: float) -> Execution:
        """One that came to some values."""
        results = {1: RequestResult({"output": torch.tensor(values, dtype=torch.bfloat16)})}
        return with_judgements(problem, results, (), self)


def test_bits_that_come_again_elsewhere_in_memory_are_judged_once() -> None:
    judge = Judge()
    first = judge.execution(PROBLEM, 0.5, 2.0)
    again = judge.execution(PROBLEM.with_layout(poison="large", extra_table_columns=3), 0.5, 2.0)
    assert judge.asked == 1, "the same bits were judged twice"
    assert again.error_budget == first.error_budget


@pytest.mark.parametrize("values", [(0.5, 2.015625), (2.0, 0.5), (0.5, -2.0), (0.5,)])
def test_other_bits_are_judged_anew(values: tuple[float, ...]) -> None:
    judge = Judge()
    judge.execution(PROBLEM, 0.5, 2.0)
    assert judge.execution(PROBLEM, *values).error_budget == 2.0, f"{values} were taken for what came before"


@pytest.mark.parametrize(
    "other",
    [
        replace(PROBLEM, seed=1),
        replace(PROBLEM, data="ties"),
        replace(PROBLEM, mask=Mask.NON_CAUSAL),
        replace(PROBLEM, geometry=GEOMETRIES["mistral-7b"]),
        PROBLEM.with_requests(Request(2, 2, 3)),
    ],
    ids=["seed", "data", "mask", "geometry", "request"],
)
def test_the_same_bits_of_another_problem_are_judged_anew(other: Problem) -> None:
    judge = Judge()
    judge.execution(PROBLEM, 0.5, 2.0)
    assert judge.execution(other, 0.5, 2.0).error_budget == 2.0, f"{other} was taken for {PROBLEM}"
