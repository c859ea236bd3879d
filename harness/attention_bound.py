"""How far correct arithmetic may lie from the float64 attention of a request.

The formulas are those of `samebits.harness.reference`: `s_j` is a score, `w_j` its weight, `v_j` its value, `o` the
output. All sums have rows as `KeyBlock` has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from samebits.backends.contract import DTYPES
from samebits.backends.problem import Problem
from samebits.harness.attention_sums import Errors, Softmax, Sums
from samebits.harness.key_blocks import KeyBlock
from samebits.harness.rounding import (
    DEVIATIONS,
    EXPONENTIAL_ERROR,
    FLOAT32_ROUNDOFF,
    UNIFORM_VARIANCE,
    UNIT_ROUNDOFF,
    lost_in_operations,
)

# Roundings of a score after its accumulation: the scale, the change to base 2, the subtraction of the maximum.
_SCORE_ROUNDINGS = 3.0
# A tanh built from exponentials is good to a few units of 1, whatever its own size, and softcap scales that up.
_TANH_UNITS = 4.0
# Relative error of a tanh where the dtype has 16 bits anyway (PTX ISA: tanh.approx.f32, 2^-11): FlashAttention uses it.
_TANH_ERROR = {torch.float32: 0.0, torch.bfloat16: 2.0**-11, torch.float16: 2.0**-11}
# Roundings of the final quotient, and of the logarithm with its change of base.
_FINAL_ROUNDINGS = 4.0
# Operations on each term of a weighted sum of values: its product, its addition, the rescaling of the sum before.
_OPERATIONS_PER_TERM = 3.0


def output_bound(sums: Sums, problem: Problem) -> torch.Tensor:
    """Float64 `[num_kv_heads, rows, head_dim]`: what an output may differ by before its last rounding."""
    bound = sums.errors.of_output(sums.count, sums.output, problem) + _flushed(sums, DTYPES[problem.dtype])
    return torch.where(sums.count > 0, bound, 0.0)


def lse_bound(sums: Sums, lse: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Float64 `[num_kv_heads, rows]`: what a float32 log-sum-exp may differ by."""
    count = sums.count.squeeze(2)
    # The maximum and the logarithm of the sum are each rounded, and the sum may cancel: neither is larger than this.
    magnitude = lse.masked_fill(lse == -math.inf, 0.0).abs() + count.clamp(min=1.0).log() + 1.0
    return torch.where(count > 0, sums.errors.of_lse(count, magnitude, problem), 0.0)


def _flushed(sums: Sums, dtype: torch.dtype) -> torch.Tensor:
    """What an output may lose where numbers below the smallest normal one are taken for 0.

    Weights are at most 1, and where they are those before the normalisation, the sum that divides the result is at
    least 1; so nothing that an operation loses grows afterwards. The output itself may be flushed in its dtype, and so
    may values in theirs as they are read: in fp32 and bf16, which have the exponents of float32, such a value's product
    is among the operations.
    """
    operations = lost_in_operations(_OPERATIONS_PER_TERM * sums.count + _FINAL_ROUNDINGS)
    return operations + sums.lost + torch.finfo(dtype).tiny


@dataclass(frozen=True)
class Moments:
    """Of some coefficients `a_j`: `sum_j a_j`, `sum_j a_j v_j` and `sum_j a_j v_j^2`.

    Attributes:
        total: float64 `[num_kv_heads, rows, 1]`.
        first, second: float64 `[num_kv_heads, rows, head_dim]`.
    """

    total: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def of(cls, coefficients: torch.Tensor, value: torch.Tensor, squared_value: torch.Tensor) -> Moments:
        """Of coefficients `[num_kv_heads, rows, keys]`."""
        return cls(coefficients.sum(dim=2, keepdim=True), coefficients @ value, coefficients @ squared_value)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.total + other.total, self.first + other.first, self.second + other.second)

    def spread(self, center: torch.Tensor) -> torch.Tensor:
        """`sum_j a_j (v_j - center)^2`, expanded so that no `[rows, keys, head_dim]` tensor is made."""
        return (self.second - 2 * center * self.first + self.total * center**2).clamp(min=0.0)


@dataclass(frozen=True)
class RandomErrors(Errors):
    """What the bound of independent errors is made of.

    Attributes:
        squared: moments of `w_j^2`.
        scores: moments of `w_j^2` times the variance of the error of `s_j`.
    """

    squared: Moments
    scores: Moments

    @classmethod
    def of(
        cls, block: KeyBlock, softmax: Softmax, weights: torch.Tensor, value: torch.Tensor, problem: Problem
    ) -> RandomErrors:
        """The sums over one block."""
        squared, squared_value = weights**2, value**2
        variance = _score_variance(block, softmax, problem).masked_fill(~block.visible, 0.0)
        return cls(Moments.of(squared, value, squared_value), Moments.of(squared * variance, value, squared_value))

    def __add__(self, other: RandomErrors) -> RandomErrors:
        return RandomErrors(self.squared + other.squared, self.scores + other.scores)

    def of_output(self, count: torch.Tensor, output: torch.Tensor, problem: Problem) -> torch.Tensor:
        """Some deviations of the sum of all errors."""
        dtype, terms = DTYPES[problem.dtype], self.squared.second
        accumulation = (count / 2 * terms + (2 * count / 3 + _FINAL_ROUNDINGS) * output**2) * FLOAT32_ROUNDOFF**2
        variance = self.scores.spread(output) + accumulation * UNIFORM_VARIANCE
        if dtype is not torch.float32:
            probabilities = torch.maximum(terms, self.squared.spread(output))
            variance = variance + probabilities * (UNIT_ROUNDOFF[dtype] ** 2 * UNIFORM_VARIANCE)
        return DEVIATIONS * variance.clamp(min=0.0).sqrt()

    def of_lse(self, count: torch.Tensor, magnitude: torch.Tensor, problem: Problem) -> torch.Tensor:
        """Some deviations of the sum of all errors but one, which is always too small by one factor."""
        dtype = DTYPES[problem.dtype]
        sums = (count / 3 + _FINAL_ROUNDINGS * magnitude**2) * (FLOAT32_ROUNDOFF**2 * UNIFORM_VARIANCE)
        if dtype is not torch.float32:
            # The denominator may be summed from the rounded P, as FlashInfer's is.
            sums = sums + self.squared.total.squeeze(2) * (UNIT_ROUNDOFF[dtype] ** 2 * UNIFORM_VARIANCE)
        deviation = (self.scores.total.squeeze(2) + sums).sqrt()
        # An exponential that is always too small by one factor cancels in the output, but not here.
        return magnitude * FLOAT32_ROUNDOFF + EXPONENTIAL_ERROR[dtype] + DEVIATIONS * deviation


@dataclass(frozen=True)
class LargestErrors(Errors):
    """What the bound of errors of one sign is made of, with `e_j` the largest error of `s_j`.

    Attributes:
        magnitude: `sum_j w_j |v_j|`.
        of_scores: `sum_j w_j e_j |v_j|`.
        total: `[num_kv_heads, rows, 1]`, `sum_j w_j e_j`.
    """

    magnitude: torch.Tensor
    of_scores: torch.Tensor
    total: torch.Tensor

    @classmethod
    def of(
        cls, block: KeyBlock, softmax: Softmax, weights: torch.Tensor, value: torch.Tensor, problem: Problem
    ) -> LargestErrors:
        """The sums over one block."""
        magnitude = value.abs()
        errors = weights * _largest_score_error(block, softmax, problem).masked_fill(~block.visible, 0.0)
        return cls(weights @ magnitude, errors @ magnitude, errors.sum(dim=2, keepdim=True))

    def __add__(self, other: LargestErrors) -> LargestErrors:
        return LargestErrors(
            self.magnitude + other.magnitude, self.of_scores + other.of_scores, self.total + other.total
        )

    def of_output(self, count: torch.Tensor, output: torch.Tensor, problem: Problem) -> torch.Tensor:
        """The classical bound (Higham, section 3.1): `gamma_n = n u / (1 - n u)` on each sum, to first order."""
        dtype = DTYPES[problem.dtype]
        # |v_j - o| <= |v_j| + |o|.
        bound = self.of_scores + self.total * output.abs()
        bound = bound + (2 * count + _FINAL_ROUNDINGS) * FLOAT32_ROUNDOFF * self.magnitude
        if dtype is not torch.float32:
            bound = bound + UNIT_ROUNDOFF[dtype] * self.magnitude
            if problem.geometry.sinks:
                # Equal scores are their own maximum, and their P is 1, unless a sink is larger.
                bound = bound + UNIT_ROUNDOFF[dtype] * output.abs()
        return bound

    def of_lse(self, count: torch.Tensor, magnitude: torch.Tensor, problem: Problem) -> torch.Tensor:
        """The same, of the denominator."""
        bound = self.total.squeeze(2) + (count + _FINAL_ROUNDINGS * magnitude) * FLOAT32_ROUNDOFF
        if problem.geometry.sinks and problem.dtype != "fp32":
            bound = bound + UNIT_ROUNDOFF[DTYPES[problem.dtype]]
        return bound


def _score_variance(block: KeyBlock, softmax: Softmax, problem: Problem) -> torch.Tensor:
    """Variance of the error of each score, and of its exponential, in units of the natural logarithm."""
    geometry, dtype = problem.geometry, DTYPES[problem.dtype]
    sum_of_squares = block.query**2 @ (block.key**2).transpose(1, 2)
    # One rounding more per term than additions alone: float32 products are rounded where no FMA is used.
    accumulation = (geometry.head_dim / 2 + 1) * sum_of_squares + geometry.head_dim / 3 * block.raw**2
    # What is infinite is not rounded.
    accumulation = accumulation.masked_fill(block.raw.isinf(), 0.0)
    squared_scores = block.scores.nan_to_num(neginf=0.0) ** 2
    variance = accumulation * (geometry.softmax_scale * block.slope) ** 2 + _SCORE_ROUNDINGS * squared_scores
    if geometry.softcap is not None:
        variance = variance + (_TANH_UNITS * geometry.softcap) ** 2
        variance = variance + (_TANH_ERROR[dtype] / FLOAT32_ROUNDOFF) ** 2 * squared_scores
    variance = variance + softmax.distance(block.scores) ** 2
    return (variance * FLOAT32_ROUNDOFF**2 + EXPONENTIAL_ERROR[dtype] ** 2) * UNIFORM_VARIANCE


def _largest_score_error(block: KeyBlock, softmax: Softmax, problem: Problem) -> torch.Tensor:
    """The most that each score, and its exponential, may be off by: every rounding at its largest, all of one sign."""
    geometry, dtype = problem.geometry, DTYPES[problem.dtype]
    magnitude = block.query.abs() @ block.key.abs().transpose(1, 2) * (geometry.softmax_scale * block.slope)
    finite = block.scores.nan_to_num(neginf=0.0).abs()
    error = (geometry.head_dim + 1) * magnitude + _SCORE_ROUNDINGS * finite + softmax.distance(block.scores)
    if geometry.softcap is not None:
        error = error + _TANH_UNITS * geometry.softcap
        error = error + _TANH_ERROR[dtype] / FLOAT32_ROUNDOFF * finite
    return error * FLOAT32_ROUNDOFF + EXPONENTIAL_ERROR[dtype]
