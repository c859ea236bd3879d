"""Results against their reference: how much of the error bound they use, where, and how far off they are in ULP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from samebits.backends.problem import Request
from samebits.harness.comparison import ulp_distance
from samebits.harness.reference import budget_used

# The reference of a tensor and the error allowed before the last rounding, both float64.
Bounded = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Judgement:
    """One tensor of an execution against the reference.

    Attributes:
        error_budget: share of the error bound used at the worst element.
        worst: where that is, in words.
        max_ulp: largest distance from the rounded reference in units in the last place, among the elements of each row
            that are no smaller than its root mean square.
        request_key: of the request that the worst element is of; None where there is no element.
    """

    error_budget: float = 0.0
    worst: str = ""
    max_ulp: int = 0
    request_key: int | None = None


def judge_tensors(
    requests: Sequence[Request],
    results: Sequence[Mapping[str, torch.Tensor]],
    expected: Sequence[Mapping[str, Bounded]],
) -> dict[str, Judgement]:
    """The worst of all requests for each tensor.

    Args:
        requests: of a batch.
        results: for each of them its tensors by name, with a row for each of its tokens first.
        expected: for each of them what those should be.
    """
    names = dict.fromkeys(name for tensors in results for name in tensors)
    return {
        name: _judge(name, requests, [tensors[name] for tensors in results], [tensors[name] for tensors in expected])
        for name in names
    }


def described_place(tensor: str, index: tuple[int, ...]) -> str:
    """Names an element of a request's result: its row, its head where there are heads, its place in the head."""
    row, *inner = index
    names = ("head", "element")[-len(inner) :] if tensor != "lse" else ("head",)
    place = ", ".join([f"row {row}", *(f"{name} {i}" for name, i in zip(names, inner, strict=True))])
    return f"log-sum-exp of {place}" if tensor == "lse" else f"{tensor} of {place}"


def _judge(
    tensor: str, requests: Sequence[Request], results: Sequence[torch.Tensor], expected: Sequence[Bounded]
) -> Judgement:
    """One tensor of all requests at once: in a crowd of small ones, each alone would cost as much as all."""
    actual = torch.cat(list(results))
    if not actual.numel():
        return Judgement()
    values, bound = (torch.cat(parts) for parts in zip(*expected, strict=True))
    used = budget_used(actual, values, bound)
    budget, flat = used.flatten().max(dim=0)
    index = tuple(int(i) for i in np.unravel_index(int(flat), used.shape))
    owners = np.repeat(np.arange(len(requests)), [len(rows) for rows in results])
    owner = int(owners[index[0]])
    row = index[0] - int(np.searchsorted(owners, owner))
    magnitude = values.abs()
    root_mean_square = magnitude.square().mean(dim=-1, keepdim=True).sqrt()
    return Judgement(
        error_budget=float(budget),
        worst=(
            f"request {requests[owner]}, {described_place(tensor, (row, *index[1:]))}: {actual[index].item()!r} where "
            f"the reference is {values[index]:.9g} within {bound[index]:.3g} before rounding"
        ),
        max_ulp=ulp_distance(actual, values, magnitude >= root_mean_square),
        request_key=requests[owner].key,
    )
