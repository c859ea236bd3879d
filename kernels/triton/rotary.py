"""Rotary position embedding in place: products and their sum in float32, one rounding at the end.

A row is one token under one head. Every operation is IEEE's and on one pair of elements alone, so that a row's bits
follow from its elements and its position, on any device; nothing of a tile's shape or of the launch is in them.
"""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

import triton
import triton.language as tl


@triton.jit
def _rotate_rows(
    tensor,
    positions,
    cos_sin_cache,
    tile,
    num_tokens,
    max_position,
    stride_token,
    stride_head,
    stride_position,
    NUM_HEADS: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PAIRS_PADDED: tl.constexpr,
):
    """Rotates the rows of one tile of `tensor`, `[num_tokens, NUM_HEADS, head_dim]`."""
    PAIRS: tl.constexpr = ROTARY_DIM // 2
    row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = row // NUM_HEADS
    exists = token < num_tokens
    pair = tl.arange(0, PAIRS_PADDED)[None, :]
    rotated = exists[:, None] & (pair < PAIRS)

    position = tl.load(positions + token, mask=exists, other=0)
    cosines = cos_sin_cache + (position * stride_position)[:, None] + pair
    # NaN, so that a position which the cache does not hold shows, and is no other position's rotation.
    cached = rotated & ((position >= 0) & (position < max_position))[:, None]
    cosine = tl.load(cosines, mask=cached, other=float("nan")).to(tl.float32)
    sine = tl.load(cosines + PAIRS, mask=cached, other=float("nan")).to(tl.float32)
    if INVERSE:
        sine = -sine

    rows = tensor + (token.to(tl.int64) * stride_token + (row % NUM_HEADS).to(tl.int64) * stride_head)[:, None]
    if INTERLEAVED:
        # Loaded and stored as they lie, since every second element cannot be loaded in one piece.
        column = tl.arange(0, 2 * PAIRS_PADDED)[None, :]
        moved = exists[:, None] & (column < ROTARY_DIM)
        elements = tl.load(rows + column, mask=moved, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(elements, [BLOCK_ROWS, PAIRS_PADDED, 2]))
        turned = tl.join(first * cosine - second * sine, second * cosine + first * sine)
        turned = tl.reshape(turned, [BLOCK_ROWS, 2 * PAIRS_PADDED])
        tl.store(rows + column, turned.to(tensor.dtype.element_ty), mask=moved)
    else:
        first = tl.load(rows + pair, mask=rotated, other=0.0).to(tl.float32)
        second = tl.load(rows + PAIRS + pair, mask=rotated, other=0.0).to(tl.float32)
        tl.store(rows + pair, (first * cosine - second * sine).to(tensor.dtype.element_ty), mask=rotated)
        tl.store(rows + PAIRS + pair, (second * cosine + first * sine).to(tensor.dtype.element_ty), mask=rotated)


# Positions are often a slice that starts anywhere; an alignment of theirs is worth no variant.
@triton.jit(do_not_specialize=["num_tokens", "max_position"], do_not_specialize_on_alignment=["positions"])
def rotary_kernel(
    query,
    key,
    positions,
    cos_sin_cache,
    num_tokens,
    max_position,
    stride_query_token,
    stride_query_head,
    stride_key_token,
    stride_key_head,
    stride_position,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PAIRS_PADDED: tl.constexpr,
):
    """Rotates one tile of rows: those of the queries come first, in `cdiv(num_tokens * NUM_HEADS, BLOCK_ROWS)` tiles.

    A tile must have at least as many pairs as its program has threads. Threads beyond that would hold copies of
    elements, and a copy might be read where the element has been written already.

    Tensors, with last stride 1:
        query, key: `[num_tokens, NUM_HEADS or NUM_KV_HEADS, head_dim]`. Elements from `ROTARY_DIM` on are not touched.
        positions: int64 `[num_tokens]`; elements at positions that the cache does not hold become NaN.
        cos_sin_cache: `[max_position, ROTARY_DIM]`, of the queries' dtype or float32, cosines first.

    Numbers:
        INTERLEAVED: whether elements `2i` and `2i + 1` form a pair, or `i` and `i + ROTARY_DIM / 2`.
        INVERSE: whether to rotate back.
        BLOCK_ROWS, PAIRS_PADDED: shape of a tile; the second is the number of pairs, rounded up to a power of 2.
    """
    tile = tl.program_id(0)
    query_tiles = tl.cdiv(num_tokens * NUM_HEADS, BLOCK_ROWS)
    if tile < query_tiles:
        _rotate_rows(
            query,
            positions,
            cos_sin_cache,
            tile,
            num_tokens,
            max_position,
            stride_query_token,
            stride_query_head,
            stride_position,
            NUM_HEADS,
            ROTARY_DIM,
            INTERLEAVED,
            INVERSE,
            BLOCK_ROWS,
            PAIRS_PADDED,
        )
    else:
        _rotate_rows(
            key,
            positions,
            cos_sin_cache,
            tile - query_tiles,
            num_tokens,
            max_position,
            stride_key_token,
            stride_key_head,
            stride_position,
            NUM_KV_HEADS,
            ROTARY_DIM,
            INTERLEAVED,
            INVERSE,
            BLOCK_ROWS,
            PAIRS_PADDED,
        )
