"""Rows seen through several leading dimensions."""

from __future__ import annotations

import torch

from samebits.backends.problem import Strides
from samebits.backends.token_problem import TokenProblem
from samebits.harness.batch import poison_value
from samebits.harness.tokens.placement import place


def padded_rows(problem: TokenProblem) -> int:
    """Rows of a problem, padding among them, rounded up so that the leading dimensions divide them."""
    parts = 1 << (problem.layout.leading_dimensions - 1)
    rows = problem.num_tokens + problem.layout.padding_tokens
    return -(-rows // parts) * parts


def with_leading(rows: torch.Tensor, leading_dimensions: int) -> torch.Tensor:
    """A view of `[num_rows, width]` as `[2, ..., num_rows / 2^k, width]`."""
    leading = [2] * (leading_dimensions - 1)
    # A view whatever the strides: each new dimension divides the first.
    return rows.view(*leading, rows.shape[0] // 2 ** len(leading), rows.shape[1])


def placed_input(rows: torch.Tensor, problem: TokenProblem) -> torch.Tensor:
    """Copies `[num_rows, width]` into an allocation of poison, and gives it the problem's leading dimensions.

    Strided rows of several leading dimensions are spaced unevenly, as in a slice of longer sequences: after the last
    row of the innermost one comes a row of poison, and of three dimensions the second has a group of such rows more, so
    that no two strides together lead to all of them.
    """
    layout = problem.layout
    dimensions = layout.leading_dimensions
    given = with_leading(rows, dimensions)
    if layout.strides is Strides.CONTIGUOUS or dimensions == 1:
        return place(rows, problem).tensor.view(given.shape)
    longer = torch.nn.functional.pad(given, (0, 0) + (0, 1) * (dimensions - 1), value=poison_value(layout.poison))
    placed = place(longer.flatten(0, -2), problem).tensor.view(longer.shape)
    return placed[(slice(None), *(slice(size) for size in given.shape[1:]))]
