"""What controls lose of a tensor: its lower bits, its smallest numbers, or those that are none."""

from __future__ import annotations

from collections.abc import Callable

import torch


def through(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rounds a float32 tensor to a narrower dtype and back."""
    return lambda tensor: tensor.to(dtype).float()


def tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Rounds a float32 tensor to the 10 bits of fraction that TF32 has."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def flushed_early(values: torch.Tensor) -> torch.Tensor:
    """Takes for 0 what is below 2^16 times the smallest normal number: 7.7e-34 in float32."""
    return values.masked_fill(values.abs() < torch.finfo(values.dtype).tiny * 2.0**16, 0.0)


def without_nan(values: torch.Tensor) -> torch.Tensor:
    """Takes NaN for 0, and leaves infinities."""
    return values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def clamped(values: torch.Tensor) -> torch.Tensor:
    """Takes infinities for the largest numbers, and leaves NaN."""
    largest = torch.finfo(values.dtype).max
    return values.clamp(-largest, largest)
