"""A linear layer for Hopper, with the arithmetic of `linear` and so its bits.

A warpgroup's `wgmma` adds up each element of its tile by itself, 16 features after another, however wide the tile is:
tiles may have any number of columns, and are as the number of rows asks, without a bit that follows from it. All
features are summed in one go, from zero, in ascending order. Features, rows and columns that do not exist are zeros
that the tensor memory accelerator fills in.

Of the warps of a program, one loads: it has tiles of rows and of weights brought into a ring of shared memory, as far
ahead as there is room, over the ends of tiles. Each of one or two warpgroups computes 64 rows of a tile of the output.
Programs stay and take one tile after another.
"""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Rows that a warpgroup computes: those of its instruction.
ROWS = gl.constexpr(64)
# Features that lie side by side in shared memory: 128 bytes.
SPAN = gl.constexpr(64)
# Tiles of rows that are computed side by side, for the cache's sake.
ROW_GROUP = gl.constexpr(16)
# What setmaxnreg gives threads that load, and those of the second warpgroup.
LOADING_REGISTERS = gl.constexpr(24)
COMPUTING_REGISTERS = gl.constexpr(240)


@gluon.jit
def _count_tiles(output_descriptor, BLOCK_ROWS: gl.constexpr, BLOCK_COLUMNS: gl.constexpr):
    return gl.cdiv(output_descriptor.shape[0], BLOCK_ROWS), gl.cdiv(output_descriptor.shape[1], BLOCK_COLUMNS)


@gluon.jit
def _place_of(tile, num_row_tiles, num_column_tiles):
    """Finds a tile's row and column of tiles: of a group of rows of tiles, one column after another."""
    group_size = ROW_GROUP * num_column_tiles
    first_row_tile = tile // group_size * ROW_GROUP
    rows_of_group = gl.minimum(num_row_tiles - first_row_tile, ROW_GROUP)
    place = tile % group_size
    return first_row_tile + place % rows_of_group, place // rows_of_group


@gluon.jit
def _first_row(row_tile, warpgroup, num_rows, WARPGROUPS: gl.constexpr, BOX_ROWS: gl.constexpr):
    """Where the rows of a warpgroup begin.

    The last ones begin earlier than their tile where it has more rows than there are: those before are computed twice,
    and stored with the same bits. To load rows takes less time than to fill in zeros.
    """
    row = (row_tile * WARPGROUPS + warpgroup) * ROWS
    return gl.minimum(row, gl.maximum(num_rows - BOX_ROWS, 0))


@gluon.jit
def _load_tiles(
    input_descriptor,
    weight_descriptor,
    output_descriptor,
    input_buffers,
    weight_buffers,
    full,
    empty,
    STAGES: gl.constexpr,
    WARPGROUPS: gl.constexpr,
):
    """What the loading warp does from its start to its end."""
    BLOCK_COLUMNS: gl.constexpr = weight_descriptor.block_shape[0]
    FEATURE_TILE: gl.constexpr = weight_descriptor.block_shape[1]
    BOX_ROWS: gl.constexpr = input_descriptor.block_shape[0]
    # Elements have two bytes. What does not exist counts.
    STAGE_BYTES: gl.constexpr = (BOX_ROWS * WARPGROUPS + BLOCK_COLUMNS) * FEATURE_TILE * 2
    num_row_tiles, num_column_tiles = _count_tiles(output_descriptor, ROWS * WARPGROUPS, BLOCK_COLUMNS)
    count = 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = _place_of(tile, num_row_tiles, num_column_tiles)
        for feature in range(0, input_descriptor.shape[1], FEATURE_TILE):
            stage = count % STAGES
            mbarrier.wait(empty.index(stage), ((count // STAGES) & 1) ^ 1)
            loaded = full.index(stage)
            mbarrier.expect(loaded, STAGE_BYTES)
            weights = weight_buffers.index(stage)
            tma.async_copy_global_to_shared(weight_descriptor, [column_tile * BLOCK_COLUMNS, feature], loaded, weights)
            for warpgroup in gl.static_range(WARPGROUPS):
                row = _first_row(row_tile, warpgroup, output_descriptor.shape[0], WARPGROUPS, BOX_ROWS)
                inputs = input_buffers.index(stage * WARPGROUPS + warpgroup)
                for span in gl.static_range(FEATURE_TILE // SPAN):
                    part = inputs.slice(span * ROWS, BOX_ROWS)
                    tma.async_copy_global_to_shared(input_descriptor, [row, feature + span * SPAN], loaded, part)
            count += 1


@gluon.jit
def _compute_tiles(
    WARPGROUP: gl.constexpr,
    input_descriptor,
    output_descriptor,
    bias,
    input_buffers,
    weight_buffers,
    output_buffers,
    full,
    empty,
    STAGES: gl.constexpr,
    WARPGROUPS: gl.constexpr,
    WITH_BIAS: gl.constexpr,
):
    """What a warpgroup does from its start to its end."""
    BLOCK_COLUMNS: gl.constexpr = output_descriptor.block_shape[1]
    BOX_ROWS: gl.constexpr = input_descriptor.block_shape[0]
    FEATURE_TILE: gl.constexpr = weight_buffers.shape[2]
    OPERAND: gl.constexpr = weight_buffers.layout
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_COLUMNS, 16])
    num_row_tiles, num_column_tiles = _count_tiles(output_descriptor, ROWS * WARPGROUPS, BLOCK_COLUMNS)
    output_buffer = output_buffers.index(WARPGROUP)
    count = 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = _place_of(tile, num_row_tiles, num_column_tiles)
        sums = gl.full([ROWS, BLOCK_COLUMNS], 0.0, gl.float32, SUMS)
        for feature in range(0, input_descriptor.shape[1], FEATURE_TILE):
            stage = count % STAGES
            mbarrier.wait(full.index(stage), (count // STAGES) & 1)
            inputs = input_buffers.index(stage * WARPGROUPS + WARPGROUP)
            inputs = inputs._reinterpret(inputs.dtype, [ROWS, FEATURE_TILE], OPERAND)
            weights = weight_buffers.index(stage).permute((1, 0))
            adding = warpgroup_mma(inputs, weights, sums, use_acc=feature > 0, is_async=True)
            # The products before these are done, and what they read may be overwritten.
            sums = warpgroup_mma_wait(1, deps=[adding])
            mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), pred=feature > 0)
            count += 1
        sums = warpgroup_mma_wait(0, deps=[sums])
        mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES))

        # As in `linear`, where a sum is added to zero: a sum of -0 is +0.
        total = sums + 0.0
        if WITH_BIAS:
            column = column_tile * BLOCK_COLUMNS + gl.arange(0, BLOCK_COLUMNS, gl.SliceLayout(0, SUMS))
            exists = column < output_descriptor.shape[1]
            total += gl.load(bias + column, mask=exists, other=0.0).to(gl.float32)[None, :]
        # The last tile's store has read the buffer.
        tma.store_wait(0)
        output_buffer.store(total.to(output_buffer.dtype))
        fence_async_shared()
        row = _first_row(row_tile, WARPGROUP, output_descriptor.shape[0], WARPGROUPS, BOX_ROWS)
        tma.async_copy_shared_to_global(output_descriptor, [row, column_tile * BLOCK_COLUMNS], output_buffer)
    tma.store_wait(0)


@gluon.jit(do_not_specialize_on_alignment=["bias"])
def linear_kernel(
    input_descriptor,
    weight_descriptor,
    output_descriptor,
    bias,
    STAGES: gl.constexpr,
    WARPGROUPS: gl.constexpr,
):
    """Computes tiles of the output, of which programs take every n-th of n programs.

    Args:
        input_descriptor: `[num_rows, in_features]` of 16-bit elements, in boxes of `[rows, SPAN]`: fewer than `ROWS`
            only where all rows are in one. What the others come to is stored nowhere.
        weight_descriptor: `[out_features, in_features]`, in boxes of `[columns of a tile, features of a tile]`.
        output_descriptor: `[num_rows, out_features]`, in boxes of `[ROWS, columns of a tile]`.
        bias: `[out_features]`, or None.
        STAGES: buffers of the ring.
        WARPGROUPS: 1 or 2 warpgroups, which share the weights of a tile.
    """
    dtype: gl.constexpr = input_descriptor.dtype
    BLOCK_COLUMNS: gl.constexpr = weight_descriptor.block_shape[0]
    FEATURE_TILE: gl.constexpr = weight_descriptor.block_shape[1]
    WITH_BIAS: gl.constexpr = bias is not None
    # None cannot be handed on to warps of their own. Nobody reads what stands in its place.
    if bias is None:
        bias = gl.num_programs(0)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    # Spans one after another, as those of the weights lie.
    input_buffers = gl.allocate_shared_memory(
        dtype, [STAGES * WARPGROUPS, ROWS * FEATURE_TILE // SPAN, SPAN], input_descriptor.layout
    )
    weight_buffers = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_COLUMNS, FEATURE_TILE], weight_descriptor.layout)
    output_buffers = gl.allocate_shared_memory(dtype, [WARPGROUPS, ROWS, BLOCK_COLUMNS], output_descriptor.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=WARPGROUPS)
    fence_async_shared()

    # Arguments are spelt out for each: kept under a name, constants among them would become numbers of the device.
    # fmt: off
    if WARPGROUPS == 1:
        gl.warp_specialize([
            (_compute_tiles, (0,
                input_descriptor, output_descriptor, bias, input_buffers, weight_buffers, output_buffers, full, empty,
                STAGES, WARPGROUPS, WITH_BIAS,
            )),
            (_load_tiles, (
                input_descriptor, weight_descriptor, output_descriptor, input_buffers, weight_buffers, full, empty,
                STAGES, WARPGROUPS,
            )),
        ], [1], [LOADING_REGISTERS])
    else:
        gl.warp_specialize([
            (_compute_tiles, (0,
                input_descriptor, output_descriptor, bias, input_buffers, weight_buffers, output_buffers, full, empty,
                STAGES, WARPGROUPS, WITH_BIAS,
            )),
            (_compute_tiles, (1,
                input_descriptor, output_descriptor, bias, input_buffers, weight_buffers, output_buffers, full, empty,
                STAGES, WARPGROUPS, WITH_BIAS,
            )),
            (_load_tiles, (
                input_descriptor, weight_descriptor, output_descriptor, input_buffers, weight_buffers, full, empty,
                STAGES, WARPGROUPS,
            )),
        ], [4, 1], [COMPUTING_REGISTERS, LOADING_REGISTERS])
    # fmt: on
