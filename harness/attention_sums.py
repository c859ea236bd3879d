"""What attention and its error bound sum up over the keys of a request, in float64, a block of them at a time.

The names follow `samebits.harness.reference`: `w_j` is the weight of a key, `v_j` its value. Sums have rows as
`KeyBlock` has them.
"""

from __future__ import annotations

import abc
import functools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch

from samebits.backends.contract import DTYPES
from samebits.backends.problem import Problem
from samebits.harness.key_blocks import KeyBlock
from samebits.harness.rounding import FLOAT32_TINY, lost_on_reading


@dataclass(frozen=True)
class Softmax:
    """What the scores of all keys come to: the first pass over them.

    Attributes:
        lse: float64 `[num_kv_heads, rows]`, log-sum-exp; `-inf` where a row sees no key.
        largest: same shape, the largest score.
    """

    lse: torch.Tensor
    largest: torch.Tensor

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Of some keys. A row that sees no key has no weights at all, rather than NaN."""
        return torch.exp(scores - self.lse.masked_fill(self.lse == -math.inf, 0.0).unsqueeze(2))

    def distance(self, scores: torch.Tensor) -> torch.Tensor:
        """How far scores lie below the largest; 0 for those that are no number or not visible."""
        return (self.largest.unsqueeze(2) - scores).nan_to_num(nan=0.0, posinf=0.0)


def softmax_of(blocks: Iterable[KeyBlock]) -> Softmax:
    """The softmax over the keys of all blocks, of which there is one at least, if an empty one."""
    parts = [_softmax_of_block(block.scores) for block in blocks]
    if len(parts) == 1:
        return parts[0]
    return Softmax(
        lse=torch.logsumexp(torch.stack([part.lse for part in parts]), dim=0),
        largest=torch.stack([part.largest for part in parts]).amax(dim=0),
    )


def _softmax_of_block(scores: torch.Tensor) -> Softmax:
    largest = scores.amax(dim=2) if scores.shape[2] else scores.new_full(scores.shape[:2], -math.inf)
    return Softmax(torch.logsumexp(scores, dim=2), largest)


class Errors(abc.ABC):
    """What a bound on the errors of weights and values is made of: sums over keys."""

    @classmethod
    @abc.abstractmethod
    def of(
        cls, block: KeyBlock, softmax: Softmax, weights: torch.Tensor, value: torch.Tensor, problem: Problem
    ) -> Self:
        """The sums over one block.

        Args:
            block: its scores, and which of them count.
            softmax: over all keys.
            weights: float64 `[num_kv_heads, rows, keys]`.
            value: float64 `[num_kv_heads, keys, head_dim]`, those that are finite, and 0 for the others.
            problem: gives geometry and dtype.
        """

    @abc.abstractmethod
    def __add__(self, other: Self) -> Self:
        """The sums over the keys of both."""

    @abc.abstractmethod
    def of_output(self, count: torch.Tensor, output: torch.Tensor, problem: Problem) -> torch.Tensor:
        """How far an output may lie off before its last rounding: float64, of its shape.

        Args:
            count: float64 `[1, rows, 1]`, keys that each row sees.
            output: float64 `[num_kv_heads, rows, head_dim]`.
            problem: gives geometry and dtype.
        """

    @abc.abstractmethod
    def of_lse(self, count: torch.Tensor, magnitude: torch.Tensor, problem: Problem) -> torch.Tensor:
        """How far a float32 log-sum-exp may lie off: float64 `[num_kv_heads, rows]`.

        Args:
            count: float64 `[1, rows]`, keys that each row sees.
            magnitude: float64 `[num_kv_heads, rows]`, the largest number that is rounded on the way.
            problem: gives geometry and dtype.
        """


@dataclass(frozen=True)
class Sums:
    """The second pass, over all keys.

    Attributes:
        count: `[1, rows, 1]`, keys that a row sees.
        weighted: `sum_j w_j v_j` of those values that are finite.
        infinite, nan: how many other values a row sees; of one element where there are none.
        lost: what values lose that are flushed as they are read; of one element where that is counted elsewhere.
        errors: of weights and values.
    """

    count: torch.Tensor
    weighted: torch.Tensor
    infinite: torch.Tensor
    nan: torch.Tensor
    lost: torch.Tensor
    errors: Errors

    @property
    def output(self) -> torch.Tensor:
        """The attention. Where a value is no finite number, a query that sees it is touched, whatever its weight."""
        infinite = torch.where(self.infinite > 0, math.inf, 0.0)
        # To add keeps what is NaN, as where a score is.
        return (self.weighted + infinite).masked_fill(self.nan > 0, math.nan)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            count=self.count + other.count,
            weighted=self.weighted + other.weighted,
            infinite=self.infinite + other.infinite,
            nan=self.nan + other.nan,
            lost=self.lost + other.lost,
            errors=self.errors + other.errors,
        )


def sums_of(blocks: Iterable[KeyBlock], softmax: Softmax, problem: Problem, errors: type[Errors]) -> Sums:
    """The sums over the keys of all blocks, of which there is one at least, if an empty one.

    Args:
        blocks: of some rows.
        softmax: over the same keys.
        problem: gives geometry and dtype.
        errors: which bound they are summed up for.
    """
    return functools.reduce(operator.add, (_sums_of_block(block, softmax, problem, errors) for block in blocks))


def _sums_of_block(block: KeyBlock, softmax: Softmax, problem: Problem, errors: type[Errors]) -> Sums:
    dtype, visible, none = DTYPES[problem.dtype], block.visible.to(torch.float64), block.value.new_zeros(())
    weights, finite = softmax.weights(block.scores), block.value.isfinite()
    value = block.value.masked_fill(~finite, 0.0)
    infinite = nan = none
    if not bool(finite.all()):
        infinite = visible @ (block.value == math.inf).to(torch.float64)
        nan = visible @ block.value.isnan().to(torch.float64)
    return Sums(
        count=visible.sum(dim=1).view(1, -1, 1),
        weighted=weights @ value,
        infinite=infinite,
        nan=nan,
        lost=weights @ lost_on_reading(value, dtype) if torch.finfo(dtype).tiny > FLOAT32_TINY else none,
        errors=errors.of(block, softmax, weights, value, problem),
    )
