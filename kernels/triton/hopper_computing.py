"""A warpgroup that computes: its 64 rows of one tile after another, in step with what is loaded."""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disable-error-code=assignment

from samebits.kernels.triton import hopper_arithmetic as arithmetic
from samebits.kernels.triton import hopper_columns as columns
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
def _load_query(
    query,
    block,
    first_row,
    first_token,
    query_len,
    first_head,
    stride_query_token,
    stride_query_head,
    GROUP: gl.constexpr,
):
    """Copies a part of a warpgroup's rows into shared memory, and zeros for rows that do not exist."""
    LAYOUT: gl.constexpr = columns.copied(block.shape[1])
    row = gl.arange(0, tiles.ROWS, gl.SliceLayout(1, LAYOUT))
    token = first_token + row // GROUP
    exists = (token < query_len) & (row // GROUP < tiles.ROWS // GROUP)
    query_rows = (first_row + token).to(gl.int64) * stride_query_token
    query_rows += (first_head + row % GROUP).to(gl.int64) * stride_query_head
    column = gl.arange(0, block.shape[1], gl.SliceLayout(0, LAYOUT))
    block.store(gl.load(query + query_rows[:, None] + column[None, :], mask=exists[:, None], other=0.0))


@gluon.jit
def _start_scores(
    query_block,
    key_buffers,
    keys_full,
    count,
    SCORES: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    KV_TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    stage = count % STAGES
    mbarrier.wait(keys_full.index(stage), (count // STAGES) & 1)
    scores = gl.full([tiles.ROWS, KV_TILE], 0.0, gl.float32, SCORES)
    keys = columns.matrices(key_buffers, stage, KV_TILE, HEAD_DIM)
    for part in gl.static_range(len(keys)):
        scores = warpgroup_mma(query_block[part], keys[part].permute((1, 0)), scores, use_acc=part > 0, is_async=True)
    return scores


@gluon.jit
def _start_outputs(weights, value_buffers, stage, chunk_output, HEAD_DIM: gl.constexpr, KV_TILE: gl.constexpr):
    values = columns.matrices(value_buffers, stage, KV_TILE, HEAD_DIM)
    adding = ()
    for part in gl.static_range(len(values)):
        operand = gl.convert_layout(weights, gl.DotOperandLayout(0, chunk_output[part].type.layout, 2))
        adding += (warpgroup_mma(operand, values[part], chunk_output[part], is_async=True),)
    return adding


@gluon.jit
def _added(adding):
    """Waits for what `_start_outputs` started."""
    # The wait for one of them gives itself in place of a tuple.
    return (warpgroup_mma_wait(0, deps=adding),) if len(adding) == 1 else warpgroup_mma_wait(0, deps=adding)


@gluon.jit
def _clear_outside(rows, begin, end):
    """Writes zeros into the rows of a matrix in shared memory that are not among `begin:end`."""
    LAYOUT: gl.constexpr = columns.copied(rows.shape[1])
    row = gl.arange(0, rows.shape[0], gl.SliceLayout(1, LAYOUT))
    kept = ((row >= begin) & (row < end))[:, None]
    values = rows.load(LAYOUT)
    rows.store(gl.where(kept, values, gl.full_like(values, 0.0)))


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
    KV_TILE: gl.constexpr,
    WARPGROUPS: gl.constexpr,
):
    """Writes zeros in place of values that no row sees: weights there are 0, but 0 * NaN is not.

    The first warpgroup writes, and the others wait until it has.

    Returns:
        A bit for each buffer: the phase of its barrier in `taken_out`.
    """
    if WARPGROUP == 0:
        for piece in gl.static_range(KV_TILE // tiles.PIECE):
            first_key = tile_key + piece * tiles.PIECE
            if (first_key < begin_key) | (first_key + tiles.PIECE > end_key):
                for part in gl.static_range(len(value_buffers)):
                    buffer = value_buffers[part].index(stage)
                    for span in gl.static_range(buffer.shape[0] // KV_TILE):
                        piece_rows = buffer.slice(span * KV_TILE + piece * tiles.PIECE, tiles.PIECE)
                        _clear_outside(piece_rows, begin_key - first_key, end_key - first_key)
        fence_async_shared()
        if WARPGROUPS > 1:
            mbarrier.arrive(taken_out.index(stage))
    else:
        mbarrier.wait(taken_out.index(stage), (phases >> stage) & 1)
    return phases ^ (1 << stage)


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
    merged_outputs,
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
    IN_MEMORY: gl.constexpr,
):
    """What a warpgroup does from its start to its end. The arguments are those of `paged_attention_kernel`."""
    SCORES: gl.constexpr = columns.accumulator(KV_TILE)
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    WARPGROUP_TOKENS: gl.constexpr = tiles.ROWS // GROUP
    dtype: gl.constexpr = query.dtype.element_ty
    num_heads = num_kv_heads * GROUP
    merged_output = merged_outputs
    if IN_MEMORY:
        merged_output += (gl.program_id(0) * WARPGROUPS + WARPGROUP) * (tiles.ROWS * HEAD_DIM)

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
            query_block = columns.matrices(query_buffers, WARPGROUP, tiles.ROWS, HEAD_DIM)
            for part in gl.static_range(len(query_block)):
                _load_query(
                    query + part * query_block[0].shape[1],
                    query_block[part],
                    first_row,
                    first_token,
                    query_len,
                    kv_head * GROUP,
                    stride_query_token,
                    stride_query_head,
                    GROUP,
                )
            fence_async_shared()

            row = gl.arange(0, tiles.ROWS, SCORE_ROWS)
            token = first_token + row // GROUP
            head = kv_head * GROUP + row % GROUP
            exists = (token < query_len) & (row // GROUP < WARPGROUP_TOKENS)
            partial = ((first_row + token).to(gl.int64) * num_heads + head) * partial_chunks

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
            row_output = columns.zeros(HEAD_DIM)
            if begin_tile < end_tile:
                chunk_max = gl.full([tiles.ROWS], tiles.LOWEST, gl.float32, SCORE_ROWS)
                chunk_sum = gl.full([tiles.ROWS], 0.0, gl.float32, SCORE_ROWS)
                chunk_output = columns.zeros(HEAD_DIM)
                running = _start_scores(
                    query_block, key_buffers, keys_full, count, SCORES, HEAD_DIM, KV_TILE, KEY_STAGES
                )
                scores = warpgroup_mma_wait(0, deps=[running])
                mbarrier.arrive(keys_empty.index(count % KEY_STAGES))
                weights, rescale, chunk_max, chunk_sum = arithmetic.weigh(
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
                weights_of_tile = weights.to(dtype)
                for tile_key in range(begin_tile + KV_TILE, end_tile, KV_TILE):
                    running = _start_scores(
                        query_block, key_buffers, keys_full, count + 1, SCORES, HEAD_DIM, KV_TILE, KEY_STAGES
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
                                KV_TILE,
                                WARPGROUPS,
                            )
                    adding = _start_outputs(weights_of_tile, value_buffers, stage, chunk_output, HEAD_DIM, KV_TILE)
                    # The scores are there first; their weights are computed while the values are added up.
                    scores = warpgroup_mma_wait(len(adding), deps=[running])
                    mbarrier.arrive(keys_empty.index((count + 1) % KEY_STAGES))
                    begins_chunk = tile_key % CHUNK == 0
                    last_max = chunk_max
                    last_sum = chunk_sum
                    if begins_chunk:
                        chunk_max = gl.full([tiles.ROWS], tiles.LOWEST, gl.float32, SCORE_ROWS)
                        chunk_sum = gl.full([tiles.ROWS], 0.0, gl.float32, SCORE_ROWS)
                    weights, rescale, chunk_max, chunk_sum = arithmetic.weigh(
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
                    chunk_output = _added(adding)
                    mbarrier.arrive(values_empty.index(stage))
                    if begins_chunk:
                        chunk_output = columns.without_negative_zero(chunk_output)
                        if PARTIAL:
                            chunk = tile_key // CHUNK - 1
                            gl.store(partial_max + partial + chunk, last_max, mask=exists)
                            gl.store(partial_sum + partial + chunk, last_sum, mask=exists)
                            columns.store(partial_output, (partial + chunk) * HEAD_DIM, exists, chunk_output)
                        elif IN_MEMORY:
                            row_max, row_sum, _ = arithmetic.merge_chunk_in_memory(
                                merged_output,
                                tile_key - CHUNK > begin_tile // CHUNK * CHUNK,
                                row_max,
                                row_sum,
                                last_max,
                                last_sum,
                                chunk_output,
                                HEAD_DIM,
                                LAST=False,
                            )
                        else:
                            row_max, row_sum, row_output = arithmetic.merge_chunk(
                                row_max, row_sum, row_output, last_max, last_sum, chunk_output
                            )
                        chunk_output = columns.zeros(HEAD_DIM)
                    else:
                        chunk_output = columns.scaled(chunk_output, rescale)
                    weights_of_tile = weights.to(dtype)
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
                        KV_TILE,
                        WARPGROUPS,
                    )
                adding = _start_outputs(weights_of_tile, value_buffers, stage, chunk_output, HEAD_DIM, KV_TILE)
                chunk_output = columns.without_negative_zero(_added(adding))
                mbarrier.arrive(values_empty.index(stage))
                count += 1
                if PARTIAL:
                    chunk = (end_tile - 1) // CHUNK
                    gl.store(partial_max + partial + chunk, chunk_max, mask=exists)
                    gl.store(partial_sum + partial + chunk, chunk_sum, mask=exists)
                    columns.store(partial_output, (partial + chunk) * HEAD_DIM, exists, chunk_output)
                elif IN_MEMORY:
                    row_max, row_sum, row_output = arithmetic.merge_chunk_in_memory(
                        merged_output,
                        (end_tile - 1) // CHUNK > begin_tile // CHUNK,
                        row_max,
                        row_sum,
                        chunk_max,
                        chunk_sum,
                        chunk_output,
                        HEAD_DIM,
                        LAST=True,
                    )
                else:
                    row_max, row_sum, row_output = arithmetic.merge_chunk(
                        row_max, row_sum, row_output, chunk_max, chunk_sum, chunk_output
                    )
            if not PARTIAL:
                # As `paged_attention._store_rows`.
                keyless = row_sum == 0.0
                keyless_lse = gl.full([tiles.ROWS], float("-inf"), gl.float32, SCORE_ROWS)
                if WITH_SINKS:
                    keyless_lse = gl.load(sinks + head * stride_sink)
                    one = gl.full([tiles.ROWS], 1.0, gl.float32, SCORE_ROWS)
                    row_max, row_sum, row_output = arithmetic.merge_chunk(
                        row_max, row_sum, row_output, keyless_lse * tiles.LOG2_E, one, columns.zeros(HEAD_DIM)
                    )
                divisor = gl.where(row_sum == 0.0, 1.0, row_sum)
                reciprocal = gl.div_rn(gl.full([tiles.ROWS], 1.0, gl.float32, SCORE_ROWS), divisor)
                output_rows = (first_row + token).to(gl.int64) * stride_output_token
                output_rows += head.to(gl.int64) * stride_output_head
                columns.store(output, output_rows, exists, columns.scaled(row_output, reciprocal))
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
