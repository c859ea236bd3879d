"""Operations on tokens as several test modules need them: who computes them, tensors, and how results are compared."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from typing import Any

import pytest
import torch

from samebits.backends import cpu_operations, triton_operations
from samebits.backends.contract import DTYPES
from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    RotaryTensors,
    TokenImplementation,
    TokenTensors,
)
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding, TokenOperation
from samebits.harness.reference import budget_used

AnyToken = TokenImplementation[Any, Any]

CPU = torch.device("cpu")
UNIT = 2.0**-24  # half a unit in the last place of a float32 of 1
NAN = float("nan")
EVERY: tuple[AnyToken, ...] = (*cpu_operations.operations(), *triton_operations.operations())
BUNDLED = tuple(each for each in EVERY if each.name == "bundled")
# Those that may compute on another device than the host's, where values cannot be looked at without waiting.
ON_ANY_DEVICE = tuple(each for each in EVERY if each.label != "CPU/bundled")

each_dtype = pytest.mark.parametrize("dtype", list(DTYPES))
in_two_dtypes = pytest.mark.parametrize("dtype", ["fp32", "bf16"])
# The interpreter's numpy tells of infinities and NaN, which padding and sides that saw no key may hold.
interpreted_quietly = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
MARKS = [pytest.mark.usefixtures("one_thread"), interpreted_quietly]

# One small problem of each operation; see `tensors_of`.
OPERATIONS: dict[str, TokenOperation] = {
    "rope": RotaryEmbedding("test", 2, 1, 32, 32),
    "cache_write": CacheWrite("test", 1, 32, 4),
    "merge": MergeStates("test", 2, 32),
    "linear": Linear("test", 32, 8, bias=True),
    "rms_norm": RmsNorm("test", 32),
}


def each_of(operation: str, among: tuple[AnyToken, ...] = EVERY) -> pytest.MarkDecorator:
    """Runs a test with each implementation of an operation."""
    chosen = [each for each in among if each.operation == operation]
    return pytest.mark.parametrize("implementation", chosen, ids=lambda each: each.label)


def device_of(implementation: AnyToken) -> torch.device:
    """Where an implementation computes."""
    return torch.device(implementation.probe().device)


def on_the_host(implementation: AnyToken) -> None:
    """Skips a test whose memory is reserved on the host where an implementation computes elsewhere."""
    if device_of(implementation) != CPU:
        pytest.skip(f"{implementation.label} computes on {device_of(implementation)}; the memory is the host's")


def drawn(*shape: int, dtype: str = "fp32", seed: int = 0, device: torch.device = CPU) -> torch.Tensor:
    """Normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype]).to(device)


def rotary_cache(max_position: int, rotary_dim: int, dtype: str = "fp32", device: torch.device = CPU) -> torch.Tensor:
    """Cosines, then sines, of every position."""
    positions, frequencies = torch.arange(max_position).double(), torch.linspace(0, 0.9, rotary_dim // 2).double()
    angles = torch.outer(positions, 10000.0**-frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(DTYPES[dtype]).to(device)


def tensors_of(operation: str, tokens: int, dtype: str = "fp32", device: torch.device = CPU) -> TokenTensors:
    """Tensors for one of `OPERATIONS`, every element of every output 0."""
    heads, one_head, row = (drawn(tokens, *shape, dtype=dtype, device=device) for shape in ((2, 32), (1, 32), (32,)))
    weight, bias = drawn(8, 32, dtype=dtype, device=device), drawn(8, dtype=dtype, device=device)
    lse, numbers = drawn(2, tokens, device=device), torch.arange(tokens, device=device)
    match operation:
        case "rope":
            return RotaryTensors(heads, one_head, numbers, rotary_cache(max(tokens, 16), 32, dtype, device))
        case "cache_write":
            cache = row.new_zeros(tokens // 4 + 1, 4, 1, 32)
            return CacheWriteTensors(one_head, one_head, cache, cache.clone(), numbers)
        case "merge":
            return MergeTensors(heads, lse, heads.flip(1), lse.flip(0), torch.zeros_like(heads), torch.zeros_like(lse))
        case "linear":
            return LinearTensors(row, weight, bias, row.new_zeros(tokens, 8))
        case _:
            return RmsNormTensors(row, weight[0], torch.zeros_like(row))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as integers of their width."""
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor, difference: str) -> None:
    """Fails with what was done and how many elements differ."""
    assert found.shape == expected.shape, f"{difference}: shape {tuple(found.shape)} is not {tuple(expected.shape)}"
    differing = (bits(found) != bits(expected)).flatten().nonzero()
    assert not len(differing), (
        f"{difference}: {len(differing)} of {found.numel()} elements differ, the first is {int(differing[0])}"
    )


def assert_within(actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> None:
    """Fails where an element, before it was rounded, is further off than its bound."""
    used = budget_used(actual, expected, bound + torch.finfo(actual.dtype).tiny)
    worst = used.argmax()
    assert used.max() <= 1, (
        f"element {int(worst)} is {actual.flatten()[worst].item()!r} and not {expected.flatten()[worst].item()!r}, "
        f"{float(used.max()):.2f} times as far off as allowed before rounding"
    )


def inside(values: torch.Tensor, *margins: int) -> torch.Tensor:
    """A copy in a larger tensor of NaN, longer by a margin in each dimension."""
    shape = [size + margin for size, margin in zip(values.shape, margins, strict=True)]
    larger = torch.full(shape, NAN, dtype=values.dtype, device=values.device)
    return larger[tuple(slice(0, size) for size in values.shape)].copy_(values)


def assert_nothing_outside(view: torch.Tensor, name: str) -> None:
    """Fails where the tensor of NaN that a view is part of holds anything else outside of it; clears the view."""
    view.fill_(NAN)
    assert view._base is not None, f"{name} is not a view"
    assert view._base.isnan().all(), f"something was written outside of {name}"


def far_apart(rows: torch.Tensor, stride: int) -> torch.Tensor:
    """The same rows so far apart that an offset of 32 bits does not reach the last, and would wrap around to zeros."""
    assert (rows.shape[0] - 1) * stride >= 1 << 31, f"the furthest row is {(rows.shape[0] - 1) * stride} away"
    # As much memory before the rows as after, of which only what is written takes room.
    elements = 2 * rows.shape[0] * stride
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = torch.frombuffer(mmap.mmap(-1, rows.element_size() * elements, flags=flags), dtype=rows.dtype)
    return memory.as_strided(rows.shape, (stride, *rows.stride()[1:]), rows.shape[0] * stride).copy_(rows)


def computed(shape: tuple[int, ...], like: torch.Tensor, compute: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """A contiguous output that is all NaN before, with memory behind it that must stay as it is."""
    size, guard = math.prod(shape), 64
    allocation = torch.full((size + guard,), NAN, dtype=like.dtype, device=like.device)
    output = allocation[:size].view(shape)
    compute(output)
    assert allocation[size:].isnan().all(), "something was written behind the output"
    return output


def linear_of(
    implementation: AnyToken, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The output of a linear layer."""
    operation = Linear("test", weight.shape[1], len(weight), bias is not None)
    return computed(
        (*rows.shape[:-1], len(weight)),
        rows,
        lambda output: implementation.run(operation, LinearTensors(rows, weight, bias, output)),
    )


def norm_of(implementation: AnyToken, rows: torch.Tensor, weight: torch.Tensor, epsilon: float = 0.01) -> torch.Tensor:
    """Rows that are normalised."""
    operation = RmsNorm("test", rows.shape[-1], epsilon)
    return computed(
        tuple(rows.shape),
        rows,
        lambda output: implementation.run(operation, RmsNormTensors(rows, weight, output)),
    )
