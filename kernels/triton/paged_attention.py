"""Paged attention whose bits depend on the request alone.

The keys of a request are divided into chunks at fixed absolute boundaries: multiples of `CHUNK` counted from its first
attended key. Each chunk is computed from zero (own running maximum, sum and output over its tiles), and chunks are
merged in ascending order. That is the arithmetic, whoever does it: one program may own all chunks of its rows and
merge them in registers, or several share them, each writing one partial per chunk for `merge_chunks_kernel` to merge.
Both call the functions below, so both give the same bits. Five more rules make this hold:

* Keys that a row does not see leave it bit for bit, be they in its tile for a neighbour's sake or beyond the request's.
  Those that no row of a tile sees are not even read. A value that a neighbour sees has to be finite, though: the row
  adds it with a weight of 0, and 0 * NaN is NaN.
* The shape of a tile never depends on the batch.
* Kernels are launched with `enable_fp_fusion=False`: a product and a sum are two roundings in every kernel, not one in
  those where a compiler happens to fuse them.
* A weight is `exp2(score * scale - maximum)` with one rounding of the argument: `tl.fma` says so itself.
* Sums are taken inside of `tl.dot` or in the layout of its result. Triton compiles variants for how tensors are aligned
  in memory. They load differently and may keep what they load in other layouts, in which `tl.sum` would add in another
  order; the instruction of a `tl.dot`, and so the layout of its result, is the same in all of them.

A row is one query token under one head. A tile holds the rows of consecutive tokens of one request under the `GROUP`
query heads that share a key/value head. Scores are kept in units of log2, as `exp2` is what the hardware has.
"""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disable-error-code=assignment

import triton
import triton.language as tl

SEARCH_WIDTH = tl.constexpr(128)
MANY_ROWS = tl.constexpr(1 << 30)
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
TWO_LOG2_E = tl.constexpr(2.8853900817779268)
# The maximum before any key: no score is below it, and unlike -inf it can be subtracted from itself.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _locate_tile(
    tile,
    query_start_loc,
    kv_lens,
    causal_requests,
    num_requests,
    TILE_TOKENS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Finds a tile's request, its rows, and the keys that any of its rows sees.

    Request b's tiles are numbered from `query_start_loc[b] // TILE_TOKENS + b`: enough room for each, without a
    scan over the requests before it. Some numbers in between are then nobody's, as are those after the last request's.

    Returns:
        The request; its first row of the query tensor; the tile's first query token, counted from the request's first;
        the request's number of query tokens; whether they see no later key; the position in the key sequence of the
        first of them; the first key any row sees and one past the last, equal when there is none.
    """
    request = -1
    for start in range(0, num_requests, SEARCH_WIDTH):
        candidate = start + tl.arange(0, SEARCH_WIDTH)
        first_row = tl.load(query_start_loc + candidate, mask=candidate < num_requests, other=MANY_ROWS)
        request += tl.sum((first_row // TILE_TOKENS + candidate <= tile).to(tl.int32), 0)
    first_row = tl.load(query_start_loc + request)
    query_len = tl.load(query_start_loc + request + 1) - first_row
    first_token = (tile - first_row // TILE_TOKENS - request) * TILE_TOKENS
    end_key = tl.load(kv_lens + request)
    first_position = end_key - query_len
    causal = CAUSAL if causal_requests is None else tl.load(causal_requests + request)
    last_end = tl.maximum(first_position + tl.minimum(first_token + TILE_TOKENS, query_len), 0)
    end_key = tl.where(causal, last_end, end_key)
    begin_key = 0
    if WINDOW:
        begin_key = tl.minimum(tl.maximum(first_position + first_token - (WINDOW - 1), 0), end_key)
    return request, first_row, first_token, query_len, causal, first_position, begin_key, end_key


@triton.jit
def _tanh(x):
    """Hyperbolic tangent of float32 values, within 2 units in the last place.

    `1 - 2 / (exp(2x) + 1)` loses digits near 0. There an odd polynomial takes over: `(tanh(x) / x - 1) / x**2` in
    powers of `x**2`, fitted by least squares in float64 at Chebyshev nodes of [0, 0.6**2].
    """
    magnitude = tl.abs(x)
    square = x * x
    series = (((-0.00627639 * square + 0.021116216) * square - 0.053875137) * square + 0.13332924) * square - 0.3333333
    # tanh is 1 beyond 10, where exp2 would overflow before long; a comparison, since a minimum may drop NaN.
    bounded = tl.where(magnitude > 10.0, 10.0, magnitude)
    saturating = 1.0 - 2.0 / (tl.exp2(bounded * TWO_LOG2_E) + 1.0)
    return tl.where(magnitude < 0.6, x + x * square * series, tl.where(x < 0.0, -saturating, saturating))


@triton.jit
def _attend_chunk(
    query,
    key_columns,
    value_columns,
    block_table_row,
    kv_start,
    begin_key,
    end_key,
    first_key,
    visible_end,
    score_scale,
    softcap,
    stride_key_page,
    stride_key_slot,
    stride_value_page,
    stride_value_slot,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KV_TILE: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Attends from zero to the keys `begin_key:end_key`, which lie in one chunk; `begin_key` starts a tile of keys.

    `key_columns` and `value_columns` are pointers `[1, HEAD_DIM_PADDED]`; `first_key` is the first that any row sees,
    and `visible_end`, `[rows, 1]`, one past the last key that each row sees.

    Returns:
        Maximum score, sum of weights and unnormalised output of each row; (LOWEST, 0, 0) for a row that sees no key
        here. No output is -0.0.
    """
    chunk_max = tl.full([query.shape[0]], LOWEST, tl.float32)
    chunk_sum = tl.full([query.shape[0]], 0.0, tl.float32)
    chunk_output = tl.full([query.shape[0], query.shape[1]], 0.0, tl.float32)
    for tile_key in range(begin_key, end_key, KV_TILE):
        key = tile_key + tl.arange(0, KV_TILE)
        in_range = key < end_key
        if WINDOW:
            in_range = in_range & (key >= first_key)
        slot = kv_start + key
        page = tl.load(block_table_row + slot // PAGE_SIZE, mask=in_range, other=0).to(tl.int64)
        page_slot = slot % PAGE_SIZE
        # Zeros beyond what any row sees: weights there are 0, but 0 * NaN is not.
        loaded = in_range[:, None]
        if query.shape[1] > HEAD_DIM:
            loaded = loaded & (tl.arange(0, query.shape[1])[None, :] < HEAD_DIM)
        key_rows = page * stride_key_page + page_slot * stride_key_slot
        keys = tl.load(key_columns + key_rows[:, None], mask=loaded, other=0.0)
        value_rows = page * stride_value_page + page_slot * stride_value_slot
        values = tl.load(value_columns + value_rows[:, None], mask=loaded, other=0.0)

        scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
        scale = score_scale
        if softcap is not None:
            scores = softcap * _tanh(scores * score_scale)
            scale = 1.0
        visible = key[None, :] < visible_end
        if WINDOW:
            visible = visible & (key[None, :] >= visible_end - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))

        new_max = tl.maximum(chunk_max, tl.max(scores, 1) * scale)
        weights = tl.exp2(tl.fma(scores, scale, -new_max[:, None]))
        rescale = tl.exp2(chunk_max - new_max)
        chunk_sum = chunk_sum * rescale + tl.sum(weights, 1)
        rescaled = chunk_output * rescale[:, None]
        chunk_output = tl.dot(weights.to(values.dtype), values, rescaled, input_precision="ieee")
        chunk_max = new_max
    # A tile without visible keys adds +0.0 to a row, which turns -0.0 into +0.0. Here that is done for every row.
    return chunk_max, chunk_sum, chunk_output + 0.0


@triton.jit
def _merge_chunk(row_max, row_sum, row_output, chunk_max, chunk_sum, chunk_output):
    """Merges a chunk into what the chunks before it came to.

    A chunk that a row sees no key of leaves the row bit for bit: the row's own factor is 1, what is added is +0.0, and
    no output is -0.0, before or after.
    """
    new_max = tl.maximum(row_max, chunk_max)
    row_factor = tl.exp2(row_max - new_max)
    chunk_factor = tl.exp2(chunk_max - new_max)
    new_sum = row_sum * row_factor + chunk_sum * chunk_factor
    new_output = row_output * row_factor[:, None] + chunk_output * chunk_factor[:, None]
    return new_max, new_sum, new_output + 0.0


@triton.jit
def _rows_of_tile(
    first_row, first_token, query_len, kv_head, GROUP: tl.constexpr, TILE_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr
):
    """Lays the query tokens of a tile and the heads of a group out as rows.

    Returns:
        Query token of each row, counted from the request's first; its row of the query tensor; its head; whether it
        exists: a group that does not divide the block, and a request that does not fill it, leave rows over.
    """
    row = tl.arange(0, BLOCK_ROWS)
    token_in_tile = row // GROUP
    token = first_token + token_in_tile
    exists = (token < query_len) & (token_in_tile < TILE_TOKENS)
    return token, (first_row + token).to(tl.int64), (kv_head * GROUP + row % GROUP).to(tl.int64), exists


@triton.jit
def _store_rows(output_pointers, lse, lse_rows, sink, row_max, row_sum, row_output, stored, row_exists):
    """Normalises and stores rows. One that saw no key has output 0, and its sink or else -inf for a log-sum-exp."""
    # The sum tells, not the maximum: a score of NaN may be missing from the maximum.
    keyless = row_sum == 0.0
    keyless_lse = float("-inf")
    if sink is not None:
        keyless_lse = sink
        # A chunk behind all others: one key, whose score is the sink and whose value is 0.
        row_max, row_sum, row_output = _merge_chunk(row_max, row_sum, row_output, sink * LOG2_E, 1.0, 0.0)
    divisor = tl.where(row_sum == 0.0, 1.0, row_sum)
    # One division for a row, not one for each of its elements: they take longer than all else here.
    normalised = row_output * tl.math.div_rn(1.0, divisor)[:, None]
    tl.store(output_pointers, normalised.to(output_pointers.dtype.element_ty), mask=stored)
    if lse is not None:
        log_sum = (row_max + tl.log2(divisor)) * LN_2
        tl.store(lse + lse_rows, tl.where(keyless, keyless_lse, log_sum), mask=row_exists)


# The numbers follow the batch, and the tensors are read element by element, often as slices of an engine's own buffers
# that start anywhere. A variant for a value of 1, or for one that 16 divides, would load nothing faster: it would only
# be compiled in the middle of serving.
@triton.jit(
    do_not_specialize=["num_requests", "partial_chunks", "stride_lse_head", "stride_block_table"],
    do_not_specialize_on_alignment=["lse", "query_start_loc", "kv_lens", "kv_starts", "causal_requests", "block_table"],
)
def paged_attention_kernel(
    query,
    key_cache,
    value_cache,
    output,
    lse,
    sinks,
    partial_max,
    partial_sum,
    partial_output,
    query_start_loc,
    kv_lens,
    kv_starts,
    causal_requests,
    block_table,
    num_requests,
    partial_chunks,
    score_scale,
    softcap,
    stride_query_token,
    stride_query_head,
    stride_key_page,
    stride_key_slot,
    stride_key_head,
    stride_value_page,
    stride_value_slot,
    stride_value_head,
    stride_output_token,
    stride_output_head,
    stride_lse_head,
    stride_lse_token,
    stride_sink,
    stride_block_table,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    KV_TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Attends for one tile of rows: program (tile, key/value head, segment). Segment s of n owns every n-th chunk.

    Tensors, with last stride 1 where there is no stride for it:
        query, output: `[num_tokens, num_heads, HEAD_DIM]`. Rows of no request are left alone. `output` and `lse` are
            left to `merge_chunks_kernel` when there are partials.
        lse: float32 `[num_heads, num_tokens]`, natural logarithm, or None.
        sinks: float32 `[num_heads]`, natural logarithms of weights that enter the sum of every row, or None.
        key_cache, value_cache: `[num_pages, PAGE_SIZE, num_kv_heads, HEAD_DIM]`.
        partial_max, partial_sum: float32 `[num_tokens, num_heads, partial_chunks]`, contiguous. None, as are all
            partials, when there is one segment.
        partial_output: float32 `[num_tokens, num_heads, partial_chunks, HEAD_DIM]`, contiguous.
        query_start_loc: int32 `[num_requests + 1]`, rows of each request.
        kv_lens: int32 `[num_requests]`, keys that each request attends to.
        kv_starts: int32 `[num_requests]`, slot of its first key, counted from the request's first slot.
        causal_requests: bool `[num_requests]`, contiguous, whether `CAUSAL` holds for a request; None for `CAUSAL`.
        block_table: int32 `[num_requests, max_pages_per_request]`.

    Numbers:
        score_scale: factor on `q . k` that gives scores in units of log2, or with a softcap the argument of its tanh.
        softcap: cap on the scores in units of log2, or None.
        CAUSAL: whether a row sees no key after its own position. The last query token is at the last key.
        WINDOW: how many keys up to its own position a row sees; 0 for all.
        BLOCK_ROWS, KV_TILE, CHUNK: rows of a tile; keys of a tile; keys of a chunk, a multiple of `KV_TILE`.
    """
    TILE_TOKENS: tl.constexpr = BLOCK_ROWS // GROUP
    kv_head = tl.program_id(1)
    request, first_row, first_token, query_len, causal, first_position, begin_key, end_key = _locate_tile(
        tl.program_id(0), query_start_loc, kv_lens, causal_requests, num_requests, TILE_TOKENS, CAUSAL, WINDOW
    )
    if first_token >= query_len:
        return

    token, row, head, row_exists = _rows_of_tile(
        first_row, first_token, query_len, kv_head, GROUP, TILE_TOKENS, BLOCK_ROWS
    )
    visible_end = tl.where(row_exists, tl.where(causal, first_position + token + 1, end_key), 0)
    column = tl.arange(0, HEAD_DIM_PADDED)[None, :]
    stored = row_exists[:, None] & (column < HEAD_DIM)
    query_rows = row * stride_query_token + head * stride_query_head
    query_block = tl.load(query + query_rows[:, None] + column, mask=stored, other=0.0)
    kv_head = kv_head.to(tl.int64)

    row_max = tl.full([BLOCK_ROWS], LOWEST, tl.float32)
    row_sum = tl.full([BLOCK_ROWS], 0.0, tl.float32)
    row_output = tl.full([BLOCK_ROWS, HEAD_DIM_PADDED], 0.0, tl.float32)
    first_tile_key = begin_key // KV_TILE * KV_TILE
    for chunk in range(begin_key // CHUNK + tl.program_id(2), tl.cdiv(end_key, CHUNK), tl.num_programs(2)):
        chunk_max, chunk_sum, chunk_output = _attend_chunk(
            query_block,
            key_cache + kv_head * stride_key_head + column,
            value_cache + kv_head * stride_value_head + column,
            block_table + request.to(tl.int64) * stride_block_table,
            tl.load(kv_starts + request).to(tl.int64),
            tl.maximum(chunk * CHUNK, first_tile_key),
            tl.minimum(chunk * CHUNK + CHUNK, end_key),
            begin_key,
            visible_end[:, None],
            score_scale,
            softcap,
            stride_key_page,
            stride_key_slot,
            stride_value_page,
            stride_value_slot,
            HEAD_DIM,
            PAGE_SIZE,
            KV_TILE,
            WINDOW,
        )
        if partial_output is None:
            row_max, row_sum, row_output = _merge_chunk(
                row_max, row_sum, row_output, chunk_max, chunk_sum, chunk_output
            )
        else:
            partial = (row * (tl.num_programs(1) * GROUP) + head) * partial_chunks + chunk
            tl.store(partial_max + partial, chunk_max, mask=row_exists)
            tl.store(partial_sum + partial, chunk_sum, mask=row_exists)
            tl.store(partial_output + partial[:, None] * HEAD_DIM + column, chunk_output, mask=stored)

    if partial_output is None:
        output_rows = row * stride_output_token + head * stride_output_head
        lse_rows = head * stride_lse_head + row * stride_lse_token
        sink = None if sinks is None else tl.load(sinks + head * stride_sink)
        output_pointers = output + output_rows[:, None] + column
        _store_rows(output_pointers, lse, lse_rows, sink, row_max, row_sum, row_output, stored, row_exists)


@triton.jit(
    do_not_specialize=["num_requests", "partial_chunks", "stride_lse_head"],
    do_not_specialize_on_alignment=["lse", "query_start_loc", "kv_lens", "causal_requests"],
)
def merge_chunks_kernel(
    output,
    lse,
    sinks,
    partial_max,
    partial_sum,
    partial_output,
    query_start_loc,
    kv_lens,
    causal_requests,
    num_requests,
    partial_chunks,
    stride_output_token,
    stride_output_head,
    stride_lse_head,
    stride_lse_token,
    stride_sink,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BATCH: tl.constexpr,
):
    """Merges the partials of a few rows and columns, program (tile, key/value head, block of columns).

    Arguments that `paged_attention_kernel` has too are as there, but tiles have a `BLOCK_ROWS` of their own. Others:
        BLOCK_COLUMNS: columns of a program.
        BATCH: chunks that are loaded at once. Loads take longer than what is done with them, and none has to wait.
    """
    TILE_TOKENS: tl.constexpr = BLOCK_ROWS // GROUP
    _, first_row, first_token, query_len, _, _, begin_key, end_key = _locate_tile(
        tl.program_id(0), query_start_loc, kv_lens, causal_requests, num_requests, TILE_TOKENS, CAUSAL, WINDOW
    )
    if first_token >= query_len:
        return

    _, row, head, row_exists = _rows_of_tile(
        first_row, first_token, query_len, tl.program_id(1), GROUP, TILE_TOKENS, BLOCK_ROWS
    )
    column = tl.program_id(2) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    stored = row_exists[:, None] & (column < HEAD_DIM)
    row_max = tl.full([BLOCK_ROWS], LOWEST, tl.float32)
    row_sum = tl.full([BLOCK_ROWS], 0.0, tl.float32)
    row_output = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], 0.0, tl.float32)
    partial_rows = (row * (tl.num_programs(1) * GROUP) + head) * partial_chunks
    end_chunk = tl.cdiv(end_key, CHUNK)
    for first_chunk in range(begin_key // CHUNK, end_chunk, BATCH):
        chunk_max, chunk_sum, chunk_output = (), (), ()
        for chunk in tl.static_range(BATCH):
            partial = partial_rows + first_chunk + chunk
            # What is beyond the last chunk reads as one of which the rows see no key.
            written = first_chunk + chunk < end_chunk
            chunk_max += (tl.load(partial_max + partial, mask=row_exists & written, other=LOWEST),)
            chunk_sum += (tl.load(partial_sum + partial, mask=row_exists & written, other=0.0),)
            outputs = partial_output + partial[:, None] * HEAD_DIM + column
            chunk_output += (tl.load(outputs, mask=stored & written, other=0.0),)
        for chunk in tl.static_range(BATCH):
            row_max, row_sum, row_output = _merge_chunk(
                row_max, row_sum, row_output, chunk_max[chunk], chunk_sum[chunk], chunk_output[chunk]
            )
    output_rows = row * stride_output_token + head * stride_output_head
    lse_rows = head * stride_lse_head + row * stride_lse_token
    sink = None if sinks is None else tl.load(sinks + head * stride_sink)
    output_pointers = output + output_rows[:, None] + column
    _store_rows(
        output_pointers, lse, lse_rows, sink, row_max, row_sum, row_output, stored, row_exists & (tl.program_id(2) == 0)
    )
