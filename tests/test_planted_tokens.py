"""Bugs planted in operations on tokens, which the default tier sees, and their correct parents, which it does not."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
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
from samebits.harness.tokens.cases import token_cases
from samebits.harness.tokens.touched import tells_touched

from .judged_cells import records_of_check, red

pytestmark = pytest.mark.usefixtures("no_smallest_batch")
_ROTATE, _MERGE = TorchRotary("CPU", "cpu"), TorchMerge("CPU", "cpu")
# Products that a matrix unit adds before its sum meets the accumulator.
_MATRIX_UNIT_DEPTH = 16


def rotates_four_key_heads(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """As where the grid of the keys holds no more heads."""
    _ROTATE.compute(operation, replace(tensors, key=tensors.key[:, :4]))


def copies_what_lies_between(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """Of a cache only the rows from the first position to the last, which may be all of them."""
    if not len(tensors.positions):
        return
    first, last = int(tensors.positions.min()), int(tensors.positions.max())
    rows = tensors.cos_sin_cache[first : last + 1].clone()
    _ROTATE.compute(operation, replace(tensors, cos_sin_cache=rows, positions=tensors.positions - first))


def looks_up_whole_tiles(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """Right: four rows of the cache at a time, of which what has no token reads the first."""
    idle = tensors.positions.new_zeros(-len(tensors.positions) % 4)
    rows = tensors.cos_sin_cache.index_select(0, torch.cat([tensors.positions, idle]))[: len(tensors.positions)]
    places = torch.arange(len(tensors.positions))
    _ROTATE.compute(operation, replace(tensors, cos_sin_cache=rows.contiguous(), positions=places))


def computes_the_tail(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """As by cosines of 1 and sines of 0 behind rotary_dim: -0.0 becomes 0.0."""
    _ROTATE.compute(operation, tensors)
    for heads in (tensors.query, tensors.key):
        heads[..., operation.rotary_dim :] += 0.0


def _converted_by_numpy(cache: torch.Tensor) -> torch.Tensor:
    """A rotary cache in float32, of which torch's allocator knows nothing."""
    if cache.dtype is torch.bfloat16:
        return torch.from_numpy((cache.view(torch.int16).numpy().astype(np.int32) << 16).view(np.float32))
    return torch.from_numpy(cache.numpy().astype(np.float32))


def converts_by_numpy(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """Reads a float32 cache that numpy makes at each call."""
    _ROTATE.compute(operation, replace(tensors, cos_sin_cache=_converted_by_numpy(tensors.cos_sin_cache)))


def converts_by_numpy_row_by_row(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """Never has more than a few rows of it at once."""
    for rows in torch.split(tensors.cos_sin_cache, 8):
        _converted_by_numpy(rows)
    _ROTATE.compute(operation, tensors)


_KEPT: dict[Hashable, tuple[torch.Tensor, torch.Tensor]] = {}


def keeps_what_numpy_converted(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """Converts a cache once, and again only where its memory was written."""
    cache = tensors.cos_sin_cache
    looks = (cache.data_ptr(), cache.shape, cache.dtype, cache._version)
    if looks not in _KEPT:
        # With the cache itself, so that no other takes its place.
        _KEPT[looks] = (cache, _converted_by_numpy(cache))
    _ROTATE.compute(operation, replace(tensors, cos_sin_cache=_KEPT[looks][1]))


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


def _every_case_of(operation: type[TokenOperation]) -> frozenset[str]:
    cases = token_cases(operation.operation, "default")
    return frozenset(f"{case.case_id}:{dtype}" for case in cases for dtype in case.dtypes)


PLANTED = (
    Planted(RotaryEmbedding, rotates_four_key_heads, "rope", _in("rope-llama3.2-1b-far:fp32")),
    Planted(
        RotaryEmbedding,
        computes_the_tail,
        "rope",
        _in(
            *(f"rope-gpt-j-6b:{dtype}" for dtype in ("fp32", "bf16", "fp16")),
            *(f"rope-gpt-neox-20b:{dtype}" for dtype in ("fp32", "fp16")),
            *(f"rope-{case}-inverse-far:{dtype}" for case in ("glm-4", "phi-4-mini") for dtype in ("bf16", "fp16")),
        ),
        "behind rotary_dim",
    ),
    Planted(
        MergeStates,
        adds_the_dead_side,
        "dtype",
        _every_case_of(MergeStates),
        "run passed on other bits",
    ),
    Planted(
        MergeStates,
        passes_another_nan,
        "dtype",
        _every_case_of(MergeStates),
        "run passed on other bits",
    ),
    Planted(MergeStates, weighs_in_fp16, "dtype", _in("merge-phi-2:fp16")),
    Planted(Linear, accumulates_in_fp16, "dtype", _in("linear-llama3-8b-qkv:fp16", "linear-odd-qkv:fp16")),
    Planted(
        RmsNorm, squares_in_fp16, "dtype", _in("rms_norm-llama3-8b:fp16", "rms_norm-odd:fp16"), check="huge_values"
    ),
)


_CONVERSIONS = tuple(
    Planted(RotaryEmbedding, run, "rope", _every_case_of(RotaryEmbedding), "run touched", check="cache_in_place")
    for run in (converts_by_numpy, converts_by_numpy_row_by_row, keeps_what_numpy_converted)
)
_COPY_OF_SPAN = Planted(
    RotaryEmbedding, copies_what_lies_between, "rope", _every_case_of(RotaryEmbedding), "run ", check="cache_in_place"
)


class Buggy(PlainOperation):
    """An implementation with a bug, judged as any user's: no control."""

    def __init__(self, planted: Planted) -> None:
        super().__init__(planted.operation)
        self.name, self._compute = planted.run.__name__, planted.run


@pytest.mark.parametrize("planted", [*PLANTED, *_CONVERSIONS, _COPY_OF_SPAN], ids=lambda planted: planted.run.__name__)
def test_a_planted_bug_turns_its_cases_red(planted: Planted) -> None:
    if planted in _CONVERSIONS and not tells_touched():
        pytest.skip("this machine does not tell which of a process's memory was touched")
    records = records_of_check(planted.suite, Buggy(planted), planted.check)
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
    records = records_of_check(suite, parent, "normal")
    assert not red(records), f"a correct kernel failed {[records[case].reasons for case in red(records)]}"


def test_a_cache_may_be_read_where_no_token_needs_it() -> None:
    planted = Planted(RotaryEmbedding, looks_up_whole_tiles, "rope", frozenset())
    records = records_of_check("rope", Buggy(planted), "cache_in_place")
    assert not red(records), f"a correct kernel failed {[records[case].reasons for case in red(records)]}"
