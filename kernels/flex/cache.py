"""The page cache as FlexAttention takes it: one sequence of slots per key/value head.

Where the pages begin a whole number of blocks apart, that sequence is the cache itself, in place: slots between one
page and the next belong to nobody, and no tile lists their blocks. So K and V may share an allocation, page by page or
token by token, or be slices of a larger cache, or be stored head by head.

Only a sink needs a copy. Its weight must fall on no value, and FlexAttention gives every weight a value, so that the
blocks which a batch reads are copied behind a block of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BlocksBehindSink:
    """Copies of the blocks that a batch reads, behind a block of zeros.

    Attributes:
        pages: int64 `[num_read, 1]`, page of each block.
        offsets: int64 `[num_read, keys]`, place of its tokens in that page.
        keys, values: `[num_blocks, keys, num_kv_heads, head_dim]`, scratch; zeros but for blocks 1 to `num_read`.
    """

    pages: torch.Tensor
    offsets: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    def copy(self, key_cache: torch.Tensor, value_cache: torch.Tensor) -> None:
        """Copies the blocks out of caches of any strides."""
        for scratch, cache in ((self.keys, key_cache), (self.values, value_cache)):
            scratch[1 : 1 + len(self.pages)] = cache[self.pages, self.offsets]


def page_distance(key_cache: torch.Tensor, value_cache: torch.Tensor, keys_per_block: int) -> int:
    """Slots from the beginning of one page to that of the next, in both caches.

    Args:
        key_cache: `[num_pages, page_size, num_kv_heads, head_dim]`.
        value_cache: the same shape.
        keys_per_block: slots of a block.

    Raises:
        ValueError: pages that do not begin a whole number of blocks apart, or not as far apart in both caches.
    """
    distances = []
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if cache.shape[0] == 1:
            # The first stride of a single page says nothing.
            distances.append(int(cache.shape[1]))
            continue
        distance, remainder = divmod(cache.stride(0), cache.stride(1))
        if remainder or distance % keys_per_block or distance < cache.shape[1]:
            raise ValueError(
                f"{name} has strides {cache.stride()}; the first must be a multiple of {keys_per_block} times the "
                f"second, and at least page_size={cache.shape[1]} times"
            )
        distances.append(distance)
    if distances[0] != distances[1]:
        raise ValueError(
            f"the pages of key_cache begin {distances[0]} tokens apart and those of value_cache {distances[1]}; "
            f"both must be as far apart"
        )
    return distances[0]


def at_least_pages(cache: torch.Tensor, num_pages: int) -> torch.Tensor:
    """The cache, or where it has fewer pages a copy with pages of zeros behind them."""
    missing = num_pages - cache.shape[0]
    return torch.nn.functional.pad(cache, (0, 0, 0, 0, 0, 0, 0, missing)) if missing > 0 else cache


def as_sequence(cache: torch.Tensor, num_slots: int) -> torch.Tensor:
    """The first slots of a cache, in place: `[num_kv_heads, 1, num_slots, head_dim]`.

    Args:
        cache: `[num_pages, page_size, num_kv_heads, head_dim]`.
        num_slots: slots from the first page's first on, those between pages among them.
    """
    _, token_stride, head_stride, element_stride = cache.stride()
    _, _, num_kv_heads, head_dim = cache.shape
    # On the cache's memory, yet no view of it: of a view the compiler also looks at the base, and compiles again for
    # every other shape that it has.
    return torch.empty(0, dtype=cache.dtype, device=cache.device).set_(
        cache.untyped_storage(),
        cache.storage_offset(),
        (num_kv_heads, 1, num_slots, head_dim),
        (head_stride, head_stride, token_stride, element_stride),
    )
