"""A batch-invariant linear layer on the CPU: the call of the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.arguments import LeadingDimensions, element_of, leading_dimensions, num_threads
from samebits.kernels.cpu.attention import LANES

CHUNK = 256  # `kChunk` in linear.cpp
ROW_TILE = 32  # `kRowTile` in linear.cpp


class LinearCall(ctypes.Structure):
    """`LinearCall` in linear_call.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "output")),
        ("rows", LeadingDimensions),
        *((name, ctypes.c_int64) for name in ("in_features", "out_features")),
        *((name, ctypes.c_int64) for name in ("element", "num_threads", "amx")),
    ]


def linear(
    library: ctypes.CDLL,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    output: torch.Tensor,
    *,
    amx: bool = False,
) -> None:
    """`output = input @ weight.T + bias`, summed in float32 in a fixed order, with one rounding at the end.

    Args:
        library: the compiled kernels.
        input: `[..., in_features]` with one to three leading dimensions of any strides, last stride 1.
        weight: `[out_features, in_features]`, contiguous, of the input's dtype.
        bias: `[out_features]`, contiguous, of the input's dtype; None for none.
        output: `[..., out_features]` with the leading dimensions of `input`, contiguous, of the input's dtype.
        amx: whether bfloat16 is multiplied by AMX, if `samebits.kernels.cpu.amx.has_amx` says so. It decides bits.
    """
    out_features, in_features = weight.shape
    call = LinearCall(
        input=input.data_ptr(),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        output=output.data_ptr(),
        rows=leading_dimensions(input),
        in_features=in_features,
        out_features=out_features,
        element=element_of(input),
        # Elements are multiplied and added sixteen at a time.
        num_threads=num_threads(input.numel() * out_features // LANES),
        amx=amx,
    )
    library.samebits_linear.restype = None
    library.samebits_linear(ctypes.byref(call))
