"""The tensors of what is timed, made where they are used: gigabytes of them, in milliseconds.

The suites' data depend on the request alone and are made number by number. Here only their distribution matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import LinearTensors, RmsNormTensors
from samebits.backends.problem import Problem
from samebits.backends.token_problem import Linear, RmsNorm, TokenProblem
from samebits.harness.batch import Batch, attention_config
from samebits.harness.placement import place_batch

# A prime, so that no two pages and no two rows hold the same numbers where they are repeated.
_DRAWN = 4_000_037


@dataclass(frozen=True)
class AttentionInputs:
    """A batch, and where its result goes.

    Attributes:
        batch: without poison: what nobody reads holds numbers like all others.
        slots: for each request, the cache slots of its tokens: int64 `[seq_len]`, on the host.
        output: like the queries.
    """

    batch: Batch
    slots: tuple[torch.Tensor, ...]
    output: torch.Tensor


@dataclass(frozen=True)
class TokenInputs:
    """Rows, what they are computed with, and where the results go."""

    problem: TokenProblem
    tensors: LinearTensors | RmsNormTensors

    @property
    def output(self) -> torch.Tensor:
        """Where the results go."""
        return self.tensors.output


Inputs = AttentionInputs | TokenInputs


class _Numbers:
    """Normal numbers of one seed, as many as asked for.

    Args:
        problem: whose seed and dtype they have.
        device: where they are made.
    """

    def __init__(self, problem: Problem | TokenProblem, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(problem.seed)
        self._drawn = torch.randn(_DRAWN, generator=generator, device=device).to(DTYPES[problem.dtype])
        self._next = 0

    def tensor(self, *shape: int) -> torch.Tensor:
        """A tensor of them, which goes on where the last one ended."""
        size = torch.Size(shape).numel()
        first, self._next = self._next, (self._next + size) % _DRAWN
        repeats = -(-(first + size) // _DRAWN)
        # Without a gap, and in memory of its own.
        return self._drawn.repeat(repeats)[first : first + size].clone().view(shape)


def make_inputs(problem: Problem | TokenProblem, device: torch.device) -> Inputs:
    """The tensors of a problem.

    Args:
        problem: what is timed.
        device: where they go.
    """
    return _attention(problem, device) if isinstance(problem, Problem) else _tokens(problem, device)


def _attention(problem: Problem, device: torch.device) -> AttentionInputs:
    numbers, geometry, placement = _Numbers(problem, device), problem.geometry, place_batch(problem, device)
    cache_shape = (placement.num_pages, geometry.page_size, geometry.num_kv_heads, geometry.head_dim)
    query = numbers.tensor(placement.metadata.num_tokens, geometry.num_heads, geometry.head_dim)
    batch = Batch(
        problem=problem,
        config=attention_config(problem, device),
        metadata=placement.metadata,
        query=query,
        key_cache=numbers.tensor(*cache_shape),
        value_cache=numbers.tensor(*cache_shape),
        query_rows=placement.query_rows,
    )
    return AttentionInputs(batch, placement.slots, torch.zeros_like(query))


def _tokens(problem: TokenProblem, device: torch.device) -> TokenInputs:
    numbers, operation, num_tokens = _Numbers(problem, device), problem.operation, problem.num_tokens
    if isinstance(operation, Linear):
        rows = numbers.tensor(num_tokens, operation.in_features)
        # Such that results deviate as inputs do.
        weight = numbers.tensor(operation.out_features, operation.in_features) * operation.in_features**-0.5
        output = rows.new_zeros(num_tokens, operation.out_features)
        return TokenInputs(problem, LinearTensors(rows, weight, None, output))
    assert isinstance(operation, RmsNorm), f"{operation} is not timed"
    rows = numbers.tensor(num_tokens, operation.size)
    return TokenInputs(problem, RmsNormTensors(rows, numbers.tensor(operation.size), torch.zeros_like(rows)))
