"""Bugs planted in operations on tokens, which the default tier sees, and their correct parents, which it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from samebits.backends.operations import (
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    RotaryTensors,
    TokenImplementation,
)
from samebits.backends.token_problem import (
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenOperation,
)
from samebits.backends.torch_operations import TorchMerge, TorchRotary
from samebits.harness.controls.plain_operations import PlainOperation, linear
from samebits.harness.executor import Executor
from samebits.harness.judgement import judge
from samebits.harness.matrix import Selection
from samebits.harness.records import Record, Verdict
from samebits.harness.suite_cells import SUITES

CPU = torch.device("cpu")
_ROTATE, _MERGE = TorchRotary("CPU", "cpu"), TorchMerge("CPU", "cpu")
# Products that a matrix unit adds before its sum meets the accumulator.
_MATRIX_UNIT_DEPTH = 16


@pytest.fixture(autouse=True)
def no_smallest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for the smallest batch takes several times as long as finding a fault, and is tested elsewhere."""
    monkeypatch.setattr("samebits.harness.judgement._smallest", lambda findings, executor: "")


def rotates_four_key_heads(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """As where the grid of the keys holds no more heads."""
    _ROTATE.compute(operation, replace(tensors, key=tensors.key[:, :4]))


def computes_the_tail(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """As by cosines of 1 and sines of 0 behind rotary_dim: -0.0 becomes 0.0."""
    _ROTATE.compute(operation, tensors)
    for heads in (tensors.query, tensors.key):
        heads[..., operation.rotary_dim :] += 0.0


def adds_the_dead_side(operation: MergeStates, tensors: MergeTensors) -> None:
    """Takes 0 for the output of a side that saw no key, and adds it: -0.0 becomes 0.0."""
    _MERGE.compute(operation, tensors)
    tensors.output.add_(0.0)


def passes_another_nan(operation: MergeStates, tensors: MergeTensors) -> None:
    """As where a NaN goes through a product: it comes out as another."""
    _MERGE.compute(operation, tensors)
    tensors.output.masked_fill_(tensors.output.isnan(), torch.nan)


def weighs_in_fp16(operation: MergeStates, tensors: MergeTensors) -> None:
    """Rounds weights, products and their sum to fp16 where outputs are."""
    _MERGE.compute(operation, tensors)
    if tensors.output.dtype is torch.float16:
        largest = torch.maximum(tensors.prefix_lse, tensors.suffix_lse)
        prefix, suffix = (
            (lse - largest).exp().half().transpose(0, 1).unsqueeze(2)
            for lse in (tensors.prefix_lse, tensors.suffix_lse)
        )
        merged = (prefix * tensors.prefix_output + suffix * tensors.suffix_output) / (prefix + suffix)
        both = (tensors.prefix_lse.isfinite() & tensors.suffix_lse.isfinite()).transpose(0, 1).unsqueeze(2)
        tensors.output.copy_(torch.where(both, merged, tensors.output))


def accumulates_in_fp16(operation: Linear, tensors: LinearTensors) -> None:
    """Rounds the sum to fp16 after every step of a matrix unit where inputs are fp16."""
    linear(operation, tensors)
    if tensors.input.dtype is torch.float16:
        total = torch.zeros_like(tensors.output)
        for start in range(0, operation.in_features, _MATRIX_UNIT_DEPTH):
            part = slice(start, start + _MATRIX_UNIT_DEPTH)
            total += (tensors.input[..., part].float() @ tensors.weight[:, part].float().T).half()
        tensors.output.copy_(total if tensors.bias is None else total + tensors.bias)


def squares_in_fp16(operation: RmsNorm, tensors: RmsNormTensors) -> None:
    """Rounds squares to the inputs' dtype where that is fp16."""
    rows = tensors.input.float()
    squares = tensors.input**2 if tensors.input.dtype is torch.float16 else rows**2
    mean_square = squares.float().mean(dim=-1, keepdim=True)
    tensors.output.copy_(rows / (mean_square + operation.epsilon).sqrt() * tensors.weight.float())


@dataclass(frozen=True)
class Planted:
    """A bug.

    Attributes:
        operation: type of the operation.
        run: the flawed kernel.
        suite: whose check must see it.
        where: cases and dtypes of the default tier in which it must show, and in no other.
        says: what a reason must say; empty where the error budget says it.
        check: that must see it.
    """

    operation: type[TokenOperation]
    run: Callable[[Any, Any], None]
    suite: str
    where: frozenset[str]
    says: str = ""
    check: str = "normal"


def _in(*cases: str) -> frozenset[str]:
    return frozenset(cases)


PLANTED = (
    Planted(RotaryEmbedding, rotates_four_key_heads, "rope", _in("rope-llama3.2-1b-far:fp32")),
    Planted(
        RotaryEmbedding,
        computes_the_tail,
        "rope",
        _in(
            *(f"rope-gpt-j-6b:{dtype}" for dtype in ("fp32", "bf16")),
            *(f"rope-gpt-neox-20b:{dtype}" for dtype in ("fp32", "fp16")),
            *(f"rope-{case}-inverse-far:{dtype}" for case in ("glm-4", "phi-4-mini") for dtype in ("bf16", "fp16")),
        ),
        "behind rotary_dim",
    ),
    Planted(
        MergeStates,
        adds_the_dead_side,
        "dtype",
        _in("merge-llama3-8b:fp32", "merge-llama3-8b:bf16", "merge-phi-2:bf16", "merge-phi-2:fp16"),
        "run passed on other bits",
    ),
    Planted(
        MergeStates,
        passes_another_nan,
        "dtype",
        _in("merge-llama3-8b:fp32", "merge-llama3-8b:bf16", "merge-phi-2:bf16", "merge-phi-2:fp16"),
        "run passed on other bits",
    ),
    Planted(MergeStates, weighs_in_fp16, "dtype", _in("merge-phi-2:fp16")),
    Planted(Linear, accumulates_in_fp16, "dtype", _in("linear-llama3-8b-qkv:fp16")),
    Planted(RmsNorm, squares_in_fp16, "dtype", _in("rms_norm-llama3-8b:fp16"), check="huge_values"),
)


class Buggy(PlainOperation):
    """An implementation with a bug, judged as any user's: no control."""

    def __init__(self, planted: Planted) -> None:
        super().__init__(planted.operation)
        self.name, self._compute = planted.run.__name__, planted.run


def records_of(operation: TokenImplementation[Any, Any], suite: str, check: str = "normal") -> dict[str, Record]:
    """One check of an operation in the default tier: records by case and dtype."""
    executor = Executor(operation, CPU)
    records = [
        judge(cell, operation.probe(), executor, "command")
        for cell in SUITES[suite](Selection((operation,), (), "default"))
        if cell.implementation is operation and cell.relation.name == check
    ]
    return {f"{record.case}:{record.dtype}": record for record in records}


def red(records: dict[str, Record]) -> set[str]:
    return {case for case, record in records.items() if record.verdict is Verdict.FAIL}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.run.__name__)
def test_a_planted_bug_turns_its_cases_red(planted: Planted) -> None:
    records = records_of(Buggy(planted), planted.suite, planted.check)
    assert red(records) == planted.where, f"red are {sorted(red(records))} of {sorted(records)}"
    for case in planted.where:
        assert planted.says in " ".join(records[case].reasons), f"{case} says {records[case].reasons}"


@pytest.mark.parametrize(
    ("parent", "suite"),
    [
        (_ROTATE, "rope"),
        (_MERGE, "dtype"),
        (PlainOperation(RotaryEmbedding), "rope"),
        (PlainOperation(MergeStates), "dtype"),
        (PlainOperation(Linear), "dtype"),
        (PlainOperation(RmsNorm), "dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.name}-{value.operation}",
)
def test_a_correct_parent_passes(parent: TokenImplementation[Any, Any], suite: str) -> None:
    records = records_of(parent, suite)
    assert records, f"{suite} has no cell of {parent.label}"
    assert not red(records), f"a correct kernel failed {[records[case].reasons for case in red(records)]}"
