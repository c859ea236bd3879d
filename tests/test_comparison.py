"""Bits are compared as bytes, and a difference says where, what and how far."""

from __future__ import annotations

import math

import pytest
import torch

from samebits.harness.comparison import compare_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neighbouring_numbers_are_one_unit_apart(dtype: torch.dtype) -> None:
    left = torch.tensor([1.0, -1.0, 0.0, 1.0], dtype=dtype)
    right = torch.nextafter(left.float(), torch.tensor(9.0)).to(dtype) if dtype is torch.float32 else None
    if right is None:
        right = (left.view(torch.int16) + torch.tensor([1, -1, 1, 0], dtype=torch.int16)).view(dtype)
    difference = compare_bits(left, right)
    assert (difference.mismatches, difference.max_ulp) == ((4, 1) if dtype is torch.float32 else (3, 1))


def test_minus_zero_is_not_zero() -> None:
    difference = compare_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert difference.mismatches == 1, "0.0 and -0.0 were taken for the same bits"
    assert difference.max_ulp == 1


def test_nan_payloads_count() -> None:
    left = torch.tensor([0x7FC00000, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    right = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    difference = compare_bits(left, right)
    assert difference.mismatches == 1, (
        "two NaN of other payloads were taken for the same bits, or equal ones for others"
    )
    assert difference.first == (1,)
    assert difference.first_ulp is None, "a distance was given between two NaN"


def test_the_first_difference_is_named_with_both_values() -> None:
    left = torch.zeros(2, 3, 4)
    right = left.clone()
    right[1, 0, 2] = 5.0
    right[1, 2, 3] = math.nan
    difference = compare_bits(left, right)
    assert difference.mismatches == 2
    assert difference.first == (1, 0, 2)
    assert (difference.left, difference.right) == (0.0, 5.0)
    assert difference.compared == 24


def test_strided_tensors_are_compared_by_their_elements() -> None:
    left = torch.arange(12.0).view(3, 4).t()
    assert compare_bits(left, left.contiguous()).mismatches == 0


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) torch.float32 and \(3,\)"):
        compare_bits(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_distance_next_to_zero_is_measured_in_the_units_of_its_row(dtype: torch.dtype) -> None:
    """Where large terms cancel, what is left differs by many of its own units and by few of those that were rounded."""
    eps = torch.finfo(dtype).eps
    left = torch.ones(3, 64, dtype=dtype)
    right = left.clone()
    left[1, 5], right[1, 5] = 2 * eps, -eps
    difference = compare_bits(left, right)
    assert difference.first_ulp is not None
    assert difference.first_ulp > 100, "the first difference is told in its own units"
    # A row whose root mean square is just below 1 has units of eps / 2.
    assert difference.max_ulp == 6, f"{difference.max_ulp} units of the row, of which eps is two"


def test_a_large_difference_is_measured_in_its_own_units() -> None:
    left = torch.full((2, 64), 1.0)
    right = left.clone()
    right[0, 0] = 2.0
    assert compare_bits(left, right).max_ulp == 2**22, "2 - 1 in units of 2"


@pytest.mark.parametrize("values", [(math.inf, 1.0), (math.inf, -math.inf), (0.0, -0.0), (1e-45, 0.0)])
def test_any_difference_of_numbers_is_at_least_one_unit(values: tuple[float, float]) -> None:
    left, right = (torch.tensor([[value, 1.0, math.nan]]) for value in values)
    assert compare_bits(left, right).max_ulp >= 1


def test_a_number_beside_nan_has_no_distance() -> None:
    difference = compare_bits(torch.tensor([[math.nan, 1.0]]), torch.tensor([[2.0, 1.0]]))
    assert (difference.mismatches, difference.max_ulp, difference.first_ulp) == (1, 0, None)
