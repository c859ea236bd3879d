"""A warpgroup that computes: its 64 rows of one tile after another, in step with what is loaded."""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from samebits.kernels.triton import hopper_tiles as tiles
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit
def _start_scores(
    query_block,
    key_buffers,
    keys_full,
    count,
    SCORES: gl.constexpr,
    OPERAND: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    KV_TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    stage = count % STAGES
    mbarrier.wait(keys_full.index(stage), (count // STAGES) & 1)
    keys = key_buffers.index(stage)._reinterpret(query_block.dtype, [KV_TILE, HEAD_DIM], OPERAND)
    nothing = gl.full([tiles.ROWS, KV_TILE], 0.0, gl.float32, SCORES)
    return warpgroup_mma(query_block, keys.permute((1, 0)), nothing, use_acc=False, is_async=True)


@gluon.jit
def _weigh(
    scores,
    chunk_max,
    chunk_sum,
    visible_end,
    tile_key,
    all_see_until,
    all_see_from,
    score_scale,
    SCORES: gl.constexpr,
    KV_TILE: gl.constexpr,
    WINDOW: gl.constexpr,
):
    """Turns the scores of a tile into weights: a step of `paged_attention._attend_chunk`.

    Every row sees the keys `all_see_from:all_see_until`, and a tile of such keys needs no mask.

    Returns:
        Weights, the factor of what the chunk came to before, the chunk's maximum and its sum of weights.
    """
    if (tile_key + KV_TILE > all_see_until) | (tile_key < all_see_from):
        key = (tile_key + gl.arange(0, KV_TILE, gl.SliceLayout(0, SCORES)))[None, :]
        visible = key < visible_end[:, None]
        if WINDOW:
            visible = visible & (key >= visible_end[:, None] - WINDOW)
        scores = gl.where(visible, scores, float("-inf"))
    new_max = gl.maximum(chunk_max, gl.max(scores, 1) * score_scale)
    scale = gl.full_like(scores, 0.0) + score_scale
    weights = gl.exp2(gl.fma(scores, scale, gl.full_like(scores, 0.0) + (0.0 - new_max)[:, None]))
    rescale = gl.exp2(chunk_max - new_max)
    return weights, rescale, new_max, chunk_sum * rescale + gl.sum(weights, 1)


@gluon.jit
def _take_out_unseen_values(
    WARPGROUP: gl.constexpr,
    value_buffers,
    stage,
    taken_out,
    phases,
    tile_key,
    begin_key,
    end_key,
    HEAD_DIM: gl.constexpr,
    KV_TILE: gl.constexpr,
    WARPGROUPS: gl.constexpr,
):
    """Writes zeros in place of values that no row sees: weights there are 0, but 0 * NaN is not.

    The first warpgroup writes, and the others wait until it has.

    Returns:
        A bit for each buffer: the phase of its barrier in `taken_out`.
    """
    if WARPGROUP == 0:
        LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        buffer = value_buffers.index(stage)
        for piece in gl.static_range(KV_TILE // tiles.PIECE):
            first_key = tile_key + piece * tiles.PIECE
            if (first_key < begin_key) | (first_key + tiles.PIECE > end_key):
                key = first_key + gl.arange(0, tiles.PIECE, gl.SliceLayout(1, LAYOUT))
                seen = ((key >= begin_key) & (key < end_key))[:, None]
                for span in gl.static_range(HEAD_DIM // tiles.SPAN):
                    part = buffer.slice(span * KV_TILE + piece * tiles.PIECE, tiles.PIECE)
                    values = part.load(LAYOUT)
                    part.store(gl.where(seen, values, gl.full_like(values, 0.0)))
        fence_async_shared()
        if WARPGROUPS > 1:
            mbarrier.arrive(taken_out.index(stage))
    else:
        mbarrier.wait(taken_out.index(stage), (phases >> stage) & 1)
    return phases ^ (1 << stage)


@gluon.jit
def _merge_chunk(row_max, row_sum, row_output, chunk_max, chunk_sum, chunk_output, OUTPUT_ROWS: gl.constexpr):
    """As `paged_attention._merge_chunk`."""
    new_max = gl.maximum(row_max, chunk_max)
    row_factor = gl.exp2(row_max - new_max)
    chunk_factor = gl.exp2(chunk_max - new_max)
    new_sum = row_sum * row_factor + chunk_sum * chunk_factor
    row_factor = gl.convert_layout(row_factor, OUTPUT_ROWS)[:, None]
    chunk_factor = gl.convert_layout(chunk_factor, OUTPUT_ROWS)[:, None]
    return new_max, new_sum, row_output * row_factor + chunk_output * chunk_factor + 0.0


@gluon.jit
def compute_rows(
    WARPGROUP: gl.constexpr,
    query,
    output,
    lse,
    sinks,
    partial_max,
    partial_sum,
    partial_output,
    partial_chunks,
    query_buffers,
    key_buffers,
    value_buffers,
    keys_full,
    keys_empty,
    values_full,
    values_empty,
    taken_out,
    numbers,
    told,
    heard,
    num_kv_heads,
    score_scale,
    stride_query_token,
    stride_query_head,
    stride_output_token,
    stride_output_head,
    stride_lse_head,
    stride_lse_token,
    stride_sink,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    KV_TILE: gl.constexpr,
    CHUNK: gl.constexpr,
    KEY_STAGES: gl.constexpr,
    VALUE_STAGES: gl.constexpr,
    WARPGROUPS: gl.constexpr,
    WITH_LSE: gl.constexpr,
    WITH_SINKS: gl.constexpr,
    PARTIAL: gl.constexpr,
):
    """What a warpgroup does from its start to its end. The arguments are those of `paged_attention_kernel`."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KV_TILE, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUTPUT_ROWS: gl.constexpr = gl.SliceLayout(1, OUTPUT)
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    QUERY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    WARPGROUP_TOKENS: gl.constexpr = tiles.ROWS // GROUP
    dtype: gl.constexpr = query.dtype.element_ty
    num_heads = num_kv_heads * GROUP

    count = 0
    phases = 0
    heard_tiles = 0
    mbarrier.wait(told.index(0), 0)
    query_len = tiles.told_number(numbers, 0, tiles.QUERY_LEN)
    while query_len >= 0:
        slot = heard_tiles % tiles.SLOTS
        first_row = tiles.told_number(numbers, slot, tiles.FIRST_ROW)
        first_token = tiles.told_number(numbers, slot, tiles.TILE_TOKEN) + WARPGROUP * WARPGROUP_TOKENS
        first_position = tiles.told_number(numbers, slot, tiles.FIRST_POSITION)
        kv_head = tiles.told_number(numbers, slot, tiles.KV_HEAD)
        begin_key = tiles.told_number(numbers, slot, tiles.BEGIN_KEY)
        end_key = tiles.told_number(numbers, slot, tiles.END_KEY)
        begin_tile = tiles.told_number(numbers, slot, tiles.BEGIN_TILE)
        end_tile = tiles.told_number(numbers, slot, tiles.END_TILE)
        mbarrier.arrive(heard.index(slot))
        heard_tiles += 1

        if first_token < query_len:
            query_block = query_buffers.index(WARPGROUP)
            row = gl.arange(0, tiles.ROWS, gl.SliceLayout(1, QUERY))
            token = first_token + row // GROUP
            exists = (token < query_len) & (row // GROUP < WARPGROUP_TOKENS)
            query_rows = (first_row + token).to(gl.int64) * stride_query_token
            query_rows += (kv_head * GROUP + row % GROUP).to(gl.int64) * stride_query_head
            column = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, QUERY))
            query_block.store(gl.load(query + query_rows[:, None] + column[None, :], mask=exists[:, None], other=0.0))
            fence_async_shared()

            # Rows once in the layout of scores, for what is one number for each, and once in that of outputs.
            row = gl.arange(0, tiles.ROWS, SCORE_ROWS)
            token = first_token + row // GROUP
            head = kv_head * GROUP + row % GROUP
            exists = (token < query_len) & (row // GROUP < WARPGROUP_TOKENS)
            output_row = gl.arange(0, tiles.ROWS, OUTPUT_ROWS)
            output_token = first_token + output_row // GROUP
            output_head = kv_head * GROUP + output_row % GROUP
            stored = ((output_token < query_len) & (output_row // GROUP < WARPGROUP_TOKENS))[:, None]
            output_column = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, OUTPUT))[None, :]
            partial = ((first_row + token).to(gl.int64) * num_heads + head) * partial_chunks
            partial_row = ((first_row + output_token).to(gl.int64) * num_heads + output_head) * partial_chunks

            visible_end = gl.where(exists, end_key, 0)
            all_see_until = end_key
            all_see_from = 0
            if CAUSAL:
                visible_end = gl.where(exists, first_position + token + 1, 0)
                all_see_until = gl.minimum(first_position + first_token + 1, end_key)
            if WINDOW:
                all_see_from = first_position + first_token + WARPGROUP_TOKENS - WINDOW

            row_max = gl.full([tiles.ROWS], tiles.LOWEST, gl.float32, SCORE_ROWS)
            row_sum = gl.full([tiles.ROWS], 0.0, gl.float32, SCORE_ROWS)
            row_output = gl.full([tiles.ROWS, HEAD_DIM], 0.0, gl.float32, OUTPUT)
            if begin_tile < end_tile:
                chunk_max = gl.full([tiles.ROWS], tiles.LOWEST, gl.float32, SCORE_ROWS)
                chunk_sum = gl.full([tiles.ROWS], 0.0, gl.float32, SCORE_ROWS)
                chunk_output = gl.full([tiles.ROWS, HEAD_DIM], 0.0, gl.float32, OUTPUT)
                running = _start_scores(
                    query_block, key_buffers, keys_full, count, SCORES, OPERAND, HEAD_DIM, KV_TILE, KEY_STAGES
                )
                scores = warpgroup_mma_wait(0, deps=[running])
                mbarrier.arrive(keys_empty.index(count % KEY_STAGES))
                weights, rescale, chunk_max, chunk_sum = _weigh(
                    scores,
                    chunk_max,
                    chunk_sum,
                    visible_end,
                    begin_tile,
                    all_see_until,
                    all_see_from,
                    score_scale,
                    SCORES,
                    KV_TILE,
                    WINDOW,
                )
                weights_of_tile = gl.convert_layout(weights.to(dtype), WEIGHTS)
                for tile_key in range(begin_tile + KV_TILE, end_tile, KV_TILE):
                    running = _start_scores(
                        query_block, key_buffers, keys_full, count + 1, SCORES, OPERAND, HEAD_DIM, KV_TILE, KEY_STAGES
                    )
                    stage = count % VALUE_STAGES
                    mbarrier.wait(values_full.index(stage), (count // VALUE_STAGES) & 1)
                    if WINDOW:  # noqa: SIM102 -- of the compiler's time, and inside of the device's
                        if tile_key - KV_TILE < begin_key:
                            phases = _take_out_unseen_values(
                                WARPGROUP,
                                value_buffers,
                                stage,
                                taken_out,
                                phases,
                                tile_key - KV_TILE,
                                begin_key,
                                end_key,
                                HEAD_DIM,
                                KV_TILE,
                                WARPGROUPS,
                            )
                    values = value_buffers.index(stage)._reinterpret(dtype, [KV_TILE, HEAD_DIM], OPERAND)
                    adding = warpgroup_mma(weights_of_tile, values, chunk_output, is_async=True)
                    # The scores are there first; their weights are computed while the values are added up.
                    scores = warpgroup_mma_wait(1, deps=[running])
                    mbarrier.arrive(keys_empty.index((count + 1) % KEY_STAGES))
                    begins_chunk = tile_key % CHUNK == 0
                    last_max = chunk_max
                    last_sum = chunk_sum
                    if begins_chunk:
                        chunk_max = gl.full([tiles.ROWS], tiles.LOWEST, gl.float32, SCORE_ROWS)
                        chunk_sum = gl.full([tiles.ROWS], 0.0, gl.float32, SCORE_ROWS)
                    weights, rescale, chunk_max, chunk_sum = _weigh(
                        scores,
                        chunk_max,
                        chunk_sum,
                        visible_end,
                        tile_key,
                        all_see_until,
                        all_see_from,
                        score_scale,
                        SCORES,
                        KV_TILE,
                        WINDOW,
                    )
                    chunk_output = warpgroup_mma_wait(0, deps=[adding])
                    mbarrier.arrive(values_empty.index(stage))
                    if begins_chunk:
                        chunk_output = chunk_output + 0.0
                        if PARTIAL:
                            chunk = tile_key // CHUNK - 1
                            gl.store(partial_max + partial + chunk, last_max, mask=exists)
                            gl.store(partial_sum + partial + chunk, last_sum, mask=exists)
                            stored_at = (partial_row + chunk)[:, None] * HEAD_DIM + output_column
                            gl.store(partial_output + stored_at, chunk_output, mask=stored)
                        else:
                            row_max, row_sum, row_output = _merge_chunk(
                                row_max, row_sum, row_output, last_max, last_sum, chunk_output, OUTPUT_ROWS
                            )
                        chunk_output = gl.full([tiles.ROWS, HEAD_DIM], 0.0, gl.float32, OUTPUT)
                    else:
                        chunk_output = chunk_output * gl.convert_layout(rescale, OUTPUT_ROWS)[:, None]
                    weights_of_tile = gl.convert_layout(weights.to(dtype), WEIGHTS)
                    count += 1
                stage = count % VALUE_STAGES
                mbarrier.wait(values_full.index(stage), (count // VALUE_STAGES) & 1)
                last_tile = begin_tile + (end_tile - 1 - begin_tile) // KV_TILE * KV_TILE
                if (last_tile + KV_TILE > end_key) | (last_tile < begin_key):
                    phases = _take_out_unseen_values(
                        WARPGROUP,
                        value_buffers,
                        stage,
                        taken_out,
                        phases,
                        last_tile,
                        begin_key,
                        end_key,
                        HEAD_DIM,
                        KV_TILE,
                        WARPGROUPS,
                    )
                values = value_buffers.index(stage)._reinterpret(dtype, [KV_TILE, HEAD_DIM], OPERAND)
                adding = warpgroup_mma(weights_of_tile, values, chunk_output, is_async=True)
                chunk_output = warpgroup_mma_wait(0, deps=[adding]) + 0.0
                mbarrier.arrive(values_empty.index(stage))
                count += 1
                if PARTIAL:
                    chunk = (end_tile - 1) // CHUNK
                    gl.store(partial_max + partial + chunk, chunk_max, mask=exists)
                    gl.store(partial_sum + partial + chunk, chunk_sum, mask=exists)
                    stored_at = (partial_row + chunk)[:, None] * HEAD_DIM + output_column
                    gl.store(partial_output + stored_at, chunk_output, mask=stored)
                else:
                    row_max, row_sum, row_output = _merge_chunk(
                        row_max, row_sum, row_output, chunk_max, chunk_sum, chunk_output, OUTPUT_ROWS
                    )
            if not PARTIAL:
                # As `paged_attention._store_rows`.
                keyless = row_sum == 0.0
                keyless_lse = gl.full([tiles.ROWS], float("-inf"), gl.float32, SCORE_ROWS)
                if WITH_SINKS:
                    keyless_lse = gl.load(sinks + head * stride_sink)
                    one = gl.full([tiles.ROWS], 1.0, gl.float32, SCORE_ROWS)
                    nothing = gl.full([tiles.ROWS, HEAD_DIM], 0.0, gl.float32, OUTPUT)
                    row_max, row_sum, row_output = _merge_chunk(
                        row_max, row_sum, row_output, keyless_lse * tiles.LOG2_E, one, nothing, OUTPUT_ROWS
                    )
                divisor = gl.where(row_sum == 0.0, 1.0, row_sum)
                reciprocal = gl.div_rn(gl.full([tiles.ROWS], 1.0, gl.float32, SCORE_ROWS), divisor)
                normalised = row_output * gl.convert_layout(reciprocal, OUTPUT_ROWS)[:, None]
                output_rows = (first_row + output_token).to(gl.int64) * stride_output_token
                output_rows += output_head.to(gl.int64) * stride_output_head
                gl.store(output + output_rows[:, None] + output_column, normalised.to(dtype), mask=stored)
                if WITH_LSE:
                    log_sum = (row_max + gl.log2(divisor)) * tiles.LN_2
                    lse_rows = head.to(gl.int64) * stride_lse_head
                    lse_rows += (first_row + token).to(gl.int64) * stride_lse_token
                    gl.store(lse + lse_rows, gl.where(keyless, keyless_lse, log_sum), mask=exists)
        else:
            # A tile may end before this warpgroup's rows. What is loaded for the others is let pass.
            for tile_key in range(begin_tile, end_tile, KV_TILE):
                stage = count % KEY_STAGES
                mbarrier.wait(keys_full.index(stage), (count // KEY_STAGES) & 1)
                mbarrier.arrive(keys_empty.index(stage))
                stage = count % VALUE_STAGES
                mbarrier.wait(values_full.index(stage), (count // VALUE_STAGES) & 1)
                if (tile_key + KV_TILE > end_key) | (tile_key < begin_key):
                    mbarrier.wait(taken_out.index(stage), (phases >> stage) & 1)
                    phases = phases ^ (1 << stage)
                mbarrier.arrive(values_empty.index(stage))
                count += 1
        slot = heard_tiles % tiles.SLOTS
        mbarrier.wait(told.index(slot), (heard_tiles // tiles.SLOTS) & 1)
        query_len = tiles.told_number(numbers, slot, tiles.QUERY_LEN)
