"""Rotary position embedding on the CPU: the call of the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.arguments import check_tensor, element_of, num_threads


class RotaryCall(ctypes.Structure):
    """`RotaryCall` in rotary.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "positions", "cos_sin_cache")),
        *(
            (f"{name}_stride", ctypes.c_int64)
            for name in ("query_token", "query_head", "key_token", "key_head", "cache")
        ),
        *((name, ctypes.c_int64) for name in ("num_tokens", "num_heads", "num_kv_heads", "rotary_dim", "max_position")),
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
        positions: int64 `[num_tokens]`.
        cos_sin_cache: `[max_position, rotary_dim]`, last stride 1, of the queries' dtype or float32.
        interleaved: whether elements `2i` and `2i + 1` form a pair, or `i` and `i + rotary_dim / 2`.
        inverse: rotate back.

    Raises:
        ValueError: for a tensor that the kernel would read or write outside of, or a position that the cache does not
            hold. Nothing has been rotated then.
    """
    num_tokens, num_heads, head_dim = query.shape
    max_position, rotary_dim = cos_sin_cache.shape
    num_kv_heads = key.shape[1]
    element = element_of("query", query)
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise ValueError(
            f"cos_sin_cache has rotary_dim {rotary_dim}; it must be an even number of at most head_dim {head_dim}"
        )
    cache_dtype = torch.float32 if cos_sin_cache.dtype == torch.float32 else query.dtype
    check_tensor("query", query, (num_tokens, num_heads, head_dim), query.dtype)
    check_tensor("key", key, (num_tokens, num_kv_heads, head_dim), query.dtype)
    check_tensor("positions", positions, (num_tokens,), torch.int64)
    check_tensor("cos_sin_cache", cos_sin_cache, (max_position, rotary_dim), cache_dtype)
    call = RotaryCall(
        query=query.data_ptr(),
        key=key.data_ptr(),
        positions=positions.data_ptr(),
        cos_sin_cache=cos_sin_cache.data_ptr(),
        query_token_stride=query.stride(0),
        query_head_stride=query.stride(1),
        key_token_stride=key.stride(0),
        key_head_stride=key.stride(1),
        cache_stride=cos_sin_cache.stride(0),
        num_tokens=num_tokens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rotary_dim=rotary_dim,
        max_position=max_position,
        interleaved=interleaved,
        inverse=inverse,
        element=element,
        cache_element=element_of("cos_sin_cache", cos_sin_cache),
        num_threads=num_threads(num_tokens * (num_heads + num_kv_heads) * rotary_dim),
    )
    library.samebits_rotary.restype = ctypes.c_int64
    outside = library.samebits_rotary(ctypes.byref(call))
    if outside >= 0:
        raise ValueError(
            f"token {outside} has position {positions[outside].item()}; the cache holds 0 to {max_position - 1}"
        )
