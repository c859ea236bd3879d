"""The fp64 reference, and how far correct arithmetic in a lower precision may lie from it.

The reference computes one request in float64 from the tensors a backend is given, after their rounding to the
problem's dtype. From the same pass comes a bound for every output element, so that a verdict is `error / bound`, the
*error budget used*, at its worst element: no mean and no whole-tensor maximum hides a bad row.

The error is taken before the last rounding. A result `r` in the output's dtype stands for any number that rounds to
it, so the error it proves is its distance from the reference less half a unit in its last place: a kernel that rounds
once uses nothing of its budget for that, and one that rounds its partial results too shows at once.

The bound. With scaled scores `s_j`, weights `w_j = exp(s_j - lse)`, output `o = sum_j w_j v_j`, and `u` the unit
roundoff of float32, a kernel that accumulates in float32 commits these errors, to first order (Higham, "Accuracy and
Stability of Numerical Algorithms", 2nd ed., sections 3.1 and 4.2, for the sums; the softmax is differentiated:
`do/ds_j = w_j (v_j - o)`):

    scores                   sum_j w_j (v_j - o) d_j                            d_j: error of s_j and of exp
    probabilities            sum_j w_j |v_j| r_j or sum_j w_j |v_j - o| r_j    r_j: rounding of P to a 16-bit dtype
    accumulation             errors of n additions of P V and of n of the denominator

Rounding errors of unrelated operations are modelled as independent with mean 0 and the deviation of a uniform error,
`u / sqrt(3)` (Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5),
2019), so their variances add, and the bound is `DEVIATIONS` standard deviations of their sum. In a sum of n terms `t`,
the partial sums before each rounding are at most those of a sequential sum, whose squares add up to about
`n/2 sum t^2` for terms of random sign and to `n/3 (sum t)^2` for terms of one sign; both are taken. This is what
separates float32 accumulation from bfloat16 accumulation, and IEEE float32 products from TF32, where a worst-case
bound over a thousand keys would not. The errors of `ties` are equal or of one sign, which is no such sum; there
every rounding is taken at its largest.

Numbers below the smallest normal one may be taken for 0 wherever they occur.

All of these are sums over keys, but for the maximum and the log-sum-exp, which come first. So the keys are gone through
twice, a block at a time (`samebits.harness.key_blocks`, `samebits.harness.attention_sums`), and no length makes a
tensor larger than a block. The bounds are made of the sums (`samebits.harness.attention_bound`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from samebits.backends.problem import Mask, Problem, Request
from samebits.harness.attention_bound import LargestErrors, RandomErrors, lse_bound, output_bound
from samebits.harness.attention_sums import softmax_of, sums_of
from samebits.harness.batch import computed_alone
from samebits.harness.bounded_cache import BoundedCache
from samebits.harness.key_blocks import KeyBlock, by_heads, key_block, key_ranges, row_ranges, visible_among
from samebits.harness.rounding import UNIT_ROUNDOFF

# References that are kept on their devices: those of a crowd, or of some thousand queries of a whole layer.
_KEPT_REQUESTS, _KEPT_BYTES = 2048, 1 << 30


@dataclass(frozen=True)
class RequestReference:
    """What one request should come to.

    Attributes:
        output: float64 `[query_len, num_heads, head_dim]`.
        output_bound: float64, same shape: what an output may differ by before it is rounded to the problem's dtype.
        lse: float64 `[num_heads, query_len]`, natural logarithm; `-inf` where a query sees no key.
        lse_bound: float64, same shape, for a float32 log-sum-exp.
    """

    output: torch.Tensor
    output_bound: torch.Tensor
    lse: torch.Tensor
    lse_bound: torch.Tensor

    def rows(self, rows: slice) -> RequestReference:
        """The reference of some queries: a copy, since a view would keep the memory of all."""
        by_row = (self.output[rows].clone(), self.output_bound[rows].clone())
        return RequestReference(*by_row, self.lse[:, rows].clone(), self.lse_bound[:, rows].clone())

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.output.nbytes + self.output_bound.nbytes + self.lse.nbytes + self.lse_bound.nbytes


_KEPT: BoundedCache[tuple[Problem, torch.device], RequestReference] = BoundedCache(
    _KEPT_REQUESTS, _KEPT_BYTES, lambda reference: reference.nbytes
)
# Of each sequence the step with the most queries, of which shorter ones may be parts.
_LONGEST_STEPS: BoundedCache[tuple[Problem, torch.device], tuple[Request, RequestReference]] = BoundedCache(
    _KEPT_REQUESTS, _KEPT_BYTES, lambda step: step[1].nbytes
)


def request_reference(problem: Problem, request: Request, device: torch.device) -> RequestReference:
    """Computes one request of a problem in float64, with its error bounds.

    Results are shared between all batches that hold the request, since nothing but the request decides them, and
    between a prefill and its chunks.

    Args:
        problem: gives geometry, mask, dtype and seed; its batch and layout do not matter.
        request: the request to compute.
        device: where to compute, and where the result is.
    """
    alone = computed_alone(problem, request)
    return _KEPT.get((alone, device), lambda: _part_of_longer(alone, request, device))


def _part_of_longer(problem: Problem, request: Request, device: torch.device) -> RequestReference:
    """The rows of a longer step of the same sequence, where there was one and they see the same keys in it."""
    sees_no_later_keys = problem.mask is Mask.CROSS or problem.is_causal(request)
    # What other data are planted in depends on where a step begins and ends.
    if problem.data != "normal" or not sees_no_later_keys:
        return _computed_reference(problem, request, device)
    sequence = (computed_alone(problem, replace(request, query_len=0, context_len=0)), device)
    longest = _LONGEST_STEPS.peek(sequence)
    if longest is not None:
        step, reference = longest
        if step.context_len <= request.context_len and request.seq_len <= step.seq_len:
            return reference.rows(slice(request.context_len - step.context_len, request.seq_len - step.context_len))
    reference = _computed_reference(problem, request, device)
    if longest is None or request.query_len > longest[0].query_len:
        _LONGEST_STEPS.put(sequence, (request, reference))
    return reference


def visible_keys(problem: Problem, request: Request, device: torch.device) -> torch.Tensor:
    """Which of a request's attended keys each query sees: bool `[query_len, kv_len]`. See `Mask`."""
    return visible_among(problem, request, range(request.query_len), range(problem.kv_len(request)), device)


def _computed_reference(problem: Problem, request: Request, device: torch.device) -> RequestReference:
    parts = [_reference_of_rows(problem, request, rows, device) for rows in row_ranges(problem, request)]
    return RequestReference(
        output=torch.cat([part.output for part in parts]),
        output_bound=torch.cat([part.output_bound for part in parts]),
        lse=torch.cat([part.lse for part in parts], dim=1),
        lse_bound=torch.cat([part.lse_bound for part in parts], dim=1),
    )


def _reference_of_rows(problem: Problem, request: Request, rows: range, device: torch.device) -> RequestReference:
    ranges = key_ranges(problem, request, rows)
    # A single block serves both passes; several may not fit together, and are made again.
    only = key_block(problem, request, rows, ranges[0], device) if len(ranges) == 1 else None

    def blocks() -> Iterable[KeyBlock]:
        return [only] if only else (key_block(problem, request, rows, keys, device) for keys in ranges)

    softmax = softmax_of(blocks())
    # The errors of `ties` are equal or of one sign.
    sums = sums_of(blocks(), softmax, problem, LargestErrors if problem.data == "ties" else RandomErrors)
    return RequestReference(
        output=by_heads(sums.output, problem, rows).transpose(0, 1).contiguous(),
        output_bound=by_heads(output_bound(sums, problem), problem, rows).transpose(0, 1).contiguous(),
        lse=by_heads(softmax.lse, problem, rows),
        lse_bound=by_heads(lse_bound(sums, softmax.lse, problem), problem, rows),
    )


def budget_used(actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Share of the error bound that each element uses: float64, same shape.

    An element that rounds its reference correctly uses nothing, infinities included, nor does a NaN where the reference
    is one. One that is not finite where the reference is, or the other way round, uses infinitely much.

    Args:
        actual: result of an implementation, any floating dtype.
        expected: float64 reference.
        bound: float64, at least 0: the error allowed before the rounding to `actual`'s dtype.
    """
    wide = actual.to(torch.float64)
    error = ((wide - expected).abs() - _half_unit(wide, actual.dtype)).clamp(min=0.0)
    used = torch.where(bound > 0, error / bound, math.inf)
    # Where the bound is 0 nothing is rounded, and only the reference itself is right.
    used = torch.where((wide == expected) | (wide.isnan() & expected.isnan()), 0.0, used)
    return torch.where(used.isnan(), math.inf, used)


def _half_unit(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half a unit in the last place of float64 values that `dtype` holds: what rounding to nearest may have moved."""
    _, exponent = torch.frexp(values)
    # Zero has no binade of its own: it stands with the smallest numbers.
    binade = torch.where(values == 0, 0.0, torch.ldexp(torch.ones_like(values), exponent - 1))
    binade = binade.clamp(min=torch.finfo(dtype).tiny)
    return binade * UNIT_ROUNDOFF[dtype]
