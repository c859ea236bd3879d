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

Numbers below the smallest normal one may be taken for 0 wherever they occur; see `_flushed`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from samebits.backends.contract import DTYPES
from samebits.backends.problem import Circumstances, Layout, Mask, Problem, Request
from samebits.harness.batch import request_keys_values, request_queries, sinks_of

DEVIATIONS = 7.0
_UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
FLOAT32_ROUNDOFF = _UNIT_ROUNDOFF[torch.float32]
# The smallest normal number: what a float32 operation may lose whose result lies below.
FLOAT32_TINY = torch.finfo(torch.float32).tiny
# Variance of a rounding error that is uniform over one unit, relative to the unit roundoff squared.
UNIFORM_VARIANCE = 1.0 / 3.0
# Roundings of a score after its accumulation: the scale, the change to base 2, the subtraction of the maximum.
_SCORE_ROUNDINGS = 3.0
# Relative error of an exponential. In float32, that of the hardware's (CUDA C++ Programming Guide: ex2.approx, 2^-22).
# Where P is rounded to 16 bits anyway, kernels use shorter polynomials: FlashAttention 4 emulates exp2 to 9e-5, ATen's
# exp_u20 gives exp(0) = 1 - 5e-5. Both are correct arithmetic for such a P, so neither may cost more than this.
EXPONENTIAL_ERROR_FLOAT32 = 2.0**-22
_EXPONENTIAL_ERROR = {torch.float32: EXPONENTIAL_ERROR_FLOAT32, torch.bfloat16: 2.0**-13, torch.float16: 2.0**-13}
# A tanh built from exponentials is good to a few units of 1, whatever its own size, and softcap scales that up.
_TANH_UNITS = 4.0
# Relative error of a tanh where the dtype has 16 bits anyway (PTX ISA: tanh.approx.f32, 2^-11): FlashAttention uses it.
_TANH_ERROR = {torch.float32: 0.0, torch.bfloat16: 2.0**-11, torch.float16: 2.0**-11}
# Roundings of the final quotient, and of the logarithm with its change of base.
_FINAL_ROUNDINGS = 4.0
# Operations on each term of a weighted sum of values: its product, its addition, the rescaling of the sum before.
_OPERATIONS_PER_TERM = 3.0


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


def request_reference(problem: Problem, request: Request, device: torch.device) -> RequestReference:
    """Computes one request of a problem in float64, with its error bounds.

    Results are shared between all batches that hold the request, since nothing but the request decides them.

    Args:
        problem: gives geometry, mask, dtype and seed; its batch and layout do not matter.
        request: the request to compute.
        device: where to compute, and where the result is.
    """
    return _shared_reference(
        replace(problem, requests=(request,), layout=Layout(), circumstances=Circumstances()), device
    )


@functools.lru_cache(maxsize=512)
def _shared_reference(problem: Problem, device: torch.device) -> RequestReference:
    (request,) = problem.requests
    geometry = problem.geometry
    queries = request_queries(problem, request).to(device, torch.float64)
    keys, values = (tensor.to(device, torch.float64) for tensor in request_keys_values(problem, request))
    attended = slice(0, request.encoder_len) if problem.mask is Mask.CROSS else slice(request.encoder_len, None)
    # [num_heads, tokens, head_dim], every query head beside its key/value head.
    query = queries.transpose(0, 1)
    key = keys[attended].transpose(0, 1).repeat_interleave(geometry.group_size, dim=0)
    value = values[attended].transpose(0, 1).repeat_interleave(geometry.group_size, dim=0)

    visible = visible_keys(problem, request, device)
    if geometry.sinks:
        # A sink is a key whose score is given, whatever the query, and whose value is 0.
        key, value = (torch.nn.functional.pad(tensor, (0, 0, 0, 1)) for tensor in (key, value))
        visible = torch.nn.functional.pad(visible, (0, 1), value=True)
    raw = query @ key.transpose(1, 2)
    scores, slope = _scaled(raw, problem)
    if geometry.sinks:
        scores[:, :, -1] = sinks_of(problem).to(scores).unsqueeze(1)
    scores = scores.masked_fill(~visible, -math.inf)
    lse = torch.logsumexp(scores, dim=2)
    # A query that sees no key has no weights at all, rather than NaN.
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(2))
    # Where a value is no finite number, only a query that sees it may be touched, not one whose weight for it is 0.
    finite = value.masked_fill(~value.isfinite(), 0.0)
    output = weights @ finite
    for number in (math.inf, math.nan):
        present = value.isnan() if math.isnan(number) else value == number
        if present.any():
            output = output.masked_fill(visible.to(torch.float64) @ present.to(torch.float64) > 0, number)
    value = finite

    key_count = visible.sum(dim=1).to(torch.float64)
    if problem.data == "ties":
        score_error = _worst_score_error(query, key, scores, slope, problem).masked_fill(~visible, 0.0)
        output_bound = _worst_output_bound(weights, value, output, score_error, key_count, problem)
        lse_bound = _worst_lse_bound(weights, lse, score_error, key_count, problem)
    else:
        score_variance = _score_variance(query, key, raw, scores, slope, problem).masked_fill(~visible, 0.0)
        output_bound = _output_bound(weights, value, output, score_variance, key_count, problem)
        lse_bound = _lse_bound(weights, lse, score_variance, key_count, problem)
    return RequestReference(
        output=output.transpose(0, 1).contiguous(),
        output_bound=output_bound.transpose(0, 1).contiguous(),
        lse=lse,
        lse_bound=lse_bound,
    )


def visible_keys(problem: Problem, request: Request, device: torch.device) -> torch.Tensor:
    """Which of a request's attended keys each query sees: bool `[query_len, kv_len]`. See `Mask`."""
    kv_len = problem.kv_len(request)
    position = torch.arange(request.query_len, device=device).unsqueeze(1) + request.context_len
    key = torch.arange(kv_len, device=device).unsqueeze(0)
    if not problem.is_causal(request):
        return torch.ones((request.query_len, kv_len), dtype=torch.bool, device=device)
    visible = key <= position
    if problem.window is not None:
        visible &= key > position - problem.window
    return visible


def _scaled(raw: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores after scale and softcap, and their derivative by the scaled score."""
    scaled = raw * problem.geometry.softmax_scale
    softcap = problem.geometry.softcap
    if softcap is None:
        return scaled, torch.ones_like(scaled)
    capped = torch.tanh(scaled / softcap)
    return capped * softcap, 1.0 - capped**2


def _score_variance(
    query: torch.Tensor,
    key: torch.Tensor,
    raw: torch.Tensor,
    scores: torch.Tensor,
    slope: torch.Tensor,
    problem: Problem,
) -> torch.Tensor:
    """Variance of the error of each score, and of its exponential, in units of the natural logarithm."""
    head_dim, scale, softcap = problem.geometry.head_dim, problem.geometry.softmax_scale, problem.geometry.softcap
    sum_of_squares = query**2 @ (key**2).transpose(1, 2)
    # One rounding more per term than additions alone: float32 products are rounded where no FMA is used.
    accumulation = (head_dim / 2 + 1) * sum_of_squares + head_dim / 3 * raw**2
    variance = accumulation * (scale * slope) ** 2 + _SCORE_ROUNDINGS * scores.nan_to_num(neginf=0.0) ** 2
    if softcap is not None:
        variance = variance + (_TANH_UNITS * softcap) ** 2
        variance = (
            variance + (_TANH_ERROR[DTYPES[problem.dtype]] / FLOAT32_ROUNDOFF * scores.nan_to_num(neginf=0.0)) ** 2
        )
    distance = (scores.amax(dim=2, keepdim=True) if scores.shape[2] else scores) - scores
    variance = variance + distance.nan_to_num(nan=0.0, posinf=0.0) ** 2
    exponential = _EXPONENTIAL_ERROR[DTYPES[problem.dtype]] ** 2
    return (variance * FLOAT32_ROUNDOFF**2 + exponential) * UNIFORM_VARIANCE


def _output_bound(
    weights: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    score_variance: torch.Tensor,
    key_count: torch.Tensor,
    problem: Problem,
) -> torch.Tensor:
    dtype = DTYPES[problem.dtype]
    roundoff = _UNIT_ROUNDOFF[dtype]
    squared_weights = weights**2
    # sum_j w_j^2 x_j (v_j - o)^2, expanded so that no [rows, keys, head_dim] tensor is made.
    spread_weights = squared_weights * score_variance
    scores = _weighted_spread(spread_weights, value, output)
    terms = squared_weights @ value**2
    count = key_count.view(1, -1, 1)
    accumulation = (count / 2 * terms + (2 * count / 3 + _FINAL_ROUNDINGS) * output**2) * FLOAT32_ROUNDOFF**2
    variance = scores + accumulation * UNIFORM_VARIANCE
    if dtype is not torch.float32:
        probabilities = torch.maximum(terms, _weighted_spread(squared_weights, value, output))
        variance = variance + probabilities * (roundoff**2 * UNIFORM_VARIANCE)
    bound = DEVIATIONS * variance.clamp(min=0.0).sqrt()
    return torch.where(count > 0, bound + _flushed(weights, value, count, dtype), 0.0)


def _flushed(weights: torch.Tensor, value: torch.Tensor, count: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What an output may lose where numbers below the smallest normal one are taken for 0.

    Weights are at most 1, and where they are those before the normalisation, the sum that divides the result is at
    least 1; so nothing that an operation loses grows afterwards. The output itself may be flushed in its dtype, and so
    may values in theirs as they are read: in fp32 and bf16, which have the exponents of float32, such a value's product
    is among the operations.
    """
    tiny = torch.finfo(dtype).tiny
    read = weights @ lost_on_reading(value, dtype) if tiny > FLOAT32_TINY else 0.0
    return lost_in_operations(_OPERATIONS_PER_TERM * count + _FINAL_ROUNDINGS) + read + tiny


def lost_in_operations(count: torch.Tensor) -> torch.Tensor:
    """What `count` float32 operations may lose that flush their results: each less than `FLOAT32_TINY`, of any sign."""
    return DEVIATIONS * FLOAT32_TINY * (UNIFORM_VARIANCE * count).sqrt()


def lost_on_reading(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Magnitudes of those float64 values that lie below the smallest normal number of a dtype; 0 for the others."""
    magnitude = values.abs()
    return magnitude.masked_fill(magnitude >= torch.finfo(dtype).tiny, 0.0)


def _weighted_spread(weights: torch.Tensor, value: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
    """`sum_j weights_j (value_j - center)^2` for each query and element of the head."""
    total = weights.sum(dim=2, keepdim=True)
    return (weights @ value**2 - 2 * center * (weights @ value) + total * center**2).clamp(min=0.0)


def _worst_score_error(
    query: torch.Tensor, key: torch.Tensor, scores: torch.Tensor, slope: torch.Tensor, problem: Problem
) -> torch.Tensor:
    """The most that each score, and its exponential, may be off by: every rounding at its largest, all of one sign."""
    geometry = problem.geometry
    magnitude = query.abs() @ key.abs().transpose(1, 2) * (geometry.softmax_scale * slope)
    finite = scores.nan_to_num(neginf=0.0)
    distance = (scores.amax(dim=2, keepdim=True) if scores.shape[2] else scores) - scores
    error = (geometry.head_dim + 1) * magnitude + _SCORE_ROUNDINGS * finite.abs()
    error = error + distance.nan_to_num(nan=0.0, posinf=0.0)
    if geometry.softcap is not None:
        error = error + _TANH_UNITS * geometry.softcap
        error = error + _TANH_ERROR[DTYPES[problem.dtype]] / FLOAT32_ROUNDOFF * finite.abs()
    return error * FLOAT32_ROUNDOFF + _EXPONENTIAL_ERROR[DTYPES[problem.dtype]]


def _worst_output_bound(
    weights: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    score_error: torch.Tensor,
    key_count: torch.Tensor,
    problem: Problem,
) -> torch.Tensor:
    """The classical bound (Higham, section 3.1): `gamma_n = n u / (1 - n u)` on each sum, to first order."""
    dtype = DTYPES[problem.dtype]
    roundoff = _UNIT_ROUNDOFF[dtype]
    magnitude = weights @ value.abs()
    count = key_count.view(1, -1, 1)
    # |v_j - o| <= |v_j| + |o|.
    scores = (weights * score_error) @ value.abs() + (weights * score_error).sum(dim=2, keepdim=True) * output.abs()
    bound = scores + (2 * count + _FINAL_ROUNDINGS) * FLOAT32_ROUNDOFF * magnitude
    if dtype is not torch.float32:
        bound = bound + roundoff * magnitude
        if problem.geometry.sinks:
            # Equal scores are their own maximum, and their P is 1, unless a sink is larger.
            bound = bound + roundoff * output.abs()
    return torch.where(count > 0, bound + _flushed(weights, value, count, dtype), 0.0)


def _worst_lse_bound(
    weights: torch.Tensor, lse: torch.Tensor, score_error: torch.Tensor, key_count: torch.Tensor, problem: Problem
) -> torch.Tensor:
    count = key_count.unsqueeze(0)
    magnitude = lse.masked_fill(lse == -math.inf, 0.0).abs() + count.clamp(min=1.0).log() + 1.0
    bound = (weights * score_error).sum(dim=2) + (count + _FINAL_ROUNDINGS * magnitude) * FLOAT32_ROUNDOFF
    if problem.geometry.sinks and problem.dtype != "fp32":
        bound = bound + _UNIT_ROUNDOFF[DTYPES[problem.dtype]]
    return torch.where(count > 0, bound, 0.0)


def _lse_bound(
    weights: torch.Tensor,
    lse: torch.Tensor,
    score_variance: torch.Tensor,
    key_count: torch.Tensor,
    problem: Problem,
) -> torch.Tensor:
    count = key_count.unsqueeze(0)
    scores = (weights**2 * score_variance).sum(dim=2)
    # The maximum and the logarithm of the sum are each rounded, and the sum may cancel: neither is larger than this.
    magnitude = lse.masked_fill(lse == -math.inf, 0.0).abs() + count.clamp(min=1.0).log() + 1.0
    sums = (count / 3 + _FINAL_ROUNDINGS * magnitude**2) * (FLOAT32_ROUNDOFF**2 * UNIFORM_VARIANCE)
    dtype = DTYPES[problem.dtype]
    if dtype is not torch.float32:
        # The denominator may be summed from the rounded P, as FlashInfer's is.
        sums = sums + (weights**2).sum(dim=2) * (_UNIT_ROUNDOFF[dtype] ** 2 * UNIFORM_VARIANCE)
    # An exponential that is always too small by one factor cancels in the output, but not here.
    bias = _EXPONENTIAL_ERROR[dtype]
    bound = magnitude * FLOAT32_ROUNDOFF + bias + DEVIATIONS * (scores + sums).sqrt()
    return torch.where(count > 0, bound, 0.0)


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
    return binade * _UNIT_ROUNDOFF[dtype]
