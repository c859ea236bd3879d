"""The warp that loads: takes tiles of rows, tells the warpgroups of each, and has its keys and values brought."""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disable-error-code=assignment

from samebits.kernels.triton import hopper_columns as columns
from samebits.kernels.triton import hopper_tiles as tiles
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


@gluon.jit
def _find_request(tile, query_start_loc, num_requests, TILE_TOKENS: gl.constexpr):
    """Finds a tile's request: tiles are numbered as by `paged_attention._locate_tile`.

    Returns:
        The request, its first row, its number of query tokens, and the tile's first token counted from there.
    """
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    request = -1
    for start in range(0, num_requests, tiles.SEARCH_WIDTH):
        candidate = start + gl.arange(0, tiles.SEARCH_WIDTH, LAYOUT)
        candidate_row = gl.load(query_start_loc + candidate, mask=candidate < num_requests, other=tiles.MANY_ROWS)
        request += gl.sum((candidate_row // TILE_TOKENS + candidate <= tile).to(gl.int32), 0)
    first_row = gl.load(query_start_loc + request)
    query_len = gl.load(query_start_loc + request + 1) - first_row
    return request, first_row, query_len, (tile - first_row // TILE_TOKENS - request) * TILE_TOKENS


@gluon.jit
def _load_tile(
    descriptors,
    buffers,
    full,
    empty,
    count,
    pages,
    head_row,
    page_rows,
    head_column,
    tile_key,
    HEAD_DIM: gl.constexpr,
    PAGE_SIZE: gl.constexpr,
    BOX_ROWS: gl.constexpr,
    KV_TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Lets a tile of keys or of values be copied into the ring's next buffer, as soon as that is empty."""
    stage = count % STAGES
    mbarrier.wait(empty.index(stage), ((count // STAGES) & 1) ^ 1)
    mbarrier.expect(full.index(stage), KV_TILE * HEAD_DIM * tiles.ELEMENT_BYTES)
    WIDTHS: gl.constexpr = columns.widths(HEAD_DIM)
    for box in gl.static_range(KV_TILE // BOX_ROWS):
        row = head_row + pages[box] * page_rows + (tile_key + box * BOX_ROWS) % PAGE_SIZE
        for part in gl.static_range(len(WIDTHS)):
            buffer = buffers[part].index(stage)
            for span in gl.static_range(WIDTHS[part] // columns.span_of(WIDTHS[part])):
                column = head_column + part * WIDTHS[0] + span * tiles.SPAN
                rows = buffer.slice(span * KV_TILE + box * BOX_ROWS, BOX_ROWS)
                tma.async_copy_global_to_shared(descriptors[part], [row, column], full.index(stage), rows)


@gluon.jit
def load_tiles(
    key_descriptors,
    value_descriptors,
    key_buffers,
    value_buffers,
    keys_full,
    keys_empty,
    values_full,
    values_empty,
    numbers,
    told,
    heard,
    counter,
    query_start_loc,
    kv_lens,
    block_table,
    stride_block_table,
    num_requests,
    num_tiles,
    num_kv_heads,
    num_segments,
    key_page_rows,
    key_head_rows,
    key_head_columns,
    value_page_rows,
    value_head_rows,
    value_head_columns,
    TILE_TOKENS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    PAGE_SIZE: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    BOX_ROWS: gl.constexpr,
    KV_TILE: gl.constexpr,
    CHUNK: gl.constexpr,
    KEY_STAGES: gl.constexpr,
    VALUE_STAGES: gl.constexpr,
    DYNAMIC: gl.constexpr,
):
    """What the loading warp does from its start to its end. The arguments are those of `paged_attention_kernel`."""
    count = 0
    told_tiles = 0
    item = gl.program_id(0)
    while item < num_tiles * num_kv_heads * num_segments:
        # The last tiles of a causal request have the most keys: they come first.
        tile = num_tiles - 1 - item % num_tiles
        kv_head = (item // num_tiles) % num_kv_heads
        segment = item // (num_tiles * num_kv_heads)
        request, first_row, query_len, tile_token = _find_request(tile, query_start_loc, num_requests, TILE_TOKENS)
        if tile_token < query_len:
            end_key = gl.load(kv_lens + request)
            first_position = end_key - query_len
            if CAUSAL:
                end_key = gl.maximum(first_position + gl.minimum(tile_token + TILE_TOKENS, query_len), 0)
            begin_key = 0
            if WINDOW:
                begin_key = gl.minimum(gl.maximum(first_position + tile_token - (WINDOW - 1), 0), end_key)
            # A segment owns whole chunks, side by side.
            first_chunk = begin_key // CHUNK
            num_chunks = gl.cdiv(end_key, CHUNK) - first_chunk
            begin_chunk = first_chunk + num_chunks * segment // num_segments
            end_chunk = first_chunk + num_chunks * (segment + 1) // num_segments
            begin_tile = gl.maximum(begin_chunk * CHUNK, begin_key // KV_TILE * KV_TILE)
            end_tile = gl.minimum(end_chunk * CHUNK, end_key)

            slot = told_tiles % tiles.SLOTS
            mbarrier.wait(heard.index(slot), ((told_tiles // tiles.SLOTS) & 1) ^ 1)
            tiles.tell(numbers, slot, tiles.FIRST_ROW, first_row)
            tiles.tell(numbers, slot, tiles.TILE_TOKEN, tile_token)
            tiles.tell(numbers, slot, tiles.QUERY_LEN, query_len)
            tiles.tell(numbers, slot, tiles.FIRST_POSITION, first_position)
            tiles.tell(numbers, slot, tiles.KV_HEAD, kv_head)
            tiles.tell(numbers, slot, tiles.BEGIN_KEY, begin_key)
            tiles.tell(numbers, slot, tiles.END_KEY, end_key)
            tiles.tell(numbers, slot, tiles.BEGIN_TILE, begin_tile)
            tiles.tell(numbers, slot, tiles.END_TILE, end_tile)
            mbarrier.arrive(told.index(slot))
            told_tiles += 1

            block_table_row = block_table + request.to(gl.int64) * stride_block_table
            for tile_key in range(begin_tile, end_tile, KV_TILE):
                pages = ()
                for box in gl.static_range(KV_TILE // BOX_ROWS):
                    # In place of pages that hold nothing for these rows, and may be anyone's, one that does.
                    key = gl.minimum(gl.maximum(tile_key + box * BOX_ROWS, begin_key), end_key - 1)
                    pages += (gl.load(block_table_row + key // PAGE_SIZE),)
                _load_tile(
                    key_descriptors,
                    key_buffers,
                    keys_full,
                    keys_empty,
                    count,
                    pages,
                    kv_head * key_head_rows,
                    key_page_rows,
                    kv_head * key_head_columns,
                    tile_key,
                    HEAD_DIM,
                    PAGE_SIZE,
                    BOX_ROWS,
                    KV_TILE,
                    KEY_STAGES,
                )
                _load_tile(
                    value_descriptors,
                    value_buffers,
                    values_full,
                    values_empty,
                    count,
                    pages,
                    kv_head * value_head_rows,
                    value_page_rows,
                    kv_head * value_head_columns,
                    tile_key,
                    HEAD_DIM,
                    PAGE_SIZE,
                    BOX_ROWS,
                    KV_TILE,
                    VALUE_STAGES,
                )
                count += 1
        if DYNAMIC:
            item = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        else:
            item += gl.num_programs(0)
    slot = told_tiles % tiles.SLOTS
    mbarrier.wait(heard.index(slot), ((told_tiles // tiles.SLOTS) & 1) ^ 1)
    tiles.tell(numbers, slot, tiles.QUERY_LEN, -1)
    mbarrier.arrive(told.index(slot))
