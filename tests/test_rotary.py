"""Rotary embedding in place: values against float64, bits, memory, and positions that the cache does not hold."""

from __future__ import annotations

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import RotaryImplementation, RotaryTensors
from samebits.backends.token_problem import RotaryEmbedding
from samebits.harness.allocations import total_allocated

from .token_operations import (
    BUNDLED,
    CPU,
    MARKS,
    ON_ANY_DEVICE,
    UNIT,
    AnyToken,
    assert_same_bits,
    assert_within,
    device_of,
    drawn,
    each_dtype,
    each_of,
    far_apart,
    on_the_host,
    rotary_cache,
)

pytestmark = MARKS


def turned(heads: torch.Tensor, rows: torch.Tensor, operation: RotaryEmbedding) -> tuple[torch.Tensor, torch.Tensor]:
    """Heads rotated pair by pair as complex numbers in float64, and the magnitude of what each element adds up."""
    half = operation.rotary_dim // 2
    result, magnitude = heads.double(), torch.zeros(heads.shape, dtype=torch.float64)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if operation.interleaved else (i, half + i)
        sine = -rows[:, None, half + i] if operation.inverse else rows[:, None, half + i]
        turn = torch.complex(rows[:, None, i].double(), sine.double())
        point = torch.complex(heads[..., a].double(), heads[..., b].double()) * turn
        result[..., a], result[..., b] = point.real, point.imag
        for element, other in ((a, b), (b, a)):
            magnitude[..., element] = (heads[..., element].double() * turn.real).abs()
            magnitude[..., element] += (heads[..., other].double() * turn.imag).abs()
    return result, magnitude


@each_of("rope")
@each_dtype
@pytest.mark.parametrize("cache_is_float32", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("rotary_dim", "inverse"), [(80, False), (26, True)])
def test_the_pairs_of_a_packed_projection_are_turned_and_nothing_else(
    implementation: AnyToken, dtype: str, cache_is_float32: bool, interleaved: bool, rotary_dim: int, inverse: bool
) -> None:
    operation = RotaryEmbedding("test", 4, 2, 80, rotary_dim, interleaved, inverse)
    before, device = drawn(9, 4 + 2 + 2, 80, dtype=dtype), device_of(implementation)
    cache = rotary_cache(64, rotary_dim, "fp32" if cache_is_float32 else dtype)
    positions = torch.tensor([3, 0, 63, 7, 7, 1, 40, 2, 0])
    there = before.clone().to(device)
    tensors = RotaryTensors(there[:, :4], there[:, 4:6], positions.to(device), cache.to(device))
    implementation.run(operation, tensors)
    packed = there.to(CPU)
    expected, magnitude = turned(before[:, :6], cache[positions], operation)
    assert_within(packed[:, :6], expected, 2 * UNIT * magnitude)
    assert_same_bits(packed[..., rotary_dim:], before[..., rotary_dim:], "elements from rotary_dim on were changed")
    assert_same_bits(packed[:, 6:], before[:, 6:], "the values beside the keys were changed")


@each_of("rope")
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("cache_dtype", ["fp32", "bf16"])
def test_rotation_is_two_products_and_a_sum_in_float32_and_one_rounding(
    implementation: AnyToken, cache_dtype: str, interleaved: bool, inverse: bool
) -> None:
    device = device_of(implementation)
    query = drawn(9, 3, 20, dtype="bf16", device=device)
    key = drawn(9, 1, 20, dtype="bf16", seed=1, device=device)
    cache = drawn(50, 12, dtype=cache_dtype, seed=2, device=device)
    positions = torch.tensor([4, 0, 49, 7, 7, 3, 48, 1, 0], device=device)
    cosine, sine = cache[positions].float().unsqueeze(1).chunk(2, dim=2)
    sine = -sine if inverse else sine
    expected = []
    for heads in (query, key):
        rotated = heads.clone()
        places = (slice(0, 12, 2), slice(1, 12, 2)) if interleaved else (slice(0, 6), slice(6, 12))
        first, second = (heads[..., place].float() for place in places)
        rotated[..., places[0]] = (first * cosine - second * sine).bfloat16()
        rotated[..., places[1]] = (second * cosine + first * sine).bfloat16()
        expected.append(rotated)
    operation = RotaryEmbedding("test", 3, 1, 20, 12, interleaved, inverse)
    implementation.run(operation, RotaryTensors(query, key, positions, cache))
    assert_same_bits(query, expected[0], "queries")
    assert_same_bits(key, expected[1], "keys")


@each_of("rope")
def test_the_last_position_of_a_long_context_has_its_own_row_of_the_cache(implementation: AnyToken) -> None:
    device = device_of(implementation)
    cache = torch.zeros(131072, 8, device=device)
    cache[131071, :4] = 1.0
    query, key = drawn(1, 2, 8, device=device), drawn(1, 1, 8, seed=1, device=device)
    kept = query.clone()
    tensors = RotaryTensors(query, key, torch.tensor([131071], device=device), cache)
    implementation.run(RotaryEmbedding("test", 2, 1, 8, 8), tensors)
    assert_same_bits(query, kept, "queries turned by an angle of 0")


@each_of("rope")
@each_dtype
def test_nothing_of_the_caches_size_is_allocated(implementation: AnyToken, dtype: str) -> None:
    operation, device = RotaryEmbedding("test", 2, 1, 64, 64, max_position=131072), device_of(implementation)
    there = rotary_cache(131072, 64, dtype, device)
    converted = total_allocated(lambda: there.to(torch.float64), device)
    assert converted >= there.nbytes, f"the meter reads {converted} bytes where the cache is converted"
    query, key = drawn(5, 2, 64, dtype=dtype, device=device), drawn(5, 1, 64, dtype=dtype, seed=1, device=device)
    positions = torch.tensor([131071, 0, 65536, 131070, 99], device=device)
    expected, magnitude = turned(query.to(CPU), there[positions].to(CPU), operation)
    tensors = RotaryTensors(query, key, positions, there)
    allocated = total_allocated(lambda: implementation.run(operation, tensors), device)
    assert allocated < there.nbytes // 100, f"run allocated {allocated} bytes beside a cache of {there.nbytes}"
    assert_within(query.to(CPU), expected, 2 * UNIT * magnitude)


@each_of("rope", ON_ANY_DEVICE)
@each_dtype
@pytest.mark.parametrize("rotary_dim", [32, 12])
def test_what_is_at_no_position_of_the_cache_becomes_nan_where_nobody_can_refuse_it(
    implementation: AnyToken, dtype: str, rotary_dim: int
) -> None:
    """As on a GPU, whose values the host cannot look at without waiting: there `compute` is all that stands."""
    assert isinstance(implementation, RotaryImplementation)
    device, operation = device_of(implementation), RotaryEmbedding("test", 2, 1, 32, rotary_dim)
    # What lies before the cache and behind it are numbers, by which a token would be turned if they were read.
    memory = torch.ones(16 + 4 + 16, rotary_dim, dtype=DTYPES[dtype], device=device)
    memory[16:20] = rotary_cache(4, rotary_dim, dtype, device)
    query = drawn(5, 2, 32, dtype=dtype, device=device)
    key, before = query[:, :1].clone(), query.clone()
    positions = torch.tensor([3, -1, 4, 1 << 40, 0], device=device)
    implementation.compute(operation, RotaryTensors(query, key, positions, memory[16:20]))
    outside = positions.lt(0) | positions.ge(4)
    for name, heads in (("queries", query), ("keys", key)):
        rotated, rest = heads[..., :rotary_dim], heads[..., rotary_dim:]
        assert rotated[outside].isnan().all(), f"{name} at a position that the cache does not hold are numbers"
        assert not rotated[~outside].isnan().any(), f"{name} beside them became NaN"
        assert_same_bits(rest, before[:, : heads.shape[1], rotary_dim:], f"elements of {name} from rotary_dim on")


@each_of("rope", BUNDLED)
def test_offsets_of_rows_have_64_bits(implementation: AnyToken) -> None:
    on_the_host(implementation)
    heads = drawn(3, 2, 20, dtype="bf16")
    expected, found = heads.clone(), far_apart(heads, 1 << 30)
    cache = drawn(8, 20, seed=2)
    for query in (expected, found):
        tensors = RotaryTensors(query, heads.new_empty(3, 1, 20), torch.arange(3), cache)
        implementation.run(RotaryEmbedding("test", 2, 1, 20, 20), tensors)
    assert_same_bits(found, expected, "queries beyond 2**31 elements")
