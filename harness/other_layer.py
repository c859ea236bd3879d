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
    """Fills memory with other values of the same shapes while it is open, and then with its own again."""
    own = [tensor.clone() for tensor in memory]
    _fill(memory, values)
    try:
        yield
    finally:
        _fill(memory, own)


def _fill(memory: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for tensor, value in zip(memory, values, strict=True):
        tensor.copy_(value)
