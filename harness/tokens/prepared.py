"""What the harness needs of an operation on tokens: its tensors, what came of them, and what should have."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import TensorsT
from samebits.backends.problem import Request
from samebits.backends.token_problem import TokenProblem
from samebits.harness.batch import poison_value
from samebits.harness.dataset import Role, shaped, values_at
from samebits.harness.tokens.nonfinite import plant_in_inputs
from samebits.harness.tokens.placement import Placed


@dataclass(frozen=True)
class Expected:
    """What a tensor of one request should come to.

    Attributes:
        values: float64, a row for each of the request's tokens first.
        bound: float64, same shape: the error allowed before the last rounding.
    """

    values: torch.Tensor
    bound: torch.Tensor


class Prepared(abc.ABC, Generic[TensorsT]):
    """One problem's tensors.

    Attributes:
        tensors: what an implementation is given.
        read: tensors that it may not write.
        written: tensors that it may write, where they say.
    """

    tensors: TensorsT
    read: dict[str, torch.Tensor]
    written: dict[str, Placed]

    @abc.abstractmethod
    def results(self) -> dict[int, dict[str, torch.Tensor]]:
        """What came of each request: by name, copies with a row for each of its tokens first."""

    def faults(self) -> list[str]:
        """What went wrong apart from the results; called after the run."""
        return []

    @abc.abstractmethod
    def expected(self, request: Request) -> dict[str, Expected]:
        """What should have come of it."""


def token_rows(problem: TokenProblem) -> list[slice]:
    """The rows of each request's tokens."""
    stops = np.cumsum([request.query_len for request in problem.requests]).tolist()
    return [slice(stop - request.query_len, stop) for stop, request in zip(stops, problem.requests, strict=True)]


def request_values(problem: TokenProblem, request: Request, role: Role, shape: tuple[int, int]) -> torch.Tensor:
    """One tensor of a request's tokens in the problem's dtype: `[query_len, *shape]`, on the host."""
    first, last = request.context_len, request.seq_len

    def between(start: int, stop: int) -> npt.NDArray[np.float32]:
        return values_at(problem.seed, request.key, role, shape, start, stop)

    shaped_values = shaped(between(first, last), lambda: between(0, 1), role, problem.data, problem.dtype)
    values = torch.tensor(shaped_values).to(DTYPES[problem.dtype])
    plant_in_inputs(values, problem, request)
    return values


def all_values(
    problem: TokenProblem, role: Role, shape: tuple[int, int], device: torch.device, num_rows: int
) -> torch.Tensor:
    """One tensor of all requests' tokens, behind which come rows of poison: `[num_rows, *shape]`."""
    parts: Sequence[torch.Tensor] = [request_values(problem, request, role, shape) for request in problem.requests]
    padding = torch.full(
        (num_rows - problem.num_tokens, *shape), poison_value(problem.layout.poison), dtype=DTYPES[problem.dtype]
    )
    return torch.cat([*parts, padding]).to(device)
