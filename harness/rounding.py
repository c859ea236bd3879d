"""What roundings, exponentials and flushed numbers may cost correct arithmetic, as every error bound counts them."""

from __future__ import annotations

import torch

# Standard deviations of accumulated rounding errors that a bound allows.
DEVIATIONS = 7.0
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
FLOAT32_ROUNDOFF = UNIT_ROUNDOFF[torch.float32]
# The smallest normal number: what a float32 operation may lose whose result lies below.
FLOAT32_TINY = torch.finfo(torch.float32).tiny
# Variance of a rounding error that is uniform over one unit, relative to the unit roundoff squared.
UNIFORM_VARIANCE = 1.0 / 3.0
# Relative error of an exponential. In float32, that of the hardware's (CUDA C++ Programming Guide: ex2.approx, 2^-22).
# Where P is rounded to 16 bits anyway, kernels use shorter polynomials: FlashAttention 4 emulates exp2 to 9e-5, ATen's
# exp_u20 gives exp(0) = 1 - 5e-5. Both are correct arithmetic for such a P, so neither may cost more than this.
EXPONENTIAL_ERROR_FLOAT32 = 2.0**-22
EXPONENTIAL_ERROR = {torch.float32: EXPONENTIAL_ERROR_FLOAT32, torch.bfloat16: 2.0**-13, torch.float16: 2.0**-13}


def lost_in_operations(count: torch.Tensor) -> torch.Tensor:
    """What `count` float32 operations may lose that flush their results: each less than `FLOAT32_TINY`, of any sign."""
    return DEVIATIONS * FLOAT32_TINY * (UNIFORM_VARIANCE * count).sqrt()


def lost_on_reading(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Magnitudes of those float64 values that lie below the smallest normal number of a dtype; 0 for the others."""
    magnitude = values.abs()
    return magnitude.masked_fill(magnitude >= torch.finfo(dtype).tiny, 0.0)
