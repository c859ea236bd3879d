"""Bits that arithmetic may not keep, planted in what an operation must pass on as it is."""

from __future__ import annotations

import torch

# -0.0; the smallest number of all; a NaN that signals, and a negative one that is quiet, each with a payload of its
# own; both infinities; the largest number; the next smaller one, negative.
_EASILY_LOST = {
    torch.float32: (0x80000000, 0x00000001, 0x7F812345, 0xFFC12345, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFE),
    torch.bfloat16: (0x8000, 0x0001, 0x7F85, 0xFFC5, 0x7F80, 0xFF80, 0x7F7F, 0xFF7E),
    torch.float16: (0x8000, 0x0001, 0x7C05, 0xFE05, 0x7C00, 0xFC00, 0x7BFF, 0xFBFE),
}
_INTEGERS = {4: torch.int32, 2: torch.int16}


def plant_easily_lost(values: torch.Tensor) -> torch.Tensor:
    """Puts what a copy by way of arithmetic may lose into the first elements of each row: as many as there is room for.

    Args:
        values: `[..., width]` in fp32, bf16 or fp16, written in place.

    Returns:
        The same tensor.
    """
    width = values.shape[-1]
    patterns = torch.tensor(_EASILY_LOST[values.dtype][:width]).to(_INTEGERS[values.element_size()])
    values[..., : len(patterns)] = patterns.view(values.dtype).to(values.device)
    return values
