"""Bits compared as bytes, and a difference explained: how many, where first, which values, how far apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Difference:
    """How two tensors of one shape and dtype differ.

    Attributes:
        compared: elements compared.
        mismatches: elements whose bytes differ.
        max_ulp: largest distance in units in the last place, among elements that are numbers on both sides; at least 1
            where one of them differs. An element that is smaller than the root mean square of its row, along the last
            dimension, is measured in the unit at that root mean square: next to 0, where large terms have cancelled,
            its own unit says nothing.
        first: index of the first element that differs; empty where none does.
        left, right: its two values.
        first_ulp: their distance in their own units, whatever their row; None where one of them is NaN.
    """

    compared: int
    mismatches: int = 0
    max_ulp: int = 0
    first: tuple[int, ...] = ()
    left: float = 0.0
    right: float = 0.0
    first_ulp: int | None = None

    def __str__(self) -> str:
        distance = "not a number" if self.first_ulp is None else f"{self.first_ulp} ULP apart"
        return f"{self.left!r} and {self.right!r}, {distance},"


def compare_bits(left: torch.Tensor, right: torch.Tensor) -> Difference:
    """Compares two tensors byte by byte: -0.0 is not 0.0, and NaN payloads count.

    Args:
        left: floating tensor.
        right: tensor of the same shape, dtype and device.

    Raises:
        ValueError: shape or dtype differ.
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        raise ValueError(
            f"compared tensors are {tuple(left.shape)} {left.dtype} and {tuple(right.shape)} {right.dtype}; "
            "they must have one shape and one dtype"
        )
    left_bits, right_bits = bits_of(left), bits_of(right)
    differs = left_bits != right_bits
    mismatches = int(differs.sum())
    if not mismatches:
        return Difference(compared=left.numel())
    distance = (_ordered(left_bits) - _ordered(right_bits)).abs()
    numbers = ~(left.isnan() | right.isnan())
    flat = int(differs.flatten().to(torch.uint8).argmax())
    # Torch's own imports its compiler, which takes a process a second.
    first = tuple(int(index) for index in np.unravel_index(flat, left.shape))
    return Difference(
        compared=left.numel(),
        mismatches=mismatches,
        max_ulp=int(_row_distance(left, right, distance).masked_fill(~(differs & numbers), 0).max()),
        first=first,
        left=left[first].item(),
        right=right[first].item(),
        first_ulp=int(distance[first]) if numbers[first] else None,
    )


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors of one shape, dtype and device hold the same bytes, of whatever strides."""
    return torch.equal(bits_of(left), bits_of(right))


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of each element of a tensor as a signed integer: a view of the same shape, strides and element size."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def ulp_counts(left: torch.Tensor, right: torch.Tensor) -> dict[str, int]:
    """How many elements are how far apart, in their own units in the last place: by powers of two, and apart from NaN.

    Args:
        left: floating tensor.
        right: tensor of the same shape and dtype.
    """
    numbers = ~(left.isnan() | right.isnan())
    distance = (_ordered(bits_of(left)) - _ordered(bits_of(right))).abs()[numbers]
    counts = {"0": int((distance == 0).sum())}
    low = 1
    while bool((distance >= low).any()):
        high = 2 * low - 1
        counts[str(low) if low == high else f"{low} to {high}"] = int(((distance >= low) & (distance <= high)).sum())
        low = high + 1
    not_numbers = int((~numbers).sum())
    return counts | ({"not a number": not_numbers} if not_numbers else {})


def ulp_distance(actual: torch.Tensor, expected: torch.Tensor, counted: torch.Tensor) -> int:
    """Largest distance from a reference in units in the last place, among numbers that are counted.

    Args:
        actual: floating tensor.
        expected: float64 tensor of the same shape; it is rounded to `actual`'s dtype first.
        counted: bool, same shape. Next to 0, where units in the last place vanish, a distance in them says nothing.
    """
    rounded = expected.to(actual.dtype)
    distance = (_ordered(bits_of(actual)) - _ordered(bits_of(rounded))).abs()
    distance = distance.masked_fill(actual.isnan() | rounded.isnan() | ~counted, 0)
    return int(distance.max()) if distance.numel() else 0


def _row_distance(left: torch.Tensor, right: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Distances in the unit of each element, or at the root mean square of its row where that is larger.

    Args:
        left: floating tensor.
        right: tensor of the same shape and dtype.
        distance: int64, same shape: in the unit of each element, which is kept where a side is infinite.

    Returns:
        int64, same shape: rounded up, and at least 1.
    """
    wide = torch.stack([left, right]).double()
    finite = wide.isfinite()
    magnitude = wide.abs().masked_fill(~finite, 0).amax(dim=0)
    root_mean_square = magnitude.square().mean(dim=-1, keepdim=True).sqrt()
    exponent = torch.frexp(torch.maximum(magnitude, root_mean_square)).exponent - 1
    number_format = torch.finfo(left.dtype)
    unit = torch.ldexp(torch.full_like(magnitude, number_format.eps), exponent)
    unit = unit.clamp(min=number_format.smallest_normal * number_format.eps)
    units = ((wide[0] - wide[1]).abs() / unit).ceil().clamp(min=1)
    return torch.where(finite.all(dim=0), units.nan_to_num().to(torch.int64), distance)


def _ordered(bits: torch.Tensor) -> torch.Tensor:
    """Maps sign-magnitude bit patterns to int64 in numerical order: -0.0 and 0.0 are neighbours, one apart."""
    magnitude_mask = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ magnitude_mask, bits).to(torch.int64)
