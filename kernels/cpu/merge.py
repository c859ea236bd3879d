"""Merging two partial attention results on the CPU: the call of the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.arguments import check_tensor, element_of, num_threads


class Side(ctypes.Structure):
    """`Side` in merge.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("output", "lse")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("token", "head", "lse_head")),
    ]


class MergeCall(ctypes.Structure):
    """`MergeCall` in merge.cpp."""

    _fields_ = [
        *((name, Side) for name in ("prefix", "suffix")),
        *((name, ctypes.c_void_p) for name in ("output", "lse")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("output_token", "output_head", "lse_head")),
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

    Raises:
        ValueError: for a tensor that the kernel would read or write outside of.
    """
    num_tokens, num_heads, head_dim = prefix_output.shape
    element = element_of("prefix_output", prefix_output)
    outputs = {"prefix_output": prefix_output, "suffix_output": suffix_output, "output": output}
    for name, tensor in outputs.items():
        check_tensor(name, tensor, (num_tokens, num_heads, head_dim), prefix_output.dtype)
    for name, tensor in {"prefix_lse": prefix_lse, "suffix_lse": suffix_lse, "lse": lse}.items():
        check_tensor(name, tensor, (num_heads, num_tokens), torch.float32)
    call = MergeCall(
        prefix=_side(prefix_output, prefix_lse),
        suffix=_side(suffix_output, suffix_lse),
        output=output.data_ptr(),
        lse=lse.data_ptr(),
        output_token_stride=output.stride(0),
        output_head_stride=output.stride(1),
        lse_head_stride=lse.stride(0),
        num_tokens=num_tokens,
        num_heads=num_heads,
        head_dim=head_dim,
        element=element,
        num_threads=num_threads(num_tokens * num_heads * head_dim),
    )
    library.samebits_merge.restype = None
    library.samebits_merge(ctypes.byref(call))


def _side(output: torch.Tensor, lse: torch.Tensor) -> Side:
    return Side(
        output=output.data_ptr(),
        lse=lse.data_ptr(),
        token_stride=output.stride(0),
        head_stride=output.stride(1),
        lse_head_stride=lse.stride(0),
    )
