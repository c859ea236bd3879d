"""Another layer, computed before the one that counts: what an implementation keeps of it must not show.

A cell computes one layer again and again, so that a weight, a sink, a rotary table or a plan that is remembered by its
sizes, by its address or from the first call would be the right one every time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, overload

import torch

from samebits.backends.problem import Circumstances, Problem
from samebits.backends.token_problem import TokenProblem

# What is copied aside at once: little beside a cache, and no launch for each of its pages.
_EXCHANGED_BYTES = 1 << 24


@overload
def other_layer(problem: Problem) -> Problem: ...
@overload
def other_layer(problem: TokenProblem) -> TokenProblem: ...
def other_layer(problem: Problem | TokenProblem) -> Problem | TokenProblem:
    """The same computation of another layer: other data, lengths in another order, other pages; every size the same.

    The other layer of the other layer is the problem itself. Nothing surrounds it: its circumstances are none.
    """
    other = replace(problem, seed=problem.seed ^ 1, circumstances=Circumstances())
    return other.with_requests(*problem.requests[::-1]).with_layout(page_seed=problem.layout.page_seed ^ 1)


def tensors_of(*owners: Any) -> list[torch.Tensor]:  # noqa: ANN401 -- dataclasses have no type of their own
    """The tensors that are fields of some dataclasses."""
    fields = (getattr(owner, field.name) for owner in owners for field in dataclasses.fields(owner))
    return [value for value in fields if isinstance(value, torch.Tensor)]


@contextmanager
def filled_with(values: Sequence[torch.Tensor], memory: Sequence[torch.Tensor]) -> Iterator[None]:
    """Fills memory with other values of the same shapes while it is open, and then with its own again.

    The two are exchanged: a third copy of a layer's caches is more than a device may have room for.

    Args:
        values: of the same shapes, dtypes and devices; they hold what memory held while it is open.
        memory: is filled, in this order.
    """
    pairs = list(zip(values, memory, strict=True))
    for value, tensor in pairs:
        _exchange(value, tensor)
    try:
        yield
    finally:
        # Tensors that share their elements get them back from the one that took them first.
        for value, tensor in reversed(pairs):
            _exchange(value, tensor)


def _exchange(one: torch.Tensor, other: torch.Tensor) -> None:
    """Exchanges the elements of two tensors of one shape, some of their first dimension at a time."""
    if not one.numel():
        return
    if not one.dim():
        one, other = one.unsqueeze(0), other.unsqueeze(0)
    at_once = max(1, _EXCHANGED_BYTES * len(one) // one.nbytes)
    for first in range(0, len(one), at_once):
        ours, theirs = one[first : first + at_once], other[first : first + at_once]
        held = ours.clone()
        ours.copy_(theirs)
        theirs.copy_(held)
