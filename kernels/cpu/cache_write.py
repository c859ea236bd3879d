"""Writing new keys and values to a page cache on the CPU: the call of the compiled kernel."""

from __future__ import annotations

import ctypes

import torch

from samebits.kernels.cpu.arguments import Heads, Pages, heads_of, num_threads, pages_of


class CacheWriteCall(ctypes.Structure):
    """`CacheWriteCall` in cache_write.cpp."""

    _fields_ = [
        *((name, Heads) for name in ("key", "value")),
        *((name, Pages) for name in ("key_cache", "value_cache")),
        ("slot_mapping", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_tokens", "num_kv_heads", "page_size", "head_bytes")),
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
        slot_mapping: int64 `[num_tokens]`, `page * page_size + offset` inside of the cache, each slot at most once; -1
            for a token that is written nowhere.
    """
    num_tokens, num_kv_heads, head_dim = key.shape
    call = CacheWriteCall(
        key=heads_of(key),
        value=heads_of(value),
        key_cache=pages_of(key_cache),
        value_cache=pages_of(value_cache),
        slot_mapping=slot_mapping.data_ptr(),
        num_tokens=num_tokens,
        num_kv_heads=num_kv_heads,
        page_size=key_cache.shape[1],
        head_bytes=head_dim * key.element_size(),
        element_size=key.element_size(),
        num_threads=num_threads(key.numel()),
    )
    library.samebits_cache_write.restype = None
    library.samebits_cache_write(ctypes.byref(call))
