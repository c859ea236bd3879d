"""Merging two partial attention results on the CPU: the call of the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.arguments import Heads, element_of, heads_of, num_threads


class Result(ctypes.Structure):
    """`Result` in merge.cpp."""

    _fields_ = [("output", Heads), ("lse", ctypes.c_void_p), ("lse_head_stride", ctypes.c_int64)]


class MergeCall(ctypes.Structure):
    """`MergeCall` in merge.cpp."""

    _fields_ = [
        *((name, Result) for name in ("prefix", "suffix", "merged")),
        *((name, ctypes.c_int64) for name in ("num_tokens", "num_heads", "head_dim")),
        *((name, ctypes.c_int64) for name in ("element", "num_threads")),
    ]


def merge_states(
    library: ctypes.CDLL,
    prefix_output: torch.Tensor,
    prefix_lse: torch.Tensor,
    suffix_output: torch.Tensor,
    suffix_lse: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Merges the attention of the same queries over two sets of keys, in float32 with one rounding at the end.

    A side whose log-sum-exp is -inf saw no key, and the other's bits are passed on; where both are, the output is 0.

    Args:
        library: the compiled kernels.
        prefix_output: `[num_tokens, num_heads, head_dim]`, last stride 1.
        prefix_lse: float32 `[num_heads, num_tokens]`, last stride 1, natural logarithm.
        suffix_output: as `prefix_output`.
        suffix_lse: as `prefix_lse`.
        output: as `prefix_output`; it may be one of the two.
        lse: as `prefix_lse`; it may be one of the two.
    """
    num_tokens, num_heads, head_dim = output.shape
    call = MergeCall(
        prefix=_result(prefix_output, prefix_lse),
        suffix=_result(suffix_output, suffix_lse),
        merged=_result(output, lse),
        num_tokens=num_tokens,
        num_heads=num_heads,
        head_dim=head_dim,
        element=element_of(output),
        num_threads=num_threads(output.numel()),
    )
    library.samebits_merge.restype = None
    library.samebits_merge(ctypes.byref(call))


def _result(output: torch.Tensor, lse: torch.Tensor) -> Result:
    return Result(output=heads_of(output), lse=lse.data_ptr(), lse_head_stride=lse.stride(0))
