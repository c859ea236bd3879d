"""A linear layer: values against float64, and a row's bits beside any others and through any strides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from samebits.backends.triton_operations import LinearConfiguration, TritonLinear

from .token_operations import (
    BUNDLED,
    MARKS,
    NAN,
    UNIT,
    AnyToken,
    assert_same_bits,
    assert_within,
    device_of,
    drawn,
    each_dtype,
    each_of,
    far_apart,
    in_two_dtypes,
    inside,
    linear_of,
    on_the_host,
)

pytestmark = MARKS

# Small wherever it runs, so that small layers have several tiles and chunks.
SMALL_CHUNK = 32
SMALL = LinearConfiguration(16, 32, feature_tile=16, feature_chunk=SMALL_CHUNK, num_warps=4, num_stages=1)
SMALL_TRITON = TritonLinear(SMALL)


@each_of("linear")
@each_dtype
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), [(1, 1), (50, 7), (512, 64), (1090, 81), (0, 3)])
def test_values_are_within_the_error_of_float32_sums(
    implementation: AnyToken, dtype: str, has_bias: bool, in_features: int, out_features: int
) -> None:
    device = device_of(implementation)
    given = drawn(37, in_features, dtype=dtype, device=device)
    weight = drawn(out_features, in_features, dtype=dtype, seed=1, device=device)
    bias = drawn(out_features, dtype=dtype, seed=2, device=device) if has_bias else None
    expected = given.double() @ weight.double().T
    products = given.double().abs() @ weight.double().abs().T
    if bias is not None:
        expected, products = expected + bias.double(), products + bias.double().abs()
    # Errors of a sum grow with the root of its length: Higham and Mary, "A new approach to probabilistic rounding error
    # analysis", 2019.
    bound = 4 * UNIT * math.sqrt(in_features + 2) * products
    assert_within(linear_of(implementation, given, weight, bias), expected, bound)


@each_of("linear")
@each_dtype
def test_a_strided_input_of_three_leading_dimensions_has_its_rows_in_place(
    implementation: AnyToken, dtype: str
) -> None:
    device = device_of(implementation)
    wide = drawn(3, 5, 2, 90, dtype=dtype, device=device).transpose(0, 1)[..., 7:57]
    weight = drawn(9, 50, dtype=dtype, seed=1, device=device)
    bias = drawn(9, dtype=dtype, seed=2, device=device)
    given = linear_of(implementation, wide, weight, bias)
    flat = linear_of(implementation, wide.reshape(30, 50), weight, bias)
    assert_same_bits(given.flatten(0, 2), flat, "the same rows in one dimension have other bits")


@each_of("linear", (*BUNDLED, SMALL_TRITON))
@in_two_dtypes
def test_leading_dimensions_of_any_strides_give_the_same_bits(implementation: AnyToken, dtype: str) -> None:
    device = device_of(implementation)
    rows, weight = drawn(24, 45, dtype=dtype, device=device), drawn(30, 45, dtype=dtype, seed=1, device=device)
    expected = linear_of(implementation, rows, weight)
    for name, view in views_of(rows).items():
        found = linear_of(implementation, view, weight).flatten(0, -2)
        assert_same_bits(found, expected, f"{name}: strides {view.stride()}")
    repeated = linear_of(implementation, rows[:1].expand(7, -1), weight)
    assert_same_bits(repeated, expected[:1].expand(7, -1), "one row seen 7 times")


def views_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same 24 rows of 45, seen through several leading dimensions."""
    # Starts at an odd element, and rows are an odd number of elements apart: nothing can be loaded in one piece.
    odd = inside(torch.nn.functional.pad(rows, (1, 0)), 0, 3)[:, 1:]
    return {
        "one apart": odd,
        "two": rows.view(4, 6, 45),
        "two apart": odd.view(4, 6, 45),
        "three": rows.view(2, 3, 4, 45),
        "three of which one is 1": rows.view(3, 1, 8, 45),
        "three apart": inside(rows.view(4, 3, 2, 45), 0, 1, 3, 2),
        "three transposed": rows.view(2, 3, 4, 45).permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
    }


@each_of("linear", BUNDLED)
@each_dtype
def test_a_row_has_the_same_bits_in_any_number_of_rows(implementation: AnyToken, dtype: str) -> None:
    device = device_of(implementation)
    given, weight, bias = (
        drawn(600, 530, dtype=dtype, device=device),
        drawn(70, 530, dtype=dtype, seed=1, device=device),
        drawn(70, dtype=dtype, seed=2, device=device),
    )
    whole = linear_of(implementation, given, weight, bias)
    for rows in (*range(1, 36), 63, 64, 65, 599):
        first = 600 - rows
        part = linear_of(implementation, given[first:], weight, bias)
        assert_same_bits(part, whole[first:], f"the last {rows} of 600 rows have other bits by themselves")
    poisoned = given.clone()
    poisoned[::2] = NAN
    kept = linear_of(implementation, poisoned, weight, bias)[1::2]
    assert_same_bits(kept, whole[1::2], "rows between rows of NaN have other bits")


@each_of("linear", BUNDLED)
@each_dtype
def test_a_feature_is_computed_alike_beside_any_others(implementation: AnyToken, dtype: str) -> None:
    device = device_of(implementation)
    given, weight = drawn(5, 100, dtype=dtype, device=device), drawn(130, 100, dtype=dtype, seed=1, device=device)
    whole = linear_of(implementation, given, weight)
    for features in (1, 15, 16, 17, 63, 64, 65):
        part = linear_of(implementation, given, weight[-features:])
        assert_same_bits(part, whole[:, -features:], f"the last {features} features have other bits by themselves")


@each_of("linear")
def test_the_bias_is_added_before_the_rounding(implementation: AnyToken) -> None:
    # 256 + 1 is not representable in bfloat16, and 257 + 1 is 258 if it was not rounded to 256 before.
    rows = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16, device=device_of(implementation))
    weight, bias = torch.ones_like(rows), rows[0, 1:]
    found = linear_of(implementation, rows, weight, bias).item()
    assert found == 258.0, f"it is {found}: the product was rounded before the bias was added"


@each_of("linear", BUNDLED)
def test_offsets_of_rows_have_64_bits(implementation: AnyToken) -> None:
    on_the_host(implementation)
    rows, weight = drawn(3, 40, dtype="bf16"), drawn(24, 40, dtype="bf16", seed=1)
    found = linear_of(implementation, far_apart(rows, 1 << 30), weight)
    assert_same_bits(found, linear_of(implementation, rows, weight), "rows beyond 2**31 elements")


@in_two_dtypes
def test_no_shape_of_a_triton_tile_changes_a_bit(dtype: str) -> None:
    device = device_of(SMALL_TRITON)
    rows, weight = drawn(70, 150, dtype=dtype, device=device), drawn(90, 150, dtype=dtype, seed=1, device=device)
    bias = drawn(90, dtype=dtype, device=device)
    expected = linear_of(SMALL_TRITON, rows, weight, bias)
    for shape in ({"block_rows": 64}, {"block_rows": 128}, {"block_columns": 16}, {"block_columns": 128}):
        found = linear_of(TritonLinear(replace(SMALL, **shape)), rows, weight, bias)
        assert_same_bits(found, expected, f"tiles of {shape}")


def test_triton_adds_chunks_that_start_from_zero_in_ascending_order() -> None:
    """So that programs which share a row's chunks, and merge what they come to, may take the place of one."""
    device = device_of(SMALL_TRITON)
    rows, weight = drawn(5, 150, device=device), drawn(20, 150, seed=1, device=device)
    total = torch.zeros(5, 20, device=device)
    for start in range(0, 150, SMALL_CHUNK):
        chunk = slice(start, start + SMALL_CHUNK)
        total = total + linear_of(SMALL_TRITON, rows[:, chunk].contiguous(), weight[:, chunk].contiguous())
    assert_same_bits(linear_of(SMALL_TRITON, rows, weight), total, "the sum of 5 chunks")


@each_of("linear")
def test_a_layer_without_outputs_has_none(implementation: AnyToken) -> None:
    device = device_of(implementation)
    assert linear_of(implementation, torch.zeros(2, 5, device=device), torch.zeros(0, 5, device=device)).shape == (2, 0)


def test_a_sum_of_no_features_in_one_go_is_zero() -> None:
    in_one_go = TritonLinear(replace(SMALL, feature_chunk=None))
    assert not linear_of(in_one_go, torch.zeros(2, 0), torch.zeros(3, 0)).any()


def test_a_configuration_whose_tiles_do_not_fill_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="feature_chunk=100, which is not a multiple of feature_tile=16"):
        replace(SMALL, feature_chunk=100)
