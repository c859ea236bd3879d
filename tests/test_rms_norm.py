"""RMSNorm: values against float64, the order of its sum, and a row's bits through any strides."""

from __future__ import annotations

import math

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.triton_operations import TritonRmsNorm

from .test_linear import views_of
from .token_operations import (
    BUNDLED,
    MARKS,
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
    norm_of,
    on_the_host,
)

pytestmark = MARKS


@each_of("rms_norm")
@each_dtype
@pytest.mark.parametrize("size", [1, 50, 512, 1090])
@pytest.mark.parametrize("scale", [1.0, 2.0**-12])
def test_values_are_within_the_error_of_float32(implementation: AnyToken, dtype: str, size: int, scale: float) -> None:
    device = device_of(implementation)
    given = drawn(11, size, dtype=dtype, device=device) * scale
    weight = drawn(size, dtype=dtype, seed=1, device=device)
    exact = given.double()
    expected = exact / (exact.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight.double()
    bound = (6 + 4 * math.sqrt(size)) * UNIT * expected.abs()
    assert_within(norm_of(implementation, given, weight, epsilon=1e-5), expected, bound)


@each_of("rms_norm")
@each_dtype
def test_a_strided_input_of_three_leading_dimensions_has_its_rows_in_place(
    implementation: AnyToken, dtype: str
) -> None:
    device = device_of(implementation)
    wide = drawn(3, 5, 2, 90, dtype=dtype, device=device).transpose(0, 1)[..., 7:57]
    weight = drawn(50, dtype=dtype, seed=1, device=device)
    given = norm_of(implementation, wide, weight)
    assert_same_bits(given.flatten(0, 2), norm_of(implementation, wide.reshape(30, 50), weight), "other bits flat")


@each_of("rms_norm", BUNDLED)
@in_two_dtypes
def test_leading_dimensions_of_any_strides_give_the_same_bits(implementation: AnyToken, dtype: str) -> None:
    device = device_of(implementation)
    rows, weight = drawn(24, 45, dtype=dtype, device=device), drawn(45, dtype=dtype, seed=1, device=device)
    expected = norm_of(implementation, rows, weight)
    for name, view in views_of(rows).items():
        found = norm_of(implementation, view, weight).flatten(0, -2)
        assert_same_bits(found, expected, f"{name}: strides {view.stride()}")
    repeated = norm_of(implementation, rows[:1].expand(7, -1), weight)
    assert_same_bits(repeated, expected[:1].expand(7, -1), "one row seen 7 times")


@each_of("rms_norm", BUNDLED)
def test_offsets_of_rows_have_64_bits(implementation: AnyToken) -> None:
    on_the_host(implementation)
    rows, weight = drawn(3, 40, dtype="bf16"), drawn(40, dtype="bf16", seed=1)
    found = norm_of(implementation, far_apart(rows, 1 << 30), weight)
    assert_same_bits(found, norm_of(implementation, rows, weight), "rows beyond 2**31 elements")


@in_two_dtypes
@pytest.mark.parametrize("size", [150, 16, 9])
def test_triton_adds_squares_by_lane_and_lanes_by_pairs(size: int, dtype: str) -> None:
    lanes = 16
    implementation = TritonRmsNorm(lanes)
    device = device_of(implementation)
    rows, weight = drawn(100, size, dtype=dtype, device=device), drawn(size, dtype=dtype, seed=1, device=device)
    wide = torch.nn.functional.pad(rows.float(), (0, -size % lanes))
    sums = torch.zeros(100, lanes, device=device)
    for start in range(0, size, lanes):
        sums = sums + wide[:, start : start + lanes] * wide[:, start : start + lanes]
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    factor = 1.0 / torch.sqrt(sums / size + 0.01)
    expected = (rows.float() * factor * weight.float()).to(DTYPES[dtype])
    assert_same_bits(norm_of(implementation, rows, weight), expected, f"rows of {size} by {lanes} lanes")
