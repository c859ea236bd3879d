"""Rotary position embedding on the CPU: the call of the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.arguments import Heads, element_of, heads_of, num_threads


class RotaryCall(ctypes.Structure):
    """`RotaryCall` in rotary.cpp."""

    _fields_ = [
        *((name, Heads) for name in ("query", "key")),
        *((name, ctypes.c_void_p) for name in ("positions", "cos_sin_cache")),
        *((name, ctypes.c_int64) for name in ("cache_stride", "num_tokens", "num_heads", "num_kv_heads", "rotary_dim")),
        *((name, ctypes.c_int64) for name in ("interleaved", "inverse")),
        *((name, ctypes.c_int64) for name in ("element", "cache_element", "num_threads")),
    ]


def rotate(
    library: ctypes.CDLL,
    query: torch.Tensor,
    key: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    *,
    interleaved: bool,
    inverse: bool,
) -> None:
    """Rotates queries and keys in place, in float32 with one rounding at the end.

    Args:
        library: the compiled kernels.
        query: `[num_tokens, num_heads, head_dim]`, last stride 1.
        key: `[num_tokens, num_kv_heads, head_dim]`, last stride 1, of the queries' dtype.
        positions: int64 `[num_tokens]`, each at least 0 and below `max_position`.
        cos_sin_cache: `[max_position, rotary_dim]`, last stride 1, of the queries' dtype or float32.
        interleaved: whether elements `2i` and `2i + 1` form a pair, or `i` and `i + rotary_dim / 2`.
        inverse: rotate back.
    """
    num_tokens, num_heads, _ = query.shape
    num_kv_heads, rotary_dim = key.shape[1], cos_sin_cache.shape[1]
    call = RotaryCall(
        query=heads_of(query),
        key=heads_of(key),
        positions=positions.data_ptr(),
        cos_sin_cache=cos_sin_cache.data_ptr(),
        cache_stride=cos_sin_cache.stride(0),
        num_tokens=num_tokens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rotary_dim=rotary_dim,
        interleaved=interleaved,
        inverse=inverse,
        element=element_of(query),
        cache_element=element_of(cos_sin_cache),
        num_threads=num_threads(num_tokens * (num_heads + num_kv_heads) * rotary_dim),
    )
    library.samebits_rotary.restype = None
    library.samebits_rotary(ctypes.byref(call))
