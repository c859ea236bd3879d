"""Rows seen through several leading dimensions."""

from __future__ import annotations

import torch

from samebits.backends.token_problem import TokenProblem


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
