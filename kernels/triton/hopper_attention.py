"""Paged attention for Hopper, with the arithmetic of `paged_attention` and so its bits.

What is added to what, in which order and with which instruction, is as there, in tiles of the same keys: its docstring
is the contract. Only who does it when is written for the hardware. Of the warps of a program,

* one loads: it finds the next tile of rows and lets the tensor memory accelerator bring the pages of its keys and
  values into two rings of shared memory, as far ahead as these have room, over the ends of tiles;
* each of one or two warpgroups computes 64 rows: while the products of a tile with its values are under way, it turns
  the scores of the next tile into weights.

Programs stay and take one tile of rows after another, so that the loads of the next begin before this one ends: by
number, or whoever is free first, as a counter tells.
"""

# ruff: noqa: ANN001, ANN201 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disable-error-code=assignment

from samebits.kernels.triton import hopper_columns as columns
from samebits.kernels.triton import hopper_tiles as tiles
from samebits.kernels.triton.hopper_computing import compute_rows
from samebits.kernels.triton.hopper_loading import load_tiles
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

# What is read through a module is not among what Triton's cache tells compiled kernels apart by: this is.
CONSTANTS = gl.constexpr(str({name: value for name, value in vars(tiles).items() if name.isupper()}))


@gluon.jit(
    do_not_specialize=[
        "num_requests",
        "num_tiles",
        "num_segments",
        "partial_chunks",
        "stride_lse_head",
        "stride_block_table",
    ],
    do_not_specialize_on_alignment=["lse", "query_start_loc", "kv_lens", "block_table"],
)
def paged_attention_kernel(
    query,
    key_descriptor,
    key_rest_descriptor,
    value_descriptor,
    value_rest_descriptor,
    output,
    lse,
    sinks,
    partial_max,
    partial_sum,
    partial_output,
    merged_outputs,
    query_start_loc,
    kv_lens,
    block_table,
    counter,
    num_requests,
    num_tiles,
    num_kv_heads,
    num_segments,
    partial_chunks,
    score_scale,
    stride_query_token,
    stride_query_head,
    key_page_rows,
    key_head_rows,
    key_head_columns,
    value_page_rows,
    value_head_rows,
    value_head_columns,
    stride_output_token,
    stride_output_head,
    stride_lse_head,
    stride_lse_token,
    stride_sink,
    stride_block_table,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    PAGE_SIZE: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    KV_TILE: gl.constexpr,
    CHUNK: gl.constexpr,
    WARPGROUPS: gl.constexpr,
    KEY_STAGES: gl.constexpr,
    VALUE_STAGES: gl.constexpr,
    LOADING_REGISTERS: gl.constexpr,
    COMPUTING_REGISTERS: gl.constexpr,
):
    """Attends for tiles of rows: items (segment, key/value head, tile), the tile fastest, of which programs take any.

    Arguments that `paged_attention.paged_attention_kernel` has too are as there; elements have 16 bits, `HEAD_DIM` is a
    power of two from 64 on, or 16, 32 or 64 more. Others:
        key_descriptor, value_descriptor: the caches as matrices, read in boxes of `[rows of a page or tile, SPAN]`.
            Slot s of page p and head h is row `p * page_rows + h * head_rows + s`, from column `h * head_columns` on.
        key_rest_descriptor, value_rest_descriptor: the same, in boxes for the columns beyond the power of two; None
            where there are none.
        merged_outputs: float32 `[programs, WARPGROUPS, 64, HEAD_DIM]`, scratch for what the chunks before came to, of
            heads that leave no registers for it; None for registers.
        counter: int32 `[1]`, 0 when the kernel starts, by which programs take items in the order in which they are
            free; None to take every n-th of n programs.
        num_tiles, num_kv_heads, num_segments: sizes of the numbering of items. Segment s of n owns the s-th n-th of a
            tile's chunks.
        WARPGROUPS: 1 or 2 warpgroups of 64 rows, so many tiles of rows that share what is loaded.
        KEY_STAGES, VALUE_STAGES: buffers of the rings.
        LOADING_REGISTERS, COMPUTING_REGISTERS: of a thread that loads, and of one of the second warpgroup.
    """
    gl.static_assert(CONSTANTS != "")
    dtype: gl.constexpr = query.dtype.element_ty
    BOX_ROWS: gl.constexpr = key_descriptor.block_type.shape[0]
    TILE_TOKENS: gl.constexpr = tiles.ROWS // GROUP * WARPGROUPS
    DYNAMIC: gl.constexpr = counter is not None
    WITH_LSE: gl.constexpr = lse is not None
    WITH_SINKS: gl.constexpr = sinks is not None
    PARTIAL: gl.constexpr = partial_max is not None
    IN_MEMORY: gl.constexpr = merged_outputs is not None
    # None cannot be handed on to warps of their own. Nobody reads what stands in its place.
    if counter is None:
        counter = query_start_loc
    if lse is None:
        lse = query_start_loc
    if sinks is None:
        sinks = query_start_loc
    if partial_max is None:
        partial_max = query_start_loc
        partial_sum = query_start_loc
        partial_output = query_start_loc
    if merged_outputs is None:
        merged_outputs = query_start_loc

    NUMBER: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    query_buffers = columns.allocate(dtype, WARPGROUPS, tiles.ROWS, HEAD_DIM)
    key_buffers = columns.allocate(dtype, KEY_STAGES, KV_TILE, HEAD_DIM)
    value_buffers = columns.allocate(dtype, VALUE_STAGES, KV_TILE, HEAD_DIM)
    key_descriptors = (key_descriptor,)
    value_descriptors = (value_descriptor,)
    if key_rest_descriptor is not None:
        key_descriptors += (key_rest_descriptor,)
        value_descriptors += (value_rest_descriptor,)
    numbers = gl.allocate_shared_memory(gl.int32, [tiles.SLOTS * tiles.NUMBERS, 1], NUMBER)
    keys_full = gl.allocate_shared_memory(gl.int64, [KEY_STAGES, 1], BARRIER)
    keys_empty = gl.allocate_shared_memory(gl.int64, [KEY_STAGES, 1], BARRIER)
    values_full = gl.allocate_shared_memory(gl.int64, [VALUE_STAGES, 1], BARRIER)
    values_empty = gl.allocate_shared_memory(gl.int64, [VALUE_STAGES, 1], BARRIER)
    taken_out = gl.allocate_shared_memory(gl.int64, [VALUE_STAGES, 1], BARRIER)
    told = gl.allocate_shared_memory(gl.int64, [tiles.SLOTS, 1], BARRIER)
    heard = gl.allocate_shared_memory(gl.int64, [tiles.SLOTS, 1], BARRIER)
    for stage in gl.static_range(KEY_STAGES):
        mbarrier.init(keys_full.index(stage), count=1)
        mbarrier.init(keys_empty.index(stage), count=WARPGROUPS)
    for stage in gl.static_range(VALUE_STAGES):
        mbarrier.init(values_full.index(stage), count=1)
        mbarrier.init(values_empty.index(stage), count=WARPGROUPS)
        mbarrier.init(taken_out.index(stage), count=1)
    for slot in gl.static_range(tiles.SLOTS):
        mbarrier.init(told.index(slot), count=1)
        mbarrier.init(heard.index(slot), count=WARPGROUPS)
    fence_async_shared()

    # Arguments are spelt out for each: kept under a name, constants among them would become numbers of the device.
    # fmt: off
    if WARPGROUPS == 1:
        gl.warp_specialize([
            (compute_rows, (0,
                query, output, lse, sinks, partial_max, partial_sum, partial_output, partial_chunks, merged_outputs,
                query_buffers, key_buffers, value_buffers, keys_full, keys_empty, values_full, values_empty,
                taken_out, numbers, told, heard, num_kv_heads, score_scale, stride_query_token,
                stride_query_head, stride_output_token, stride_output_head, stride_lse_head,
                stride_lse_token, stride_sink, GROUP, HEAD_DIM, CAUSAL, WINDOW, KV_TILE, CHUNK,
                KEY_STAGES, VALUE_STAGES, WARPGROUPS, WITH_LSE, WITH_SINKS, PARTIAL, IN_MEMORY,
            )),
            (load_tiles, (
                key_descriptors, value_descriptors, key_buffers, value_buffers, keys_full, keys_empty, values_full,
                values_empty, numbers, told, heard, counter, query_start_loc, kv_lens, block_table,
                stride_block_table, num_requests, num_tiles, num_kv_heads, num_segments,
                key_page_rows, key_head_rows, key_head_columns, value_page_rows, value_head_rows,
                value_head_columns, TILE_TOKENS, HEAD_DIM, PAGE_SIZE, CAUSAL, WINDOW, BOX_ROWS,
                KV_TILE, CHUNK, KEY_STAGES, VALUE_STAGES, DYNAMIC,
            )),
        ], [1], [LOADING_REGISTERS])
    else:
        gl.warp_specialize([
            (compute_rows, (0,
                query, output, lse, sinks, partial_max, partial_sum, partial_output, partial_chunks, merged_outputs,
                query_buffers, key_buffers, value_buffers, keys_full, keys_empty, values_full, values_empty,
                taken_out, numbers, told, heard, num_kv_heads, score_scale, stride_query_token,
                stride_query_head, stride_output_token, stride_output_head, stride_lse_head,
                stride_lse_token, stride_sink, GROUP, HEAD_DIM, CAUSAL, WINDOW, KV_TILE, CHUNK,
                KEY_STAGES, VALUE_STAGES, WARPGROUPS, WITH_LSE, WITH_SINKS, PARTIAL, IN_MEMORY,
            )),
            (compute_rows, (1,
                query, output, lse, sinks, partial_max, partial_sum, partial_output, partial_chunks, merged_outputs,
                query_buffers, key_buffers, value_buffers, keys_full, keys_empty, values_full, values_empty,
                taken_out, numbers, told, heard, num_kv_heads, score_scale, stride_query_token,
                stride_query_head, stride_output_token, stride_output_head, stride_lse_head,
                stride_lse_token, stride_sink, GROUP, HEAD_DIM, CAUSAL, WINDOW, KV_TILE, CHUNK,
                KEY_STAGES, VALUE_STAGES, WARPGROUPS, WITH_LSE, WITH_SINKS, PARTIAL, IN_MEMORY,
            )),
            (load_tiles, (
                key_descriptors, value_descriptors, key_buffers, value_buffers, keys_full, keys_empty, values_full,
                values_empty, numbers, told, heard, counter, query_start_loc, kv_lens, block_table,
                stride_block_table, num_requests, num_tiles, num_kv_heads, num_segments,
                key_page_rows, key_head_rows, key_head_columns, value_page_rows, value_head_rows,
                value_head_columns, TILE_TOKENS, HEAD_DIM, PAGE_SIZE, CAUSAL, WINDOW, BOX_ROWS,
                KV_TILE, CHUNK, KEY_STAGES, VALUE_STAGES, DYNAMIC,
            )),
        ], [4, 1], [COMPUTING_REGISTERS, LOADING_REGISTERS])
    # fmt: on
