"""Writing new keys and values to a page cache on the CPU: the call of the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.arguments import check_tensor, num_threads


class CacheWriteCall(ctypes.Structure):
    """`CacheWriteCall` in cache_write.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("key", "value", "key_cache", "value_cache", "slot_mapping")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("key_token", "key_head", "value_token", "value_head")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("key_page", "key_slot", "key_cache_head")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("value_page", "value_slot", "value_cache_head")),
        *((name, ctypes.c_int64) for name in ("num_tokens", "num_kv_heads", "head_dim", "num_pages", "page_size")),
        *((name, ctypes.c_int64) for name in ("element_size", "num_threads")),
    ]


def write_cache(
    library: ctypes.CDLL,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Copies new keys and values to their slots.

    Args:
        library: the compiled kernels.
        key: `[num_tokens, num_kv_heads, head_dim]`, last stride 1.
        value: as `key`.
        key_cache: `[num_pages, page_size, num_kv_heads, head_dim]`, last stride 1, of the keys' dtype.
        value_cache: as `key_cache`.
        slot_mapping: int64 `[num_tokens]`, `page * page_size + offset`, each slot at most once; -1 for a token that is
            written nowhere.

    Raises:
        ValueError: for a tensor that the kernel would read or write outside of, or a slot that the cache does not have.
            Nothing has been written then.
    """
    num_tokens, num_kv_heads, head_dim = key.shape
    num_pages, page_size = key_cache.shape[:2]
    for name, tensor in (("key", key), ("value", value)):
        check_tensor(name, tensor, (num_tokens, num_kv_heads, head_dim), key.dtype)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        check_tensor(name, cache, (num_pages, page_size, num_kv_heads, head_dim), key.dtype)
    check_tensor("slot_mapping", slot_mapping, (num_tokens,), torch.int64)
    call = CacheWriteCall(
        key=key.data_ptr(),
        value=value.data_ptr(),
        key_cache=key_cache.data_ptr(),
        value_cache=value_cache.data_ptr(),
        slot_mapping=slot_mapping.data_ptr(),
        key_token_stride=key.stride(0),
        key_head_stride=key.stride(1),
        value_token_stride=value.stride(0),
        value_head_stride=value.stride(1),
        key_page_stride=key_cache.stride(0),
        key_slot_stride=key_cache.stride(1),
        key_cache_head_stride=key_cache.stride(2),
        value_page_stride=value_cache.stride(0),
        value_slot_stride=value_cache.stride(1),
        value_cache_head_stride=value_cache.stride(2),
        num_tokens=num_tokens,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        num_pages=num_pages,
        page_size=page_size,
        element_size=key.element_size(),
        num_threads=num_threads(num_tokens * num_kv_heads * head_dim),
    )
    library.samebits_cache_write.restype = ctypes.c_int64
    outside = library.samebits_cache_write(ctypes.byref(call))
    if outside >= 0:
        raise ValueError(
            f"token {outside} has slot {slot_mapping[outside].item()}; the cache has 0 to {num_pages * page_size - 1}, "
            "and -1 is padding"
        )
