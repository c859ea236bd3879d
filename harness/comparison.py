"""Bits compared as bytes, and a difference explained: how many, where first, which values, how far apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_INTEGERS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Difference:
    """How two tensors of one shape and dtype differ.

    Attributes:
        compared: elements compared.
        mismatches: elements whose bytes differ.
        max_ulp: largest distance in units in the last place among elements that are numbers on both sides.
        first: index of the first element that differs; empty where none does.
        left, right: its two values.
        first_ulp: their distance; None where one of them is NaN.
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
    left_bits, right_bits = _bits(left), _bits(right)
    differs = left_bits != right_bits
    mismatches = int(differs.sum())
    if not mismatches:
        return Difference(compared=left.numel())
    distance = (_ordered(left_bits) - _ordered(right_bits)).abs()
    distance = distance.masked_fill(left.isnan() | right.isnan(), -1)
    flat = int(differs.flatten().to(torch.uint8).argmax())
    first = tuple(int(index) for index in torch.unravel_index(torch.tensor(flat), left.shape))
    first_ulp = int(distance.flatten()[flat])
    return Difference(
        compared=left.numel(),
        mismatches=mismatches,
        max_ulp=max(0, int(distance.max())),
        first=first,
        left=left[first].item(),
        right=right[first].item(),
        first_ulp=None if first_ulp < 0 else first_ulp,
    )


def ulp_distance(actual: torch.Tensor, expected: torch.Tensor, counted: torch.Tensor) -> int:
    """Largest distance from a reference in units in the last place, among numbers that are counted.

    Args:
        actual: floating tensor.
        expected: float64 tensor of the same shape; it is rounded to `actual`'s dtype first.
        counted: bool, same shape. Next to 0, where units in the last place vanish, a distance in them says nothing.
    """
    rounded = expected.to(actual.dtype)
    distance = (_ordered(_bits(actual)) - _ordered(_bits(rounded))).abs()
    distance = distance.masked_fill(actual.isnan() | rounded.isnan() | ~counted, 0)
    return int(distance.max()) if distance.numel() else 0


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def _ordered(bits: torch.Tensor) -> torch.Tensor:
    """Maps sign-magnitude bit patterns to int64 in numerical order: -0.0 and 0.0 are neighbours, one apart."""
    magnitude_mask = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ magnitude_mask, bits).to(torch.int64)
