"""Bugs that show where a query or a key holds NaN or an infinity alone: the dtype suite holds it, and turns red."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.backends.subject import Subject
from samebits.harness.controls.arithmetic import Arithmetic, Degradation, TiledKernel
from samebits.harness.records import Record, Verdict
from samebits.kernels.cpu.attention import Schedule

from .judged_cells import cells_of, records_of

pytestmark = pytest.mark.usefixtures("no_smallest_batch")


def judged(subject: Subject, *checks: str) -> list[Record]:
    """Some checks of an implementation in the dtype suite's default tier, in float32; all where none is named."""
    cells = cells_of("dtype", subject, dtypes=("fp32",))
    return records_of(cell for cell in cells if not checks or cell.relation.name in checks)


def failed(records: list[Record]) -> set[str]:
    """The checks that some case fails."""
    return {record.relation for record in records if record.verdict is Verdict.FAIL}


@dataclass(frozen=True)
class Batch:
    """What a planned batch of the C++ kernel was planned from."""

    schedule: Schedule
    config: AttentionConfig
    metadata: AttentionMetadata


class AroundTheKernel(BundledAttention):
    """The C++ kernel, with something done around it."""

    backend = "PLANTED"

    def __init__(self, name: str, run: Callable[..., None]) -> None:
        super().__init__()
        self.name, self._run, self.shorter_splits = name, run, BundledAttention(64)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Any:  # noqa: ANN401 -- not that of the kernel
        """Keeps what was planned."""
        return Batch(super().plan(config, metadata), config, metadata)

    def run(self, plan: Any, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """Does it."""
        self._run(self, plan, query, *tensors)

    def compute(self, plan: Batch, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        """The kernel alone."""
        super().run(plan.schedule, query, *tensors)


def nan_queries_are_0(kernel: AroundTheKernel, plan: Batch, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401
    """As where max(NaN, x) is x."""
    kernel.compute(plan, query.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf), *tensors)


def nan_of_the_tile(kernel: AroundTheKernel, plan: Batch, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401
    """Rows of a request lie sixteen to a tile, whose largest score is that of all."""
    kernel.compute(plan, query, *tensors)
    output = tensors[2]
    for start, stop in itertools.pairwise(plan.metadata.query_start_loc.tolist()):
        for first in range(start, stop, 16):
            tile = slice(first, min(first + 16, stop))
            output[tile].masked_fill_(query[tile].isnan().any(dim=2).any(dim=0).view(1, -1, 1), math.nan)


def nan_of_the_group(kernel: AroundTheKernel, plan: Batch, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401
    """Query heads on one key/value head are the rows of one tile."""
    kernel.compute(plan, query, *tensors)
    tokens = slice(int(plan.metadata.query_start_loc[-1]))
    of_head = query[tokens].isnan().any(dim=2)
    of_group = of_head.view(len(of_head), -1, plan.config.group_size).any(dim=2)
    tensors[2][tokens].masked_fill_(of_group.repeat_interleave(plan.config.group_size, dim=1).unsqueeze(2), math.nan)


def other_splits_beside_nan(kernel: AroundTheKernel, plan: Batch, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401
    """Right, but in another order: as where all rows of a tile vote on whether to rescale."""
    tokens = slice(int(plan.metadata.query_start_loc[-1]))
    if query[tokens].isnan().any():
        kernel.shorter_splits.run(kernel.shorter_splits.plan(plan.config, plan.metadata), query, *tensors)
    else:
        kernel.compute(plan, query, *tensors)


def largest_key_without_nan(kernel: AroundTheKernel, plan: Batch, query: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401
    """Keys are scaled by the largest of the cache, looked for without regard to NaN, and back."""
    kernel.compute(plan, query, *tensors)
    largest = tensors[0].nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf).abs().max()
    tensors[2].add_(largest.float() * 0.0)


def tiled(name: str, arithmetic: Arithmetic) -> TiledKernel:
    """A plain kernel in float32 that computes otherwise."""
    return TiledKernel(Degradation(name, "seen_inf", "a planted bug", "fp32", arithmetic))


# Each bug, and the checks that see it.
PLANTED: Mapping[str, tuple[Subject, set[str]]] = {
    bug.name: (bug, checks)
    for bug, checks in (
        (AroundTheKernel("nan_queries_are_0", nan_queries_are_0), {"nan_query"}),
        (AroundTheKernel("nan_of_the_tile", nan_of_the_tile), {"nan_query"}),
        (AroundTheKernel("nan_of_the_group", nan_of_the_group), {"nan_query"}),
        (AroundTheKernel("other_splits_beside_nan", other_splits_beside_nan), {"nan_query"}),
        (
            AroundTheKernel("largest_key_without_nan", largest_key_without_nan),
            {"seen_inf", "unseen_nan", "hidden_nan"},
        ),
        (
            tiled("scores_clamped", Arithmetic(scores=lambda scores: scores.clamp(-3.0e38, 3.0e38))),
            {"seen_inf", "lse_seen_inf"},
        ),
        (
            tiled(
                "infinite_scores_hidden",
                Arithmetic(scores=lambda scores: scores.masked_fill(scores == math.inf, -math.inf)),
            ),
            {"seen_inf", "lse_seen_inf"},
        ),
    )
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_of_one_number_is_seen_by_its_checks_and_by_no_other(bug: str) -> None:
    subject, checks = PLANTED[bug]
    found = failed(judged(subject))
    assert found == checks, f"{bug} is red on {sorted(found)}"


@pytest.mark.parametrize(
    "parent",
    [AroundTheKernel("nothing", AroundTheKernel.compute), tiled("correct", Arithmetic())],
    ids=lambda parent: parent.name,
)
def test_a_parent_passes(parent: Subject) -> None:
    records = judged(parent, "nan_query", "seen_inf", "lse_seen_inf", "unseen_nan")
    assert not failed(records), f"a correct kernel fails {sorted(failed(records))}"
    assert any(record.verdict is Verdict.PASS for record in records), "none of its cells was computed"


@pytest.mark.parametrize("batch", ["causal-mixed", "causal-splits"])
def test_who_passes_by_the_value_alone_differs_in_bits(batch: str) -> None:
    subject, _ = PLANTED["other_splits_beside_nan"]
    (record,) = [record for record in judged(subject, "nan_query") if record.case.endswith(batch)]
    assert record.verdict is Verdict.FAIL, f"{record.cell_id}: {record.verdict}"
    assert record.error_budget is not None
    assert record.error_budget <= 1.0, f"{record.cell_id} is wrong, and not only in other bits"
