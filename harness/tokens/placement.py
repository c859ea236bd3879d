"""Tensors placed in larger allocations of poison, so that a write outside of them shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from samebits.backends.token_problem import TokenProblem
from samebits.harness.batch import poison_value

# Elements around a contiguous tensor, and beside each row of a strided one: whole vectors, so that alignment stays.
_MARGIN = 64


@dataclass(frozen=True)
class Placed:
    """A tensor inside of a larger allocation.

    Attributes:
        tensor: what an implementation is given: a view.
        allocation: what it is a view of.
        writable: bool, of the allocation's shape: what the implementation may write.
        before: the allocation as it was.
    """

    tensor: torch.Tensor
    allocation: torch.Tensor
    writable: torch.Tensor
    before: torch.Tensor

    def intact(self) -> bool:
        """Whether nothing changed outside of what may be written."""
        kept = ~self.writable
        return torch.equal(_bits(self.allocation)[kept], _bits(self.before)[kept])


def place(values: torch.Tensor, problem: TokenProblem, *, contiguous: bool = False) -> Placed:
    """Copies a tensor into an allocation of poison.

    Args:
        values: `[num_tokens, ...]`, on the device where the allocation goes.
        problem: whose layout says whether rows are further apart than they are long, as in a packed projection, and
            what the rest of the allocation holds; its circumstances say how far behind the start the tensor lies.
        contiguous: whether the tensor is so whatever the layout.
    """
    width = math.prod(values.shape[1:])
    before = _MARGIN + problem.circumstances.shift // values.element_size()
    row_stride = width + 2 * _MARGIN if problem.layout.strided and not contiguous else width
    allocation = torch.full(
        (before + values.shape[0] * row_stride + _MARGIN,),
        poison_value(problem.layout.poison),
        dtype=values.dtype,
        device=values.device,
    )

    def view_of(whole: torch.Tensor) -> torch.Tensor:
        rows_of = whole[before : whole.shape[0] - _MARGIN].view(values.shape[0], row_stride)
        return rows_of[:, row_stride - width :].view(values.shape)

    view_of(allocation).copy_(values)
    writable = torch.zeros(allocation.shape, dtype=torch.bool, device=values.device)
    view_of(writable).fill_(True)
    return Placed(view_of(allocation), allocation, writable, allocation.clone())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)
