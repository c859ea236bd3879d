"""Tensors placed in larger allocations of poison, so that a write outside of them shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samebits.backends.problem import Strides
from samebits.backends.token_problem import TokenProblem
from samebits.harness.batch import poison_value
from samebits.harness.comparison import same_bits
from samebits.harness.strides import span, strides_of

# Elements before and behind a tensor: whole vectors, so that alignment stays.
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
        # To pick elements would cost many times what it costs to compare all.
        return same_bits(torch.where(self.writable, self.before, self.allocation), self.before)


def place(values: torch.Tensor, problem: TokenProblem, *, second: bool = False, contiguous: bool = False) -> Placed:
    """Copies a tensor into an allocation of poison.

    Args:
        values: any shape, on the device where the allocation goes.
        problem: whose layout says how the tensor is strided and what the rest of the allocation holds; its
            circumstances say how far behind the start the tensor lies.
        second: whether the tensor is the second of its pair.
        contiguous: whether the tensor is so whatever the layout.
    """
    kind = Strides.CONTIGUOUS if contiguous else problem.layout.strides
    strides = strides_of(values.shape, kind, second=second)
    before = _MARGIN + problem.circumstances.shift // values.element_size()
    allocation = torch.full(
        (before + span(values.shape, problem.layout.strides) + _MARGIN,),
        poison_value(problem.layout.poison),
        dtype=values.dtype,
        device=values.device,
    )

    def view_of(whole: torch.Tensor) -> torch.Tensor:
        return whole.as_strided(values.shape, strides, before)

    view_of(allocation).copy_(values)
    writable = torch.zeros(allocation.shape, dtype=torch.bool, device=values.device)
    view_of(writable).fill_(True)
    return Placed(view_of(allocation), allocation, writable, allocation.clone())
