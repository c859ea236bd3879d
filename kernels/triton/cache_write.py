"""Storing keys and values of new tokens in a page cache, bit by bit."""

# ruff: noqa: ANN001, ANN201 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

import triton
import triton.language as tl


# Slots are often a slice that starts anywhere; an alignment of theirs is worth no variant.
@triton.jit(do_not_specialize=["num_tokens", "num_slots"], do_not_specialize_on_alignment=["slot_mapping"])
def cache_write_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slot_mapping,
    num_tokens,
    num_slots,
    stride_key_token,
    stride_key_head,
    stride_value_token,
    stride_value_head,
    stride_key_cache_page,
    stride_key_cache_slot,
    stride_key_cache_head,
    stride_value_cache_page,
    stride_value_cache_slot,
    stride_value_cache_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
):
    """Stores one tile of rows. A row is one token under one head.

    Tensors, with last stride 1:
        key, value: `[num_tokens, NUM_KV_HEADS, HEAD_DIM]`.
        key_cache, value_cache: `[num_pages, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM]`, of the dtype of `key`.
        slot_mapping: int64 `[num_tokens]`, `page * PAGE_SIZE + offset`; what is no slot of the caches writes nothing.

    Numbers:
        num_slots: `num_pages * PAGE_SIZE`.
        BLOCK_ROWS, HEAD_DIM_PADDED: shape of a tile; the second is `HEAD_DIM` rounded up to a power of 2.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = row // NUM_KV_HEADS
    head = (row % NUM_KV_HEADS).to(tl.int64)
    slot = tl.load(slot_mapping + token, mask=token < num_tokens, other=-1)
    page = slot // PAGE_SIZE
    page_slot = slot % PAGE_SIZE
    column = tl.arange(0, HEAD_DIM_PADDED)[None, :]
    stored = ((slot >= 0) & (slot < num_slots))[:, None] & (column < HEAD_DIM)
    token = token.to(tl.int64)

    key_rows = token * stride_key_token + head * stride_key_head
    keys = tl.load(key + key_rows[:, None] + column, mask=stored)
    key_slots = page * stride_key_cache_page + page_slot * stride_key_cache_slot + head * stride_key_cache_head
    tl.store(key_cache + key_slots[:, None] + column, keys, mask=stored)

    value_rows = token * stride_value_token + head * stride_value_head
    values = tl.load(value + value_rows[:, None] + column, mask=stored)
    value_slots = page * stride_value_cache_page + page_slot * stride_value_cache_slot + head * stride_value_cache_head
    tl.store(value_cache + value_slots[:, None] + column, values, mask=stored)
