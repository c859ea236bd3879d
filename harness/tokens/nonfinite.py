"""Where the inputs of operations on tokens hold NaN and infinities, under the data `seen_nan` and `seen_inf`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from samebits.backends.problem import Request
from samebits.backends.token_problem import TokenProblem
from samebits.harness.dataset import Role

_NUMBERS = {"seen_nan": math.nan, "seen_inf": math.inf}
# Of so many tokens one holds such a number in its input, and another in a log-sum-exp: those beside them must not.
_PERIOD, _OF_INPUTS, _OF_LSES = 6, 4, 2


def plant_in_inputs(values: torch.Tensor, problem: TokenProblem, request: Request) -> None:
    """Puts one such number into one head of here and there a token: its first element, its last, or one in between.

    Args:
        values: `[query_len, heads, width]` of the request, written in place.
        problem: whose data say which number.
        request: whose tokens.
    """
    heads, width = values.shape[1:]
    elements = (0, width - 1, width // 2)
    for row, position, number in _planted(problem, request, _OF_INPUTS):
        turn = position // _PERIOD
        # Both signs of an infinity.
        values[row, position % heads, elements[turn % len(elements)]] = -number if turn % 2 else number


def plant_in_lses(lses: torch.Tensor, problem: TokenProblem, request: Request, role: Role) -> None:
    """Puts one such number into one head of here and there a token, on either side in turn.

    Args:
        lses: `[query_len, heads]` of the request, written in place.
        problem: whose data say which number.
        request: whose tokens.
        role: side of the merge.
    """
    for row, position, number in _planted(problem, request, _OF_LSES):
        if (role is Role.LSE) == (position // _PERIOD % 2 == 0):
            lses[row, position % lses.shape[1]] = number


def _planted(problem: TokenProblem, request: Request, place: int) -> Iterator[tuple[int, int, float]]:
    """Rows of a request that hold such a number, their positions, and the number."""
    if problem.data in _NUMBERS:
        for row, position in enumerate(range(request.context_len, request.seq_len)):
            if position % _PERIOD == place:
                yield row, position, _NUMBERS[problem.data]
