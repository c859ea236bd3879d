"""Normalisation by the root mean square on the CPU: the call of the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.arguments import LeadingDimensions, element_of, leading_dimensions, num_threads
from samebits.kernels.cpu.attention import is_streamed

CHUNK = 256  # `kChunk` in rms_norm.cpp


class RmsNormCall(ctypes.Structure):
    """`RmsNormCall` in rms_norm.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "weight", "output")),
        ("rows", LeadingDimensions),
        *((name, ctypes.c_int64) for name in ("size", "element", "num_threads", "streamed")),
        ("epsilon", ctypes.c_double),
    ]


def rms_norm(
    library: ctypes.CDLL, input: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, epsilon: float
) -> None:
    """`output = input / sqrt(mean(input^2) + epsilon) * weight`, in float32 with one rounding at the end.

    Args:
        library: the compiled kernels.
        input: `[..., size]` with one to three leading dimensions of any strides, last stride 1.
        weight: `[size]`, of the input's dtype.
        output: of the input's shape and dtype, contiguous.
        epsilon: added to the mean square.
    """
    call = RmsNormCall(
        input=input.data_ptr(),
        weight=weight.data_ptr(),
        output=output.data_ptr(),
        rows=leading_dimensions(input),
        size=input.shape[-1],
        element=element_of(input),
        num_threads=num_threads(input.numel()),
        streamed=is_streamed(output),
        epsilon=epsilon,
    )
    library.samebits_rms_norm.restype = None
    library.samebits_rms_norm(ctypes.byref(call))
